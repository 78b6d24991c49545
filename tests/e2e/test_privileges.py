"""What is left to the processes that read packets and the proxy's answers."""

import os
import pathlib
import re
import shutil
import socket
import tempfile

import pytest

import socks5
from lab import CULVERT, DIRECT, SANITIZED, Culvert, wait_for
from ordinary import UID, User, processes_of_user
from servers import TcpServer

NOBODY = "65534"
NET_ADMIN_AND_RAW = 1 << 12 | 1 << 13

pytestmark = pytest.mark.skipif(DIRECT, reason="is about culvert alone")


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def named(pids, name):
    return [pid for pid in pids if status(pid)["Name"] == name]


def assert_deprived(pid, user=NOBODY, capabilities=0, locked=True):
    found = status(pid)
    assert found["Uid"].split() == [user] * 4
    assert found["Gid"].split() == [user] * 4
    assert found["Groups"].split() == []
    for kind in ("CapInh", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[kind], 16) == capabilities, kind
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == ("2" if locked else "0")


def assert_alone(pid):
    """Number 1 of a PID namespace that nobody else is in; and of mounts and IPC as well."""
    assert status(pid)["NSpid"].split()[1:] == ["1"]
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid]
    for kind in ("pid", "ipc") if SANITIZED else ("pid", "ipc", "mnt"):
        mine = namespace(pid, kind)
        for other in others:
            try:
                assert namespace(other, kind) != mine, (kind, other)
            except OSError:  # it has ended
                pass


@pytest.fixture(scope="module")
def confined(lab, serve):
    with lab.tunnel(serve.url) as tunnel:
        yield tunnel


def broker_of(process):
    """Its broker, locked in; what is ready has not waited for that, but what is asked of a broker does."""
    pid, = wait_for(lambda: [pid for pid in process.brokers() if status(pid)["Seccomp"] == "2"],
                    "the broker has confined itself")
    return pid


def test_worker_is_nobody_without_capabilities(confined):
    pid, = confined.workers()
    assert_deprived(pid)
    assert_alone(pid)


def test_broker_keeps_what_sockets_need_and_no_more(confined):
    pid = broker_of(confined)
    assert_deprived(pid, capabilities=NET_ADMIN_AND_RAW)
    assert_alone(pid)


