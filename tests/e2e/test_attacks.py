"""Floods, half-open and slow flows, proxies that overwhelm: memory stays bounded, the good flow is
served, and all is quiet afterwards. CULVERT_ATTACKS=1 runs them at their full size; see siege.py.
"""

import os
import random
import resource
import secrets
import socket
import struct
import time

import dns.message
import pytest

import lab as laboratory
import siege
from lab import wait_for
from netns import reset
from rude import Rude
from servers import TcpServer
from siege import Injector, Siege, scaled

pytestmark = [pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's limits"),
              pytest.mark.deadline(240)]

FLOWS_MAX = str(resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 4)


@pytest.fixture(scope="module")
def void(lab):
    """Addresses of the world that swallow every packet: 10.88.64.0/18."""
    lab.mid.ip("route add 10.88.64.0/18 via 10.88.0.2")
    lab.world.ip("route add blackhole 10.88.64.0/18")
    return "10.88.64.1"


@pytest.fixture(scope="module")
def sink(lab):
    """Connections to 10.88.0.3:9 are accepted, and what they send is thrown away."""
    process = siege.start_sink(lab.world, lab.world_v4(1), 9)
    yield lab.world_v4(1), 9
    process.stop()


@pytest.fixture
def tunnel(lab, serve):
    """Each attack meets a culvert of its own, so that its memory is the attack's.

    No more flows than the proxy has descriptors for, at three each: its limits are not the point.
    """
    with lab.tunnel(serve.url, "--max-flows", FLOWS_MAX) as made:
        yield made


# --- floods of packets ---------------------------------------------------------------------------

RATE = 2000  # packets a second that open something


def flood_syns(device, target, port, count, again, _stopping):
    wire = Injector(device, RATE)
    dst = socket.inet_aton(target)
    for index in range(count):
        src, sport = siege.spoofed(index)
        for _ in range(again):
            wire.send(siege.tcp4(src, dst, sport, port, index))


def test_syn_flood_of_what_never_answers(lab, tunnel, void):
    """Each SYN becomes a connection that the proxy waits for in vain: as many as there may be."""
    count = scaled(100000)
    with Siege(lab, tunnel, "SYN flood, targets that never answer", f"{count:,} spoofed sources",
               memory_mb=160, least_rate=0.1):
        siege.Process(tunnel.app, flood_syns, tunnel.device, void, 80, count, 1).wait(120)
    assert len(tunnel.lines) < 40, tunnel.log[-3000:]


def test_syn_flood_of_an_open_port(lab, tunnel, sink):
    """The SYN-ACKs go to nobody: half-open flows, which give way to the good ones."""
    count = scaled(100000)
    with Siege(lab, tunnel, "SYN flood, an open port", f"{count:,} spoofed sources",
               memory_mb=160, least_rate=0.1):
        siege.Process(tunnel.app, flood_syns, tunnel.device, *sink, count, 1).wait(200)
    assert len(tunnel.lines) < 40, tunnel.log[-3000:]


def flood_fragments(device, target, count, _stopping):
    """Pieces of datagrams that never become whole, half of them overlapping others."""
    wire = Injector(device)
    dst = socket.inet_aton(target)
    rng = random.Random(7)
    for index in range(count):
        src, _ = siege.spoofed(index >> 3)
        offset = rng.randrange(0, 1000)
        size = rng.choice((8, 64, 512, 1400))
        wire.send(siege.ipv4(src, dst, 17, bytes(size), ident=index >> 3 & 0xffff,
                             fragment=0x2000 | (offset if index & 1 else offset & ~7)))


def test_fragment_flood(lab, tunnel):
    count = scaled(200000)
    with Siege(lab, tunnel, "Fragments that never become whole, overlapping", f"{count:,} fragments",
               memory_mb=32):
        siege.Process(tunnel.app, flood_fragments, tunnel.device, lab.world4, count).wait(120)


def flood_udp(device, target, port, count, _stopping):
    """Each datagram from an address and port of its own."""
    wire = Injector(device, RATE)
    dst = socket.inet_aton(target)
    for index in range(count):
        src, sport = siege.spoofed(index)
        wire.send(siege.udp4(src, dst, sport, port, b"who is there"))


