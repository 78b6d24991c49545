"""TCP flows: every byte, both half-closes, resets, back-pressure, what comes with the reply."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import statistics
import struct
import termios
import threading
import time

import pytest

import lab as laboratory
import streams
from lab import DIRECT, wait_for
from netns import SLOWER, Namespace, family_of, reset, url_host, veth
from rude import Rude
from servers import TcpServer, resetting
from streams import MIB

SIOCOUTQ = termios.TIOCOUTQ


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


def run_all(jobs, timeout=55):
    """Run callables at once, one thread each; fail with the first failure."""
    failures = []

    def guarded(job):
        try:
            job()
        except BaseException as failure:  # pylint: disable=broad-except
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.1, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    alive = sum(thread.is_alive() for thread in threads)
    assert alive == 0, f"{alive} of {len(threads)} flows are not done after {timeout} s"


def connect(tunnel, host, port):
    return tunnel.app.connect(host, port, timeout=50)


# --- every byte ----------------------------------------------------------------------------------

@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.deadline(120)
def test_32_flows_of_8_mib(lab, tunnel, stream_server, direction):
    """Each flow its own bytes, compared one by one; IPv4 and IPv6 in turns."""
    jobs = []
    for index in range(32):
        work = streams.upload if direction == "up" or (direction == "both" and index % 4 < 2) \
            else streams.download
        host = lab.world4 if index % 2 else lab.world6

        def job(work=work, host=host, index=index):
            with connect(tunnel, host, stream_server.port) as sock:
                work(sock, index, 8 * MIB)

        jobs.append(job)
    run_all(jobs, timeout=110)


def test_both_directions_of_a_flow_at_once(lab, tunnel):
    """16 flows to an echo server, 8 MiB each, written and read at the same time."""
    def flow(index):
        host = lab.world4 if index % 2 else lab.world6
        with connect(tunnel, host, 7) as sock:
            writer = threading.Thread(target=_send_and_end, args=(sock, index, 8 * MIB))
            writer.start()
            streams.expect(sock, index, 8 * MIB)
            streams.expect_end(sock)
            writer.join()

    run_all([lambda index=index: flow(index) for index in range(16)])


def _send_and_end(sock, seed, total):
    streams.send(sock, seed, total)
    sock.shutdown(socket.SHUT_WR)


def test_3000_flows(lab, tunnel):
    """All open at once, each with a question and an answer; their ends free everything."""
    socks = [connect(tunnel, lab.world4 if n % 2 else lab.world6, 7) for n in range(3000)]
    for number, sock in enumerate(socks):
        sock.sendall(b"%d" % number)
    for number, sock in enumerate(socks):
        assert sock.recv(10) == b"%d" % number
    for sock in socks:
        sock.close()
    tunnel.settle(20)


@pytest.mark.parametrize("options", [["--no-offload"], ["--mtu", "1280"], ["--mtu", "65535"],
                                     ["--no-offload", "--mtu", "9000"]], ids=" ".join)
def test_transfers_with_other_devices(lab, serve, stream_server, options):
    """Without TSO and at other MTUs: 8 flows of 4 MiB, half of them up."""
    with lab.tunnel(serve.url, *options) as tunnel:
        def flow(index):
            host = lab.world4 if index % 2 else lab.world6
            with connect(tunnel, host, stream_server.port) as sock:
                (streams.upload if index < 4 else streams.download)(sock, index, 4 * MIB)

        run_all([lambda index=index: flow(index) for index in range(8)])


@pytest.mark.parametrize("size", [0, 1, 2, 1459, 1460, 1461, 65535, 65536, 65537, 1000003])
def test_transfers_of_every_size(lab, tunnel, stream_server, size):
    for host in (lab.world4, lab.world6):
        with connect(tunnel, host, stream_server.port) as sock:
            streams.upload(sock, size, size)
        with connect(tunnel, host, stream_server.port) as sock:
            streams.download(sock, size, size)


def test_small_writes_arrive_without_waiting(lab, tunnel):
    """A question and an answer at a time, 300 times: nothing waits for more to come."""
    with connect(tunnel, lab.world4, 7) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin = time.monotonic()
        for number in range(300):
            question = f"{number}".encode()
            sock.sendall(question)
            assert sock.recv(100) == question
        assert time.monotonic() - begin < 3, "round trips wait for a timer (Nagle, delayed ACK)"


# --- packets above 64 KiB --------------------------------------------------------------------------

ORDINARY = 65535 + 40  # the longest that an IP header can tell of
KERNEL = tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", os.uname().release).groups())


@pytest.fixture(scope="module")
def guest(tunnel):
    """Somebody whom the tunnel's machine forwards, as it does a container."""
    space = Namespace("guest")
    veth(tunnel.app, "guest0", space, "eth0", ("10.55.0.1/24", "10.55.0.2/24"),
         ("fd55::1/64", "fd55::2/64"))
    tunnel.app.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    space.ip("route add default via 10.55.0.1")
    space.ip("-6 route add default via fd55::1")
    yield space
    tunnel.app.sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    space.close()


