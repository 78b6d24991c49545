"""--dns fake: names become addresses of the fake ranges, and flows to those go to the proxy by name."""

import ipaddress
import secrets
import socket
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import pytest
from scapy.layers.inet import IP, TCP, UDP

import lab as laboratory
from lab import wait_for
from resolver import RESOLVER, Resolver, address, ask, frame, read_frame, seconds, values
from rude import CONNECT, UDP_ASSOCIATE

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="there are no fake addresses")

RANGE4 = ipaddress.ip_network("198.18.0.0/15")
OWN4 = "198.18.0.1"


def own6(tunnel):
    """culvert's own IPv6 address on the device, with its prefix."""
    for line in tunnel.app.ip(f"-6 -o addr show dev {tunnel.device} scope global").splitlines():
        return ipaddress.ip_interface(line.split()[3])
    raise AssertionError("no IPv6 address on the device")


def refused(tunnel, host, port=80):
    """connect() fails with ECONNREFUSED, at once."""
    begin = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        tunnel.app.connect(host, port, timeout=5)
    assert time.monotonic() - begin < 0.5


def flows(rude):
    """What the proxy was asked for, but for the DNS server: odd queries before may still go there."""
    return [request for request in rude.requests if request[2] != 53]


@pytest.fixture(scope="module")
def resolver(lab):
    """What --dns-server leads to, for the types that are not faked."""
    yield lab.serve(Resolver(lab.world, lab.world_v4(10)))


@pytest.fixture(scope="module")
def small(lab, _rude, resolver):
    """Six IPv4 addresses to hand out."""
    yield lab.tunnel(f"socks5://{_rude.host}:{_rude.port}", "--fake-range", "198.19.7.0/29",
                     "--dns-server", resolver.host)


# --- answers -------------------------------------------------------------------------------------

def test_a_and_aaaa_are_answered_at_once_from_the_ranges(rude_tunnel, rude):
    app = rude_tunnel.app
    mine = own6(rude_tunnel)
    v4 = ipaddress.ip_address(address(app, "www.test"))
    v6 = ipaddress.ip_address(address(app, "www.test", "AAAA"))
    assert v4 in RANGE4 and v6 in mine.network
    assert str(v4) != OWN4 and v6 != mine.ip
    times = sorted(seconds(address, app, f"n{i}.test") for i in range(50))
    assert times[25] < 0.02, f"a fake answer takes {times[25]:.3f} s"
    assert rude.requests == [], "the proxy was bothered"


def test_a_name_keeps_its_address_whatever_its_case(rude_tunnel):
    app = rude_tunnel.app
    first = address(app, "keeps.test")
    others = {address(app, f"other{i}.test") for i in range(100)}
    assert len(others) == 100 and first not in others
    for name in ("keeps.test", "KEEPS.test.", "kEePs.TeSt", "keeps.test."):
        assert address(app, name) == first


def test_the_ttl_is_short(rude_tunnel):
    answer = ask(rude_tunnel.app, "ttl.test")
    assert 0 < answer.answer[0].ttl <= 60


@pytest.mark.parametrize("server", [RESOLVER, "8.8.8.8", "10.88.0.2", "203.0.113.77", "2001:db8::1",
                                    "fd88::2"])
@pytest.mark.parametrize("tcp", [False, True])
def test_any_routed_address_is_the_resolver(rude_tunnel, rude, server, tcp):
    first = address(rude_tunnel.app, "anywhere.test")
    assert address(rude_tunnel.app, "anywhere.test", server=server, tcp=tcp) == first
    assert rude.requests == []


def test_0x20_edns_and_long_names(rude_tunnel):
    app = rude_tunnel.app
    longest = ".".join(["n" * 63] * 3 + ["m" * 61])
    assert len(longest) == 253
    for name in ("wWw.MiXeD.tEsT", longest, longest + ".", "a.b.c.d.e.f.g.test", "x--y_z.test"):
        for tcp in (False, True):
            plain = ask(app, name, tcp=tcp)
            assert plain.edns < 0 and len(values(plain)) == 1
            edns = ask(app, name, tcp=tcp, use_edns=0, payload=1232, want_dnssec=True)
            assert edns.edns == 0 and values(edns) == values(plain)
            assert edns.ednsflags & dns.flags.DO


