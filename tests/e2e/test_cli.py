"""The command line: what it refuses and how it says so, readiness, secrets, the device, undoing."""

import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import time

import pytest

import lab as laboratory
from lab import CULVERT, SANITIZER_ENV, Culvert, wait_for
from netns import reset
from rude import Rude

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
GOOD_URL = "socks5://10.77.0.1:9"

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert alone")


@pytest.fixture(scope="module")
def app(lab):
    space = lab.client()
    space.set_resolver(lab.proxy4)
    yield space
    space.close()


def refused(space, *argv, status, says=(), before=(), env=None, timeout=20):
    """culvert ARGV must end with `status` and one clear line that holds each of `says`."""
    done = space.run(*before, CULVERT, *argv, timeout=timeout,
                     env={**os.environ, **SANITIZER_ENV, **(env or {})})
    shown = f"culvert {' '.join(argv)}:\n{done.stderr}"
    assert not laboratory.FINDINGS.search(done.stderr), shown
    assert done.returncode == status, f"status {done.returncode} instead of {status}: {shown}"
    lines = [line for line in done.stderr.splitlines() if not line.startswith("culvert: ready")]
    assert lines and lines[-1].startswith("culvert: "), f"no line of culvert's: {shown}"
    assert len(lines) <= 2, f"more than a clear line: {shown}"
    for words in says:
        assert re.search(words, done.stderr), f"the line does not say '{words}': {shown}"
    assert done.stdout == ""
    return done.stderr


# --- the command line is wrong: status 2 ---------------------------------------------------------

BAD_URLS = ("socks5://", "socks5://:1080", "http://10.77.0.1:80", "socks4://10.77.0.1:80",
            "socks5://10.77.0.1:0", "socks5://10.77.0.1:65536", "socks5://10.77.0.1:port",
            "socks5://10.77.0.1:1080:1", "socks5://[fd77::1:1080", "socks5://[fd77::g]:1080",
            "socks5://host name:1080", "socks5://10.77.0.1:1080/path", "10.77.0.1:1080", "",
            "socks5://us%zzer:x@10.77.0.1:1080", "socks5://" + "x" * 300 + ":1080",
            "socks5://" + "u" * 256 + ":x@10.77.0.1:1080",
            "socks5://u:" + "p" * 256 + "@10.77.0.1:1080", "direct://10.77.0.1")


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda url: url[:40] or "empty")
def test_malformed_url(app, url):
    refused(app, "tun", url, status=2)


BAD_OPTIONS = (
    ["--no-such-option"], ["--no-such-option", "1"], ["-x"],
    ["--mtu", "1279"], ["--mtu", "65536"], ["--mtu", "0"], ["--mtu", "-1"], ["--mtu", "1500x"],
    ["--mtu", ""], ["--mtu", "99999999999999999999"],
    ["--dns", "magic"], ["--udp", "maybe"], ["--icmp", "perhaps"], ["--log-level", "loud"],
    ["--address", "198.18.0.1"], ["--address", "198.18.0.1/33"], ["--address", "fdc0::1/129"],
    ["--address", "300.1.1.1/8"], ["--fake-range", "everything"], ["--dns-server", "one.one"],
    ["--dns-server", "1.1.1.1:70000"], ["--connect-timeout", "0"], ["--connect-timeout", "soon"],
    ["--tcp-idle-timeout", "-5"], ["--max-flows", "0"], ["--tun", "a-name-that-is-too-long"],
    ["--tun", "a/b"], ["--tun", ""], ["--tun-fd", "-1"], ["--tun-fd", "stdin"],
    ["--mark", "-1"], ["--mark", "4294967296"], ["--pipeline", "sometimes"],
    ["--listen", "127.0.0.1:1080"],  # serve's
)


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_bad_option(app, options):
    said = refused(app, "tun", *options, GOOD_URL, status=2)
    assert options[0].lstrip("-") in said or options[-1] in said, f"names neither: {said}"


@pytest.mark.parametrize("option", ["--mtu", "--tun", "--dns", "--listen", "--auth"])
def test_option_without_its_value(app, option):
    command = "serve" if option in ("--listen", "--auth") else "tun"
    refused(app, command, option, status=2)