def test_udp_source_flood(lab, serve):
    """Each source is an association: as many as there may be, then the idle ones give way.

    So it is in `culvert serve`, whose memory and descriptors come back.
    """
    count = scaled(50000)
    sockets, memory = serve.sockets(), serve.resident_mb()
    with lab.tunnel(serve.url, "--max-flows", FLOWS_MAX) as tunnel:
        flood_with_sources(lab, tunnel, count)
    wait_for(lambda: serve.sockets() <= sockets, "the server's associations end", 20)
    more_mb = serve.resident_mb() - memory
    assert more_mb < 24 * (4 if laboratory.SANITIZED else 1), f"{more_mb} MB more in the server"
    spent = serve.cpu_seconds()
    time.sleep(0.5)
    assert serve.cpu_seconds() - spent < 0.1, "the server does not come to rest"
    with lab.tunnel(serve.url) as tunnel, tunnel.app.udp() as sock:
        sock.sendto(b"served on", (lab.world4, 7))
        assert sock.recv(100) == b"served on"


@pytest.mark.skipif(laboratory.SANITIZED, reason="the sanitizer keeps what was freed")
def test_memory_of_udp_sources_comes_back(lab, serve):
    """Without a TCP flow, whose end gives it back otherwise. Tables stay as large as they became."""
    with lab.tunnel(serve.url, "--udp-idle-timeout", "2") as tunnel:
        before = tunnel.resident_mb()
        siege.Process(tunnel.app, flood_udp, tunnel.device, lab.world4, 9999, 10000).wait(60)
        peak = tunnel.resident_mb()
        wait_for(lambda: tunnel.resident_mb() - before < 0.75 * (peak - before),
                 "the sources' memory comes back", 30)


def flood_with_sources(lab, tunnel, count):
    with Siege(lab, tunnel, "UDP from ever new sources", f"{count:,} sources", memory_mb=160,
               least_rate=0.1):
        siege.Process(tunnel.app, flood_udp, tunnel.device, lab.world4, 9999, count).wait(120)
    with tunnel.app.udp() as sock:
        sock.settimeout(1)

        def answered():
            sock.sendto(b"good", (lab.world4, 7))
            try:
                return sock.recv(10) == b"good"
            except OSError:
                return False
        wait_for(answered, "a new association works after the flood", 10)
    assert len(tunnel.lines) < 60, tunnel.log[-3000:]


# --- DNS -----------------------------------------------------------------------------------------

def long_name(first, length):
    """A name of so many characters that begins with a label."""
    labels, left = [first], length - len(first)
    while left > 1:
        labels.append(secrets.token_hex(32)[:min(63, left - 1 if left != 65 else 62)])
        left -= 1 + len(labels[-1])
    return ".".join(labels)


def wire_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def flood_dns(server, count, name_length, _stopping):
    """Queries for ever new names; how many were answered."""
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect((server, 53))
        sock.setblocking(False)
        for index in range(count):
            name = wire_name(long_name(f"n{index}", name_length) if name_length else f"n{index}")
            kind = 1 if index & 1 else 28
            query = struct.pack("!HHHHHH", index & 0xffff, 0x100, 1, 0, 0, 0) + name + \
                struct.pack("!HH", kind, 1)
            for attempt in range(2):
                try:
                    sock.send(query)
                    break
                except OSError:
                    time.sleep(0.001)
            try:
                while sock.recv(4096):
                    answered += 1
            except OSError:
                pass
        time.sleep(0.5)
        try:
            while sock.recv(4096):
                answered += 1
        except OSError:
            pass
    return answered


def lookup(tunnel, name, kind="A"):
    query = dns.message.make_query(name, kind)
    with tunnel.app.udp() as sock:
        sock.sendto(query.to_wire(), ("198.18.0.2", 53))
        answer = dns.message.from_wire(sock.recv(4096))
    return [item.to_text() for rrset in answer.answer for item in rrset]


def test_dns_flood_of_unique_names(lab, tunnel):
    """Every name gets a fake address, and the names that nobody uses give theirs up."""
    count = scaled(300000)
    with Siege(lab, tunnel, "DNS, ever new names", f"{count:,} names", memory_mb=96) as attack:
        process = siege.Process(tunnel.app, flood_dns, "198.18.0.2", count, 0)
        attack.extra["answered"] = process.wait(120)
    address, = lookup(tunnel, "v4.test")
    assert address.startswith("198.1")