def test_server_listens_where_only_root_may_and_is_nobody(lab):
    app = lab.client()
    with lab.culvert_serve("--mark", "5", port=81) as server:
        pid, = server.children("culvert-server")
        assert_deprived(pid)
        assert_alone(pid)
        assert_deprived(broker_of(server), capabilities=NET_ADMIN_AND_RAW)
        with socks5.connect(app, (server.host, 81), "www.test", 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    with lab.culvert_serve("--user", "daemon") as server:
        assert_deprived(server.children("culvert-server")[0], user="1")
    app.close()


def test_server_that_dies_is_replaced(lab):
    """The port stays open meanwhile."""
    app = lab.client()
    with lab.culvert_serve() as server:
        for victim in ("culvert-server", "culvert-broker"):
            before = server.tree()[1:]
            os.kill(server.children(victim)[0], 9)
            app.connect(server.host, server.port).close()
            wait_for(lambda: len(server.tree()) == 3 and not set(before) & set(server.tree()),
                     "both are new", 5)
            with socks5.connect(app, (server.host, server.port), lab.world4, 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
    app.close()


def test_who_checks_is_nobody(lab):
    """What the proxy says to `check` is read by a process that may do nothing with it."""
    asked = []

    def silent(sock):
        asked.append(sock.recv(100))
        sock.recv(100)

    stalling = TcpServer(lab.mid, silent)
    process = Culvert(lab.mid, "check", "--mark", "5", f"socks5://{lab.proxy4}:{stalling.port}",
                      stdout=open(os.devnull, "w", encoding="ascii"))
    process.checked = process.stopped = True
    try:
        wait_for(lambda: asked, "the greeting is there")
        pid, = process.children("culvert-errand")
        assert_deprived(pid)
        assert_alone(pid)
    finally:
        process.kill()
        stalling.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/ns/pid"), "it dies with its master")


def test_worker_of_an_ordinary_user(lab, serve):
    """Who owns nothing owns its own user namespace, and through it the others."""
    host = lab.client()
    host.set_resolver(lab.proxy4)
    with tempfile.TemporaryDirectory(prefix="culvert-privileges-") as folder:
        os.chmod(folder, 0o755)
        process = User(host, pathlib.Path(folder)).start(serve.url, "sleep", "60")
        try:
            assert "ready" in process.stderr.readline()
            pid, = named(processes_of_user(), "culvert-worker")
            assert_deprived(pid, user=str(UID))
            assert_alone(pid)
            assert namespace(pid, "user") != namespace(process.pid, "user")
            if not SANITIZED:
                assert sorted(os.listdir(f"/proc/{pid}/root")) == ["dev", "etc"]
        finally:
            process.terminate()
            process.communicate(timeout=10)
    host.close()


def test_goes_on_where_namespaces_are_forbidden(lab, serve):
    """As in many containers: root without CAP_SYS_ADMIN."""
    fewer = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    with lab.tunnel(serve.url, before=fewer) as tunnel:
        pid, = tunnel.workers()
        assert_deprived(pid)
        assert namespace(pid, "pid") == namespace(tunnel.pid, "pid")
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        os.kill(pid, 9)
        wait_for(lambda: tunnel.workers() not in ([], [pid]), "there is another", 5)


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
@pytest.mark.skipif(SANITIZED, reason="LeakSanitizer cannot work under strace")
def test_supervisor_hears_nothing_from_the_network(lab, serve, tmp_path):
    """It makes no socket that the network could reach, and does not read its device."""
    trace = tmp_path / "trace"
    calls = "socket,connect,accept,accept4,read,readv,recvfrom,recvmsg,recvmmsg"
    strace = ("strace", "-y", "-e", f"trace={calls}", "-e", "signal=none", "-o", str(trace))
    url = f"socks5://proxy.test:{serve.port}"
    with lab.tunnel(url, before=strace) as tunnel:
        culvert, = map(int, pathlib.Path(f"/proc/{tunnel.pid}/task/{tunnel.pid}/children")
                       .read_text(encoding="ascii").split())
        try:
            assert tunnel.app.run("getent", "ahosts", "www.test").stdout
            with tunnel.app.connect(lab.world4, 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
        finally:
            os.kill(culvert, 15)  # strace would not pass it on
            tunnel.stopped = True
        assert tunnel.wait_end() == 0
        tunnel.checked = True
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    assert any("read(" in line and "pipe:" in line for line in lines), lines
    heard = re.compile(r"^(?:read|recv)\w*\(\d+<(?:TCP|UDP|/dev/net/tun)|^accept|^connect.*AF_INET")
    assert not [line for line in lines if heard.search(line)]
    # interfaces are asked for and set up through datagram sockets, which are never bound
    assert not [line for line in lines if re.match(r"socket\(AF_INET6?, SOCK_(STREAM|RAW)", line)]


@pytest.mark.skipif(SANITIZED, reason="sanitizers read /proc")
def test_what_they_see_is_next_to_nothing(confined):
    for pid in (*confined.workers(), broker_of(confined)):
        assert sorted(os.listdir(f"/proc/{pid}/root")) == ["dev", "etc"]
        assert os.listdir(f"/proc/{pid}/root/dev") == ["urandom"]
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
            for line in file:
                mounted_at, options = line.split()[4:6]
                # what was mounted on a file of /etc keeps its own options: nobody cannot write it
                assert "ro" in options.split(",") or mounted_at.startswith("/etc/"), line


def test_descriptors_are_their_own(confined):
    """No netlink socket, lock or journal that somebody privileged has opened."""
    pid, = confined.workers()
    inherited = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert inherited.count("/dev/net/tun") == 1
    assert not any("netns" in path for path in inherited), inherited
    assert sum("signalfd" in path for path in inherited) == 1, "its own"


def test_marked_sockets_come_from_the_broker(lab, serve):
    """The worker could not set a mark, and yet its connections follow the marked route."""
    app = lab.client()
    app.ip(f"route add {lab.proxy4} via {app.gateway4} table 77")
    app.ip("rule add fwmark 0x4d priority 77 lookup 77")
    app.ip(f"route del {lab.proxy4}")
    with lab.tunnel(serve.url, "--mark", "0x4d", "--bind-interface", "up0", app=app) as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"marked")
            assert sock.recv(10) == b"marked"
        with tunnel.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"marked too", (lab.world4, 7))
            assert sock.recv(20) == b"marked too"
    app.close()


def test_broker_that_dies_is_replaced_with_its_worker(lab, serve):
    with lab.tunnel(serve.url) as tunnel:
        broker = broker_of(tunnel)
        before = [*tunnel.workers(), broker]
        os.kill(broker, 9)
        wait_for(lambda: len(tunnel.workers()) == len(tunnel.brokers()) == 1 and
                 not set(before) & set(tunnel.tree()), "both are new", 2)
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"hello")
            assert sock.recv(10) == b"hello"