def test_dig_is_content(rude_tunnel):
    """dig warns of whatever is odd in an answer."""
    for options in ([], ["+tcp"], ["+noedns"], ["+dnssec"], ["+keepopen", "+tcp"], ["-x"]):
        name = address(rude_tunnel.app, "dig.test") if options == ["-x"] else "dig.test"
        done = rude_tunnel.app.run("dig", f"@{RESOLVER}", *options, name)
        assert done.returncode == 0, done.stdout
        assert "status: NOERROR" in done.stdout and "ANSWER: 1" in done.stdout, done.stdout
        assert "WARNING" not in done.stdout and "Warning" not in done.stdout, done.stdout


def test_the_c_library_is_content(rude_tunnel):
    done = rude_tunnel.app.run("getent", "ahosts", "www.test", check=True)
    found = {line.split()[0] for line in done.stdout.splitlines()}
    assert found == {address(rude_tunnel.app, "www.test"),
                     address(rude_tunnel.app, "www.test", "AAAA")}


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_https_and_svcb_have_no_data(rude_tunnel, rude, kind):
    for name in ("www.test", "_dns.resolver.arpa"):
        answer = ask(rude_tunnel.app, name, kind)
        assert answer.rcode() == dns.rcode.NOERROR and not answer.answer
        assert answer.authority, "nothing says how long that holds (RFC 2308)"
    assert rude.requests == []


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_reverse_names_in_the_ranges(rude_tunnel, rude, kind):
    app = rude_tunnel.app
    fake = ipaddress.ip_address(address(app, "Reverse.Test", kind))
    assert values(ask(app, fake.reverse_pointer, "PTR")) == ["reverse.test."]
    unknown = {"A": "198.19.255.254", "AAAA": str(own6(rude_tunnel).network[-5])}[kind]
    pointer = ipaddress.ip_address(unknown).reverse_pointer
    assert ask(app, pointer, "PTR").rcode() == dns.rcode.NXDOMAIN
    assert rude.requests == []


def test_names_with_a_meaning_of_their_own(rude_tunnel, rude):
    app = rude_tunnel.app
    assert address(app, "localhost") == address(app, "a.localhost") == "127.0.0.1"
    assert address(app, "localhost", "AAAA") == "::1"
    assert ask(app, "use-application-dns.net").rcode() == dns.rcode.NXDOMAIN
    assert ask(app, "x.invalid").rcode() == dns.rcode.NXDOMAIN
    assert rude.requests == []


def test_malformed_queries_are_told_so_or_dropped(rude_tunnel):
    app = rude_tunnel.app
    good = dns.message.make_query("x.test", "A").to_wire()

    def told(wire):
        with app.udp(timeout=0.5) as sock:
            sock.sendto(wire, (RESOLVER, 53))
            try:
                return dns.message.from_wire(sock.recv(4096)).rcode()
            except socket.timeout:
                return None

    assert told(good) == dns.rcode.NOERROR
    assert told(good[:11]) is None
    assert told(b"") is None
    assert told(good[:2] + b"\x81" + good[3:]) is None  # a response
    assert told(good[:14]) == dns.rcode.FORMERR
    assert told(good[:4] + b"\0\2" + good[6:]) == dns.rcode.FORMERR
    assert told(good[:12] + b"\xc0\x0c\0\1\0\1") == dns.rcode.FORMERR
    assert told(good[:2] + b"\x28" + good[3:]) == dns.rcode.NOTIMP
    for _ in range(2000):
        wire = bytearray(good)
        for _ in range(3):
            wire[secrets.randbelow(len(wire))] = secrets.randbelow(256)
        with app.udp() as sock:
            sock.sendto(bytes(wire), (RESOLVER, 53))
    assert told(good) == dns.rcode.NOERROR


# --- flows ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name,kind", [("v4.test", "A"), ("V4.Test", "AAAA")])
def test_a_flow_goes_to_the_proxy_by_name(lab, rude_tunnel, rude, name, kind):
    """Whatever family the application chose: that is the proxy's affair."""
    host = address(rude_tunnel.app, name, kind)
    with rude_tunnel.app.connect(host, 7) as sock:
        sock.sendall(b"by name")
        assert sock.recv(100) == b"by name"
    assert flows(rude) == [(CONNECT, "v4.test", 7)]