class LargestPacket:
    """The longest IP packet that leaves or enters the tunnel meanwhile, bytes."""

    def __init__(self, tunnel):
        self.bytes = 0
        self._done = threading.Event()
        self._sock = tunnel.app.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._sock.bind(("culvert0", 0x0003))  # ETH_P_ALL
        self._sock.settimeout(0.1)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self._done.is_set():
            with contextlib.suppress(TimeoutError):
                self.bytes = max(self.bytes, self._sock.recv_into(bytearray(1), 0,
                                                                  socket.MSG_TRUNC))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._sock.close()


def download_64_mib(space, host, port, hops=64):
    with space.socket(family_of(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ":" in host
                          else (socket.IPPROTO_IP, socket.IP_TTL)), hops)
        sock.settimeout(50)
        sock.connect((host, port))
        streams.download(sock, 3, 64 * MIB)


@pytest.mark.skipif(DIRECT or KERNEL < (6, 6), reason="wants culvert, and Linux 6.6")
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_bulk_comes_in_packets_above_64_kib(lab, tunnel, stream_server, family):
    """To applications of this machine, and byte by byte."""
    host = lab.world4 if family == "IPv4" else lab.world6
    with LargestPacket(tunnel) as largest:
        download_64_mib(tunnel.app, host, stream_server.port)
    assert largest.bytes > ORDINARY


@pytest.mark.skipif(DIRECT, reason="looks at culvert's packets")
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_guests_get_packets_that_their_link_takes(lab, tunnel, guest, stream_server, family):
    host = lab.world4 if family == "IPv4" else lab.world6
    with LargestPacket(tunnel) as largest:
        download_64_mib(guest, host, stream_server.port)
    assert 1500 < largest.bytes <= ORDINARY


@pytest.mark.skipif(DIRECT or KERNEL < (6, 6), reason="wants culvert, and Linux 6.6")
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_guests_taken_for_applications(lab, tunnel, guest, stream_server, family):
    """One whose hop limit is 64 after it was forwarded: the kernel cuts, and no byte is lost."""
    host = lab.world4 if family == "IPv4" else lab.world6
    with LargestPacket(tunnel) as largest:
        download_64_mib(guest, host, stream_server.port, hops=65)
    assert largest.bytes > ORDINARY


# --- losses --------------------------------------------------------------------------------------

@pytest.fixture
def lossy(tunnel):
    """Of what comes out of the tunnel, acknowledgments apart, every twentieth packet is dropped."""
    drop = "numgen random mod 20 == 0 drop"
    tunnel.app.run("nft", "-f", "-", check=True, input=(
        "table inet lossy {\n chain on_arrival {\n  type filter hook prerouting priority raw;\n"
        f"  iifname culvert0 meta length > 100 {drop}\n }}\n}}\n"))
    yield
    tunnel.app.run("nft", "delete", "table", "inet", "lossy", check=True)


