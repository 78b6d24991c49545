"""`culvert serve` with real clients: curl, and SOCKS5 spoken by hand."""

import contextlib
import hashlib
import os
import select
import signal
import socket
import struct
import threading
import time

import pytest

import socks5
from lab import CULVERT, Culvert
from netns import reset, wait_for
from servers import TcpServer, UdpEcho, echo, resetting

MIB = 1 << 20


@pytest.fixture(scope="module")
def app(lab):
    space = lab.client()
    yield space
    space.close()


@pytest.fixture(scope="module")
def server(lab):
    return lab.culvert_serve("--log-level", "debug")


@pytest.fixture(scope="module")
def server6(lab):
    return lab.culvert_serve(host=lab.proxy6)


@pytest.fixture
def proxy(server):
    yield (server.host, server.port)
    server.settle()


def pattern(size, seed=1):
    """Bytes that a shift or a swap would not leave alike."""
    block = hashlib.shake_128(bytes([seed])).digest(65521)
    return (block * (size // len(block) + 1))[:size]


def read_all(sock):
    data = bytearray()
    while more := sock.recv(MIB):
        data += more
    return bytes(data)


# --- CONNECT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag,host", [("--socks5-hostname", "www.test"),
                                       ("--socks5-hostname", "v6.test"),
                                       ("--socks5", "10.88.0.2"), ("--socks5", "[fd88::2]")])
def test_curl(lab, app, proxy, flag, host):
    page = pattern(300000).hex().encode()

    def serve_page(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)

    with TcpServer(lab.world, serve_page) as web:
        done = app.run("curl", "-sS", "--max-time", "10", flag, f"{proxy[0]}:{proxy[1]}",
                       f"http://{host}:{web.port}/", check=True)
    assert done.stdout.encode() == page


def test_ipv6_client(lab, app, server6):
    proxy = (server6.host, server6.port)
    for host in (lab.world4, lab.world6, "www.test"):
        with socks5.connect(app, proxy, host, 7) as sock:
            sock.sendall(b"hello")
            assert socks5.read_exactly(sock, 5) == b"hello"


def test_bound_address_is_the_real_one(lab, app, proxy):
    seen = []

    def note(connection):
        seen.append(connection.getpeername()[:2])
        connection.recv(1)

    with TcpServer(lab.world, note) as target:
        for host in (lab.world4, lab.world6):
            sock, bound, port = socks5.ask(app, proxy, socks5.CONNECT, host, target.port)
            sock.close()
            peer = wait_for(lambda: seen and seen.pop(), "the target is reached")
            assert (peer[0].removeprefix("::ffff:"), peer[1]) == (bound, port)


@pytest.mark.parametrize("host,port,reply", [
    ("10.88.0.2", 9, socks5.REFUSED),
    ("fd88::2", 9, socks5.REFUSED),
    ("www.test", 9, socks5.REFUSED),
    ("10.111.0.1", 80, socks5.NET_UNREACHABLE),
    ("fd11::1", 80, socks5.NET_UNREACHABLE),
    ("10.99.0.1", 80, socks5.HOST_UNREACHABLE),
    ("fd99::1", 80, socks5.HOST_UNREACHABLE),
    ("nowhere.test", 80, socks5.HOST_UNREACHABLE),
    ("127.0.0.1", 22, socks5.NOT_ALLOWED),
    ("127.77.0.1", 22, socks5.NOT_ALLOWED),
    ("::1", 22, socks5.NOT_ALLOWED),
    ("localhost", 22, socks5.NOT_ALLOWED),
])
def test_reply_codes(app, proxy, host, port, reply):
    assert socks5.reply_code(app, proxy, host, port) == reply


def test_loopback_when_allowed(lab, app):
    with TcpServer(lab.mid, echo, host="127.0.0.1") as local, \
            lab.culvert_serve("--allow-loopback") as server:
        for host in ("127.0.0.1", "localhost"):
            with socks5.connect(app, (server.host, server.port), host, local.port) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


