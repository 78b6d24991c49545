"""The processes that relay: what dies with one of them, how it is replaced, when that ends."""

import ctypes
import errno
import os
import platform
import re
import signal
import socket
import struct
import threading
import time

import dns.message
import dns.query
import pytest
from lab import wait_for


def echo_works(tunnel, lab):
    try:
        with tunnel.app.connect(lab.world4, 7, timeout=3) as sock:
            sock.sendall(b"hello")
            return sock.recv(10) == b"hello"
    except OSError:
        return False


def fake_address(tunnel, name):
    reply = dns.query.udp(dns.message.make_query(name, "A"), "198.18.0.2", timeout=5,
                          sock=tunnel.app.udp())
    return reply.answer[0][0].address


def gone(pid):
    """Has the process ended? A zombie has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_worker_is_replaced(lab, serve):
    """Within a second, with the device and its routes in place."""
    with lab.tunnel(serve.url) as tunnel:
        assert echo_works(tunnel, lab)
        before, = tunnel.workers()
        os.kill(before, signal.SIGKILL)
        started = time.monotonic()
        wait_for(lambda: echo_works(tunnel, lab), "a new worker relays", 3)
        assert time.monotonic() - started < 1
        after, = tunnel.workers()
        assert after != before
        assert "culvert0" in tunnel.app.links()
        assert tunnel.count("was ended by signal 9") == 1, tunnel.log


def test_fake_addresses_outlive_a_worker(lab, serve):
    """Applications keep what they were told."""
    with lab.tunnel(serve.url) as tunnel:
        address = fake_address(tunnel, "v4.test")
        os.kill(tunnel.workers()[0], signal.SIGKILL)
        wait_for(lambda: echo_works(tunnel, lab), "a new worker relays", 3)
        with tunnel.app.connect(address, 7) as sock:
            sock.sendall(b"by its fake address")
            assert sock.recv(30) == b"by its fake address"


# --- several of them -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def two(lab, serve):
    with lab.tunnel(serve.url, "--workers", "2") as tunnel:
        yield tunnel


def connect_many(tunnel, lab, count):
    socks = [tunnel.app.connect(lab.world4, 7) for _ in range(count)]
    for sock in socks:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
    return socks


def sockets_of(pid):
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
               for fd in os.listdir(f"/proc/{pid}/fd"))


IDLE_SOCKETS = 1  # of a worker: towards its broker


def idle_sockets(tunnel):
    """{pid: sockets} of its workers, once the look at the proxy that the start takes is over."""
    wait_for(lambda: all(sockets_of(pid) == IDLE_SOCKETS for pid in tunnel.workers()),
             "workers hold no connection")
    return {pid: sockets_of(pid) for pid in tunnel.workers()}


def test_connections_spread_and_stay(lab, two):
    idle = idle_sockets(two)
    assert len(idle) == 2
    socks = connect_many(two, lab, 64)
    served = {pid: sockets_of(pid) - idle[pid] for pid in idle}
    assert sum(served.values()) == 64
    assert min(served.values()) >= 10, served
    for turn in range(20):
        for sock in socks:
            sock.sendall(b"2")
            assert sock.recv(1) == b"2"
    assert served == {pid: sockets_of(pid) - idle[pid] for pid in idle}
    for sock in socks:
        sock.close()


def test_bulk_through_each(lab, two):
    """Every connection gets through whole, whichever worker it is with."""
    sent = os.urandom(1 << 20)
    for host in (lab.world4, lab.world6):
        for _ in range(6):
            with two.app.connect(host, 7) as sock:
                got = bytearray()
                writer = threading.Thread(
                    target=lambda s=sock: (s.sendall(sent), s.shutdown(socket.SHUT_WR)))
                writer.start()
                while chunk := sock.recv(1 << 16):
                    got += chunk
                writer.join(5)
                assert got == sent


def test_one_udp_source_keeps_one_mapping(lab, two):
    """Whatever it sends to, in whatever pieces: RFC 4787's endpoint-independent mapping."""
    seen = {}
    servers = []
    for n in range(8):
        server = lab.world.udp(lab.world_v4(n), 4000 + n)
        servers.append(server)
    for _ in range(4):
        with two.app.udp() as sock:
            mappings = set()
            for n, server in enumerate(servers):
                for size in (10, 5000):  # the larger one comes in fragments
                    sock.sendto(bytes(size), (lab.world_v4(n), 4000 + n))
                    payload, source = server.recvfrom(6000)
                    assert len(payload) == size
                    mappings.add(source)
            assert len(mappings) == 1, mappings
            seen[sock.fileno()] = mappings
    for server in servers:
        server.close()


def test_names_are_known_to_all(lab, two):
    """Asked by way of one worker (UDP), used by way of both."""
    address = fake_address(two, "v4.test")
    idle = {pid: sockets_of(pid) for pid in two.workers()}
    socks = []
    for _ in range(32):
        sock = two.app.connect(address, 7)
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        socks.append(sock)
    assert all(sockets_of(pid) > idle[pid] for pid in idle)
    for sock in socks:
        sock.close()