def test_bad_commands(app):
    refused(app, status=2)
    refused(app, "dig", GOOD_URL, status=2, says=["dig"])
    refused(app, "tun", status=2)
    refused(app, "tun", GOOD_URL, GOOD_URL, status=2)
    refused(app, "serve", "extra", status=2)
    refused(app, "serve", "--mtu", "1500", status=2, says=["mtu"])
    for absent in ("status", "flows", "top"):
        refused(app, absent, status=2, says=[absent])
    for absent in ("--control", "--metrics", "--pcap", "--config"):
        refused(app, "tun", absent, "x", GOOD_URL, status=2, says=[absent.strip("-")])


def test_help_and_version(app):
    for argv in (["--help"], ["tun", "--help"], ["serve", "--help"], ["--version"]):
        done = app.run(CULVERT, *argv, check=True)
        assert "culvert" in done.stdout and done.stderr == ""
    options = app.run(CULVERT, "tun", "--help").stdout
    for name in ("tun", "tun-fd", "mtu", "address", "dns", "dns-server", "fake-range", "udp",
                 "icmp", "mark", "bind-interface", "connect-timeout", "tcp-idle-timeout",
                 "udp-idle-timeout", "max-flows", "pipeline", "low-latency", "log-level", "log-file"):
        assert f"--{name}" in options, f"--help does not tell of --{name}"


# --- the environment refuses: status 1 -----------------------------------------------------------

def test_no_tun_device_node(app):
    """/dev/net/tun hidden in a mount namespace."""
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    refused(app, "tun", GOOD_URL, status=1, says=["/dev/net/tun"], before=hide)


@pytest.mark.parametrize("who", ["root without the capability", "an ordinary user"])
def test_no_privilege(app, who):
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if who.startswith("root"):
        drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"]
    refused(app, "tun", GOOD_URL, status=1, says=["CAP_NET_ADMIN"], before=drop)
    assert "culvert0" not in app.links()


def test_device_busy(lab):
    with lab.tunnel(GOOD_URL) as tunnel:
        refused(tunnel.app, "tun", GOOD_URL, status=1, says=["culvert0", "use|busy"])
        assert "culvert0" in tunnel.app.links(), "the refused one took the device away"


def test_device_of_another_kind(app):
    refused(app, "tun", "--tun", "up0", GOOD_URL, status=1, says=["up0"])
    assert "up0" in app.links()


@pytest.mark.parametrize("address", ["198.18.0.1/15", "fdc0:1::1/64"])
def test_address_in_use_by_another_link(lab, app, address):
    before = state(app)
    flags = " nodad" if ":" in address else ""
    app.ip(f"addr add {address} dev up0{flags}")
    refused(app, "tun", "--address", address, GOOD_URL, status=1,
            says=[address.split("/")[0], "up0"])
    app.ip(f"addr del {address} dev up0")
    assert state(app) == before


def test_proxy_name_that_does_not_resolve(app):
    refused(app, "tun", "socks5://no-such-host.test:1080", status=1, says=["no-such-host.test"])
    assert "culvert0" not in app.links()


def test_proxy_down_at_start_is_a_warning(lab):
    """It may come later, and then everything works."""
    with lab.tunnel(f"socks5://{lab.proxy4}:4455") as tunnel:
        warning = wait_for(lambda: [line for line in tunnel.lines if "4455" in line
                                    and "ready" not in line], "a warning of the proxy's absence")
        assert lab.proxy4 in warning[0]
        with pytest.raises(ConnectionRefusedError):
            tunnel.app.connect(lab.world4, 7)
        with Rude(lab.mid, lab.proxy4, port=4455):
            with tunnel.app.connect(lab.world4, 7) as sock:
                sock.sendall(b"it came")
                assert sock.recv(100) == b"it came"


def test_bad_descriptor(app):
    refused(app, "tun", "--tun-fd", "77", GOOD_URL, status=1, says=["77"])
    with open("/dev/null", "rb") as null:
        done = subprocess.run(app.argv(CULVERT, "tun", "--tun-fd", str(null.fileno()), GOOD_URL),
                              pass_fds=[null.fileno()], stderr=subprocess.PIPE, text=True,
                              timeout=10)
    assert done.returncode == 1 and "tun-fd" in done.stderr, done.stderr


