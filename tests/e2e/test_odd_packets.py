"""Packets that no well-behaved application sends: counted and dropped, never a crash, and the flows
beside them go on. They are put before the device with a packet socket, past the kernel's own checks.
"""

import contextlib
import random
import re
import select
import socket
import struct
import time

import pytest
from scapy.layers.inet import (ICMP, IP, TCP, UDP, IPOption, IPOption_LSRR, IPOption_Router_Alert,
                               IPOption_RR, IPOption_SSRR)
from scapy.layers.inet6 import (ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment,
                                IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, Jumbo, PadN)
from scapy.packet import Raw

import lab as laboratory
from lab import wait_for

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's packet input")

APP4, APP6 = "198.18.0.1", None  # the device's own; the IPv6 one is asked for
STRANGER4, STRANGER6 = "198.18.0.77", "fd00:77::77"  # sources that no kernel answers for
OUTGOING = 4  # PACKET_OUTGOING: what the kernel or we sent, as a packet socket sees it


@pytest.fixture(scope="module")
def tunnel(lab, serve):
    yield lab.tunnel(serve.url, "--log-level", "trace", "--icmp", "reply",
                     "--udp-idle-timeout", "2")


@pytest.fixture(scope="module")
def app6(tunnel):
    """The device's own IPv6 address."""
    found = re.search(r"inet6 ([0-9a-f:]+)/\d+ scope global", tunnel.app.ip(
        f"-6 addr show dev {tunnel.device}"))
    return found.group(1)


class Wire:
    """Both directions of the device, packet by packet."""

    def __init__(self, tunnel):
        self.device = tunnel.device
        self.sock = tunnel.app.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind((self.device, 0x0003))

    def send(self, *packets):
        for packet in packets:
            data = bytes(packet)
            protocol = 0x86DD if data[:1] and data[0] >> 4 == 6 else 0x0800
            for _ in range(2000):
                try:
                    self.sock.sendto(data, (self.device, protocol))
                    break
                except OSError as error:  # the device's queue is full: culvert gets a moment
                    if error.errno not in (105, 11):
                        raise
                    time.sleep(0.001)

    def received(self, seconds=0.5):
        """What culvert wrote meanwhile, as scapy packets."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.sock], [], [], left)[0]:
                return
            data, address = self.sock.recvfrom(65535)
            if address[2] != OUTGOING and data:
                yield IPv6(data) if data[0] >> 4 == 6 else IP(data)

    def first(self, match, seconds=3.0):
        """The first packet of culvert's that `match` accepts, or None."""
        for packet in self.received(seconds):
            if match(packet):
                return packet
        return None


@pytest.fixture
def wire(tunnel):
    made = Wire(tunnel)
    yield made
    made.sock.close()


@contextlib.contextmanager
def good_flows(lab, tunnel):
    """A connection and a UDP source that are there before and must work after."""
    with tunnel.app.connect(lab.world4, 7) as tcp, tunnel.app.connect(lab.world6, 7) as tcp6, \
            tunnel.app.udp() as udp:
        udp.sendto(b"before", (lab.world4, 7))
        assert udp.recv(100) == b"before"
        yield
        for sock in (tcp, tcp6):
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        udp.sendto(b"after", (lab.world4, 7))
        assert udp.recv(100) == b"after"
    with tunnel.app.connect(lab.world6, 7) as new:
        new.sendall(b"new")
        assert new.recv(100) == b"new"


def ip(version, lab, **kwargs):
    """From nobody to the world."""
    if version == 4:
        return IP(**{"src": STRANGER4, "dst": lab.world4, "id": random.randrange(65536), **kwargs})
    return IPv6(**{"src": STRANGER6, "dst": lab.world6, **kwargs})


def tcp(flags="S", **kwargs):
    return TCP(**{"sport": random.randrange(20000, 60000), "dport": 7, "flags": flags,
                  "seq": 1000, "ack": 2000 if "A" in flags else 0, **kwargs})


def udp(payload=b"odd", **kwargs):
    return UDP(**{"sport": random.randrange(20000, 60000), "dport": 7, **kwargs}) / payload