def longest_silence(sock, seed, total, room_from_half_on=None):
    """Of a download that is checked byte by byte, seconds; the receive buffer may shrink meanwhile."""
    streams.ask(sock, b"D", seed, total)
    longest, done, before = 0.0, 0, time.monotonic()
    while done < total:
        if room_from_half_on and done >= total / 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_from_half_on)
        data = sock.recv(min(MIB, total - done))
        assert data and data == streams.piece(seed, done, len(data))
        done += len(data)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    return longest


@pytest.mark.skipif(DIRECT, reason="the losses are culvert's")
@pytest.mark.deadline(120)
def test_losses_are_made_good_at_once(lab, tunnel, lossy, stream_server):
    """Lost twice as well, and without lwIP's timer, which takes 300 ms and more."""
    silences = []
    for index in range(20):
        host = lab.world4 if index % 2 else lab.world6
        with connect(tunnel, host, stream_server.port) as sock:
            silences.append(longest_silence(sock, index, 64 * MIB))
    assert statistics.median(silences) < 0.2 * SLOWER, sorted(silences)


@pytest.mark.parametrize("room", [3000, 20000, 60000])
@pytest.mark.parametrize("options", [(), ("--no-offload",)], ids=["", "no-offload"])
def test_reader_that_takes_room_back(lab, serve, stream_server, options, room):
    """What is under way no longer fits and is dropped; what is queued is larger than the window."""
    with lab.tunnel(serve.url, *options) as tunnel:
        for index, host in enumerate((lab.world4, lab.world6)):
            with connect(tunnel, host, stream_server.port) as sock:
                assert longest_silence(sock, index, 16 * MIB, room) < 2 * SLOWER


# --- half-closes ---------------------------------------------------------------------------------

def test_half_close_with_64_mib_behind_it_downwards(lab, tunnel):
    """The application's FIN comes first, then 64 MiB towards it."""
    def serve(sock):
        assert sock.recv(100, socket.MSG_WAITALL) == b"begin"
        streams.send(sock, 5, 64 * MIB)

    server = lab.serve(TcpServer(lab.world, serve))
    with connect(tunnel, lab.world4, server.port) as sock:
        sock.sendall(b"begin")
        sock.shutdown(socket.SHUT_WR)
        streams.expect(sock, 5, 64 * MIB)
        streams.expect_end(sock)


def test_half_close_with_64_mib_behind_it_upwards(lab, tunnel, stream_server):
    """The server's FIN comes first, then 64 MiB towards it."""
    streams.verdicts.clear()
    with connect(tunnel, lab.world6, stream_server.port) as sock:
        streams.ask(sock, b"L", 8, 64 * MIB)
        streams.expect(sock, 8, 64 * MIB)
        streams.expect_end(sock)
        streams.send(sock, 9, 64 * MIB)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: streams.verdicts, "the server's verdict on 64 MiB after its FIN", 40)
    assert streams.verdicts == [b"ok"], streams.verdicts[0].decode()


def test_half_closed_flow_has_no_time_limit_of_its_own(lab, tunnel):
    """12 s of silence after a FIN (others cut at 10), in both directions at once."""
    release = threading.Event()

    def fin_then_answer(sock):
        sock.shutdown(socket.SHUT_WR)
        streams.expect(sock, 1, MIB)
        late.append("all of it")

    def answer_late(sock):
        while sock.recv(100):
            pass
        release.wait(30)
        streams.send(sock, 2, MIB)

    late = []
    first = lab.serve(TcpServer(lab.world, fin_then_answer))
    second = lab.serve(TcpServer(lab.world, answer_late))
    with connect(tunnel, lab.world4, first.port) as up, \
            connect(tunnel, lab.world6, second.port) as down:
        streams.expect_end(up)
        down.shutdown(socket.SHUT_WR)
        time.sleep(12)
        release.set()
        streams.send(up, 1, MIB)
        streams.expect(down, 2, MIB)
        streams.expect_end(down)
        wait_for(lambda: late, "1 MiB sent 12 s after the server's FIN")