def test_serve_s_address_in_use(lab):
    with lab.culvert_serve() as server:
        refused(lab.mid, "serve", "--listen", f"{server.host}:{server.port}", status=1,
                says=[str(server.port)])
    refused(lab.mid, "serve", "--listen", "192.0.2.1:1080", status=1, says=["192.0.2.1"])


def test_log_file_that_cannot_be_opened(app):
    refused(app, "tun", "--log-file", "/no/such/folder/log", GOOD_URL, status=1,
            says=["/no/such/folder/log"])


# --- readiness, stopping, undoing ----------------------------------------------------------------

def state(space):
    """What a command could have changed: links, addresses, routes, rules."""
    commands = ("-o link", "-o addr", "route show table all", "-6 route show table all", "rule",
                "-6 rule")
    text = "\n".join(space.ip(command) for command in commands)
    return re.sub(r"(valid_lft|preferred_lft|expires) \S+", "", text)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_stopping_undoes_everything(lab, signo):
    space = lab.client()
    before = state(space)
    tunnel = lab.tunnel(GOOD_URL, app=space)
    ready = [line for line in tunnel.lines if line.startswith("culvert: ready")]
    assert len(ready) == 1
    assert state(space) != before
    tunnel.stop(signo)
    assert state(space) == before, "what was changed is not undone"
    space.close()


def test_stopping_under_load(lab, serve):
    """Flows in every state do not keep it from ending, with status 0."""
    tunnel = lab.tunnel(serve.url)
    socks = [tunnel.app.connect(lab.world4, 7) for _ in range(20)]
    with tunnel.app.udp() as udp:
        udp.sendto(b"x", (lab.world4, 7))
        for sock in socks:
            sock.sendall(b"x" * 100000)
        begin = time.monotonic()
        tunnel.stop()
        assert time.monotonic() - begin < 5, "draining takes for ever"
    for sock in socks:
        sock.close()


def test_device_can_be_made_again_at_once(lab):
    space = lab.client()
    for _ in range(5):
        lab.tunnel(GOOD_URL, app=space).stop()
    space.close()


def test_killed_leaves_no_device(lab):
    tunnel = lab.tunnel(GOOD_URL)
    tunnel.kill()
    wait_for(lambda: "culvert0" not in tunnel.app.links(), "the device vanishes with its process")


