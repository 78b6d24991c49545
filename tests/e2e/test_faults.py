"""Every allocation and system call fails once: never a crash, no leak, and what comes next works.

The nth call of a script that opens, relays and closes TCP and UDP flows and asks DNS fails, for n
from 1 until the whole script passes without one that did. A step may fail then; the process, the
worker and the flows after it may not. CULVERT_FAULTS_STEP tries each so manyth n only (8).
"""

import os
import random
import signal
import socket
import struct
import time

import dns.message
import pytest

import faults
import lab as laboratory
import streams
from faults import CALL, MEMORY
from lab import wait_for
from netns import reset
from servers import TcpServer

pytestmark = [pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's own calls"),
              pytest.mark.deadline(280)]

STEP = int(os.environ.get("CULVERT_FAULTS_STEP", "8"))
KINDS = {"memory": MEMORY, "calls": CALL}


def echo(tunnel, host, port=7, size=3000):
    with tunnel.app.connect(host, port, timeout=4) as sock:
        sock.settimeout(4)
        data = random.randbytes(size)
        sock.sendall(data)
        back = b""
        while len(back) < size:
            piece = sock.recv(1 << 16)
            if not piece:
                raise ConnectionResetError
            back += piece
        assert back == data, "altered"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def ask(tunnel, name, kind):
    query = dns.message.make_query(name, kind)
    with tunnel.app.udp(timeout=1.5) as sock:
        sock.sendto(query.to_wire(), ("198.18.0.2", 53))
        answer = dns.message.from_wire(sock.recv(4096))
    assert answer.id == query.id
    return [item.to_text() for rrset in answer.answer for item in rrset]


def ask_by_tcp(tunnel, name):
    wire = dns.message.make_query(name, "A").to_wire()
    with tunnel.app.connect("198.18.0.2", 53, timeout=3) as sock:
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        if not sock.recv(4096):
            raise ConnectionResetError


def echo_udp(tunnel, host):
    with tunnel.app.udp(timeout=1.5) as sock:
        sock.sendto(b"datagram", (host, 7))
        assert sock.recv(100) == b"datagram"


def download(lab, tunnel, port, total=100000):
    with tunnel.app.connect(lab.world4, port, timeout=4) as sock:
        streams.download(sock, 1, total)


def script(lab, tunnel, port, number):
    """Yields what to do; each step may fail by itself."""
    yield lambda: echo(tunnel, lab.world4)
    yield lambda: echo(tunnel, ask(tunnel, "v4.test", "A")[0])
    yield lambda: ask(tunnel, f"n{number}.test", "TXT")
    yield lambda: ask_by_tcp(tunnel, f"t{number}.test")
    yield lambda: echo_udp(tunnel, lab.world4)
    yield lambda: tunnel.app.connect(lab.world4, 1, timeout=3).close()
    yield lambda: reset(tunnel.app.connect(lab.world4, 7, timeout=3))
    yield lambda: download(lab, tunnel, port)


def run_script(lab, tunnel, port, number):
    failed = 0
    for step in script(lab, tunnel, port, number):
        try:
            step()
        except (OSError, IndexError, EOFError, dns.exception.DNSException):
            failed += 1
        except AssertionError as problem:
            assert "end of stream" in str(problem) or not str(problem), problem
            failed += 1
    return failed


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


def expect_health(tunnel, lab, what):
    for _ in range(2):
        try:
            echo(tunnel, lab.world4)
            return
        except OSError as problem:
            last = problem
    raise AssertionError(f"no flow works after {what}: {last}\n{tunnel.log[-3000:]}")


def lead_through(lab, tunnel, control, kind, port, seed):
    """Fail the nth call, for all n; how often which call has failed."""
    seen = {}
    run_script(lab, tunnel, port, 0)
    worker = tunnel.workers()
    nth = 1 + seed % STEP
    while True:
        control.arm(kind, nth)
        run_script(lab, tunnel, port, nth)
        where = control.disarm()
        assert tunnel.workers() == worker, f"{where}, call {nth}: the worker has ended\n" \
            + tunnel.log[-3000:]
        tunnel.check()
        if where is None:
            break
        expect_health(tunnel, lab, f"{where}, call {nth}")
        seen[where] = seen.get(where, 0) + 1
        nth += STEP
        assert nth < 5000, "the script never ends"
    tunnel.idle_sockets += 1  # the connection to the resolver is kept
    tunnel.settle(20)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["linked", "preloaded"])
