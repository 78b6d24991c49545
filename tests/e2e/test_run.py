"""`culvert run`: one command of an ordinary user through the proxy, and nothing beside it."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import textwrap
import time

import pytest

import lab as laboratory
from desktop import Capture, settle
from lab import CULVERT
from netns import Namespace, wait_for
from ordinary import GID, UID, Terminal, User, processes_of_user, sorted_out
from programs import Nginx, many_images
from proxies import ssh_command, start_sshd
from servers import TcpServer, echo

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert alone")


@pytest.fixture(scope="module")
def folder():
    """Unlike pytest's own, open to the user."""
    with tempfile.TemporaryDirectory(prefix="culvert-run-") as path:
        os.chmod(path, 0o755)
        yield pathlib.Path(path)


@pytest.fixture(scope="module")
def host(lab):
    """Where the user is: like any application's host it reaches the proxy and nothing else."""
    space = lab.client()
    space.set_resolver(lab.proxy4)
    yield space
    space.close()


@pytest.fixture(scope="module")
def user(host, folder):
    return User(host, folder)


@pytest.fixture(scope="module")
def nginx(lab, folder):
    (folder / "nginx").mkdir()
    return lab.serve(Nginx(lab.world, folder / "nginx"))


def zombies():
    """Zombies that init got: this machine's may leave them."""
    done = subprocess.run(["ps", "-o", "pid=,stat=,uid=", "--ppid", "1"], text=True,
                          stdout=subprocess.PIPE, check=False)
    return {line.split()[0] for line in done.stdout.splitlines()
            if line.split()[1].startswith("Z") and line.split()[2] == str(UID)}


@pytest.fixture(autouse=True)
def nothing_left():
    """After each test nothing of the user's runs any more, relays included."""
    yield
    try:
        wait_for(lambda: not processes_of_user(), "the user's last process ends", 10)
    except AssertionError as problem:
        left = processes_of_user()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"still running: {left}") from problem


def python(code):
    return ["/usr/bin/python3", "-c", textwrap.dedent(code)]


# --- the network ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["www.test", "v4.test", "v6.test", "10.88.0.2", "[fd88::2]"])
def test_curl(user, serve, nginx, name):
    done = user.culvert(serve.url, "curl", "-sS", "-m", 10, f"http://{name}/")
    assert (done.returncode, done.stderr) == (0, "")
    assert "It goes through." in done.stdout


def test_names_over_udp_dns(user, serve):
    done = user.culvert(serve.url, "dig", "+short", "www.test")
    assert done.stdout.startswith("198.18.") or done.stdout.startswith("198.19."), done.stdout
    done = user.culvert(serve.url, "dig", "+short", "@8.8.8.8", "AAAA", "www.test")
    assert done.stdout.startswith("fdc0:"), done.stdout


def test_dns_relayed(lab, user, serve):
    """The resolver inside is the one that answers."""
    done = user.culvert(serve.url, "dig", "+short", "v4.test",
                        options=["--dns", "relay", "--dns-server", lab.world4])
    assert done.stdout.strip() == "10.88.0.2"


@pytest.mark.parametrize("address", ["10.88.0.2", "fd88::2"])
def test_udp(user, serve, address):
    done = user.culvert(serve.url, *python(f"""
        import socket
        s = socket.socket(socket.AF_INET6 if ":" in "{address}" else socket.AF_INET,
                          socket.SOCK_DGRAM)
        s.settimeout(5)
        s.sendto(b"datagram " * 500, ("{address}", 7))
        data, peer = s.recvfrom(9000)
        assert data == b"datagram " * 500 and peer[0] == "{address}", (data, peer)
        """))
    assert (done.returncode, done.stderr) == (0, "")


STATIC = """
#include <arpa/inet.h>
#include <string.h>
#include <unistd.h>
int main(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7)};
    char back[6] = "";
    inet_pton(AF_INET, "10.88.0.2", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0 || write(fd, "static", 6) != 6)
        return 1;
    return read(fd, back, 6) == 6 && memcmp(back, "static", 6) == 0 ? 0 : 2;
}
"""


def test_static_binary(user, serve, folder):
    """What no LD_PRELOAD reaches."""
    (folder / "static.c").write_text(STATIC)
    subprocess.run(["gcc", "-static", "-o", folder / "static", folder / "static.c"], check=True)
    assert user.culvert(serve.url, folder / "static").returncode == 0


@pytest.mark.parametrize("resolver", ["go", "cgo"])
def test_go_program(user, serve, nginx, resolver):
    """Go makes its own system calls, and has a resolver of its own."""
    done = user.culvert(serve.url, "hey", "-n", 20, "-c", 5, "http://www.test/",
                        env={"GODEBUG": f"netdns={resolver}"})
    assert "[200]\t20 responses" in done.stdout, done.stdout + done.stderr


def test_two_at_once(user, serve, nginx):
    """Each has a network of its own, with a device of the same name."""
    first = user.start(serve.url, "sh", "-c", "sleep 2; curl -sS http://v4.test/",
                       stdout=subprocess.PIPE)
    second = user.culvert(serve.url, "curl", "-sS", "http://v6.test/")
    assert "It goes through." in second.stdout
    assert "It goes through." in first.communicate(timeout=20)[0]