def test_half_close_passes_the_proxy_as_fin(lab, rude, rude_tunnel):
    with connect(rude_tunnel, lab.world4, 7) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        streams_end = b""
        while data := sock.recv(100):
            streams_end += data
        assert streams_end == b"last words"
    wait_for(lambda: rude.closed == ["fin"], "the proxy sees the flow end by FIN")


def test_closed_flows_leave_nothing(lab, rude, rude_tunnel):
    for _ in range(100):
        with connect(rude_tunnel, lab.world4, 7) as sock:
            sock.sendall(b"x")
            sock.recv(1)
    wait_for(lambda: rude.open_connections() == 0, "all flows end at the proxy")
    rude_tunnel.settle()


# --- resets --------------------------------------------------------------------------------------

def test_application_s_reset_reaches_the_proxy(lab, rude, rude_tunnel):
    sock = connect(rude_tunnel, lab.world4, 7)
    sock.sendall(b"x")
    sock.recv(1)
    reset(sock)
    wait_for(lambda: rude.closed == ["reset"], "the proxy's connection is reset")
    rude_tunnel.settle()


def test_reset_passes_from_end_to_end(lab, tunnel):
    """Server resets: the application hears ECONNRESET; application resets: the server does."""
    server = lab.serve(TcpServer(lab.world, resetting))
    with connect(tunnel, lab.world4, server.port) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    reader = lab.serve(TcpServer(lab.world, lambda client: client.recv(1) and client.recv(1)))
    sock = connect(tunnel, lab.world6, reader.port)
    sock.sendall(b"x")
    time.sleep(0.2)
    reset(sock)
    wait_for(lambda: reader.errors, "the server hears of the application's reset")
    assert isinstance(reader.errors[0], ConnectionResetError)


def test_reset_right_behind_data(lab, tunnel):
    """A short read is trusted to have emptied the socket; what was behind it is heard of all the same.

    Linux drops unread data with a reset on some of the four hops, so the bytes may be lost; the
    reset may not."""
    def answer_and_reset(sock):
        sock.recv(1)
        sock.sendall(b"data")
        reset(sock)

    server = lab.serve(TcpServer(lab.world, answer_and_reset))
    for _ in range(100):
        with connect(tunnel, lab.world4, server.port) as sock:
            sock.settimeout(5)
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                while sock.recv(10):
                    pass


def test_proxy_s_reset_reaches_the_application(lab, rude, rude_tunnel):
    server = lab.serve(TcpServer(lab.world, resetting))
    with connect(rude_tunnel, lab.world6, server.port) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    rude_tunnel.settle()


def test_reset_under_load_leaves_nothing(lab, rude_tunnel, rude, stream_server):
    """50 downloads cut off in the middle, 50 uploads as well."""
    for index in range(50):
        sock = connect(rude_tunnel, lab.world4, stream_server.port)
        streams.ask(sock, b"D", index, 8 * MIB)
        sock.recv(100)
        reset(sock)
        sock = connect(rude_tunnel, lab.world6, stream_server.port)
        streams.ask(sock, b"U", index, 8 * MIB)
        streams.send(sock, index, 100000)
        reset(sock)
    wait_for(lambda: rude.open_connections() == 0, "100 resets at the proxy", 20)
    rude_tunnel.settle()


# --- back-pressure -------------------------------------------------------------------------------

def assert_quiet(tunnel, what, seconds=2.0):
    """Nobody reads or writes: no CPU may be spent."""
    before = tunnel.cpu_seconds()
    time.sleep(seconds)
    spent = tunnel.cpu_seconds() - before
    assert spent <= 0.05 * seconds, f"{spent:.2f} s of CPU in {seconds} s of {what}"