@pytest.mark.parametrize("said,heard", [
    (b"\x05\x01\x00\x05\x02\x00\x01\x0a\x58\x00\x02\x00\x07", b"\x05\x00\x05\x07"),  # BIND
    (b"\x05\x01\x00\x05\x01\x00\x02", b"\x05\x00\x05\x08"),  # an address type of our own
    (b"\x05\x01\x02", b"\x05\xff"),
    (b"\x05\x00", b"\x05\xff"),
    (b"\x04\x01\x00\x50\x0a\x58\x00\x02\x00", b""),  # SOCKS4
    (b"GET / HTTP/1.0\r\n\r\n", b""),
])
def test_not_what_we_speak(app, proxy, said, heard):
    with app.connect(*proxy) as sock:
        sock.sendall(said)
        assert read_all(sock)[:4] == heard


def test_pipelined_with_payload(lab, app, proxy):
    """Greeting, request and the first bytes for the target in one write."""
    with app.connect(*proxy) as sock:
        sock.sendall(b"\x05\x01\x00" + socks5.request(socks5.CONNECT, lab.world4, 7) + b"early")
        assert socks5.read_exactly(sock, 2) == b"\x05\x00"
        assert socks5.read_reply(sock)[0] == socks5.SUCCEEDED
        assert socks5.read_exactly(sock, 5) == b"early"


def test_byte_by_byte(lab, app, proxy):
    with app.connect(*proxy) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\x05\x02\x00\x02" + socks5.request(socks5.CONNECT, "www.test", 7) + b"tail":
            sock.send(bytes([byte]))
            time.sleep(0.002)
        assert socks5.read_exactly(sock, 2) == b"\x05\x00"
        assert socks5.read_reply(sock)[0] == socks5.SUCCEEDED
        assert socks5.read_exactly(sock, 4) == b"tail"


# --- credentials ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(lab):
    return lab.culvert_serve("--auth", "me:p%w:1")


def test_credentials(lab, app, locked):
    proxy = (locked.host, locked.port)
    with socks5.connect(app, proxy, lab.world4, 7, auth=("me", "p%w:1")) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    done = app.run("curl", "-sS", "--max-time", "5", "--proxy-user", "me:p%w:1", "--socks5-hostname",
                   f"{proxy[0]}:{proxy[1]}", "telnet://www.test:7", input="hi\n")
    assert done.stdout == "hi\n", done.stderr
    for user, password in (("me", "p%w:2"), ("me", ""), ("mf", "p%w:1"), ("m", "p%w:1"),
                           ("me", "p%w:1p%w:1"), ("x" * 255, "y" * 255)):
        with app.connect(*proxy) as sock:
            sock.sendall(b"\x05\x01\x02" + socks5.login(user, password))
            answer = read_all(sock)
            assert answer[:3] == b"\x05\x02\x01" and answer[3:4] != b"\x00", (user, password)
    with app.connect(*proxy) as sock:
        sock.sendall(b"\x05\x01\x00" + socks5.request(socks5.CONNECT, lab.world4, 7))
        assert read_all(sock) == b"\x05\xff"
    assert "p%w" not in locked.log
    locked.settle()


# --- bytes ----------------------------------------------------------------------------------------


def test_64_mib_both_ways_at_once(lab, app, proxy):
    up, down = pattern(64 * MIB, 1), pattern(64 * MIB, 2)
    got = []

    def target(connection):
        sender = threading.Thread(target=connection.sendall, args=(down,))
        sender.start()
        got.append(hashlib.sha256(socks5.read_exactly(connection, len(up))).digest())
        sender.join()

    with TcpServer(lab.world, target) as there, \
            socks5.connect(app, proxy, lab.world4, there.port) as sock:
        sender = threading.Thread(target=sock.sendall, args=(up,))
        sender.start()
        answer = hashlib.sha256(read_all(sock)).digest()
        sender.join()
    assert answer == hashlib.sha256(down).digest()
    assert got == [hashlib.sha256(up).digest()]