def test_another_user(lab, serve):
    with lab.tunnel(serve.url, "--user", "daemon") as tunnel:
        assert status(tunnel.workers()[0])["Uid"].split() == ["1"] * 4


def test_a_user_that_is_not_there(lab, serve):
    culvert = Culvert(lab.mid, "tun", "--user", "no-such-user", serve.url)
    culvert.checked = culvert.stopped = True
    assert culvert.wait_end() == 1
    assert "no-such-user" in culvert.log and "--user" in culvert.log


def test_the_proxys_name_resolves_inside(lab, serve):
    """resolv.conf, hosts and random numbers are there."""
    with lab.tunnel(f"socks5://proxy.test:{serve.port}") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"by name")
            assert sock.recv(10) == b"by name"


NASTY = b"\x1b[31mred\x9b2J\nculvert: forged \xe2\x80\xae\xff\\"


def test_log_lines_escape_what_remotes_send(lab, tmp_path):
    """Names in requests to the server, in queries and datagrams; a proxy's garbage."""
    app = lab.client()
    garbage = TcpServer(lab.mid, lambda sock: (sock.recv(100), sock.sendall(NASTY)))
    length = bytes([len(NASTY)])
    with lab.culvert_serve("--log-level", "trace") as server:
        with app.connect(server.host, server.port) as sock:
            sock.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + length + NASTY + b"\x00\x07")
            sock.recv(100)
        with app.connect(server.host, server.port) as sock:
            sock.sendall(NASTY)
            sock.recv(100)
        with socks5.Association(app, (server.host, server.port)) as association:
            association.udp.sendto(b"\0\0\0\x03" + length + NASTY + b"\0\x07x", association.relay)
            association.send(b"x", lab.world4, 7)
            assert association.receive()[0] == b"x"
        wait_for(lambda: server.count("red"), "the name is told of")
    log = tmp_path / "log"
    url = f"socks5://{lab.proxy4}:{garbage.port}"
    with lab.tunnel(url, "--log-level", "trace", "--log-file", str(log), app=app) as tunnel:
        query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + length + NASTY + b"\4test\0\0\x01\0\x01"
        with app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(query, ("198.18.0.2", 53))
            sock.recv(1000)
        with pytest.raises(OSError):
            app.connect(lab.world4, 7)
        tunnel.settle()
    lines = server.lines + tunnel.lines + log.read_bytes().decode("latin-1").splitlines()
    assert len(lines) > 10
    for line in lines:
        assert re.fullmatch(r"[ -~]*", line), line
        assert "culvert: forged" not in line or "\\x0aculvert: forged" in line
    app.close()
    garbage.close()