@pytest.fixture(scope="module")
def home(folder):
    path = folder / "home"
    path.mkdir()
    os.chown(path, UID, GID)
    return path


def test_chromium_loads_a_page(user, serve, nginx, home):
    """A browser with a sandbox of its own, a hundred resources over HTTPS by host name."""
    many_images(nginx.root, 100)
    done = user.culvert(serve.url, "chromium-headless-shell", "--ignore-certificate-errors",
                        "--dump-dom", "--virtual-time-budget=10000", f"--user-data-dir={home}/web",
                        "https://www.test/many.html", env={"HOME": str(home)}, timeout=50)
    assert "images: 100" in done.stdout, done.stdout[-500:] + done.stderr[-3000:]


def test_git_over_http(user, serve, nginx, home, folder):
    source = folder / "source"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["git", "init", "-q", source], **quiet)
    (source / "file").write_text("under version control\n")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["add", "file"], [*me, "commit", "-qm", "x"],
                    ["clone", "-q", "--bare", source, nginx.root / "repo.git"]):
        subprocess.run(["git", "-C", source, *command], **quiet)
    subprocess.run(["git", "-C", nginx.root / "repo.git", "update-server-info"], **quiet)
    done = user.culvert(serve.url, "git", "clone", "-q", "http://www.test/repo.git", home / "clone",
                        env={"HOME": str(home)})
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "clone" / "file").read_text() == "under version control\n"


def test_ssh(lab, user, serve, home):
    """ssh wants its user to have a name."""
    sshd = start_sshd(lab.world, home, 2222)
    for file in ("user", "known"):
        os.chown(home / file, UID, GID)
    entry = f"someone:x:{UID}:{GID}::{home}:/bin/sh"
    before = f"cp /etc/passwd {home}/passwd; echo {entry} >> {home}/passwd; " \
             f"mount --bind {home}/passwd /etc/passwd; "
    done = user.culvert(serve.url, *ssh_command(home, 2222), "root@v6.test",
                        "echo $SSH_CONNECTION; exit 17", before=before)
    sshd.close()
    assert done.returncode == 17, done.stderr
    assert done.stdout.split()[2] == "fd88::2"


def test_quic(lab, user, serve, nginx, folder):
    """ngtcp2's HTTP/3 client and server: UDP with pacing, GSO and path probes."""
    server = lab.world.popen("gtlsserver", "-q", "-d", nginx.root, "*", 4433,
                             folder / "nginx/server.key", nginx.certificate,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lab.world.listening(4433, "u"), "gtlsserver listens")
    done = user.culvert(serve.url, "gtlsclient", "-q", "--exit-on-all-streams-close",
                        "--download", folder / "quic", "www.test", 4433,
                        "https://www.test:4433/index.html",
                        before=f"mkdir -m 777 -p {folder}/quic; ")
    server.kill()
    fetched = (folder / "quic" / "index.html").read_text()
    assert fetched == (nginx.root / "index.html").read_text(), done.stderr


def test_proxy_behind_a_proxy(lab, user, serve):
    """One run within another: the inner one's connections go through the outer one's proxy."""
    with lab.culvert_serve(space=lab.world, host="10.88.0.3") as far:
        before = len(lab.echo.peers)
        done = user.culvert(serve.url, CULVERT, "run", far.url, "--", *python("""
            import socket
            with socket.create_connection(("10.88.0.2", 7), 5) as s:
                s.sendall(b"x")
                assert s.recv(1) == b"x"
            """))
        assert (done.returncode, done.stderr) == (0, "")
        assert len(lab.echo.peers) > before
        assert "10.88.0.2" in lab.echo.peers[-1][0], "it came from mid, past the far proxy"


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_several_workers(user, serve, nginx, root):
    """An ordinary user may not be allowed the eBPF that spreads packets: then one does it."""
    done = user.culvert(serve.url, "hey", "-n", 200, "-c", 20, "http://www.test/", root=root,
                        options=["--workers", 3])
    assert "[200]\t200 responses" in done.stdout, done.stdout + done.said
    assert "one worker instead of 3" not in done.said or not root


def test_ping_is_answered_if_asked_for(user, serve):
    code = """
        import socket
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        s.settimeout(5)
        s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b"ping", ("10.88.0.2", 0))
        assert s.recv(100).endswith(b"ping")
        """
    done = user.culvert(serve.url, *python(code), options=["--icmp", "reply"])
    assert (done.returncode, done.stderr) == (0, "")


# --- no way around -------------------------------------------------------------------------------