@pytest.mark.parametrize("first", ["client", "target"])
def test_half_close_with_64_mib_behind(lab, app, proxy, first):
    """One side says FIN at once; the other has everything still to send, after a pause."""
    data = pattern(64 * MIB)
    got = []

    def target(connection):
        if first == "target":
            connection.shutdown(socket.SHUT_WR)
        got.append(hashlib.sha256(read_all(connection)).digest())
        if first == "client":
            time.sleep(1)
            connection.sendall(data)

    with TcpServer(lab.world, target) as there, \
            socks5.connect(app, proxy, lab.world4, there.port) as sock:
        if first == "client":
            sock.shutdown(socket.SHUT_WR)
            assert hashlib.sha256(read_all(sock)).digest() == hashlib.sha256(data).digest()
        else:
            assert sock.recv(1) == b""
            time.sleep(1)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            wait_for(lambda: got, "the target has it all")
    assert got == [hashlib.sha256(data if first == "target" else b"").digest()]


def test_reset_of_the_target(lab, app, proxy):
    with TcpServer(lab.world, resetting) as there, \
            socks5.connect(app, proxy, lab.world4, there.port) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_reset_right_behind_data(lab, app, proxy):
    """Bytes and RST come together: the bytes may be lost, the reset may not."""
    def target(connection):
        connection.recv(1)
        connection.sendall(b"y" * 1000)
        reset(connection)

    with TcpServer(lab.world, target) as there:
        for _ in range(50):
            with socks5.connect(app, proxy, lab.world4, there.port) as sock:
                sock.sendall(b"xx")
                with pytest.raises(ConnectionResetError):
                    while sock.recv(65536):
                        pass


@pytest.mark.parametrize("busy", [False, True])
def test_reset_of_the_client(lab, app, proxy, busy):
    """Idle, and while the target's bytes are held back because the client does not read."""
    ended = []

    def target(connection):
        try:
            while busy:
                connection.sendall(b"z" * MIB)
            connection.recv(1)
            ended.append("fin")
        except (ConnectionResetError, BrokenPipeError):
            ended.append("reset")

    with TcpServer(lab.world, target) as there:
        sock = socks5.connect(app, proxy, lab.world4, there.port)
        time.sleep(0.5)
        reset(sock)
        assert wait_for(lambda: ended, "the target hears of it") == ["reset"]


def test_stalled_reader(lab, app, server, proxy):
    """32 targets send to clients that do not read: bounded memory, no CPU; then all arrives."""
    data = pattern(16 * MIB)

    with TcpServer(lab.world, lambda connection: connection.sendall(data)) as there:
        socks = [socks5.connect(app, proxy, lab.world4, there.port) for _ in range(32)]
        time.sleep(1)
        before = server.cpu_seconds()
        time.sleep(1)
        assert server.cpu_seconds() - before < 0.1
        assert server.resident_mb() < 300
        for sock in socks:
            assert read_all(sock) == data
            sock.close()


def test_thousand_flows(lab, app, server, proxy):
    """All alive at once, each with its own bytes, and little memory each."""
    before = server.resident_mb()
    socks = [socks5.connect(app, proxy, lab.world4, 7) for _ in range(1000)]
    for turn in range(3):
        for n, sock in enumerate(socks):
            sock.sendall(struct.pack("!II", turn, n) * 10)
        for n, sock in enumerate(socks):
            assert socks5.read_exactly(sock, 80) == struct.pack("!II", turn, n) * 10
    if "ASAN" not in os.environ.get("CULVERT", "").upper():
        assert server.resident_mb() - before < 40
    idle = server.cpu_seconds()
    time.sleep(0.5)
    assert server.cpu_seconds() - idle < 0.1
    for sock in socks:
        sock.close()


def test_clients_that_give_up(lab, app, server, proxy):
    """At every step of the handshake, by FIN and by RST; also while the target is dialled."""
    whole = b"\x05\x01\x00" + socks5.request(socks5.CONNECT, "10.99.0.77", 9)
    for end in (reset, lambda sock: sock.close()):
        for cut in range(len(whole) + 1):
            sock = app.connect(*proxy)
            sock.sendall(whole[:cut])
            end(sock)