def test_dns_flood_of_long_names(lab, tunnel):
    count = scaled(50000)
    with Siege(lab, tunnel, "DNS, names of 255 bytes", f"{count:,} names", memory_mb=96) as attack:
        process = siege.Process(tunnel.app, flood_dns, "198.18.0.2", count, 253)
        attack.extra["answered"] = process.wait(120)
    assert attack.extra["answered"] > 0


def test_dns_flood_through_the_proxy(lab, serve):
    """--dns tcp: queries wait for a resolver that keeps up with none of it; so many, no more."""
    count = scaled(100000)
    with lab.tunnel(serve.url, "--dns", "tcp", "--dns-server", lab.world4) as tunnel:
        with Siege(lab, tunnel, "DNS over TCP, ever new names", f"{count:,} names",
                   memory_mb=64, least_rate=0.1) as attack:
            process = siege.Process(tunnel.app, flood_dns, "198.18.0.2", count, 0)
            attack.extra["answered"] = process.wait(120)
        wait_for(lambda: "10.88.0.2" in lookup(tunnel, "v4.test"), "queries are answered again", 20)


def connect_by_names(names, _stopping):
    """Ask for each and connect to what is answered: how many were refused as malformed."""
    refused = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(10)
        resolver.connect(("198.18.0.2", 53))
        for number, name in enumerate(names):
            query = struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0) + wire_name(name) + \
                struct.pack("!HH", 1, 1)
            resolver.send(query)
            answer = resolver.recv(4096)
            assert answer[:2] == query[:2]
            if answer[3] & 15 == 1 and answer[6:8] == b"\0\0":
                refused += 1
                continue
            with socket.create_connection((socket.inet_ntoa(answer[-4:]), 7), timeout=10) as sock:
                sock.sendall(b"long")
                assert sock.recv(10) == b"long"
    return refused


@pytest.mark.parametrize("length", [253, 254, 255])
def test_longest_names(lab, rude, rude_tunnel, length):
    """253 characters are 255 bytes on the wire: the longest name. It reaches the proxy whole."""
    count = scaled(2000)
    names = [long_name(f"{length}-{number}", length) for number in range(count)]
    assert {len(name) for name in names} == {length}
    rude.names.update((name, lab.world4) for name in names)
    what = "Flows to names of 255 bytes" if length == 253 else f"Names of {length + 2} bytes, too long"
    with Siege(lab, rude_tunnel, what, f"{count:,} names", memory_mb=32) as attack:
        before = len(rude.requests)
        process = siege.Process(rude_tunnel.app, connect_by_names, names)
        attack.extra["refused"] = process.wait(120)
        assert attack.extra["refused"] == (0 if length == 253 else count)
    asked = [request for request in rude.requests[before:] if request[2] == 7]
    assert asked == ([(1, name, 7) for name in names] if length == 253 else [])
    rude_tunnel.settle()


# --- flows ---------------------------------------------------------------------------------------

def open_and_reset(host, port, count, _stopping):
    for index in range(count):
        sock = socket.socket()
        sock.settimeout(20)
        sock.connect((host, port))
        if index & 1:
            sock.sendall(b"x" * (index % 5000))
        reset(sock)


def test_flows_opened_and_reset(lab, tunnel, sink):
    count = scaled(10000)
    with Siege(lab, tunnel, "Flows opened and reset", f"{count:,} flows", memory_mb=32):
        siege.Process(tunnel.app, open_and_reset, *sink, count).wait(120)
    tunnel.settle()


def trickle(host, port, count, seconds, stopping):
    """Slow loris: flows that send a byte now and then."""
    socks = []
    for _ in range(count):
        sock = socket.socket()
        sock.settimeout(30)
        sock.connect((host, port))
        socks.append(sock)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stopping.is_set():
        for sock in socks:
            sock.send(b"z")
        time.sleep(1)
    return len(socks)