TRY_EVERYTHING = """
    import socket, subprocess
    for family, host in ((socket.AF_INET, "10.88.0.2"), (socket.AF_INET6, "fd88::2"),
                         (socket.AF_INET, "10.77.0.1"), (socket.AF_INET, "{gateway}")):
        for kind, port in ((socket.SOCK_STREAM, 7), (socket.SOCK_DGRAM, 7),
                           (socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 5353)):
            s = socket.socket(family, kind)
            s.settimeout(0.2)
            try:
                s.connect((host, port))
                s.send(b"way out?")
                s.recv(10)
                assert False, "an answer"
            except OSError:
                pass
    try:
        socket.getaddrinfo("www.test", 80)
    except OSError:
        pass
    subprocess.run(["curl", "-sS", "-m", "2", "http://www.test/"], stderr=subprocess.DEVNULL)
    """


def test_nothing_leaves_while_the_proxy_is_down(lab, host, user):
    """The host's interfaces see attempts to reach the proxy, and no other packet."""
    gateway = host.ip("-4 route get 10.77.0.1").split("via ")[1].split()[0]
    settle(host, [lab.mid])
    with Capture(host, "up0") as uplink, Capture(host, "lo") as loopback:
        done = user.culvert(f"socks5://{lab.proxy4}:4456",
                            *python(TRY_EVERYTHING.replace("{gateway}", gateway)))
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.said
    strange = [p for p in uplink.packets + loopback.packets
               if 4456 not in (p.sport, p.dport) or p.protocol != 6]
    assert uplink.packets and not strange, strange


def test_only_the_proxy_is_talked_to(lab, host, user, serve, nginx):
    settle(host, [lab.mid])
    with Capture(host, "up0") as uplink, Capture(host, "lo") as loopback:
        done = user.culvert(serve.url, "curl", "-sS", "http://www.test/")
    assert "It goes through." in done.stdout
    strange = [p for p in uplink.packets if serve.port not in (p.sport, p.dport)]
    assert uplink.packets and not strange and not loopback.packets, (strange, loopback.packets)


def test_proxy_on_the_host_s_loopback(lab, folder):
    """culvert reaches it; the command does not, nor any other service there."""
    there = User(lab.mid, folder)
    code = """
        import socket, sys
        with socket.create_connection(("10.88.0.2", 7)) as s:
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        for host, port in (("127.0.0.1", int(sys.argv[1])), ("127.0.0.1", int(sys.argv[2])),
                           ("::1", int(sys.argv[2])), ("localhost", int(sys.argv[2]))):
            try:
                socket.create_connection((host, port), 2)
            except ConnectionRefusedError:
                continue
            sys.exit(f"{host} {port} can be reached")
        """
    with TcpServer(lab.mid, echo, host="::") as service:
        for url in (None, "direct://"):
            with lab.culvert_serve(host="127.0.0.1") as proxy:
                done = there.culvert(url or proxy.url, *python(code), proxy.port, service.port)
            assert (done.returncode, done.stderr) == (0, "")
        assert not service.peers


def test_only_loopback_and_the_device(user, serve):
    done = user.culvert(serve.url, "ip", "-o", "link")
    names = [line.split(":")[1].strip() for line in done.stdout.splitlines()]
    assert names == ["lo", "culvert0"]
    assert user.culvert(serve.url, "ip", "link", "set", "lo", "down").returncode != 0, \
        "the command may change its network"


LISTEN = """
import os, select, socket, sys, time
there = []
for path in sys.argv[1:]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    there.append(socket.socket(socket.AF_UNIX))
    there[-1].bind(path)
    there[-1].listen()
    os.chmod(path, 0o777)
open("/run/there", "w")
end = time.monotonic() + 20
while time.monotonic() < end:  # libc waits long for an answer of nscd: hang up
    for s in select.select(there, [], [], 1)[0]:
        s.accept()[0].close()
"""


def test_local_resolvers_are_masked(user, serve, folder):
    """nscd, systemd-resolved, avahi: libc would ask them, and they ask past the proxy."""
    (folder / "listen.py").write_text(LISTEN)
    sockets = ["/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve",
               "/run/systemd/machine/io.systemd.Machine", "/run/avahi-daemon/socket"]
    before = (f"mount -t tmpfs none /run; /usr/bin/python3 {folder}/listen.py {' '.join(sockets)} "
              "</dev/null >/dev/null 2>&1 & while ! [ -e /run/there ]; do sleep 0.1; done; ")
    code = f"""
        import socket
        for path in {sockets}:
            try:
                socket.socket(socket.AF_UNIX).connect(path)
            except OSError as error:
                print("closed", path, error)
        """
    outside = user.run(*python(code), before=before)
    assert outside.stdout == "", outside
    done = user.culvert(serve.url, *python(code), before=before)
    assert done.stdout.count("closed") == len(sockets), done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["file", "link to systemd-resolved's", "link elsewhere"])