def test_sd_notify(lab, tmp_path):
    """READY=1 to a service manager's socket."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(5)
        with lab.tunnel(GOOD_URL, env={"NOTIFY_SOCKET": path}):
            assert b"READY=1" in manager.recv(1000)


def test_proxy_from_the_environment(lab, rude):
    for name in ("ALL_PROXY", "all_proxy"):
        url = f"socks5h://{rude.host}:{rude.port}"
        space = lab.client()
        with Culvert(space, "tun", env={"ALL_PROXY": "", name: url}) as process:
            process.wait_ready()
            space.ip("route add default dev culvert0")
            with space.connect(lab.world4, 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
        assert rude.requests
        rude.tame()
        space.close()


# --- secrets -------------------------------------------------------------------------------------

def test_password_shows_nowhere(lab, rude):
    """Not in the process list, its environment, the log at its wordiest, nor in errors."""
    rude.auth = ("alice", "hunter2x")
    url = f"socks5://alice:hunter2x@{rude.host}:{rude.port}"
    for arguments, env in (([url], {}), ([], {"ALL_PROXY": url})):
        space = lab.client()
        with Culvert(space, "tun", "--log-level", "trace", *arguments, env=env) as process:
            process.wait_ready()
            space.ip("route add default dev culvert0")
            for file in ("cmdline", "environ"):
                with open(f"/proc/{process.pid}/{file}", "rb") as shown:
                    assert b"hunter2x" not in shown.read(), f"/proc/PID/{file} shows it"
            with space.connect(lab.world4, 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            rude.auth = ("alice", "other")
            with pytest.raises(ConnectionRefusedError):
                space.connect(lab.world4, 7)
            rude.auth = ("alice", "hunter2x")
        assert "hunter2x" not in process.log
        assert set(rude.credentials) == {("alice", "hunter2x")}
        space.close()


@pytest.mark.parametrize("argv", [
    ["tun", "socks5://alice:hunter2x@10.77.0.1:99999"],
    ["tun", "socks5://alice:hunter2x%zz@10.77.0.1:1080"],
    ["tun", "http://alice:hunter2x@10.77.0.1:1080"],
    ["tun", "--mtu", "1", "socks5://alice:hunter2x@10.77.0.1:1080"],
    ["tun", "socks5://alice:hunter2x@10.77.0.1:1080", "socks5://alice:hunter2x@10.77.0.1:1080"],
    ["socks5//alice:hunter2x@10.77.0.1:1080"],
    ["serve", "--auth", "hunter2x"],
    ["serve", "--auth", "alice:hunter2x", "--listen", "nowhere"],
], ids=" ".join)
def test_errors_do_not_quote_the_password(app, argv):
    assert "hunter2x" not in refused(app, *argv, status=2)


def test_serve_s_password_shows_nowhere(lab):
    with lab.culvert_serve("--auth", "alice:hunter2x", "--log-level", "trace") as server:
        with open(f"/proc/{server.pid}/cmdline", "rb") as shown:
            assert b"hunter2x" not in shown.read()
        url = server.url.replace("://", "://alice:hunter2x@")
        with lab.tunnel(url) as tunnel, tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        with lab.tunnel(url.replace("hunter2x", "wrong")) as tunnel:
            with pytest.raises(ConnectionRefusedError):
                tunnel.app.connect(lab.world4, 7)
        assert "hunter2x" not in server.log and "wrong" not in server.log


# --- the device ----------------------------------------------------------------------------------

def make_tun(space, name, flags):
    """A TUN device in the namespace, ours as long as the descriptor is open."""
    with space.inside():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | flags))
    return fd


def talks(lab, space):
    """TCP and UDP go through, both families, more than a packet each way."""
    for host in (lab.world4, lab.world6):
        with space.connect(host, 7) as sock:
            data = os.urandom(300000)
            sock.settimeout(10)
            got = b""
            for part in range(0, len(data), 50000):
                sock.sendall(data[part:part + 50000])
                while len(got) < part + 50000:
                    got += sock.recv(65536)
            assert got == data
    with space.udp() as sock:
        sock.sendto(b"x" * 5000, (lab.world4, 7))
        assert len(sock.recv(65535)) == 5000


@pytest.mark.parametrize("flags", [0, IFF_VNET_HDR], ids=["plain", "vnet header"])
def test_device_passed_as_a_descriptor(lab, serve, flags):
    """Containers, Android: the parent opens and configures; offloads are detected."""
    space = lab.client()
    fd = make_tun(space, "given0", IFF_NO_PI | flags)
    space.ip("addr add 198.18.0.1/15 dev given0")
    space.ip("addr add fdc0::1/64 dev given0 nodad")
    space.ip("link set given0 up mtu 1400")
    space.ip("route add default dev given0")
    space.ip("-6 route add default dev given0")
    before = state(space)
    with Culvert(space, "tun", "--tun-fd", str(fd), "--mtu", "1400", serve.url,
                 pass_fds=[fd]) as process:
        process.wait_ready()
        talks(lab, space)
    assert state(space) == before, "the passed device is not ours to change"
    os.close(fd)
    space.close()


def test_persistent_device_is_taken_over_and_left(lab, serve):
    space = lab.client()
    space.ip("tuntap add dev keep0 mode tun")
    space.ip("addr add 10.55.0.1/24 dev keep0")
    before = state(space)
    for _ in range(2):
        with Culvert(space, "tun", "--tun", "keep0", "--mtu", "1400", serve.url) as process:
            process.wait_ready()
            space.ip("route add default dev keep0")
            space.ip("-6 route add default dev keep0")
            assert "mtu 1400" in space.ip("link show keep0")
            talks(lab, space)
            space.ip("route del default dev keep0")
            space.ip("-6 route del default dev keep0")
        after = state(space)
        assert "keep0" in space.links(), "the persistent device was taken away"
        assert _settled(after) == _settled(before), "the device is not left as it was found"
    space.close()


def _settled(text):
    """Without link-local addresses and routes, which the kernel makes when a link comes up."""
    return [re.sub(r"state \w+|<[^>]*>|qdisc \w+", "", line) for line in text.splitlines()
            if not re.search(r"fe80::|ff00::/8|anycast", line)]


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_mtu(lab, serve, mtu):
    with lab.tunnel(serve.url, "--mtu", str(mtu)) as tunnel:
        assert f"mtu {mtu} " in tunnel.app.ip("link show culvert0")
        talks(lab, tunnel.app)


@pytest.mark.parametrize("option", ["--offload", "--no-offload"])
def test_offload_can_be_chosen(lab, serve, option):
    with lab.tunnel(serve.url, option) as tunnel:
        talks(lab, tunnel.app)


def test_addresses(lab, serve):
    options = ["--address", "10.56.0.1/16", "--address", "10.57.0.1/24", "--address", "fd56::1/64"]
    with lab.tunnel(serve.url, *options, device="named0") as tunnel:
        shown = tunnel.app.ip("-o addr show dev named0")
        for address in options[1::2]:
            assert address in shown, f"{address} is not on the device: {shown}"
        talks(lab, tunnel.app)


def test_default_addresses(lab):
    with lab.tunnel(GOOD_URL) as tunnel:
        shown = tunnel.app.ip("-o addr show dev culvert0")
        assert "198.18.0.1/15" in shown
        assert re.search(r"inet6 f[cd]", shown), f"no unique local address: {shown}"
        assert "fe80" not in shown, f"the kernel made an address of its own: {shown}"


def test_idle_process_is_not_woken(lab):
    """No flows: no timer, no chatter of the kernel's into the device."""
    def wake_ups(pid):
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            return int(re.search(r"\nvoluntary_ctxt_switches:\s*(\d+)", status.read())[1])

    with lab.tunnel(GOOD_URL) as tunnel:
        time.sleep(1)
        before = [wake_ups(pid) for pid in tunnel.tree()]
        time.sleep(3)
        after = [wake_ups(pid) for pid in tunnel.tree()]
        assert after == before, f"woken {sum(after) - sum(before)} times in 3 s"