def test_stalled_reader(lab, tunnel, stream_server):
    """20 applications that do not read: no CPU, bounded memory, and all is there afterwards."""
    if DIRECT:
        pytest.skip("measures culvert")
    before = tunnel.resident_mb()
    total = 32 * MIB
    socks = []
    for index in range(20):
        sock = connect(tunnel, lab.world4, stream_server.port)
        streams.ask(sock, b"D", index, total)
        socks.append(sock)
    time.sleep(1.5)  # until all that has room is full
    assert_quiet(tunnel, "20 stalled downloads")
    grown = tunnel.resident_mb() - before
    assert grown < 100, f"20 stalled downloads hold {grown:.0f} MB"
    run_all([lambda i=i, s=s: (streams.expect(s, i, total), streams.expect_end(s))
             for i, s in enumerate(socks[:4])])
    for sock in socks:
        sock.close()
    tunnel.settle()


@pytest.mark.skipif(laboratory.SANITIZED or DIRECT, reason="measures the release build's memory")
def test_idle_flows_own_no_buffers(lab, tunnel):
    """1,000 flows that have moved 16 KiB each way and are silent now: some 2 KB each."""
    socks = [connect(tunnel, lab.world4 if n % 2 else lab.world6, 7) for n in range(100)]
    before = tunnel.resident_mb()
    socks += [connect(tunnel, lab.world4 if n % 2 else lab.world6, 7) for n in range(1000)]
    for sock in socks:
        sock.sendall(bytes(16384))
        got = 0
        while got < 16384:
            got += len(sock.recv(16384))
    time.sleep(1)
    grown = (tunnel.resident_mb() - before) * 1024
    assert grown < 4000, f"1,000 idle flows hold {grown:.0f} KiB"
    assert_quiet(tunnel, "1,100 idle flows")
    for sock in socks:
        sock.close()
    tunnel.settle()


def test_stalled_writer(lab, rude, rude_tunnel):
    """A proxy that does not read: the application's writes block; no CPU, bounded memory."""
    rude.stall = True
    before = rude_tunnel.resident_mb()
    socks = []
    for _ in range(20):
        sock = connect(rude_tunnel, lab.world4, 7)
        sock.setblocking(False)
        socks.append(sock)
    written = _write_until_blocked(socks)
    assert_quiet(rude_tunnel, "20 stalled uploads")
    grown = rude_tunnel.resident_mb() - before
    assert grown < 100, f"20 stalled uploads ({written >> 20} MiB written) hold {grown:.0f} MB"
    for sock in socks:
        reset(sock)
    rude_tunnel.settle()


def _write_until_blocked(socks):
    """Write on all until none has taken anything for a second; returns the sum."""
    written, last_progress = 0, time.monotonic()
    while time.monotonic() - last_progress < 1:
        for sock in socks:
            try:
                written += sock.send(b"w" * 65536)
                last_progress = time.monotonic()
            except BlockingIOError:
                pass
        time.sleep(0.001)
        assert written < 2000 * MIB, "the application may write without end to a deaf proxy"
    return written


@pytest.mark.skipif(DIRECT, reason="is about culvert's window")
@pytest.mark.parametrize("options", [[], ["--no-offload"]], ids=" ".join)
def test_acknowledged_is_what_the_proxy_s_socket_has_taken(lab, options):
    """Not a byte more; and the application waits at a closed window instead of sending again."""
    with Rude(lab.mid, lab.proxy4) as rude, \
            lab.tunnel(f"socks5://{rude.host}:{rude.port}", *options) as tunnel:
        rude.stall = True
        for host in (lab.world4, lab.world6):
            sock = connect(tunnel, host, 7)
            sock.setblocking(False)
            written = _write_until_blocked([sock])
            acknowledged = written - unacknowledged(sock)
            taken = in_queues(tunnel.app, 1, f"dport = :{rude.port}") \
                + in_queues(lab.mid, 0, f"sport = :{rude.port}")
            assert acknowledged > 64 << 10, f"only {acknowledged} bytes went through"
            assert acknowledged <= taken, (
                f"{acknowledged} bytes acknowledged to the application, of which the proxy's "
                f"socket has taken {taken}")
            state = tunnel.app.run("ss", "-Htnio", "dst", url_host(host)).stdout
            assert "timer:(persist" in state, f"not a closed window: {state}"
            reset(sock)
            wait_for(lambda: rude.open_connections() == 0, "the proxy hears of the reset")