def test_only_the_killed_workers_flows_die(lab, serve):
    with lab.tunnel(serve.url, "--workers", "2") as tunnel:
        socks = connect_many(tunnel, lab, 40)
        victim, other = tunnel.workers()
        survivors = sockets_of(other) - IDLE_SOCKETS
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        wait_for(lambda: len(tunnel.workers()) == 2 and victim not in tunnel.workers(),
                 "it is replaced", 3)
        alive = 0
        for sock in socks:
            sock.settimeout(1)
            try:
                sock.sendall(b"2")
                alive += sock.recv(1) == b"2"
            except OSError:
                pass
        assert 5 <= alive < 40
        assert alive >= survivors - 1
        assert time.monotonic() - started < 60
        for sock in connect_many(tunnel, lab, 20) + socks:
            sock.close()
        assert other in tunnel.workers()


def test_more_workers_than_a_persistent_device_has_queues(lab, serve):
    """A device that somebody made with one queue: one worker, and a line."""
    app = lab.client()
    app.ip("tuntap add dev held mode tun")
    with lab.tunnel(serve.url, "--workers", "2", app=app, device="held") as tunnel:
        assert echo_works(tunnel, lab)
        assert len(tunnel.workers()) == 1
        assert tunnel.count("one worker instead of 2") == 1
        tunnel.device = "none"  # it stays
    app.ip("link del held")
    app.ip("tuntap add dev held mode tun multi_queue")
    for count in ("1", "2"):
        with lab.tunnel(serve.url, "--workers", count, app=app, device="held") as tunnel:
            assert echo_works(tunnel, lab)
            assert len(tunnel.workers()) == int(count)
            tunnel.device = "none"
    app.close()


BPF = {"x86_64": 321, "aarch64": 280}  # the system call's number


def refuse_bpf():
    """For a child, before its exec: bpf() fails with EPERM, as in many a container."""
    program = b"".join(struct.pack("=HBBI", *op) for op in (
        (0x20, 0, 0, 0),                                  # load the system call's number
        (0x15, 0, 1, BPF[platform.machine()]),            # unless it is bpf(), skip one
        (0x06, 0, 0, 0x00050000 | errno.EPERM),           # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7fff0000)))                        # SECCOMP_RET_ALLOW
    at = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", len(program) // 8, ctypes.addressof(at))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, ctypes.c_char_p(filters), 0, 0) != 0:  # PR_SET_SECCOMP, MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def test_one_worker_where_ebpf_is_refused(lab, serve):
    """What belongs together could not be kept together: one worker serves all, and says so."""
    with lab.tunnel(serve.url, "--workers", "2", preexec_fn=refuse_bpf) as tunnel:
        assert tunnel.count("one worker instead of 2: no eBPF") == 1, tunnel.log
        assert len(tunnel.workers()) == 1
        for sock in connect_many(tunnel, lab, 10):
            sock.close()


COUNTERS = re.compile(r"(\d+) connections open, (\d+) so far; from applications (\d+) packets, "
                      r"(\d+) bytes; to applications (\d+) packets, (\d+) bytes")


def counters(tunnel):
    """What it says when asked: connections open and so far, packets and bytes in, and out."""
    before = len(COUNTERS.findall(tunnel.log))
    os.kill(tunnel.pid, signal.SIGUSR1)
    wait_for(lambda: len(COUNTERS.findall(tunnel.log)) > before, "the counters are in the log")
    return [int(n) for n in COUNTERS.findall(tunnel.log)[-1]]


def test_counters_are_summed(lab, serve):
    """Over the workers, those that died included; what died with one is not open any more."""
    with lab.tunnel(serve.url, "--workers", "2") as tunnel:
        socks = connect_many(tunnel, lab, 30)
        for sock in socks:
            sock.sendall(bytes(1000))
            left = 1000
            while left:
                left -= len(sock.recv(left))
        now, so_far, packets_in, bytes_in, packets_out, bytes_out = counters(tunnel)
        assert now == so_far == 30
        assert packets_in >= 90 and packets_out >= 90
        assert bytes_in >= 30000 and bytes_out >= 30000
        victim = tunnel.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(tunnel.workers()) == 2 and victim not in tunnel.workers(),
                 "it is replaced", 3)
        wait_for(lambda: counters(tunnel)[0] < 30, "its connections are not counted as open", 3)
        after = counters(tunnel)
        assert after[1] >= 30 and after[3] >= bytes_in and after[5] >= bytes_out, after
        for sock in socks:
            sock.close()
        wait_for(lambda: counters(tunnel)[0] == 0, "no connection is open")


# --- the end -------------------------------------------------------------------------------------

def test_workers_that_die_at_once_are_given_up(lab, serve):
    """Five deaths within ten seconds are no accident: a clear line, status 1, all undone."""
    with lab.tunnel(serve.url) as tunnel:
        tunnel.checked = True
        tunnel.kill_workers(5)
        assert tunnel.wait_end(5) == 1
        assert tunnel.count("giving up") == 1, tunnel.log
        assert "culvert0" not in tunnel.app.links()


def test_no_worker_outlives_its_supervisor(lab, serve):
    tunnel = lab.tunnel(serve.url)
    pids = tunnel.tree()
    tunnel.kill()
    wait_for(lambda: all(map(gone, pids)), "all processes are gone", 2)
    wait_for(lambda: "culvert0" not in tunnel.app.links(), "the device is gone", 2)
    tunnel.stop()


def test_control_c_reaches_all_and_all_stop_once(lab, serve):
    """A terminal sends SIGINT to the workers too; it is no death to be answered."""
    with lab.tunnel(serve.url, start_new_session=True) as tunnel:
        assert echo_works(tunnel, lab)
        tunnel.checked = True
        os.killpg(tunnel.pid, signal.SIGINT)
        assert tunnel.wait_end(5) == 0
        assert tunnel.count("worker") == 0, tunnel.log