def test_slow_loris(lab, tunnel, sink):
    count = min(scaled(8000), int(FLOWS_MAX) - 10)
    with Siege(lab, tunnel, "Slow loris: a byte a second each", f"{count:,} flows",
               memory_mb=64) as attack:
        process = siege.Process(tunnel.app, trickle, *sink, count, 5)
        attack.extra["open"] = process.wait(120)
        attack.extra["kb_a_flow"] = round((attack.peak - attack.before_mb) * 1024 / count, 1)
    tunnel.settle(20)


def trickle_queries(server, count, seconds, stopping):
    """Slow loris on port 53: queries of which a byte comes now and then; how many were cut off."""
    socks, cut = [], 0
    for _ in range(count):
        sock = socket.create_connection((server, 53), timeout=30)
        sock.sendall(b"\0\x30")
        socks.append(sock)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stopping.is_set():
        for sock in list(socks):
            try:
                sock.send(b"z")
            except OSError:
                socks.remove(sock)
                cut += 1
        time.sleep(1)
    return cut


def test_slow_loris_of_dns(lab, tunnel):
    """So many half queries are kept, then the one idle longest gives way; whole ones are answered."""
    count = scaled(5000)
    with Siege(lab, tunnel, "Slow loris of DNS over TCP: a byte a second each", f"{count:,} flows",
               memory_mb=32) as attack:
        process = siege.Process(tunnel.app, trickle_queries, "198.18.0.2", count, 4)
        time.sleep(2)
        assert lookup(tunnel, "v4.test")[0].startswith("198.1")
        with tunnel.app.connect("198.18.0.2", 53) as sock:
            query = dns.message.make_query("v4.test", "A").to_wire()
            sock.sendall(len(query).to_bytes(2, "big") + query)
            assert len(sock.recv(4096)) > len(query)
        attack.extra["cut"] = process.wait(120)
    tunnel.settle(20)


def stall_uploads(host, port, count, seconds, _stopping):
    """Fill `count` connections until they take no more, and keep them so; the bytes in all."""
    socks, total = [], 0
    data = bytes(1 << 18)
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.settimeout(30)
        sock.connect((host, port))
        sock.setblocking(False)
        socks.append(sock)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took = 0
        for sock in socks:
            try:
                took += sock.send(data)
            except BlockingIOError:
                pass
        total += took
        if not took:
            time.sleep(0.05)
    return total


def stalled(connection):
    time.sleep(120)


def test_stalled_uploads(lab):
    """2,000 uploads whose proxy reads nothing: the bytes that wait are bounded in all."""
    count = scaled(2000, 200)
    with Rude(lab.mid, lab.proxy4) as rude, \
            lab.tunnel(f"socks5://{rude.host}:{rude.port}") as tunnel, \
            Siege(lab, tunnel, "Uploads that the proxy does not read", f"{count:,} flows",
                  memory_mb=240, least_rate=0.1) as attack:
        time.sleep(0.5)  # the good flow has its connection
        rude.stall = True
        rude.glue = b"-"
        process = siege.Process(tunnel.app, stall_uploads, lab.world4, 9, count, 8)
        attack.extra["taken_mb"] = round(process.wait(200) / 2**20)


def pour(connection):
    """As much as the client takes, as fast as it can."""
    connection.settimeout(60)
    wanted = int.from_bytes(connection.recv(8), "big")
    piece = bytes(1 << 20)
    while wanted > 0:
        wanted -= connection.send(piece[:wanted])


def stalled_reader(host, port, total, pause_s, _stopping):
    """Ask for much, read nothing for a while, then all of it: MB/s of that."""
    with socket.create_connection((host, port), timeout=60) as sock:
        sock.sendall(total.to_bytes(8, "big"))
        time.sleep(pause_s)
        begin, left = time.monotonic(), total
        buffer = bytearray(1 << 20)
        while left > 0:
            got = sock.recv_into(buffer)
            assert got, f"the end came {left} bytes too early"
            left -= got
        return round(total / 2**20 / (time.monotonic() - begin))


def test_proxy_sends_to_a_stalled_reader(lab, tunnel):
    total = scaled(1 << 30)
    with TcpServer(lab.world, pour) as server, \
            Siege(lab, tunnel, "A proxy sends to a stalled reader as fast as it can",
                  f"{total >> 20:,} MiB", memory_mb=16) as attack:
        process = siege.Process(tunnel.app, stalled_reader, lab.world4, server.port, total, 3)
        attack.extra["mb_s"] = process.wait(120)