def test_resolver_inside(user, serve, nginx, kind):
    """Wherever resolv.conf lies, inside it is culvert's and outside it stays."""
    target = {"file": "", "link to systemd-resolved's": "/run/systemd/resolve/stub-resolv.conf",
              "link elsewhere": "/run/other/resolv.conf"}[kind]
    before = "umount /etc/resolv.conf; mount -t tmpfs none /run; "
    if target:
        before += (f"mkdir -p {os.path.dirname(target)}; echo nameserver 127.0.0.53 > {target}; "
                   "cp -a /etc /run/etc; mount --bind /run/etc /etc; "
                   f"ln -sf {target} /etc/resolv.conf; ")
    else:
        before += ("cp -a /etc /run/etc; mount --bind /run/etc /etc; rm /etc/resolv.conf; "
                   "echo nameserver 127.0.0.53 > /etc/resolv.conf; ")
    script = "cat /etc/resolv.conf; curl -sS http://www.test/"
    both = user.run("sh", "-c", f'{CULVERT} run {serve.url} -- sh -c "$0"; cat /etc/resolv.conf',
                    script, before=before)
    assert both.stdout.splitlines() == ["nameserver 198.18.0.2", "<h1>It goes through.</h1>",
                                        "nameserver 127.0.0.53"], both.stderr


def test_resolver_replaced_meanwhile(lab, user, serve):
    """DHCP outside renames a new resolv.conf into place: the mount inside goes, the way stays."""
    before = "umount /etc/resolv.conf; mount -t tmpfs none /run; cp -a /etc /run/etc; " \
             f"mount --bind /run/etc /etc; chown -R {UID} /etc; "
    script = f"{CULVERT} run {serve.url} -- sh -c 'sleep 1; cat /etc/resolv.conf; dig +short " \
             "www.test' & sleep 0.5; echo nameserver 192.0.2.53 > /etc/new; " \
             "mv /etc/new /etc/resolv.conf; wait"
    done = user.run("sh", "-c", script, before=before)
    lines = done.stdout.splitlines()
    assert lines[0] == "nameserver 192.0.2.53" and lines[1].startswith("198.1"), done


def test_no_resolv_conf_is_told(user, serve):
    before = "umount /etc/resolv.conf; mount -t tmpfs none /mnt; cp -a /etc /mnt/etc; " \
             "rm -f /mnt/etc/resolv.conf; mount --bind /mnt/etc /etc; "
    done = user.culvert(serve.url, "true", before=before)
    assert done.returncode == 0 and "/etc/resolv.conf is not there" in done.said


# --- the user's own surroundings -----------------------------------------------------------------

def test_surroundings_stay(user, serve, folder):
    """User, groups, directory, umask, limits, environment, signals, descriptors."""
    script = "id -u; id -g; pwd; umask; ulimit -n; env | grep -v -e ^_= -e ^SHLVL= | sort; " \
             "grep -e ^Sig[IB] -e ^NoNewPrivs /proc/self/status; ls /proc/self/fd; " \
             "grep Cap[PE] /proc/self/status"
    command = ["sh", "-c", script]
    start = ["sh", "-c", 'cd /usr/share && umask 037 && ulimit -Sn 333 && exec "$@"', "sh"]
    env = {"MINE": "a b\nc", "http_proxy": "http://192.0.2.1:3128"}
    outside = user.run(*start, *command, env=env)
    inside = sorted_out(user.run(*start, CULVERT, "run", serve.url, "--", *command, env=env))
    assert outside.returncode == 0 and str(UID) in outside.stdout
    assert inside.stdout == outside.stdout
    assert inside.stderr == outside.stderr


def test_signals_ignored_from_the_start(user, serve):
    """nohup and the like: the command inherits it, and culvert works all the same."""
    ignore = python("""
        import os, signal, sys
        for signo in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(signo, signal.SIG_IGN)
        os.execv(sys.argv[1], sys.argv[1:])
        """)
    look = python("""
        import time
        print(next(line.split()[1] for line in open("/proc/self/status") if "SigIgn" in line))
        print("ready", flush=True)
        time.sleep(1)
        raise SystemExit(5)
        """)
    process = user.popen(*ignore, CULVERT, "run", serve.url, "--", *look, stdout=subprocess.PIPE)
    ignored = int(process.stdout.readline(), 16)
    ready(process)
    for signo in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        assert ignored >> (signo - 1) & 1, f"{signo.name} is not ignored: {ignored:x}"
        os.kill(culvert_of(process), signo)
    assert process.wait(10) == 5


def test_files_are_the_user_s(user, serve, folder):
    mine = folder / "mine"
    mine.mkdir()
    os.chown(mine, UID, GID)
    done = user.culvert(serve.url, "sh", "-c", f"echo kept > {mine}/file; stat -c %u {mine}/file")
    assert done.stdout == f"{UID}\n"
    assert (mine / "file").read_text() == "kept\n"
    assert (mine / "file").stat().st_uid == UID


def test_streams_are_untouched(user, serve):
    """Megabytes through stdin and stdout, byte for byte; stderr is the command's."""
    data = os.urandom(3 << 20)
    done = user.run(CULVERT, "run", "--log-level", "warn", serve.url, "--", "sh", "-c",
                    "cat; printf 'mine\\0' >&2", input=data, text=False)
    assert done.stdout == data
    assert done.stderr == b"mine\0"


def test_passed_descriptors_reach_the_command(user, serve):
    done = user.run("sh", "-c", f"{CULVERT} run {serve.url} -- sh -c 'echo seven >&7' 7>&1")
    assert done.stdout == "seven\n"


