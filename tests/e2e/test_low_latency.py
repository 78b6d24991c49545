"""--low-latency: cores are kept from sleeping while something is relayed, and at no other time.

What one culvert asks for is seen by a pipe in place of the kernel's device, mounted over it where that culvert
runs: the requests in their order, and whether anybody holds it open. The device itself is the whole
machine's, whoever asks: one test at a time looks at it.
"""

import ctypes
import errno
import fcntl
import os
import pathlib
import platform
import re
import select
import signal
import socket
import struct
import tempfile
import threading
import time

import dns.message
import dns.query
import pytest

from desktop import Desktop
from lab import CULVERT, DIRECT, wait_for
from ordinary import User
from servers import TcpServer

DEVICE = "/dev/cpu_dma_latency"
AT_ONCE, RELEASED = 0, 2000000000  # microseconds
QUIET = 0.1  # seconds without anything until it is released
GOOD_URL = "socks5://10.77.0.1:9"

pytestmark = pytest.mark.skipif(DIRECT, reason="is about culvert alone")
has_device = pytest.mark.skipif(not os.path.exists(DEVICE), reason=f"no {DEVICE}")


class StandIn:
    """A pipe instead of the device, for a culvert that is started with `before`."""

    def __init__(self, folder):
        self.path = str(folder / "latency")
        os.mkfifo(self.path)
        os.chmod(self.path, 0o666)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self.before = ("sh", "-c", f'mount --bind "$0" {DEVICE} && exec "$@"', self.path)
        self.requests = []  # all of them so far

    def is_open(self):
        """Does anybody have it open? What has been asked for up to now is in `requests` then."""
        try:
            while got := os.read(self._fd, 1 << 16):
                assert len(got) % 4 == 0
                self.requests += struct.unpack(f"{len(got) // 4}i", got)
        except BlockingIOError:
            return True
        return False

    def was_opened(self):
        """Has anybody opened it, be it for a moment?"""
        return self.is_open() or bool(self._poll.poll(0))

    def last(self):
        """What was asked for last."""
        self.is_open()
        return self.requests[-1] if self.requests else None

    def wait_released(self):
        """Returns how much had been asked for by then."""
        wait_for(lambda: self.last() != AT_ONCE, "it is released")
        return len(self.requests)

    def wait_held_since(self, count):
        """It was held, if only for a moment, after so many requests had been made."""
        wait_for(lambda: self.last() is not None and len(self.requests) > count, "it is held")
        assert self.requests[count] == AT_ONCE

    def close(self):
        os.close(self._fd)