def test_no_program_is_needed_at_run_time(lab, serve):
    """Neither ip nor a shell is there: all is done over rtnetlink."""
    hide = ('for program in ip sh bash; do mount --bind /dev/null "$(readlink -f "$(command -v '
            '$program)")"; done; exec "$@"')
    space = lab.client()
    with Culvert(space, "tun", serve.url, before=["unshare", "-m", "sh", "-c", hide, "sh"]) as tun:
        tun.wait_ready()
        space.ip("route add default dev culvert0")
        space.ip("-6 route add default dev culvert0")
        talks(lab, space)
    space.close()


# --- sockets towards the proxy, limits -----------------------------------------------------------

def test_mark_and_interface(lab, rude):
    url = f"socks5://{rude.host}:{rude.port}"
    with lab.tunnel(url, "--mark", "0x2a", "--bind-interface", "up0") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as tcp, tunnel.app.udp() as udp:
            tcp.sendall(b"x")
            udp.sendto(b"x", (lab.world4, 7))
            udp.recv(1)
            shown = tunnel.app.run("ss", "-Htne", f"dport = :{rude.port}").stdout
            assert shown.count("fwmark:0x2a") == len(shown.splitlines()) == 2, shown
            assert shown.count("%up0") == 2, shown
            relayed = tunnel.app.run("ss", "-Hune").stdout
            assert "fwmark:0x2a" in relayed and "%up0" in relayed, relayed