def stalled_readers(host, port, count, seconds, _stopping):
    socks = []
    for _ in range(count):
        sock = socket.create_connection((host, port), timeout=30)
        sock.sendall((1 << 30).to_bytes(8, "big"))
        socks.append(sock)
    time.sleep(seconds)
    return len(socks)


def test_many_stalled_readers(lab, tunnel):
    """What their kernel does not take stays with the proxy."""
    count = scaled(1000)
    with TcpServer(lab.world, pour) as server, \
            Siege(lab, tunnel, "Readers that stall, the proxy sends on", f"{count:,} flows",
                  memory_mb=96, least_rate=0.1):
        siege.Process(tunnel.app, stalled_readers, lab.world4, server.port, count, 4).wait(120)
    tunnel.settle(20)


# --- proxies -------------------------------------------------------------------------------------

def try_to_connect(host, port, count, _stopping):
    """How each connect() ended, by errno."""
    ends = {}
    for _ in range(count):
        with socket.socket() as sock:
            sock.settimeout(20)
            end = sock.connect_ex((host, port))
        ends[end] = ends.get(end, 0) + 1
    return ends


@pytest.mark.parametrize("garbage", ["greeting", "request"])
def test_proxy_answers_garbage(lab, garbage):
    count = scaled(5000)
    with Rude(lab.mid, lab.proxy4) as rude, \
            lab.tunnel(f"socks5://{rude.host}:{rude.port}") as tunnel:
        with Siege(lab, tunnel, f"A proxy that answers the {garbage} with garbage",
                   f"{count:,} flows", memory_mb=32) as attack:
            time.sleep(0.5)
            rude.noise[garbage] = b"\x05\xff\xfe" + os.urandom(4000)
            ends = siege.Process(tunnel.app, try_to_connect, lab.world4, 7, count).wait(120)
            attack.extra["refused"] = sum(ends.values())
            assert 0 not in ends, ends
        assert len(tunnel.lines) < 40, tunnel.log[-3000:]
        rude.tame()
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"well again")
            assert sock.recv(100) == b"well again"


# --- limits --------------------------------------------------------------------------------------

def test_descriptor_limit(lab, tunnel, void):
    """A clear line; half-open flows give way first, then the longest idle; no spin."""
    old = [tunnel.app.connect(lab.world4, 7) for _ in range(5)]
    for sock in old:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
    with Siege(lab, tunnel, "More flows than descriptors", "60 half-open, 30 open, 20 descriptors",
               memory_mb=16):
        tunnel.limit_descriptors(20)
        half_open = []
        for _ in range(60):
            sock = tunnel.app.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.connect_ex((void, 80))
            half_open.append(sock)
        time.sleep(1)
        assert tunnel.count("no descriptor is left") == 1, tunnel.log
        for sock in old:
            sock.sendall(b"2")
            assert sock.recv(1) == b"2", "an open flow gave way to half-open ones"
        spent = tunnel.cpu_seconds()
        time.sleep(1)
        assert tunnel.cpu_seconds() - spent < 0.3
        for sock in half_open:
            sock.close()
        new = []
        for _ in range(30):
            new.append(tunnel.app.connect(lab.world4, 7))  # it need not even be tried again
            new[-1].sendall(b"3")
            assert new[-1].recv(1) == b"3"
        with pytest.raises(OSError):
            old[0].settimeout(3)
            old[0].sendall(b"4")
            if not old[0].recv(1):
                raise ConnectionResetError
            old[0].sendall(b"5")
        new[-1].sendall(b"6")
        assert new[-1].recv(1) == b"6", "the newest gave way, not the longest idle"
    for sock in old + new:
        sock.close()
    tunnel.settle()


def test_flow_limit(lab, serve, void):
    """--max-flows: the same order."""
    with lab.tunnel(serve.url, "--max-flows", "50") as tunnel:
        with Siege(lab, tunnel, "SYN flood past --max-flows 50", "5,000 spoofed sources",
                   memory_mb=16):
            time.sleep(0.5)
            siege.Process(tunnel.app, flood_syns, tunnel.device, void, 80, 5000, 1).wait(60)
            assert tunnel.sockets() < 60