def test_datagrams_go_to_the_proxy_by_name(lab, rude_tunnel, rude):
    host = address(rude_tunnel.app, "v4.test")
    with rude_tunnel.app.udp() as sock:
        sock.connect((host, 7))  # hears nothing from other addresses
        sock.send(b"by name")
        assert sock.recv(100) == b"by name"
    assert [command for command, _, _ in flows(rude)] == [UDP_ASSOCIATE]


def test_a_name_of_253_bytes_reaches_the_proxy(lab, rude_tunnel, rude):
    longest = ".".join(["n" * 63] * 3 + ["m" * 61])
    rude.names[longest] = lab.world4
    with rude_tunnel.app.connect(address(rude_tunnel.app, longest), 7) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    assert flows(rude) == [(CONNECT, longest, 7)]


def test_a_flow_to_an_address_that_is_nobodys_is_refused(rude_tunnel, rude):
    refused(rude_tunnel, "198.19.200.200")
    refused(rude_tunnel, "198.18.0.0")  # the network
    refused(rude_tunnel, str(own6(rude_tunnel).network[-7]))
    with rude_tunnel.app.udp(timeout=3) as sock:
        sock.connect(("198.19.200.200", 7))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    time.sleep(0.2)
    assert flows(rude) == []


def test_network_broadcast_and_own_addresses_are_never_handed_out(lab, _rude, resolver):
    with lab.tunnel(f"socks5://{_rude.host}:{_rude.port}", "--address", "198.18.4.1/29",
                    "--address", "fd42:1::1/125", "--dns-server", resolver.host) as tunnel:
        found4 = {address(tunnel.app, f"n{i}.test", server="198.18.4.2") for i in range(60)}
        found6 = {address(tunnel.app, f"n{i}.test", "AAAA", server="198.18.4.2") for i in range(60)}
    assert found4 == {f"198.18.4.{i}" for i in range(2, 7)}
    assert found6 == {f"fd42:1::{i}" for i in range(2, 8)}


def test_the_name_used_longest_ago_gives_way(small, rude):
    app = small.app
    addresses = {f"lru{i}.test": address(app, f"lru{i}.test") for i in range(6)}
    assert sorted(addresses.values()) == [f"198.19.7.{i}" for i in range(1, 7)]
    assert address(app, "LRU0.test") == addresses["lru0.test"]  # used again
    assert address(app, "lru6.test") == addresses["lru1.test"]
    pointer = ipaddress.ip_address(addresses["lru1.test"]).reverse_pointer
    assert values(ask(app, pointer, "PTR")) == ["lru6.test."]


def test_an_entry_that_a_flow_uses_is_never_recycled(lab, small, rude):
    app = small.app
    rude.names.update({f"held{i}.test": lab.world4 for i in range(6)})
    conns, held = [], []
    for i in range(5):
        host = address(app, f"held{i}.test")
        conns.append(app.connect(host, 7))
        held.append(host)
    with app.udp() as sock:  # an association holds the sixth
        host = address(app, "held5.test")
        sock.connect((host, 7))
        sock.send(b"x")
        assert sock.recv(1) == b"x"
        held.append(host)
        assert len(set(held)) == 6
        for i in range(10):
            assert ask(app, f"none-left{i}.test").rcode() == dns.rcode.SERVFAIL
        assert address(app, "held3.test") == held[3]
        for i, flow in enumerate(conns):
            flow.sendall(b"still")
            assert flow.recv(10) == b"still"
        conns.pop(2).close()
        wait_for(lambda: ask(app, "fresh.test").rcode() == dns.rcode.NOERROR,
                 "a closed flow gives its address back")
        assert address(app, "fresh.test") == held[2]
        assert address(app, "held3.test") == held[3]
    for flow in conns:
        flow.close()
    rude.requests.clear()
    rude.names["fresh.test"] = lab.world4
    with app.connect(held[2], 7):
        pass
    wait_for(lambda: flows(rude), "the flow reaches the proxy")
    assert flows(rude)[0] == (CONNECT, "fresh.test", 7)
    wait_for_a_free_address(app)