def test_unanswered_target(lab, app, server, proxy):
    """The target's host drops everything: the client hears of it after --connect-timeout."""
    with lab.culvert_serve("--connect-timeout", "1") as quick:
        lab.mid.ip("neigh replace 10.88.0.250 lladdr 02:00:00:00:00:99 dev w0")
        began = time.monotonic()
        reply = socks5.reply_code(app, (quick.host, quick.port), "10.88.0.250", 80)
        assert reply == socks5.HOST_UNREACHABLE
        assert 0.8 < time.monotonic() - began < 3


# --- UDP ASSOCIATE --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1400, 1472, 1500, 8000, 40000, 65000, 65497])
def test_datagram_sizes(lab, app, proxy, size):
    with socks5.Association(app, proxy) as association:
        data = pattern(size)
        association.send(data, lab.world4, 7)
        assert association.receive() == (data, lab.world4, 7)


def test_datagrams_ipv6_and_names(lab, app, proxy, server6):
    with socks5.Association(app, proxy) as association:
        association.send(b"six", lab.world6, 7)
        assert association.receive() == (b"six", lab.world6, 7)
        association.send(b"name", "v6.test", 7)
        assert association.receive() == (b"name", lab.world6, 7)
        for n in range(20):  # the first wait for the resolver, in order
            association.send(bytes([n]), "v4.test", 7)
        for n in range(16):
            assert association.receive() == (bytes([n]), lab.world4, 7)
    with socks5.Association(app, (server6.host, server6.port)) as association:
        association.send(b"four", lab.world4, 7)
        assert association.receive() == (b"four", lab.world4, 7)
        association.send(b"six", lab.world6, 7)
        assert association.receive() == (b"six", lab.world6, 7)


def test_full_cone(lab, app, proxy):
    """One mapping to all destinations; strangers may send to it."""
    others = [lab.world.udp(lab.world_v4(n)) for n in range(1, 6)]
    with socks5.Association(app, proxy) as association:
        sources = set()
        for n, other in enumerate(others):
            association.send(b"to %d" % n, *other.getsockname())
            data, source = other.recvfrom(100)
            assert data == b"to %d" % n
            sources.add(source)
        assert len(sources) == 1
        with lab.world.udp(lab.world_v4(9)) as stranger:
            stranger.sendto(b"unasked", sources.pop())
            assert association.receive() == (b"unasked", *stranger.getsockname())
    for other in others:
        other.close()


def test_only_the_client_may_send(lab, app, proxy):
    intruder = lab.client()
    try:
        with socks5.Association(app, proxy, hint=0) as association, \
                intruder.udp("0.0.0.0") as foreign, app.udp("0.0.0.0") as second, \
                lab.world.udp(lab.world4) as target:
            target.settimeout(1)
            foreign.sendto(b"\0\0\0" + socks5.address(*target.getsockname()) + b"foreign",
                           association.relay)
            time.sleep(0.1)
            association.send(b"mine", *target.getsockname())
            assert target.recv(100) == b"mine"
            second.sendto(b"\0\0\0" + socks5.address(*target.getsockname()) + b"second",
                          association.relay)
            with pytest.raises(TimeoutError):
                print(target.recv(100))
    finally:
        intruder.close()


def test_odd_datagrams(lab, app, proxy):
    """Short, fragments, unknown types, nowhere: dropped, and the next one goes through."""
    good = socks5.address(lab.world4, 7)
    odd = [b"", b"\0", b"\0\0\0", b"\0\0\0\x01", b"\0\0\0" + good[:-1], b"\0\0\x01" + good + b"x",
           b"\0\0\x80" + good + b"x", b"\0\0\0\x02" + good[1:] + b"x", b"\0\0\0\x03\0\0\x07x",
           b"\0\0\0\x03\x04a\0bc\0\x07x", b"\0\0\0" + socks5.address("0.0.0.0", 7) + b"x",
           b"\0\0\0" + socks5.address("255.255.255.255", 7) + b"x",
           b"\0\0\0" + socks5.address("224.0.0.1", 7) + b"x",
           b"\0\0\0" + socks5.address("ff02::1", 7) + b"x",
           b"\0\0\0" + socks5.address(lab.world4, 0) + b"x",
           b"\0\0\0" + socks5.address("n" * 255, 7) + b"x"]
    with socks5.Association(app, proxy) as association:
        for data in odd:
            association.udp.sendto(data, association.relay)
        association.send(b"good", lab.world4, 7)
        assert association.receive() == (b"good", lab.world4, 7)