# --- each is dropped, and for the right reason ---------------------------------------------------

def options(data):
    """TCP options as bytes, whatever they say."""
    return {"dataofs": 5 + len(data) // 4}, Raw(data)


def with_options(lab, data):
    header, raw = options(data)
    return ip(4, lab) / tcp("S", **header) / raw


def cut(packet, n):
    return bytes(packet)[:n]


def patched(packet, at, value):
    data = bytearray(bytes(packet))
    data[at] = value
    return bytes(data)


ODD = {
    # IPv4 headers
    "version 5": ("header", lambda lab: patched(ip(4, lab) / tcp(), 0, 0x55)),
    "header length 4": ("header", lambda lab: patched(ip(4, lab) / tcp(), 0, 0x44)),
    "header longer than the packet": ("truncated", lambda lab: patched(ip(4, lab) / tcp(), 0, 0x4f)),
    "header checksum": ("header", lambda lab: ip(4, lab, chksum=0x1234) / tcp()),
    "total length too long": ("truncated", lambda lab: ip(4, lab, len=1000) / tcp()),
    "total length too short": ("truncated", lambda lab: ip(4, lab, len=19) / tcp()),
    "one byte": ("truncated", lambda lab: b"\x45"),
    "loose source route": ("header", lambda lab: ip(
        4, lab, options=[IPOption_LSRR(routers=["10.88.0.3"])]) / tcp()),
    "strict source route": ("header", lambda lab: ip(
        4, lab, options=[IPOption_SSRR(routers=["10.88.0.3"])]) / tcp()),
    "option past the header": ("header", lambda lab: ip(
        4, lab, options=IPOption(b"\x94\x28\x00\x00")) / tcp()),
    # addresses
    "to multicast": ("address", lambda lab: ip(4, lab, dst="224.0.0.251") / udp(dport=5353)),
    "to broadcast": ("address", lambda lab: ip(4, lab, dst="255.255.255.255") / udp(dport=67)),
    "to loopback": ("address", lambda lab: ip(4, lab, dst="127.0.0.1") / tcp()),
    "to nobody": ("address", lambda lab: ip(4, lab, dst="0.0.0.0") / tcp()),
    "to link-local": ("address", lambda lab: ip(4, lab, dst="169.254.1.1") / tcp()),
    "to class E": ("address", lambda lab: ip(4, lab, dst="240.0.0.1") / tcp()),
    "from multicast": ("address", lambda lab: ip(4, lab, src="224.0.0.1") / tcp()),
    "from loopback": ("address", lambda lab: ip(4, lab, src="127.0.0.1") / tcp()),
    "land": ("address", lambda lab: ip(4, lab, src=lab.world4) / tcp(sport=7)),
    "land, IPv6": ("address", lambda lab: ip(6, lab, src=lab.world6) / tcp(sport=7)),
    "to IPv6 multicast": ("address", lambda lab: ip(6, lab, dst="ff02::fb") / udp(dport=5353)),
    "to IPv6 link-local": ("address", lambda lab: ip(6, lab, dst="fe80::1") / tcp()),
    "to IPv6 loopback": ("address", lambda lab: ip(6, lab, dst="::1") / tcp()),
    "to IPv4-mapped": ("address", lambda lab: ip(6, lab, dst="::ffff:10.88.0.2") / tcp()),
    "from IPv4-mapped": ("address", lambda lab: ip(6, lab, src="::ffff:198.18.0.77") / tcp()),
    "to IPv4-compatible": ("address", lambda lab: ip(6, lab, dst="::10.88.0.2") / tcp()),
    # IPv6 headers
    "payload length too long": ("truncated", lambda lab: ip(6, lab, plen=1000) / tcp()),
    "payload length too short": ("truncated", lambda lab: ip(6, lab, plen=10) / tcp()),
    "cut in the IPv6 header": ("truncated", lambda lab: cut(ip(6, lab) / tcp(), 39)),
    "jumbogram": ("header", lambda lab: ip(6, lab) / IPv6ExtHdrHopByHop(
        options=[Jumbo(jumboplen=70000)]) / tcp()),
    "hop-by-hop not first": ("header", lambda lab: ip(6, lab) / IPv6ExtHdrDestOpt() /
                             IPv6ExtHdrHopByHop() / tcp()),
    "routing header under way": ("header", lambda lab: ip(6, lab) / IPv6ExtHdrRouting(
        segleft=1, addresses=["2001:db8::9"]) / tcp()),
    "twelve headers": ("header", lambda lab: ip(6, lab) / (IPv6ExtHdrDestOpt() /
                       IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() /
                       IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() /
                       IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()) / tcp()),
    "no next header": ("protocol", lambda lab: ip(6, lab, nh=59) / Raw(b"nothing")),
    # transport
    "SCTP": ("protocol", lambda lab: ip(4, lab, proto=132) / Raw(bytes(40))),
    "IGMP": ("protocol", lambda lab: ip(4, lab, proto=2) / Raw(bytes(8))),
    "ICMP redirect": ("protocol", lambda lab: ip(4, lab) / ICMP(type=5, code=1)),
    "ICMP checksum": ("checksum", lambda lab: ip(4, lab) / ICMP(chksum=1)),
    "TCP checksum": ("checksum", lambda lab: ip(4, lab) / tcp(chksum=1)),
    "TCP checksum, IPv6": ("checksum", lambda lab: ip(6, lab) / tcp(chksum=1)),
    "UDP checksum": ("checksum", lambda lab: ip(4, lab) / udp(chksum=1)),
    "UDP without checksum in IPv6": ("checksum", lambda lab: ip(6, lab) / udp(chksum=0)),
    "cut in the TCP header": ("truncated", lambda lab: ip(4, lab, len=39) / tcp()),
    "data offset 4": ("transport", lambda lab: ip(4, lab) / tcp(dataofs=4)),
    "data offset 15": ("truncated", lambda lab: ip(4, lab) / tcp(dataofs=15)),
    "no flags": ("transport", lambda lab: ip(4, lab) / tcp("")),
    "SYN and FIN": ("transport", lambda lab: ip(4, lab) / tcp("SF")),
    "SYN and RST": ("transport", lambda lab: ip(4, lab) / tcp("SR")),
    "Christmas tree": ("transport", lambda lab: ip(4, lab) / tcp("FPU")),
    "all flags": ("transport", lambda lab: ip(4, lab) / tcp("FSRPAUEC")),
    "TCP to port 0": ("transport", lambda lab: ip(4, lab) / tcp(dport=0)),
    "TCP from port 0": ("transport", lambda lab: ip(4, lab) / tcp(sport=0)),
    "UDP to port 0": ("transport", lambda lab: ip(4, lab) / udp(dport=0)),
    "UDP length 7": ("transport", lambda lab: ip(4, lab) / udp(len=7, chksum=0)),
    "UDP length too long": ("truncated", lambda lab: ip(4, lab) / udp(len=100, chksum=0)),
    "option without length": ("transport", lambda lab: with_options(lab, b"\x01\x01\x01\x02")),
    "option of length 0": ("transport", lambda lab: with_options(lab, b"\x02\x00\x05\xb4")),
    "option of length 1": ("transport", lambda lab: with_options(lab, b"\x08\x01\x01\x01")),
    "option past the TCP header": ("transport", lambda lab: with_options(
        lab, b"\x01\x01\x08\x0a")),
    # fragments
    "fragment not in units of 8": ("header", lambda lab: ip(4, lab, flags="MF") / udp(b"12345")),
    "fragment past 65,535": ("header", lambda lab: ip(4, lab, frag=8191, proto=17) /
                             Raw(bytes(100))),
    "empty fragment": ("header", lambda lab: ip(4, lab, flags="MF", proto=17)),
    "IPv6 fragment not in units of 8": ("header", lambda lab: ip(6, lab) / IPv6ExtHdrFragment(
        m=1, id=5, nh=17) / Raw(bytes(13))),
    "IPv6 fragment past 65,535": ("header", lambda lab: ip(6, lab) / IPv6ExtHdrFragment(
        offset=8191, id=5, nh=17) / Raw(bytes(100))),
    "fragment of SCTP": ("protocol", lambda lab: ip(4, lab, flags="MF", proto=132) /
                         Raw(bytes(16))),
}


@pytest.mark.parametrize("what", ODD)
def test_dropped_and_told(lab, tunnel, wire, what):
    reason, make = ODD[what]
    lines = f"packet dropped ({reason})"
    before, sockets = tunnel.count(lines), tunnel.sockets()
    wire.send(make(lab))
    wait_for(lambda: tunnel.count(lines) > before, f"a line with {lines!r}", timeout=4)
    assert tunnel.sockets() <= sockets, "a flow was made of it"


def test_good_flows_go_on(lab, tunnel, wire):
    with good_flows(lab, tunnel):
        for _ in range(20):
            wire.send(*(make(lab) for _, make in ODD.values()))
    tunnel.settle()


# --- odd, but right ------------------------------------------------------------------------------

def syn_ack_for(wire, packet):
    sport = packet[TCP].sport
    wire.send(packet)
    return wire.first(lambda p: TCP in p and p[TCP].dport == sport and p[TCP].flags.S)


def abandon(wire, packet, answer):
    """Reset what a SYN of nobody's has opened."""
    packet = packet.copy()
    packet[TCP].remove_payload()
    packet[TCP].flags, packet[TCP].seq = "R", answer[TCP].ack
    packet[TCP].options = []
    for layer in (IP, IPv6, TCP):
        if layer in packet:
            for field in ("len", "plen", "chksum", "ihl", "dataofs"):
                if field in packet[layer].fields:
                    delattr(packet[layer], field)
    wire.send(packet)


UNUSUAL_SYNS = {
    "ECN": lambda lab, v: ip(v, lab) / tcp("SEC", options=[("MSS", 1400)]),
    "data": lambda lab, v: ip(v, lab) / tcp("S") / b"early",
    "PSH": lambda lab, v: ip(v, lab) / tcp("SP"),
    "no options": lambda lab, v: ip(v, lab) / tcp("S"),
    "tiny MSS": lambda lab, v: ip(v, lab) / tcp("S", options=[("MSS", 1)]),
    "huge MSS": lambda lab, v: ip(v, lab) / tcp("S", options=[("MSS", 65535)]),
    "window scale 255": lambda lab, v: ip(v, lab) / tcp("S", options=[("WScale", 255)]),
    "window 0": lambda lab, v: ip(v, lab) / tcp("S", window=0),
    "unknown options": lambda lab, v: ip(v, lab) / tcp("S", options=[(253, b"abcd"), (254, b"")]),
    "trailing bytes": lambda lab, v: bytes(ip(v, lab) / tcp("S")) + b"pad",
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("what", UNUSUAL_SYNS)
def test_unusual_syn_is_answered(lab, tunnel, wire, what, version):
    packet = UNUSUAL_SYNS[what](lab, version)
    if isinstance(packet, bytes):
        packet = IP(packet) if version == 4 else IPv6(packet)
    answer = syn_ack_for(wire, packet)
    assert answer is not None, f"no SYN-ACK\n{tunnel.log[-1500:]}"
    assert answer[TCP].ack - packet[TCP].seq in (1, 6)
    abandon(wire, packet, answer)
    tunnel.settle()


@pytest.mark.parametrize("make", [
    lambda lab: ip(4, lab, options=[IPOption_Router_Alert()]) / tcp(),
    lambda lab: ip(4, lab, options=[IPOption_RR(routers=["0.0.0.0"])]) / tcp(),
    lambda lab: ip(6, lab) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / tcp(),
    lambda lab: ip(6, lab) / IPv6ExtHdrDestOpt() / tcp(),
    lambda lab: ip(6, lab) / IPv6ExtHdrRouting(segleft=0) / tcp(),
    lambda lab: ip(6, lab) / IPv6ExtHdrFragment(id=7) / tcp(),
    lambda lab: ip(6, lab) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() /
    IPv6ExtHdrFragment(id=7) / IPv6ExtHdrDestOpt() / tcp(),
], ids=["router alert", "record route", "hop-by-hop", "destination options", "routing at its end",
        "atomic fragment", "all at once"])
def test_extra_headers_pass(lab, tunnel, wire, make):
    packet = make(lab)
    answer = syn_ack_for(wire, packet)
    assert answer is not None, f"no SYN-ACK\n{tunnel.log[-1500:]}"
    abandon(wire, packet, answer)
    tunnel.settle()


def test_ping_is_answered(lab, wire):
    """--icmp reply: whole and in fragments, with any payload."""
    wire.send(ip(4, lab) / ICMP(id=77, seq=1) / b"ping")
    answer = wire.first(lambda p: ICMP in p and p[ICMP].id == 77)
    assert answer and answer[ICMP].type == 0 and bytes(answer[ICMP].payload) == b"ping"
    wire.send(ip(6, lab) / ICMPv6EchoRequest(id=78, seq=1, data=b"ping6"))
    answer = wire.first(lambda p: IPv6 in p and p[IPv6].nh == 58)
    assert answer is not None and bytes(answer)[40] == 129 and bytes(answer).endswith(b"ping6")


# --- fragments -----------------------------------------------------------------------------------

def pieces(version, lab, source, payload, size, identification, sport):
    """The fragments, of `size` bytes, of a datagram to the echo service."""
    if version == 4:
        whole = bytes(ip(4, lab, src=source) / UDP(sport=sport, dport=7) / payload)[20:]
    else:
        whole = bytes(ip(6, lab, src=source) / UDP(sport=sport, dport=7) / payload)[40:]
    made = []
    for at in range(0, len(whole), size):
        more = at + size < len(whole)
        part = Raw(whole[at:at + size])
        if version == 4:
            header = ip(4, lab, src=source, id=identification, frag=at // 8,
                        flags="MF" if more else 0, proto=17)
        else:
            header = ip(6, lab, src=source) / IPv6ExtHdrFragment(
                offset=at // 8, m=int(more), id=identification, nh=17)
        made.append(header / part)
    return made


ARRANGEMENTS = {
    "in order": lambda made: made,
    "backwards": lambda made: made[::-1],
    "shuffled": lambda made: random.Random(5).sample(made, len(made)),
    "every one twice": lambda made: [piece for piece in made for _ in range(2)],
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("how", ARRANGEMENTS)
@pytest.mark.parametrize("size", [8, 1024])
def test_fragments_are_reassembled(lab, tunnel, wire, app6, version, how, size):
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    payload = random.Random(size).randbytes(12 * size - 3)
    with tunnel.app.udp(family=family) as sock:
        source = APP4 if version == 4 else app6
        sport = sock.getsockname()[1]
        made = pieces(version, lab, source, payload, size, random.randrange(1, 60000), sport)
        wire.send(*ARRANGEMENTS[how](made))
        assert sock.recv(65535) == payload, "altered"


@pytest.mark.parametrize("version", [4, 6])
def test_overlapping_fragments_are_no_datagram(lab, tunnel, wire, app6, version):
    """RFC 5722, RFC 8200 4.5: nothing is made of them; at most the datagram as first sent."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with tunnel.app.udp(family=family, timeout=1.0) as sock:
        source = APP4 if version == 4 else app6
        sport = sock.getsockname()[1]
        payload = b"A" * 600
        made = pieces(version, lab, source, payload, 256, 4242, sport)
        evil = pieces(version, lab, source, b"B" * 600, 128, 4242, sport)
        wire.send(made[0], evil[1], evil[2], made[1], evil[3], made[2])
        try:
            assert sock.recv(65535) == payload, "a mixture of two datagrams was delivered"
        except TimeoutError:
            pass
        sock.sendto(b"fine", (lab.world4 if version == 4 else lab.world6, 7))
        sock.settimeout(5)
        assert sock.recv(100) == b"fine"


def test_a_flood_of_first_fragments(lab, tunnel, wire):
    """Incomplete datagrams hold bounded memory and do not keep complete ones out for ever."""
    with good_flows(lab, tunnel):
        before = tunnel.resident_mb()
        for identification in range(5000):
            wire.send(ip(4, lab, id=identification, flags="MF", proto=17) / Raw(bytes(1400)))
            if identification % 5 == 0:
                wire.send(ip(6, lab) / IPv6ExtHdrFragment(m=1, id=identification, nh=17) /
                          Raw(bytes(1232)))
        grown = tunnel.resident_mb() - before
        assert grown < 32, f"{grown:.0f} MB for fragments"
        with tunnel.app.udp(timeout=40) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragment
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                sock.sendto(bytes(5000), (lab.world4, 7))
                if select.select([sock], [], [], 1)[0]:
                    break
            assert len(sock.recv(65535)) == 5000


# --- anything at all -----------------------------------------------------------------------------

def seeds(lab):
    """Good packets of every kind, to be mutated."""
    made = []
    for v in (4, 6):
        made += [ip(v, lab) / tcp("S", options=[("MSS", 1400), ("SAckOK", b""), ("WScale", 7),
                                                ("Timestamp", (1, 2))]),
                 ip(v, lab) / tcp("A"), ip(v, lab) / tcp("PA") / bytes(100),
                 ip(v, lab) / tcp("FA"), ip(v, lab) / tcp("R"), ip(v, lab) / udp(),
                 ip(v, lab) / udp(bytes(1000)), ip(v, lab) / udp(b"\0" * 12, dport=53)]
        made += pieces(v, lab, STRANGER4 if v == 4 else STRANGER6, bytes(2000), 1024, 77, 999)
    made += [ip(4, lab) / ICMP(), ip(6, lab) / ICMPv6EchoRequest(),
             ip(6, lab) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp()]
    return [bytes(packet) for packet in made]


def ones_sum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[:len(data) & ~1]))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


def mutate(rng, seed):
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        what = rng.randrange(10)
        at = rng.randrange(min(len(data), 80))
        if what < 5:
            data[at] = rng.randrange(256)
        elif what < 7:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 7 and len(data) > 24:
            del data[rng.randrange(20, len(data)):]
        elif what == 8:
            data += rng.randbytes(rng.randrange(1, 60))
        else:
            data[at:at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\0\0\1"))
    header_len = (data[0] & 15) * 4
    if rng.random() < 0.7 and data[0] >> 4 == 4 and 20 <= header_len <= len(data):
        data[10:12] = b"\0\0"
        data[10:12] = struct.pack("!H", 0xffff - ones_sum(bytes(data[:header_len])))
    return bytes(data[:1500])


def taken(tunnel):
    """Packets that culvert has read from the device."""
    path = f"/sys/class/net/{tunnel.device}/statistics/tx_packets"
    return int(tunnel.app.run("cat", path, check=True).stdout)


@pytest.mark.deadline(240)
def test_fifty_thousand_mutated_packets(lab, tunnel, wire):
    rng = random.Random(50000)
    good = seeds(lab)
    before = taken(tunnel)
    with good_flows(lab, tunnel):
        for _ in range(250):  # no more at once than the device's queue takes
            wire.send(*(mutate(rng, rng.choice(good)) for _ in range(200)))
            tunnel.check()
            with tunnel.app.connect(lab.world4, 7, timeout=15) as sock:
                sock.sendall(b"between")
                assert sock.recv(100) == b"between"
        seen = taken(tunnel) - before
        assert seen >= 50000, f"culvert has seen {seen} only"
    assert tunnel.resident_mb() < 400


def test_what_was_dropped_is_counted(lab, serve):
    """The end tells how many, by reason."""
    with lab.tunnel(serve.url, "--log-level", "debug") as tunnel:
        wire = Wire(tunnel)
        wire.send(*(ip(4, lab) / tcp(chksum=1) for _ in range(50)))
        with tunnel.app.connect(lab.world4, 7):
            pass
        wire.sock.close()
    assert re.search(r"packets dropped \(checksum\): 50\b", tunnel.log), tunnel.log[-1500:]