def unacknowledged(sock):
    return struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, b"\0\0\0\0"))[0]


def in_queues(space, column, where):
    """The sum of ss's Recv-Q (0) or Send-Q (1) over the connections of `where`."""
    lines = space.run("ss", "-Htn", "state", "established", where).stdout.splitlines()
    return sum(int(line.split()[column]) for line in lines)


@pytest.mark.skipif(DIRECT, reason="is about culvert's window")
def test_stalled_upload_is_never_given_up(lab, rude):
    """A stall that outlasts the kernel's patience with unacknowledged data (made shorter here)."""
    arrived = []

    def serve(sock):
        paused = sock.recv(4)
        assert paused == b"wait"
        resume.wait(50)
        streams.expect(sock, 4, total)
        streams.expect_end(sock)
        arrived.append(total)

    total, resume = 32 * MIB, threading.Event()
    server = lab.serve(TcpServer(lab.world, serve))
    tunnels = [lab.tunnel(f"socks5://{rude.host}:{rude.port}", *options)
               for options in ([], ["--no-offload"])]
    senders = []
    for tunnel in tunnels:
        tunnel.app.run("sysctl", "-qw", "net.ipv4.tcp_retries2=3", check=True)
        sock = connect(tunnel, lab.world4, server.port)
        sock.sendall(b"wait")
        senders.append(threading.Thread(target=_send_and_end, args=(sock, 4, total), daemon=True))
        senders[-1].start()
    time.sleep(8)  # three retransmissions take 3 s
    resume.set()
    wait_for(lambda: len(arrived) == 2, "32 MiB each after a stall of 8 s", 20)
    for sender, tunnel in zip(senders, tunnels):
        sender.join(5)
        tunnel.stop()


def test_slow_reader_gets_everything(lab, tunnel, stream_server):
    """A small receive buffer and pauses: tiny and closing windows, no stall, no loss."""
    sock = tunnel.app.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    sock.connect((lab.world4, stream_server.port))
    total = 2 * MIB
    streams.ask(sock, b"D", 3, total)
    time.sleep(0.5)
    begin = time.monotonic()
    streams.expect(sock, 3, total)
    seconds = time.monotonic() - begin
    streams.expect_end(sock)
    assert seconds < 10, f"2 MiB through a small window took {seconds:.1f} s: a stall"


# --- what comes with the reply -------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 100, 1460, 5000, 70000])
@pytest.mark.parametrize("bound", ["ipv4", "ipv6", "domain"])
def test_payload_glued_to_the_reply(lab, rude, rude_tunnel, size, bound):
    """Data of the server's in one segment with the proxy's reply is the application's."""
    rude.glue, rude.bound = streams.piece(7, 0, size), bound
    with connect(rude_tunnel, lab.world4, 25) as sock:
        streams.expect(sock, 7, size)
        sock.shutdown(socket.SHUT_WR)
        streams.expect_end(sock)


def test_payload_glued_to_a_dripping_reply(lab, rude, rude_tunnel):
    rude.glue, rude.drip = b"220 hello", 0.005
    with connect(rude_tunnel, lab.world4, 25) as sock:
        got = b""
        while len(got) < 9:
            got += sock.recv(9)
        assert got == b"220 hello"


def test_banner_first_server(lab, tunnel):
    """The server speaks first, at once, and closes: nothing of it is lost."""
    server = lab.serve(TcpServer(lab.world, lambda sock: sock.sendall(b"220 ready\r\n")))
    for host in (lab.world4, lab.world6) * 50:
        with connect(tunnel, host, server.port) as sock:
            got = b""
            while data := sock.recv(100):
                got += data
            assert got == b"220 ready\r\n"