def test_interface_that_does_not_exist(lab, rude):
    """Refused, or a failure of each flow: never a way around."""
    space = lab.client()
    done = Culvert(space, "tun", "--bind-interface", "none0",
                   f"socks5://{rude.host}:{rude.port}")
    try:
        done.wait_ready()
    except AssertionError:
        assert done.process.returncode == 1 and "none0" in done.log, done.log
        space.close()
        return
    space.ip("route add default dev culvert0")
    with pytest.raises(OSError):
        space.connect(lab.world4, 7)
    assert not rude.requests
    done.stop()
    space.close()


def test_max_flows(lab, serve):
    """Past it the flow idle longest gives way, not the newcomer."""
    with lab.tunnel(serve.url, "--max-flows", "10") as tunnel:
        socks = []
        for _ in range(10):
            sock = tunnel.app.connect(lab.world4, 7)
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            socks.append(sock)
            time.sleep(0.02)
        socks[0].sendall(b"y")  # the first is no longer the one idle longest
        assert socks[0].recv(1) == b"y"
        with tunnel.app.connect(lab.world4, 7) as newcomer:
            newcomer.sendall(b"x")
            assert newcomer.recv(1) == b"x"
        socks[1].settimeout(5)
        try:
            assert socks[1].recv(1) == b"", "the flow idle longest is still there"
        except ConnectionResetError:
            pass
        for sock in (socks[0], *socks[2:]):
            sock.sendall(b"z")
            assert sock.recv(1) == b"z", "another flow than the one idle longest gave way"


def test_half_open_flows_give_way_first(lab, rude):
    with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--max-flows", "4") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as old:
            old.sendall(b"x")
            assert old.recv(1) == b"x"
            rude.mute = {"request"}
            held = [tunnel.app.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(10)]
            for sock in held:
                sock.setblocking(False)
                sock.connect_ex((lab.world4, 7))
                time.sleep(0.02)
            old.sendall(b"y")
            assert old.recv(1) == b"y", "an open flow gave way to half-open ones"
            for sock in held:
                sock.close()


def test_icmp(lab, serve):
    """--icmp reply answers echo requests itself; by default nothing does."""
    for options, answered in ((["--icmp", "reply"], True), ([], False)):
        with lab.tunnel(serve.url, *options) as tunnel:
            for host in (lab.world4, lab.world6):
                assert ping(tunnel.app, host) == answered, f"{options}: {host}"


def ping(space, host):
    """One echo request (RFC 792, RFC 4443) with a payload; does its answer come?"""
    six = ":" in host
    kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET,
                                                                socket.IPPROTO_ICMP)
    with space.inside():
        sock = socket.socket(kind[0], socket.SOCK_RAW, kind[1])
    with sock:
        sock.settimeout(0.7)
        request = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 77, 1) + b"are you there?"
        if not six:
            total = sum(struct.unpack(f"!{len(request) // 2}H", request))
            checksum = ~(total + (total >> 16)) & 0xFFFF
            request = request[:2] + struct.pack("!H", checksum) + request[4:]
        sock.sendto(request, (host, 0))
        try:
            while True:
                answer, source = sock.recvfrom(2000)
                answer = answer if six else answer[20:]
                if answer[0] == (129 if six else 0) and source[0] == host:
                    assert answer[4:] == request[4:]
                    return True
        except TimeoutError:
            return False


def test_log_file_and_level(lab, rude, tmp_path):
    path = tmp_path / "culvert.log"
    url = f"socks5://{rude.host}:{rude.port}"
    with lab.tunnel(url, "--log-file", str(path), "--log-level", "debug") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            reset(sock)
        wait_for(lambda: lab.world4 in path.read_text(), "the log tells of the flow")
    assert all(line.startswith("culvert: ") for line in tunnel.lines), tunnel.log


def test_closed_standard_descriptors(lab, serve):
    """Started without stdin, stdout and stderr, their numbers do not become sockets'."""
    space = lab.client()
    process = space.popen("sh", "-c", f"exec {CULVERT} tun {serve.url} <&- >&- 2>&-")
    wait_for(lambda: "culvert0" in space.links() and "UP" in space.ip("link show culvert0"),
             "the device comes up")
    time.sleep(0.3)
    space.ip("route add default dev culvert0")
    space.ip("-6 route add default dev culvert0")
    talks(lab, space)
    process.terminate()
    assert process.wait(10) == 0
    space.close()