def test_nth_call_fails(lab, serve, stream_server, kind, how):
    if how == "linked" and not faults.FAULTY.exists():
        pytest.skip("culvert_faulty is not built")
    if how == "preloaded" and not faults.PRELOAD.exists():
        pytest.skip("faults.so is not built: with sanitizers the allocator is theirs")
    control = faults.Control()
    if how == "linked":
        kwargs = {"binary": faults.FAULTY, "env": control.env}
    else:
        kwargs = {"env": {**control.env, "LD_PRELOAD": str(faults.PRELOAD)}}
    tunnel = lab.tunnel(serve.url, "--udp-idle-timeout", "1", "--dns-server", lab.world4,
                        "--connect-timeout", "3", **kwargs)
    seen = lead_through(lab, tunnel, control, KINDS[kind], stream_server.port,
                        random.randrange(1000))
    print(seen)
    assert sum(seen.values()) > 5, seen
    assert len(tunnel.lines) < 30 + 3 * sum(seen.values()), tunnel.log[-3000:]
    tunnel.stop()
    control.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nth_call_fails_at_the_start(lab, serve, kind):
    """It gets ready all the same, or says a line and leaves nothing behind."""
    if not faults.FAULTY.exists():
        pytest.skip("culvert_faulty is not built")
    control = faults.Control()
    space = lab.client()
    space.set_resolver(lab.proxy4)
    nth, ended = 1 + random.randrange(STEP), 0
    where = "?"
    while where:
        control.arm(KINDS[kind], nth)
        culvert = laboratory.Culvert(space, "tun", serve.url, binary=faults.FAULTY,
                                     env=control.env)
        told = culvert._ready.wait(3)
        where = control.disarm()
        what = f"call {nth}, {where}"
        assert told or where == "write", f"{what}: neither ready nor ended"  # of that very line
        is_ready = not told or any("culvert: ready" in line for line in culvert.lines)
        if is_ready:
            culvert.stop()
        else:
            status = culvert.wait_end(10)
            culvert.checked = culvert.stopped = True
            refused = status == 1 or (status == 2 and "out of memory" in culvert.log)
            assert refused, f"{what}: status {status}\n{culvert.log}"
            assert culvert.lines, f"{what}: not a word"
            assert not laboratory.FINDINGS.search(culvert.log), culvert.log[-5000:]
            ended += 1
        assert "culvert0" not in space.links(), f"{what}: the device is left\n{culvert.log}"
        nth += 1 + STEP // 4
        assert nth < 5000
    print(f"{nth} calls, {ended} ends")
    space.close()
    control.close()


# --- surroundings --------------------------------------------------------------------------------

def at_rest(tunnel):
    spent = tunnel.cpu_seconds()
    time.sleep(0.5)
    assert tunnel.cpu_seconds() - spent < 0.1, f"it spins\n{tunnel.log[-3000:]}"


def test_suspended(suspended):
    """A minute of SIGSTOP begins; test_resilience.py looks at what came after it."""
    spent = suspended.tunnel.cpu_seconds()
    time.sleep(0.2)
    assert suspended.tunnel.cpu_seconds() == spent


def test_device_set_down_and_up(lab, serve, stream_server):
    with lab.tunnel(serve.url) as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            tunnel.app.ip("link set culvert0 down")
            at_rest(tunnel)
            tunnel.app.ip("link set culvert0 up")
            tunnel.route()
            sock.settimeout(10)
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        download(lab, tunnel, stream_server.port)
        tunnel.settle()