def test_datagrams_to_loopback_are_refused(lab, app, proxy):
    local = UdpEcho(lab.mid, "127.0.0.1", port=0)
    try:
        with socks5.Association(app, proxy) as association:
            for host in ("127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"):
                association.send(b"in", host, local.port)
            association.send(b"out", lab.world4, 7)
            assert association.receive()[0] == b"out"
            time.sleep(0.3)
            assert not local.peers
        with lab.culvert_serve("--allow-loopback") as server, \
                socks5.Association(app, (server.host, server.port)) as association:
            association.send(b"in", "127.0.0.1", local.port)
            assert association.receive() == (b"in", "127.0.0.1", local.port)
    finally:
        local.close()


def test_association_ends_with_its_control_connection(lab, app, server, proxy):
    with socks5.Association(app, proxy) as association:
        association.send(b"x", lab.world4, 7)
        association.receive()
        before = server.sockets()
        association.control.close()
        wait_for(lambda: server.sockets() == before - 3, "its three sockets are closed")


def test_idle_association(lab, app):
    with lab.culvert_serve("--udp-idle-timeout", "1") as server, \
            socks5.Association(app, (server.host, server.port)) as association:
        for _ in range(4):
            association.send(b"x", lab.world4, 7)
            association.receive()
            time.sleep(0.5)
        association.control.settimeout(5)
        assert association.control.recv(1) == b""


def test_many_datagrams(lab, app, proxy):
    """Bursts of one size and of mixed sizes: whatever arrives is right and in order."""
    with socks5.Association(app, proxy) as association:
        association.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        arrived = 0
        for burst in range(50):
            sizes = [100] * 40 if burst % 2 else [8 + (n * 37) % 1400 for n in range(40)]
            for n, size in enumerate(sizes):
                association.send(struct.pack("!II", burst, n) + pattern(size - 8), lab.world4, 7)
            last = -1
            while select.select([association.udp], [], [], 0.2 if last < 39 else 0)[0]:
                data, host, port = association.receive()
                b, n = struct.unpack_from("!II", data)
                assert (host, port, b) == (lab.world4, 7, burst) and n > last
                assert data[8:] == pattern(sizes[n] - 8)
                last = n
                arrived += 1
        assert arrived > 1900


def test_segmented_client(lab, app, proxy):
    """A client that sends super-datagrams (UDP_SEGMENT): each segment is a datagram."""
    with socks5.Association(app, proxy) as association:
        association.udp.setsockopt(socket.IPPROTO_UDP, 103, 1200)  # UDP_SEGMENT
        header = b"\0\0\0" + socks5.address(lab.world4, 7)
        datagrams = [header + pattern(1200 - len(header), n) for n in range(40)]
        datagrams.append(header + b"the last one is shorter")
        association.udp.sendto(b"".join(datagrams), association.relay)
        for datagram in datagrams:
            assert association.receive() == (datagram[len(header):], lab.world4, 7)


def test_many_associations(lab, app, server, proxy):
    associations = [socks5.Association(app, proxy) for _ in range(300)]
    for n, association in enumerate(associations):
        association.send(b"%d" % n, lab.world4, 7)
    for n, association in enumerate(associations):
        assert association.receive()[0] == b"%d" % n
        association.close()


# --- the server itself ----------------------------------------------------------------------------