def wait_for_a_free_address(app):
    """Flows have ended a moment after their sockets are closed here."""
    wait_for(lambda: ask(app, "after.test").rcode() == dns.rcode.NOERROR, "an address is free")


def test_a_refused_flow_gives_its_address_back(small, rude):
    app = small.app
    rude.reply = 5
    for i in range(20):
        with pytest.raises(ConnectionRefusedError):
            app.connect(address(app, f"closed{i}.test"), 81)
    wait_for_a_free_address(app)


def test_a_family_without_range_has_no_data(small):
    answer = ask(small.app, "www.test", "AAAA")
    assert answer.rcode() == dns.rcode.NOERROR and not answer.answer
    assert len(values(ask(small.app, "www.test", "ANY"))) == 1


# --- the rest goes to the server -----------------------------------------------------------------

def test_other_types_are_asked_of_the_server(small, rude, resolver):
    resolver.tame()
    resolver.zone = {"mail.test": {"MX": ["10 mx.mail.test."], "TXT": ['"hello"']}}
    assert values(ask(small.app, "mail.test", "MX")) == ["10 mx.mail.test."]
    assert values(ask(small.app, "mail.test", "TXT", tcp=True)) == ['"hello"']
    assert ask(small.app, "none.test", "MX").rcode() == dns.rcode.NXDOMAIN
    assert rude.requests == [(CONNECT, resolver.host, 53)]
    assert resolver.datagrams() == []
    assert ask(small.app, "ipv4only.arpa", "AAAA").rcode() == dns.rcode.NXDOMAIN
    assert "ipv4only.arpa" in resolver.names()


# --- TCP port 53 ---------------------------------------------------------------------------------

def test_pipelined_queries_on_one_connection(small, resolver):
    resolver.tame()
    resolver.zone = {f"p{i}.test": {"TXT": [f'"{i}"']} for i in range(100)}
    queries = [dns.message.make_query(f"p{i}.test", "TXT" if i % 2 else "A") for i in range(100)]
    for i, query in enumerate(queries):
        query.id = i  # random ones are not always a hundred
    with small.app.connect(RESOLVER, 53) as sock:
        sock.sendall(b"".join(frame(query.to_wire()) for query in queries))
        sock.shutdown(socket.SHUT_WR)  # a half-close ends nothing that was asked
        answers = {}
        for _ in queries:
            answer = dns.message.from_wire(read_frame(sock))
            answers[answer.id] = answer
        assert sock.recv(1) == b""
    for i, query in enumerate(queries):
        answer = answers[query.id]
        assert answer.question[0].name == query.question[0].name
        assert values(answer) == [f'"{i}"'] if i % 2 else answer.answer


def test_answers_overtake_one_another(small, resolver):
    resolver.tame()
    resolver.zone = {"slow.test": {"TXT": ['"slow"']}}

    def behave(server, _number, query):
        time.sleep(1)
        return frame(server.answer(query).to_wire())

    resolver.behave = behave
    with small.app.connect(RESOLVER, 53) as sock:
        slow, fast = (dns.message.make_query("slow.test", "TXT"),
                      dns.message.make_query("fast.test", "A"))
        sock.sendall(frame(slow.to_wire()) + frame(fast.to_wire()))
        assert dns.message.from_wire(read_frame(sock)).id == fast.id
        assert dns.message.from_wire(read_frame(sock)).id == slow.id


def test_a_query_byte_by_byte(small):
    with small.app.connect(RESOLVER, 53) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(dns.message.make_query("drip.test", "A").to_wire()):
            sock.sendall(bytes([byte]))
            time.sleep(0.005)
        assert dns.message.from_wire(read_frame(sock)).rcode() == dns.rcode.NOERROR