@pytest.mark.parametrize("mtu", [1280, 9000, 65000])
def test_device_mtu_changed(lab, serve, stream_server, mtu):
    """Flows of before and after it go on: TCP by segments that fit, UDP in fragments."""
    with lab.tunnel(serve.url, "--udp-idle-timeout", "1") as tunnel:
        with tunnel.app.connect(lab.world4, stream_server.port) as before:
            tunnel.app.ip(f"link set culvert0 mtu {mtu}")
            before.settimeout(20)
            streams.download(before, 1, 4 << 20)
        download(lab, tunnel, stream_server.port, 4 << 20)
        with tunnel.app.connect(lab.world4, stream_server.port, timeout=20) as up:
            streams.upload(up, 2, 4 << 20)
        echo_udp(tunnel, lab.world4)
        tunnel.settle()


def test_log_disk_full(lab, serve):
    with lab.tunnel(serve.url, "--log-file", "/dev/full", "--log-level", "debug") as tunnel:
        for _ in range(20):
            echo(tunnel, lab.world4)
        at_rest(tunnel)


def test_stderr_closed(lab, serve):
    """No socket or device takes its place, and gets log lines for data."""
    space = lab.client()
    space.set_resolver(lab.proxy4)
    process = space.popen("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", laboratory.CULVERT, "tun",
                          "--log-level", "trace", serve.url)
    wait_for(lambda: "culvert0" in space.links() and "UP" in space.ip("link show culvert0"),
             "the device is there")
    wait_for(lambda: space.ip("route add default dev culvert0", check=False) == "", "it has a route")
    tunnel = type("Tunnel", (), {"app": space})
    for _ in range(20):
        echo(tunnel, lab.world4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    space.close()


def test_wall_clock_set_back(lab, serve):
    """By a day, and forward by two: time-outs go by another clock."""
    control = faults.Control()
    with lab.tunnel(serve.url, "--udp-idle-timeout", "2", "--tcp-idle-timeout", "3",
                    env=control.env, binary=faults.FAULTY) as tunnel, \
            tunnel.app.connect(lab.world4, 7) as idle, tunnel.app.connect(lab.world4, 7) as busy:
        for shift in (-86400, 86400, 0):
            control.shift_clock(shift)
            echo(tunnel, lab.world4)
            echo_udp(tunnel, lab.world4)
            busy.sendall(b"busy")
            assert busy.recv(10) == b"busy"
        at_rest(tunnel)
        begin = time.monotonic()
        idle.settimeout(10)
        try:
            assert idle.recv(1) == b""
        except ConnectionResetError:
            pass
        assert time.monotonic() - begin < 6, "the idle flow's end did not come in time"
    control.close()


def test_network_black_holed_and_back(lab, serve):
    """Packets to and from the proxy vanish, without a reset: open flows wait and then go on."""
    with lab.tunnel(serve.url, "--connect-timeout", "2") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
            tunnel.app.run("nft", "add table inet hole; add chain inet hole out { type filter hook "
                           "output priority 0; oifname up0 drop; }", check=True)
            sock.sendall(b"2")
            begin = time.monotonic()
            with pytest.raises(OSError):
                tunnel.app.connect(lab.world4, 7, timeout=10)
            assert 1.5 < time.monotonic() - begin < 5, "--connect-timeout 2"
            at_rest(tunnel)
            tunnel.app.run("nft", "delete table inet hole", check=True)
            sock.settimeout(20)
            assert sock.recv(1) == b"2"
        echo(tunnel, lab.world4)
        tunnel.settle()


def test_under_valgrind(lab, serve, stream_server):
    """No invalid access, no leak, no socket left open, in any of its processes."""
    if laboratory.SANITIZED:
        pytest.skip("either of them")
    grind = ["valgrind", "--track-fds=yes", "--leak-check=full", "--trace-children=yes",
             f"--suppressions={laboratory.ROOT}/tests/support/valgrind.supp"]
    tunnel = lab.tunnel(serve.url, "--udp-idle-timeout", "1", "--dns-server", lab.world4,
                        before=grind)
    for number in range(3):
        run_script(lab, tunnel, stream_server.port, number)
    with tunnel.app.connect(lab.world4, 7):  # open at the end
        time.sleep(1.5)
        tunnel.stop()
    ends = [line for line in tunnel.lines if "ERROR SUMMARY" in line]
    assert len(ends) >= 2, tunnel.log
    assert all("ERROR SUMMARY: 0 errors" in line for line in ends), tunnel.log
    assert not any("Open AF_INET" in line for line in tunnel.lines), tunnel.log