def test_closed_stdin_stays_closed(user, serve):
    done = user.run("sh", "-c", f"{CULVERT} run {serve.url} -- sh -c 'read x <&0 || echo closed' "
                                "<&-")
    assert done.stdout == "closed\n", done.stderr


def test_background_holds_no_descriptor(user, serve):
    """A reader behind the command sees the end when the command ends."""
    done = user.culvert(serve.url, "sh", "-c", "sleep 4 </dev/null >/dev/null 2>&1 & echo done")
    assert done.stdout == "done\n"
    assert "sleep 4 " in processes_of_user().values(), "somebody held stdout or stderr"


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "http_proxy", "HTTPS_PROXY"])
def test_variables_of_this_proxy_are_taken_away(user, serve, nginx, variable):
    """Inside there is no way to the proxy, and none is needed; others' are the user's matter."""
    env = {variable: serve.url.replace("://", "://bob:hunter2x@")}
    done = user.culvert(serve.url, "sh", "-c", "env; curl -sS http://www.test/", env=env)
    assert "It goes through." in done.stdout
    assert "hunter2x" not in done.stdout
    env = {variable: "socks5://carol:other@192.0.2.9:1080"}
    done = user.culvert(serve.url, "env", env=env)
    assert f"{variable}={env[variable]}" in done.stdout


def test_proxy_from_the_environment(user, serve, nginx):
    done = sorted_out(user.run(CULVERT, "run", "--", "curl", "-sS", "http://www.test/",
                               env={"ALL_PROXY": serve.url}))
    assert "It goes through." in done.stdout


def test_password_does_not_reach_the_command(lab, user):
    """Neither by its environment nor by the command line of a process that it can look at."""
    with lab.culvert_serve("--auth", "alice:hunter2x") as server:
        url = server.url.replace("://", "://alice:hunter2x@")
        done = user.culvert(url, "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ "
                                             "2>/dev/null | tr '\\0' '\\n' | grep -c 'hunter[2]x'; "
                                             "exec 3<>/dev/null; echo end")
        assert done.stdout == "0\nend\n"
        assert "hunter2x" not in done.said


# --- how it ends ---------------------------------------------------------------------------------