def test_nonsense_on_port_53_ends_the_connection(small):
    with small.app.connect(RESOLVER, 53, timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            assert sock.recv(100) != b"", "closed as if all was well"
    assert address(small.app, "after.test", tcp=True)


@pytest.mark.deadline(120)
def test_clients_that_stall_cost_a_fixed_amount(small, resolver):
    """300 connections that ask much and read nothing; others are served meanwhile."""
    resolver.tame()
    resolver.zone = {"big.test": {"TXT": ['"' + "x" * 250 + '"'] * 1}}
    resolver.zone["big.test"]["TXT"] = [f'"{i:03}{"x" * 200}"' for i in range(200)]
    ask(small.app, "big.test", "TXT", tcp=True)  # 40 kB, cached from now on
    query = frame(dns.message.make_query("big.test", "TXT").to_wire())
    before = small.resident_mb()
    socks = []
    for _ in range(300):
        sock = small.app.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(5)
        sock.connect((RESOLVER, 53))
        sock.sendall(query * 50)
        socks.append(sock)
    time.sleep(1)
    cpu = small.cpu_seconds()
    assert address(small.app, "meanwhile.test")
    assert address(small.app, "meanwhile.test", tcp=True)
    time.sleep(1)
    assert small.cpu_seconds() - cpu < 0.3, "stalled clients cost CPU"
    grown = small.resident_mb() - before
    for sock in socks:
        sock.close()
    print(f"300 stalled clients: {grown:.1f} MB")
    assert grown < 64


# --- floods --------------------------------------------------------------------------------------

@pytest.mark.deadline(180)
def test_a_flood_of_unique_names(lab, rude_tunnel, rude):
    """100,000 names: bounded memory, and the map still works."""
    app = rude_tunnel.app
    kept = address(app, "v4.test")
    flow = app.connect(kept, 7)
    query = dns.message.make_query("x" * 20 + ".flood.test", "A").to_wire()
    at = query.index(b"x" * 20)
    before = rude_tunnel.resident_mb()
    with app.udp(timeout=0.0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for i in range(100000):
            try:
                sock.sendto(query[:at] + b"%020d" % i + query[at + 20:], (RESOLVER, 53))
                while i % 16 == 0:
                    sock.recv(512)
            except BlockingIOError:
                pass
            if i % 500 == 0:
                time.sleep(0.01)
    wait_for(lambda: ask(app, "after.test", timeout=10).rcode() == dns.rcode.NOERROR, "answers")
    grown = rude_tunnel.resident_mb() - before
    print(f"100,000 names: {grown:.1f} MB")
    assert grown < 60
    flow.sendall(b"still here")
    assert flow.recv(100) == b"still here"
    flow.close()
    assert address(app, "v4.test") == kept, "the address of a flow was recycled"


# --- nothing beside the proxy --------------------------------------------------------------------

def test_no_dns_packet_leaves_beside_the_proxy(lab, small, rude, resolver):
    """Captured where app and proxy meet, and where the proxy meets the world."""
    from scapy.all import AsyncSniffer
    resolver.tame()
    resolver.zone = {"mail.test": {"MX": ["10 mx.mail.test."]}}
    seen = []
    sniffers = []
    for space, link in ((small.app, "up0"), (lab.mid, lab.mid_world_link)):
        with space.inside():
            sniffer = AsyncSniffer(iface=link, store=False, prn=seen.append)
            sniffer.start()
            sniffers.append(sniffer)
            time.sleep(0.5)
    for name, kind in (("www.test", "A"), ("www.test", "AAAA"), ("mail.test", "MX"),
                       ("1.0.88.10.in-addr.arpa", "PTR"), ("www.test", "HTTPS")):
        for server in (RESOLVER, "8.8.8.8", "2001:4860:4860::8888"):
            for tcp in (False, True):
                ask(small.app, name, kind, server=server, tcp=tcp)
    time.sleep(0.3)
    for sniffer in sniffers:
        sniffer.stop()
    assert seen, "the capture works"
    for packet in seen:
        if UDP in packet:
            assert 53 not in (packet[UDP].sport, packet[UDP].dport), packet.summary()
        if TCP in packet and IP in packet and (packet[IP].src.startswith("10.77") or
                                               packet[IP].dst.startswith("10.77")):
            assert 53 not in (packet[TCP].sport, packet[TCP].dport), packet.summary()
    assert resolver.datagrams() == []