def test_several_listeners_and_port_0(lab, app):
    with Culvert(lab.mid, "serve", "--listen", f"{lab.proxy4}:0", "--listen",
                 f"[{lab.proxy6}]:0") as server:
        server.wait_ready()
        ready = next(line for line in server.lines if line.startswith("culvert: ready serve"))
        bound = ready.split()[3:5]
        for text in bound:
            host, _, port = text.rpartition(":")
            assert int(port) > 0
            with socks5.connect(app, (host.strip("[]"), int(port)), lab.world4, 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def test_bind_interface_and_mark(lab, app):
    """Every socket towards the world carries them, TCP and UDP; those towards the client do not."""
    with lab.culvert_serve("--bind-interface", "w0", "--mark", "77") as server:
        proxy = (server.host, server.port)
        with socks5.connect(app, proxy, "www.test", 7) as sock, \
                socks5.Association(app, proxy) as association:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            association.send(b"x", lab.world4, 7)
            assert association.receive()[0] == b"x"
            lines = lab.mid.run("ss", "-tunapeO").stdout.splitlines()
            ours = [line for line in lines
                    if any(f"pid={pid}," in line for pid in server.children("culvert-server"))]
            assert sum("fwmark:0x4d" in line for line in ours) == 2, ours
    with lab.culvert_serve("--bind-interface", "lo") as server:
        assert socks5.reply_code(app, (server.host, server.port), lab.world4, 7) != socks5.SUCCEEDED


@pytest.mark.parametrize("listen,said", [("{taken}", "in use"), ("10.1.2.3:1080", "address")])
def test_cannot_listen(lab, server, listen, said):
    listen = listen.format(taken=f"{server.host}:{server.port}")
    process = Culvert(lab.mid, "serve", "--listen", listen)
    assert process.wait_end() == 1
    assert said in process.log and listen in process.log, process.log


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_stops_with_flows_open(lab, app, signo):
    server = lab.culvert_serve()
    proxy = (server.host, server.port)
    sock = socks5.connect(app, proxy, lab.world4, 7)
    half = app.connect(*proxy)
    half.sendall(b"\x05")
    association = socks5.Association(app, proxy)
    server.stop(signo)
    sock.settimeout(3)
    assert sock.recv(1) == b""
    for each in (sock, half, association):
        each.close()


def test_idle_associations_give_way(lab, app):
    """Whoever has taken all descriptors for associations and left them idle locks nobody out."""
    few = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")
    with Culvert(lab.mid, "serve", "--listen", f"{lab.proxy4}:0", before=few) as server:
        server.wait_ready()
        proxy = (lab.proxy4, int(server.lines[-1].split()[3].rpartition(":")[2]))
        taken = []
        with contextlib.suppress(socks5.Refused, OSError, EOFError):
            for _ in range(60):  # more than there is room for, unless this takes long
                taken.append(socks5.Association(app, proxy, timeout=2))
        assert len(taken) > 25
        time.sleep(1.2)
        for _ in range(20):
            with socks5.Association(app, proxy) as association:
                association.send(b"x", lab.world4, 7)
                assert association.receive()[0] == b"x"
        with socks5.connect(app, proxy, lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert server.count("no new connections") <= 1, server.log
        for each in taken:
            each.close()


def test_descriptors_run_out(lab, app):
    """A clear line, no spin; who was served is served on, and new clients are when there is room."""
    few = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    with Culvert(lab.mid, "serve", "--listen", f"{lab.proxy4}:0", before=few) as server:
        server.wait_ready()
        proxy = (lab.proxy4, int(server.lines[-1].split()[3].rpartition(":")[2]))
        good = socks5.connect(app, proxy, lab.world4, 7)
        silent = [app.connect(*proxy) for _ in range(100)]
        time.sleep(0.5)
        before = server.cpu_seconds()
        time.sleep(1)
        assert server.cpu_seconds() - before < 0.2
        good.sendall(b"x")
        assert good.recv(1) == b"x"
        said = [line for line in server.lines if "open files" in line]
        assert 1 <= len(said) <= 4, server.log
        for sock in silent:
            sock.close()
        with socks5.connect(app, proxy, lab.world4, 7) as again:
            again.sendall(b"y")
            assert again.recv(1) == b"y"
        good.close()