@pytest.mark.parametrize("script,status", [
    ("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143),
    ("kill -11 $$", 139), ("kill -1 $$", 129)])
def test_exit_status(user, serve, script, status):
    done = user.culvert(serve.url, "sh", "-c", script)
    assert (done.returncode, done.stderr) == (status, "")


def test_command_that_cannot_be_run(user, serve, folder):
    script = folder / "no-interpreter"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    for command, status in ((["no-such-command-at-all"], 127), (["/no/such/file"], 127),
                            ([""], 127), (["/etc/passwd"], 126), (["/etc"], 126), ([script], 126)):
        done = user.culvert(serve.url, *command)
        assert done.returncode == status, f"{command}: {done.returncode} {done.stderr}"
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("culvert: ")
        assert str(command[0]) in done.stderr
    plain = folder / "plain"
    plain.write_text("exit 5\n")
    plain.chmod(0o755)
    assert user.culvert(serve.url, plain).returncode == 5, "a script without #! is a shell's"


@pytest.mark.parametrize("command", ["true", "no-such-command-at-all"])
def test_no_zombie_is_left_to_init(user, serve, command):
    before = zombies()
    for _ in range(5):
        user.culvert(serve.url, command)
    assert not zombies() - before


def ready(process):
    """Wait for the command's first line."""
    assert process.stdout.readline() == "ready\n"


def culvert_of(process):
    """The front's process id: setpriv and sh have executed it."""
    return process.pid


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(user, serve, name):
    script = f"trap 'echo got; exit 42' {name}; echo ready; while :; do sleep 0.1; done"
    process = user.start(serve.url, "sh", "-c", script, stdout=subprocess.PIPE)
    ready(process)
    os.kill(culvert_of(process), getattr(signal, f"SIG{name}"))
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (42, "got\n")


def test_signal_that_kills_the_command(user, serve):
    process = user.start(serve.url, "sh", "-c", "echo ready; exec sleep 30", stdout=subprocess.PIPE)
    ready(process)
    os.kill(culvert_of(process), signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_a_signal_to_its_own_group_comes_once(user, serve):
    """Passed on to its own sender it would go on for ever."""
    script = "n=0; trap 'n=$((n+1))' TERM; kill -TERM 0; sleep 0.3; sleep 0.3; exit $n"
    done = user.culvert(serve.url, "sh", "-c", script)
    assert done.returncode == 1, f"the signal came {done.returncode} times"


def test_stop_and_continue(user, serve):
    """A command that is stopped stops culvert, and is continued by it."""
    process = user.start(serve.url, "sh", "-c", "echo ready; kill -STOP $$; exit 6",
                         stdout=subprocess.PIPE)
    ready(process)

    def state():
        with open(f"/proc/{culvert_of(process)}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]

    wait_for(lambda: state() == "T", "culvert stops like its command")
    os.kill(culvert_of(process), signal.SIGCONT)
    assert process.wait(10) == 6


def test_children_outlive_the_command(lab, user, serve, nginx, folder):
    """culvert returns with the command; who was left behind is served until it ends."""
    out = folder / "late"
    out.touch()
    os.chown(out, UID, GID)
    late = f"sleep 2; curl -sS http://www.test/ >> {out}; " \
           f"sleep 1; curl -sS http://v6.test/ >> {out}"
    done = user.culvert(serve.url, "sh", "-c",
                        f"setsid -f sh -c '{late}' </dev/null >/dev/null 2>&1; exit 3")
    assert done.returncode == 3
    assert out.read_text() == "", "culvert waited for the background"
    relays = [line for line in processes_of_user().values() if "culvert run" in line]
    assert relays, "no relay is left"
    wait_for(lambda: not processes_of_user(), "the relay ends with the last of them", 15)
    assert out.read_text().count("It goes through.") == 2


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_what_was_sent_arrives_after_the_command(lab, user, serve, root):
    """As on any host: the kernel took it, and the program may go."""
    received = []

    def slow(connection):
        count = 0
        while data := connection.recv(65536):
            count += len(data)
            time.sleep(0.002)
        received.append(count)

    with TcpServer(lab.world, slow) as sink:
        done = user.culvert(serve.url, *python(f"""
            import socket
            s = socket.create_connection(("10.88.0.2", {sink.port}))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            s.setblocking(False)
            print(s.send(bytes(2000000)))
            """), root=root)
        sent = int(done.stdout)
        assert sent > 500000
        wait_for(lambda: received, "the connection's end", 20)
        assert received == [sent]


def test_last_datagrams_arrive(lab, user, serve):
    """Though the association has to be made first."""
    with lab.world.udp("10.88.0.2", 9998, timeout=5) as sock:
        for i in range(10):
            user.culvert(serve.url, *python(f"""
                import socket
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                    for part in range(3):
                        s.sendto(b"%d %d" % ({i}, part), ("10.88.0.2", 9998))
                """))
            assert [sock.recv(100) for part in range(3)] == [b"%d %d" % (i, p) for p in range(3)]


def test_culvert_killed_leaves_the_command_its_way(user, serve, nginx):
    process = user.start(serve.url, "sh", "-c",
                         "echo ready; sleep 1; curl -sS http://www.test/", stdout=subprocess.PIPE)
    ready(process)
    process.kill()
    assert "It goes through." in process.stdout.read()
    process.communicate()


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def test_worker_killed_is_replaced(user, serve, nginx):
    """The flows of the dead one are lost, no more."""
    process = user.start(serve.url, *python("""
        import socket, time
        print("ready", flush=True)
        input()
        for attempt in range(50):
            try:
                with socket.create_connection(("www.test", 7), 5) as s:
                    s.sendall(b"x")
                    assert s.recv(1) == b"x"
                break
            except (OSError, AssertionError):
                time.sleep(0.1)
        else:
            raise SystemExit("no way out any more")
        """), stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    ready(process)
    relay = children(culvert_of(process))[0]
    worker = [pid for pid in children(relay) if not children(pid)]
    assert len(worker) == 1
    os.kill(worker[0], signal.SIGKILL)
    _, err = process.communicate("go\n", timeout=20)
    assert process.returncode == 0, err
    assert "starting another" in err


def test_relay_killed_fails_closed(host, user, serve):
    process = user.start(serve.url, "sh", "-c",
                         "echo ready; read x; curl -sS -m 3 http://10.88.0.2/; exit $?",
                         stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    ready(process)
    os.kill(children(culvert_of(process))[0], signal.SIGKILL)
    with Capture(host, "up0") as uplink:
        time.sleep(0.5)
        out, err = process.communicate("go\n", timeout=10)
    assert process.returncode == 7, (out, err)
    assert "the relay has ended" in err
    assert not [p for p in uplink.packets if p.dst == "10.88.0.2"]


# --- the terminal --------------------------------------------------------------------------------

@pytest.fixture
def terminal(user):
    with Terminal(user, "bash", "--norc", "--noprofile", "-i") as shell:
        shell.expect(r"prompt> ")
        yield shell


@pytest.fixture(scope="module")
def run(serve):
    return f"{CULVERT} run --log-level warn {serve.url} --"


def test_terminal_is_the_command_s(terminal, run):
    terminal.resize(31, 97)
    terminal.send(f"{run} sh -c 'test -t 0 && test -t 1 && test -t 2 && tty && stty size'\n")
    terminal.expect(r"/dev/pts/\d+\s+31 97")
    terminal.expect(r"prompt> ")


def test_window_size_changes(terminal, run):
    terminal.send(f"{run} bash -c \"trap 'stty size; exit' WINCH; echo re''ady; "
                  "while :; do sleep 0.1; done\"\n")
    terminal.expect(r"ready")
    terminal.resize(40, 123)
    terminal.expect(r"40 123")
    terminal.expect(r"prompt> ")


def test_ctrl_c(terminal, run):
    terminal.send(f"{run} sh -c \"trap 'echo caught; exit 55' INT; echo re''ady; "
                  "while :; do sleep 0.1; done\"; echo status=$?.\n")
    terminal.expect(r"ready")
    terminal.send("\x03")
    terminal.expect(r"caught")
    assert "caught" not in terminal.text
    terminal.expect(r"status=55\.")
    terminal.send(f"{run} sh -c 'echo re\"\"ady; exec sleep 30'; echo status=$?.\n")
    terminal.expect(r"ready")
    terminal.send("\x03")
    terminal.expect(r"status=130\.|prompt> ")


def test_job_control(terminal, run):
    """Ctrl-Z, jobs, bg, fg, and the network after it."""
    terminal.send(f"{run} sh -c 'echo re\"\"ady; read x; echo got $x'\n")
    terminal.expect(r"ready")
    for _ in range(3):
        terminal.send("\x1a")
        terminal.expect(r"Stopped")
        terminal.expect(r"prompt> ")
        terminal.send("fg\n")
        terminal.expect(r"got \$x'\s")
        time.sleep(0.3)  # the shell says so before it hands the terminal over
    terminal.send("\x1a")
    terminal.expect(r"Stopped")
    terminal.send("bg\n")  # it reads the terminal: stopped again
    terminal.expect(r"&\s+prompt> ")
    time.sleep(0.3)
    terminal.send("\n")  # the shell tells of it with its next prompt
    terminal.expect(r"Stopped")
    terminal.send("fg\n")
    time.sleep(0.3)
    terminal.send("word\n")
    terminal.expect(r"got word")
    terminal.expect(r"prompt> ")


def test_interactive_shell_inside(terminal, run):
    """A shell as the command has job control of its own."""
    terminal.send(f"PS1='inner> ' {run} bash --norc --noprofile -i\n")
    terminal.expect(r"inner> ")
    terminal.send("sleep 30\n")
    time.sleep(0.5)
    terminal.send("\x1a")
    terminal.expect(r"Stopped\s+sleep 30")
    terminal.send("kill %1; suspend\n")
    terminal.expect(r"prompt> ")
    terminal.send("fg\n")
    terminal.expect(r"run ")
    terminal.send("\necho in''side\n")
    terminal.expect(r"inside")
    terminal.send("exit 12\n")
    terminal.expect(r"prompt> ")
    terminal.send("echo status=$?.\n")
    terminal.expect(r"status=12\.")


# --- what the environment refuses ----------------------------------------------------------------

def refused(done, *says):
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, (done.returncode, done.stderr)
    for words in says:
        assert words in lines[0]


def test_no_tun(host, user, serve, folder):
    closed = User(host, folder, mode=0o600)
    refused(closed.culvert(serve.url, "true"), "/dev/net/tun", "chmod 666", "root")
    hidden = "mount -t tmpfs none /dev/net; "
    refused(user.culvert(serve.url, "true", before=hidden), "/dev/net/tun", "modprobe tun")


def test_too_few_descriptors(user, serve):
    """Whatever step fails: status 1 and a line, no process that waits for ever."""
    statuses = set()
    for limit in range(4, 32):
        done = user.run("prlimit", f"--nofile={limit}:{limit}", CULVERT, "run", serve.url, "--",
                        "/bin/true", timeout=10)
        assert done.returncode in (0, 1, 127), (limit, done.returncode, done.stderr)
        assert done.stderr.count("culvert: "), (limit, done.stderr)
        statuses.add(done.returncode)
    assert statuses >= {0, 1}


NO_NAMESPACES = f"""
    import ctypes, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x10000000) == 0
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/gid_map", "w").write("{UID} {UID} 1")
    open("/proc/self/uid_map", "w").write("{UID} {UID} 1")
    open("/proc/sys/user/" + sys.argv[1], "w").write("0")  # of this user namespace alone
    os.execv(sys.argv[2], sys.argv[2:])
    """


@pytest.mark.parametrize("limit", ["max_user_namespaces", "max_net_namespaces",
                                   "max_mnt_namespaces"])
def test_user_namespaces_refused(user, serve, limit):
    done = sorted_out(user.run(*python(NO_NAMESPACES), limit, CULVERT, "run", serve.url, "--",
                               "echo", "ran"))
    refused(done, "user namespaces", limit, "root")
    assert done.stdout == ""


def test_user_namespaces_refused_in_a_chroot(user, serve):
    """EPERM: as by a container's seccomp policy."""
    done = user.run("chroot", f"--userspec={UID}:{GID}", "/mnt", CULVERT, "run", serve.url, "--",
                    "true", root=True, before="mount --rbind / /mnt; ")
    refused(sorted_out(done), "user namespaces", "chroot")


def test_proxy_s_name_does_not_resolve(user):
    refused(user.culvert("socks5://no-such-host.test:1080", "true"), "no-such-host.test")


# --- root ----------------------------------------------------------------------------------------

def test_as_root(lab, user, serve, nginx):
    """No user namespace: root stays what it is, in a network of the command's own."""
    script = "readlink /proc/self/ns/user; id -u; cat /etc/resolv.conf; curl -sS http://www.test/"
    done = user.culvert(serve.url, "sh", "-c", script, root=True)
    assert done.stdout.splitlines() == [os.readlink("/proc/self/ns/user"), "0",
                                        "nameserver 198.18.0.2", "<h1>It goes through.</h1>"]
    assert done.stderr == ""
    with open("/etc/resolv.conf", encoding="ascii") as file:
        assert "198.18.0.2" not in file.read()


# --- an existing namespace -----------------------------------------------------------------------

def state(space):
    text = "".join(space.ip(command) for command in ("-o link", "route show table all",
                                                     "-6 route show table all", "rule"))
    # A TUN's carrier is whoever reads it, and the kernel's own multicast route follows the carrier.
    return re.sub(r"state \w+|NO-CARRIER,|,LOWER_UP| linkdown|multicast ff00::/8 .*\n", "", text)


def talks(space, nginx):
    space.set_resolver("198.18.0.2")
    assert "It goes through." in space.run("curl", "-sS", "-m", 10, "http://www.test/").stdout
    for address in ("10.88.0.2", "fd88::2"):
        with space.udp(family=socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.sendto(b"out", (address, 7))
            assert sock.recv(100) == b"out"


@pytest.fixture
def box():
    space = Namespace("box")
    yield space
    space.close()


def test_netns(lab, host, serve, nginx, box):
    before = state(box)
    process = laboratory.Culvert(host, "run", "--netns", box.name, serve.url)
    process.wait_ready()
    assert "culvert0" not in host.links()
    talks(box, nginx)
    process.stop()
    wait_for(lambda: "culvert0" not in box.links(), "the device goes")
    assert state(box) == before


@pytest.mark.parametrize("was", ["up", "down"])
def test_persistent_device_in_the_namespace(lab, host, serve, nginx, box, was):
    """It is taken over, with its own MTU, and left as it was found."""
    box.ip("tuntap add dev keep0 mode tun")
    box.ip("link set keep0 mtu 1300 addrgenmode none up")
    box.ip("addr add 198.18.0.1/15 dev keep0")
    box.ip(f"link set keep0 {was}")
    before = state(box)
    with laboratory.Culvert(host, "run", "--netns", f"/run/netns/{box.name}", "--tun", "keep0",
                            serve.url) as process:
        process.wait_ready()
        assert process.count("mtu 1300") == 1
        assert "mtu 1300" in box.ip("link show keep0")
        talks(box, nginx)
    assert state(box) == before


def test_pid_of_a_container_with_a_way_out_of_its_own(lab, host, serve, nginx, box):
    """Its default routes stay, and do not count meanwhile."""
    box.ip("link add br0 type bridge")
    box.ip("addr add 192.168.7.2/24 dev br0")
    box.ip("addr add fd07::2/64 dev br0 nodad")
    box.ip("link set br0 up")
    box.ip("route add default via 192.168.7.1")
    box.ip("-6 route add default via fd07::1 metric 1")
    before = state(box)
    sleeper = box.popen("sleep", 60)
    for signo in (signal.SIGTERM, signal.SIGINT):
        process = laboratory.Culvert(host, "run", "--pid", sleeper.pid, serve.url)
        process.wait_ready()
        assert "dev culvert0" in box.ip("route get 10.88.0.2")
        assert "dev culvert0" in box.ip("-6 route get fd88::2")
        talks(box, nginx)
        process.stop(signo)
        wait_for(lambda: "culvert0" not in box.links(), "the device goes")
        assert state(box) == before
    process = laboratory.Culvert(host, "run", "--pid", sleeper.pid, serve.url)
    process.wait_ready()
    process.kill()
    wait_for(lambda: "culvert0" not in box.links(), "the device goes after kill -9 as well")
    assert state(box) == before


def test_user_s_own_container(user, serve):
    """--pid needs no root where the namespace belongs to the user."""
    container = user.popen("unshare", "--user", "--net", "sh", "-c", "echo ready; exec sleep 60",
                           stdout=subprocess.PIPE)
    ready(container)
    process = user.popen(CULVERT, "run", "--pid", container.pid, serve.url)
    line = process.stderr.readline()
    assert "ready run pid" in line, line
    inside = user.run("nsenter", "-t", container.pid, "-n", *python("""
        import socket
        with socket.create_connection(("10.88.0.2", 7), 5) as s:
            s.sendall(b"x")
            print(s.recv(1))
        """), root=True)
    assert inside.stdout == "b'x'\n", inside.stderr
    process.terminate()
    assert process.wait(10) == 0
    container.kill()
    container.wait()


def test_namespaces_that_will_not_do(host, user, serve):
    def attach(*options, root=True):
        return sorted_out(user.run(CULVERT, "run", *options, serve.url, root=root))

    refused(attach("--netns", "no-such-namespace"), "no-such-namespace")
    refused(attach("--netns", "/etc/passwd"), "/etc/passwd", "no network namespace")
    refused(attach("--netns", f"/run/netns/{host.name}"), "culvert up")
    refused(attach("--pid", "4194304"), "4194304")
    refused(attach("--pid", "1", root=False), "process 1")