def test_first_bytes_follow_the_handshake_closely(lab, rude, rude_tunnel):
    """The application speaks as soon as it may, and FINs with it: nothing of it is lost."""
    for _ in range(50):
        with connect(rude_tunnel, lab.world4, 7) as sock:
            sock.sendall(b"GET")
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b"GET"
            streams.expect_end(sock)


# --- time-outs and the connection to the proxy ---------------------------------------------------

@pytest.fixture(scope="module")
def impatient(lab):
    """A rude server of its own and a tunnel that gives up idle flows after 2 s."""
    if DIRECT:
        pytest.skip("needs culvert's options")
    with Rude(lab.mid, lab.proxy4) as rude:
        yield rude, lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--tcp-idle-timeout", "2")


def test_idle_flow_ends(lab, impatient):
    rude, tunnel = impatient
    with connect(tunnel, lab.world4, 7) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        begin = time.monotonic()
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
        seconds = time.monotonic() - begin
        assert 1.5 < seconds < 5, f"--tcp-idle-timeout 2 ended the flow after {seconds:.1f} s"
    wait_for(lambda: rude.open_connections() == 0, "the proxy's side ends too")
    tunnel.settle()


def test_traffic_and_keep_alives_keep_a_flow(lab, impatient):
    """RFC 5382: keep-alives count as activity; so does traffic in one direction only."""
    _, tunnel = impatient
    alive = connect(tunnel, lab.world4, 7)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
        alive.setsockopt(socket.IPPROTO_TCP, option, value)
    alive.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sink = lab.serve(TcpServer(lab.world, lambda sock: streams.expect(sock, 0, 10)))
    one_way = connect(tunnel, lab.world6, sink.port)
    for number in range(10):
        one_way.sendall(streams.piece(0, number, 1))
        time.sleep(0.5)
    alive.sendall(b"still here")
    assert alive.recv(100) == b"still here"
    wait_for(lambda: sink.peers and not sink.open_connections(), "ten bytes in five seconds")
    assert not sink.errors, f"the flow in one direction was cut: {sink.errors[0]}"
    alive.close()
    one_way.close()


def test_keep_alive_towards_the_proxy(lab, rude, rude_tunnel):
    """Not at once: a connection that is over in a moment is spared the system calls."""
    def probed():
        line = rude_tunnel.app.run("ss", "-Htno", "state", "established",
                                   f"dport = :{rude.port}").stdout
        return re.search(r"timer:\(keepalive,", line)

    with connect(rude_tunnel, lab.world4, 7):
        wait_for(probed, "the connection to the proxy has a keep-alive timer")


def test_window_is_scaled(lab, rude_tunnel, rude):
    """lwIP's small defaults would make every upload slow. It grows as bytes are passed on."""
    with connect(rude_tunnel, lab.world4, 7) as sock:
        for _ in range(16):
            sock.sendall(bytes(32 << 10))
            left = 32 << 10
            while left > 0:
                left -= len(sock.recv(left))
        line = rude_tunnel.app.run("ss", "-Htni", f"sport = :{sock.getsockname()[1]}").stdout
        assert "wscale:" in line, f"no window scaling agreed: {line}"
        sent_scale = re.search(r"snd_wnd:(\d+)", line)
        if sent_scale:
            assert int(sent_scale[1]) >= 128 << 10, f"a window of only {sent_scale[1]} bytes"


def test_unread_data_when_the_application_closes(lab, rude, rude_tunnel):
    """close() with data unread is a reset (RFC 2525, 2.17): the proxy's side ends as well."""
    flood = lab.serve(TcpServer(lab.world, lambda sock: streams.send(sock, 1, 64 * MIB)))
    sock = connect(rude_tunnel, lab.world4, flood.port)
    sock.recv(1)
    time.sleep(0.2)
    sock.close()
    wait_for(lambda: rude.open_connections() == 0, "the proxy's connection ends")
    wait_for(lambda: flood.errors, "the server hears that nobody reads")
    assert flood.errors[0].errno in (errno.ECONNRESET, errno.EPIPE)
    rude_tunnel.settle()