@pytest.fixture(name="stand_in")
def a_stand_in(tmp_path):
    made = StandIn(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder():
    """Unlike pytest's own, open to ordinary users."""
    with tempfile.TemporaryDirectory(prefix="culvert-latency-") as path:
        os.chmod(path, 0o755)
        yield pathlib.Path(path)


def exchange(sock):
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"


def is_suspended(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def hold_and_suspend(sock, pid, is_held):
    """Stop the worker while it holds: it does not release by itself any more."""
    def held():
        os.kill(pid, signal.SIGCONT)
        exchange(sock)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: is_suspended(pid), "the worker is stopped")
        return is_held()

    wait_for(held, "it is held, and the worker is stopped")


# --- when it is held -----------------------------------------------------------------------------

@pytest.fixture(scope="module", name="watched")
def a_watched_tunnel(lab, serve, folder):
    """A tunnel with --low-latency, and the pipe."""
    device = StandIn(folder)
    with lab.tunnel(serve.url, "--low-latency", before=device.before) as tunnel:
        tunnel.device_asked = device
        yield tunnel
    device.close()


@has_device
def test_nothing_is_asked_for_at_first(lab, serve, stand_in):
    """Not by what the kernel says into the device by itself either."""
    with lab.tunnel(serve.url, "--low-latency", before=stand_in.before):
        time.sleep(3 * QUIET)
        assert stand_in.is_open()
    assert AT_ONCE not in stand_in.requests


def by_tcp(tunnel, lab):
    with tunnel.app.connect(lab.world4, 7) as sock:
        exchange(sock)


def by_tcp6(tunnel, lab):
    with tunnel.app.connect(lab.world6, 7) as sock:
        exchange(sock)


def by_udp(tunnel, lab):
    with tunnel.app.udp() as sock:
        sock.sendto(b"x", (lab.world4, 7))
        assert sock.recv(1) == b"x"


def by_dns(tunnel, _lab):
    assert dns.query.udp(dns.message.make_query("www.test", "A"), "198.18.0.2", timeout=5,
                         sock=tunnel.app.udp()).answer


def by_dns_over_tcp(tunnel, _lab):
    with tunnel.app.connect("198.18.0.2", 53) as sock:
        assert dns.query.tcp(dns.message.make_query("www.test", "A"), "198.18.0.2", timeout=5,
                             sock=sock).answer


@has_device
@pytest.mark.parametrize("relay", [by_tcp, by_tcp6, by_udp, by_dns, by_dns_over_tcp])
def test_held_while_something_is_relayed(lab, watched, relay):
    device = watched.device_asked
    before = device.wait_released()
    relay(watched, lab)
    device.wait_held_since(before)
    device.wait_released()


@has_device
def test_held_for_what_comes_unasked_by_tcp(lab, watched):
    device, go = watched.device_asked, threading.Event()

    def push(sock):
        go.wait(20)
        sock.sendall(b"news")
        sock.recv(1)

    before = device.wait_released()
    with TcpServer(lab.world, push) as server, watched.app.connect(lab.world4, server.port) as sock:
        device.wait_held_since(before)
        before = device.wait_released()
        go.set()
        assert sock.recv(4) == b"news"
        device.wait_held_since(before)
    device.wait_released()


@has_device
def test_held_for_what_comes_unasked_by_udp(lab, watched):
    device = watched.device_asked
    before = device.wait_released()
    with lab.world.udp(lab.world4) as server, watched.app.udp() as sock:
        sock.sendto(b"here I am", server.getsockname())
        _, source = server.recvfrom(100)
        device.wait_held_since(before)
        before = device.wait_released()
        server.sendto(b"news", source)
        assert sock.recv(4) == b"news"
        device.wait_held_since(before)
    device.wait_released()


@has_device
def test_no_system_call_a_turn(lab, watched):
    """It is asked for once, as long as exchanges follow one another."""
    device = watched.device_asked
    before = device.wait_released()
    started = time.monotonic()
    with watched.app.connect(lab.world4, 7) as sock:
        for _ in range(2000):
            exchange(sock)
    device.wait_released()
    took = time.monotonic() - started
    asked = device.requests[before:]
    assert asked == [AT_ONCE, RELEASED] * (len(asked) // 2)
    # whoever is kept from running for a moment falls silent, and begins anew
    assert len(asked) <= 2 + 2 * took / QUIET < 2000, f"{len(asked)} in {took} s"


COUNTERS = re.compile(r"from applications (\d+) packets")


def packets(tunnel):
    """How many have come from applications, as it says when asked."""
    before = len(COUNTERS.findall(tunnel.log))
    os.kill(tunnel.pid, signal.SIGUSR1)
    wait_for(lambda: len(COUNTERS.findall(tunnel.log)) > before, "the counters are in the log")
    return int(COUNTERS.findall(tunnel.log)[-1])


@has_device
def test_keep_alives_do_not_hold_it(lab, serve, stand_in):
    """Of many idle connections there would always be one."""
    with lab.tunnel(serve.url, "--low-latency", before=stand_in.before) as tunnel, \
            tunnel.app.connect(lab.world4, 7) as sock:
        exchange(sock)
        stand_in.wait_held_since(0)
        asked, came = stand_in.wait_released(), packets(tunnel)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wait_for(lambda: packets(tunnel) >= came + 2, "keep-alives have come")
        time.sleep(2 * QUIET)
        stand_in.is_open()
        assert len(stand_in.requests) == asked
        exchange(sock)
        stand_in.wait_held_since(asked)


@has_device
def test_not_touched_without_the_option(lab, serve, stand_in):
    with lab.tunnel(serve.url, before=stand_in.before) as tunnel:
        by_tcp(tunnel, lab)
        by_udp(tunnel, lab)
    assert not stand_in.was_opened()


# --- its end -------------------------------------------------------------------------------------

@has_device
def test_released_as_it_stops(lab, serve, stand_in):
    with lab.tunnel(serve.url, "--low-latency", before=stand_in.before) as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            exchange(sock)
            stand_in.wait_held_since(0)
            tunnel.stop()
    assert stand_in.last() == RELEASED
    assert stand_in.was_opened() and not stand_in.is_open()


@has_device
def test_released_when_a_worker_is_killed(lab, serve, stand_in):
    """By the supervisor; and the next worker begins released."""
    with lab.tunnel(serve.url, "--low-latency", before=stand_in.before) as tunnel:
        worker, = tunnel.workers()
        with tunnel.app.connect(lab.world4, 7) as sock:
            hold_and_suspend(sock, worker, lambda: stand_in.last() == AT_ONCE)
            time.sleep(2 * QUIET)
            assert stand_in.last() == AT_ONCE
            os.kill(worker, signal.SIGKILL)
            stand_in.wait_released()
        wait_for(lambda: tunnel.workers() not in ([], [worker]), "it is replaced")
        before = stand_in.wait_released()
        by_tcp(tunnel, lab)
        stand_in.wait_held_since(before)
        stand_in.wait_released()


@has_device
def test_released_when_all_are_killed(lab, serve, stand_in):
    """The kernel forgets what was asked for by an open file that nobody has any more."""
    tunnel = lab.tunnel(serve.url, "--low-latency", before=stand_in.before)
    with tunnel.app.connect(lab.world4, 7) as sock:
        hold_and_suspend(sock, tunnel.workers()[0], lambda: stand_in.last() == AT_ONCE)
        tunnel.kill()
        wait_for(lambda: not stand_in.is_open(), "nobody has it open")
    tunnel.stop()


# --- who holds it --------------------------------------------------------------------------------

KCMP = {"x86_64": 312, "aarch64": 272}  # the system call's number


def is_same_file(one, other):
    """Are two (process, descriptor) of one open file?"""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(KCMP[platform.machine()], one[0], other[0], 0, one[1], other[1])
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            pytest.skip("a kernel without kcmp()")
        raise OSError(number, os.strerror(number))
    return result == 0


def holders(tunnel, device):
    """(pid, descriptor) of all its processes that have it open."""
    return [(pid, int(fd)) for pid in tunnel.tree() for fd in os.listdir(f"/proc/{pid}/fd")
            if os.readlink(f"/proc/{pid}/fd/{fd}") == device]


@has_device
@pytest.mark.skipif(platform.machine() not in KCMP, reason="whose number of kcmp() is not known")
def test_each_worker_has_a_request_of_its_own(lab, serve):
    """Of one open file the last request would count, not the strictest. Brokers have none."""
    with lab.tunnel(serve.url, "--low-latency", "--workers", "2") as tunnel:
        held = holders(tunnel, DEVICE)
        pids = [pid for pid, _ in held]
        assert sorted(pids) == sorted([tunnel.pid, tunnel.pid, *tunnel.workers()])
        by_workers = [one for one in held if one[0] != tunnel.pid]
        assert not is_same_file(*by_workers)


@has_device
def test_up_has_it_too(lab, serve, stand_in):
    with Desktop(lab) as desktop:
        up = desktop.up(serve.url, "--low-latency", before=stand_in.before)
        with desktop.space.connect(lab.world4, 7) as sock:
            exchange(sock)
        stand_in.wait_held_since(0)
        assert stand_in.wait_released() >= 2
        up.stop()
    assert not stand_in.is_open()


@pytest.fixture(scope="module")
def user(lab, folder):
    space = lab.client()
    space.set_resolver(lab.proxy4)
    yield User(space, folder)
    space.close()


FETCH = "exec 3<>/dev/tcp/www.test/7 && echo x >&3 && read -r line <&3 && sleep 0.5"


@has_device
def test_run_by_a_user_who_may_write_it(user, serve, stand_in):
    """Root has opened the device to the user, who has no other privilege."""
    os.chmod(os.path.dirname(stand_in.path), 0o755)
    done = user.culvert(serve.url, "bash", "-c", FETCH, options=["--low-latency"],
                        before=f"mount --bind {stand_in.path} {DEVICE}; ")
    assert done.returncode == 0, done.said + done.stderr
    assert stand_in.last() == RELEASED and stand_in.requests[0] == AT_ONCE
    wait_for(lambda: not stand_in.is_open(), "its relay has ended")


# --- the kernel's device -------------------------------------------------------------------------

class Machine:
    """What is asked of all cores, by whomever; for one test at a time, be it of several runs."""

    def __init__(self):
        self._fd = os.open(DEVICE, os.O_RDONLY)
        deadline = time.monotonic() + 40
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < deadline, "other tests have it"
                time.sleep(0.1)

    def target(self):
        return struct.unpack("i", os.pread(self._fd, 4, 0))[0]

    def close(self):
        os.close(self._fd)


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


@has_device
def test_the_machine_is_released_each_time(lab, serve, machine):
    """After silence, after kill -9 of a worker and of all, and by stopping."""
    before = machine.target()
    if before == AT_ONCE:
        pytest.skip("somebody else has asked for it, and what culvert does cannot be seen")
    tunnel = lab.tunnel(serve.url, "--low-latency")

    def is_held():
        return machine.target() == AT_ONCE

    def suspended_while_it_holds():
        worker, = tunnel.workers()
        sock = tunnel.app.connect(lab.world4, 7)
        hold_and_suspend(sock, worker, is_held)
        return worker, sock

    def is_as_before():
        return machine.target() == before

    assert is_as_before(), "held by a culvert that has nothing to do"
    worker, sock = suspended_while_it_holds()
    os.kill(worker, signal.SIGCONT)
    wait_for(is_as_before, "it is released after a silence")
    sock.close()
    worker, sock = suspended_while_it_holds()
    os.kill(worker, signal.SIGKILL)
    wait_for(is_as_before, "it is released when the worker has died")
    sock.close()
    wait_for(lambda: tunnel.workers() not in ([], [worker]), "it is replaced")
    worker, sock = suspended_while_it_holds()
    tunnel.kill()
    wait_for(is_as_before, "it is released when all have died")
    sock.close()
    tunnel.stop()


# --- refusals ------------------------------------------------------------------------------------

def refused(done, *says):
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, (done.returncode, done.stderr)
    for words in ("--low-latency", DEVICE, *says):
        assert words in lines[0], lines[0]


COMMANDS = [("tun", GOOD_URL), ("up", GOOD_URL), ("run", GOOD_URL, "--", "true")]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_where_there_is_no_such_device(lab, tmp_path, argv):
    """As in many containers: a /dev of a few devices."""
    small = tmp_path / "dev"
    small.mkdir()
    script = ('mount -t tmpfs none "$0" && mkdir "$0/net" && touch "$0/null" "$0/net/tun" && '
              'mount --bind /dev/null "$0/null" && mount --bind /dev/net/tun "$0/net/tun" && '
              'mount --rbind "$0" /dev && exec "$@"')
    app = lab.client()
    refused(app.run("sh", "-c", script, str(small), CULVERT, argv[0], "--low-latency", *argv[1:]),
            "missing", "leave the option out")
    assert "culvert0" not in app.links()
    app.close()


@has_device
def test_who_may_not_write_it_is_refused(user):
    """An ordinary user's `run`, unless root has opened the device to the user."""
    done = user.culvert(GOOD_URL, "true", options=["--low-latency"])
    refused(done, "no permission", "as root", "setfacl")
