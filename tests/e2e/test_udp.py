"""UDP: every size, one mapping a source port, associations' lives, proxies without UDP."""

import errno
import secrets
import select
import socket
import struct
import time

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from lab import wait_for
from rude import UDP_ASSOCIATE, Rude
from servers import UdpEcho

SIZES = (0, 1, 2, 100, 1200, 1400, 1471, 1472, 1473, 1474, 2000, 8000, 9000, 16384, 32768, 50000,
         60000, 65000)
AT_ONCE = 1.0


def echoed(sock, target, data, tries=3):
    """Send until the echo comes; fail if it does not, or differs, or has another source."""
    for _ in range(tries):
        sock.sendto(data, target)
        deadline = time.monotonic() + 1.5
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                break
            answer, source = sock.recvfrom(65535)
            if answer == data:
                assert source[:2] == target, f"echo of {target} came from {source[:2]}"
                return
            assert len(answer) != len(data) or not data, f"{len(data)} bytes came back altered"
    raise AssertionError(f"no echo of {len(data)} bytes from {target}")


def silence(sock, seconds=0.4):
    """Nothing may come."""
    if select.select([sock], [], [], seconds)[0]:
        raise AssertionError(f"unexpected: {sock.recvfrom(65535)}")


def hears_port_unreachable(tunnel, host, port=7, within=AT_ONCE):
    """A connected UDP socket is told ECONNREFUSED."""
    with tunnel.app.udp(family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                        timeout=5) as sock:
        sock.connect((host, port))
        begin = time.monotonic()
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
        seconds = time.monotonic() - begin
        assert seconds < within, f"port unreachable came only after {seconds:.2f} s"


def associations(rude):
    return [request for request in rude.requests if request[0] == UDP_ASSOCIATE]


# --- sizes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", SIZES)
def test_every_size(lab, tunnel, size, family):
    host = lab.world4 if family == 4 else lab.world6
    with tunnel.app.udp(family=socket.AF_INET if family == 4 else socket.AF_INET6) as sock:
        echoed(sock, (host, 7), secrets.token_bytes(size))


@pytest.fixture(scope="module")
def tunnel6(lab):
    """The proxy on IPv6, where a SOCKS5 header fits beside the largest IPv4 datagram."""
    proxy = lab.culvert_serve(host=lab.proxy6)
    yield lab.tunnel(proxy.url)


def test_largest_datagram(lab, tunnel6):
    with tunnel6.app.udp() as sock:
        echoed(sock, (lab.world4, 7), secrets.token_bytes(65507))


def test_largest_datagram_over_ipv6(lab, tunnel6):
    """65,505 bytes are what an IPv6 address leaves room for, and so for any answer; by name, up, it
    is all 65,507. Without SOCKS5's header it is that both ways: test_direct.py."""
    lab.world_dns.zone["six.test"] = [lab.world6]
    with tunnel6.app.inside():
        name = socket.getaddrinfo("six.test", 7009, socket.AF_INET6, socket.SOCK_DGRAM)[0][4]
    with tunnel6.app.udp(family=socket.AF_INET6) as sock, lab.world.udp(lab.world6, 7009) as server:
        echoed(sock, (lab.world6, 7), secrets.token_bytes(65505))
        data = secrets.token_bytes(65507)
        sock.sendto(data, name)
        assert server.recv(1 << 16) == data
        sock.sendto(bytes(65506), (lab.world6, 7))
        echoed(sock, (lab.world6, 7), b"still fine")


@pytest.mark.parametrize("family", [4, 6])
def test_sizes_around_every_fragment_s_border(lab, tunnel6, family):
    """With the last fragment a byte short of full, full, and one with a single byte behind it."""
    host = lab.world4 if family == 4 else lab.world6
    unit = 1480 if family == 4 else 1448  # of an MTU of 1,500
    with tunnel6.app.udp(family=socket.AF_INET if family == 4 else socket.AF_INET6) as sock:
        for size in (count * unit - 8 + more for count in range(1, 45) for more in (-1, 0, 1)):
            echoed(sock, (host, 7), secrets.token_bytes(size))


def test_too_large_for_the_proxy_harms_nothing(lab, tunnel):
    """65,507 bytes and a SOCKS5 header are more than an IPv4 proxy can be sent."""
    with tunnel.app.udp() as sock:
        sock.sendto(bytes(65507), (lab.world4, 7))
        echoed(sock, (lab.world4, 7), b"still fine")


def test_sizes_with_a_small_mtu(lab, serve):
    with lab.tunnel(serve.url, "--mtu", "1280") as tunnel:
        for family, host in ((socket.AF_INET, lab.world4), (socket.AF_INET6, lab.world6)):
            with tunnel.app.udp(family=family) as sock:
                for size in (0, 1231, 1232, 1233, 1252, 1253, 20000, 60000):
                    echoed(sock, (host, 7), secrets.token_bytes(size))


def test_bursts_keep_their_boundaries(lab, tunnel):
    """Datagrams of different sizes in one burst stay what they are."""
    with tunnel.app.udp() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        echoed(sock, (lab.world4, 7), b"warm up")
        for turn in range(5):
            sent = {secrets.token_bytes(size) for size in range(8, 1408, 14)}
            for data in sent:
                sock.sendto(data, (lab.world4, 7))
            got = set()
            while len(got) < len(sent) and select.select([sock], [], [], 1)[0]:
                got.add(sock.recv(65535))
            assert got <= sent, "datagrams were merged, cut or invented"
            assert len(got) >= 0.95 * len(sent), f"turn {turn}: {len(got)} of {len(sent)} echoed"


# --- one mapping a source port -------------------------------------------------------------------

@pytest.mark.parametrize("family", [4, 6])
def test_one_mapping_for_all_destinations(lab, tunnel, family):
    """RFC 4787 REQ-1: ten servers see the same source address and port."""
    hosts = [lab.world_v4(n) if family == 4 else lab.world_v6(n) for n in range(1, 11)]
    servers = [UdpEcho(lab.world, host, port=7007) for host in hosts]
    with tunnel.app.udp(family=socket.AF_INET if family == 4 else socket.AF_INET6) as sock:
        for host in hosts:
            echoed(sock, (host, 7007), host.encode())
        mappings = {server.last[:2] for server in servers}
        assert len(mappings) == 1, f"servers saw different mappings: {mappings}"
    for server in servers:
        server.close()


@pytest.mark.parametrize("family", [4, 6])
def test_answers_from_remotes_never_contacted(lab, tunnel, family):
    """Full cone: whoever knows the mapping reaches the application, with its own address shown."""
    ours = lab.world_v4(1) if family == 4 else lab.world_v6(1)
    stranger = lab.world_v4(12) if family == 4 else lab.world_v6(12)
    server = UdpEcho(lab.world, ours, port=7008)
    with tunnel.app.udp(family=socket.AF_INET if family == 4 else socket.AF_INET6) as sock, \
            lab.world.udp(stranger, 5555) as other:
        echoed(sock, (ours, 7008), b"where am I?")
        other.sendto(b"I was not asked", server.last)
        data, source = sock.recvfrom(100)
        assert (data, source[:2]) == (b"I was not asked", (stranger, 5555))
        sock.sendto(b"but answered", (stranger, 5555))
        data, source = other.recvfrom(100)
        assert (data, source[:2]) == (b"but answered", server.last[:2])
    server.close()


def test_sources_are_kept_apart(lab, rude, rude_tunnel):
    """Each source port has its own association, and hears only its own answers."""
    socks = [rude_tunnel.app.udp() for _ in range(5)]
    for number, sock in enumerate(socks):
        for _ in range(3):
            echoed(sock, (lab.world4, 7), b"I am %d" % number)
    assert len(associations(rude)) == 5, "one UDP ASSOCIATE a source port"
    for sock in socks:
        silence(sock, 0.05)
        sock.close()


def test_first_datagrams_of_a_burst_wait_for_the_association(lab, rude, rude_tunnel):
    """What comes while UDP ASSOCIATE is under way is neither lost nor another association."""
    rude.delay = {"request": 0.3}
    with rude_tunnel.app.udp() as sock:
        for number in range(4):
            sock.sendto(b"%d" % number, (lab.world4, 7))
        got = {sock.recv(10) for _ in range(4)}
        assert got == {b"0", b"1", b"2", b"3"}
    assert len(associations(rude)) == 1


def test_both_families_at_once(lab, tunnel):
    with tunnel.app.udp() as four, tunnel.app.udp(family=socket.AF_INET6) as six:
        for number in range(20):
            echoed(four, (lab.world4, 7), b"%d" % number)
            echoed(six, (lab.world6, 7), b"%d" % number)


@pytest.mark.deadline(120)
def test_2000_sources(lab, serve):
    """2,000 source ports at once, each with its own mapping; their ends free everything."""
    with lab.tunnel(serve.url, "--udp-idle-timeout", "10") as tunnel:
        socks = [tunnel.app.udp(timeout=5) for _ in range(2000)]
        waiting = {sock: b"%d" % number for number, sock in enumerate(socks)}
        server = UdpEcho(lab.world, lab.world_v4(1), port=7009)
        for _ in range(4):  # what a burst has cost is sent again
            for batch in range(0, len(socks), 50):
                for sock in socks[batch:batch + 50]:
                    if sock in waiting:
                        sock.sendto(waiting[sock], (lab.world_v4(1), 7009))
                _collect(waiting, 0.02)
            _collect(waiting, 3)
            if not waiting:
                break
        assert not waiting, f"{len(waiting)} of 2000 sources never heard their echo"
        assert len(server.peers) >= 2000, f"2000 sources had only {len(server.peers)} mappings"
        for sock in socks:
            sock.close()
        server.close()
        tunnel.settle(timeout=30)


def _collect(waiting, seconds):
    """Take off the sockets that have heard their own bytes."""
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in waiting}
    for number in by_fd:
        poll.register(number, select.POLLIN)
    deadline = time.monotonic() + seconds
    while by_fd and (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            sock = by_fd.pop(number)
            assert sock.recv(100) == waiting.pop(sock), "an answer to another source port"
            poll.unregister(number)


# --- an association's life -----------------------------------------------------------------------

def test_association_ends_with_its_control_connection(lab, rude, rude_tunnel):
    """RFC 1928: it terminates with the TCP connection. The next datagram makes a new one."""
    with rude_tunnel.app.udp() as sock:
        echoed(sock, (lab.world4, 7), b"first")
        assert len(associations(rude)) == 1
        before = rude.open_connections()
        rude.close_controls()
        wait_for(lambda: rude.open_connections() < before, "culvert closes its side too")
        echoed(sock, (lab.world4, 7), b"second")
        assert len(associations(rude)) == 2


def test_idle_association_ends(lab):
    with Rude(lab.mid, lab.proxy4) as rude:
        with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--udp-idle-timeout", "2") as tunnel:
            with tunnel.app.udp() as sock:
                for number in range(5):  # longer than the time-out, but never idle
                    echoed(sock, (lab.world4, 7), b"%d" % number)
                    time.sleep(0.7)
                assert len(associations(rude)) == 1, "an association in use was given up"
                wait_for(lambda: rude.open_connections() == 0, "the idle association's end", 6)
                tunnel.settle()
                echoed(sock, (lab.world4, 7), b"again")
            assert len(associations(rude)) == 2


# --- odd relays ----------------------------------------------------------------------------------

@pytest.mark.parametrize("proxy", ["proxy4", "proxy6"])
def test_relay_address_may_be_any(lab, proxy):
    """0.0.0.0 or :: in the reply is the address the proxy was reached at."""
    with Rude(lab.mid, getattr(lab, proxy)) as rude:
        rude.udp_bound = "any"
        host = f"[{rude.host}]" if proxy == "proxy6" else rude.host
        with lab.tunnel(f"socks5://{host}:{rude.port}") as tunnel:
            for family, target in ((socket.AF_INET, lab.world4), (socket.AF_INET6, lab.world6)):
                with tunnel.app.udp(family=family) as sock:
                    echoed(sock, (target, 7), b"any")


def bad_datagrams():
    """What a relay may send that must be dropped. name: function(good) -> datagram."""
    return {
        "empty": lambda good: b"",
        "one byte": lambda good: good[:1],
        "header cut in its address": lambda good: good[:6],
        "header cut in its port": lambda good: good[:9],
        "FRAG 1": lambda good: good[:2] + b"\1" + good[3:],
        "FRAG 127": lambda good: good[:2] + b"\x7f" + good[3:],
        "last FRAG": lambda good: good[:2] + b"\x80" + good[3:],
        "address type 0": lambda good: good[:3] + b"\0" + good[4:],
        "address type 2": lambda good: good[:3] + b"\2" + good[4:],
        "address type 255": lambda good: good[:3] + b"\xff" + good[4:],
        "IPv6 address cut": lambda good: good[:3] + b"\4" + good[4:14],
        "name": lambda good: good[:3] + b"\3\x08www.test" + good[8:],
        "name cut": lambda good: good[:3] + b"\3\xffwww.test",
        "name empty": lambda good: good[:3] + b"\3\0" + good[8:],
        "multicast source": lambda good: good[:4] + b"\xe0\0\0\1" + good[8:],
        "broadcast source": lambda good: good[:4] + b"\xff\xff\xff\xff" + good[8:],
        "source 0.0.0.0": lambda good: good[:4] + b"\0\0\0\0" + good[8:],
        "the other family": lambda good: good[:3] + b"\4" + b"\xfd" + bytes(15) + good[8:],
    }


@pytest.mark.parametrize("name", bad_datagrams())
def test_bad_datagrams_of_a_relay_are_dropped(lab, rude, rude_tunnel, name):
    """Dropped alone: the good one after them arrives, and nothing else."""
    spoil = bad_datagrams()[name]
    header_len = 10

    def mangle(good):
        bad = spoil(good[:header_len] + b"this must not arrive")
        return [bad, bad, good]

    rude.udp_mangle = mangle
    with rude_tunnel.app.udp() as sock:
        for _ in range(3):
            sock.sendto(b"payload of some length", (lab.world4, 7))
            if select.select([sock], [], [], 2)[0]:
                break
        data, source = sock.recvfrom(65535)
        assert data == b"payload of some length", f"{name}: not dropped: {data!r} from {source}"
        assert source == (lab.world4, 7), f"{name}: not dropped: came from {source}"
        silence(sock, 0.1)


def test_datagrams_of_strangers_are_dropped(lab, rude, rude_tunnel):
    """Who is not the relay cannot send into an association, though the header be right."""
    with rude_tunnel.app.udp() as sock:
        echoed(sock, (lab.world4, 7), b"mine")
        client = rude.udp_clients[-1]
        header = b"\0\0\0\1" + socket.inet_aton(lab.world4) + struct.pack("!H", 7)
        with lab.mid.udp(lab.proxy4) as stranger:  # the relay's address, another port
            stranger.sendto(header + b"forged", client)
        silence(sock)
        echoed(sock, (lab.world4, 7), b"still mine")


# --- proxies without UDP -------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["refuse", "close"])
def test_proxy_without_udp(lab, how):
    """Reply 7, or closing without one: port unreachable at once, remembered, one log line."""
    with Rude(lab.mid, lab.proxy4) as rude:
        rude.udp = how
        with lab.tunnel(f"socks5://{rude.host}:{rude.port}") as tunnel:
            before = len(tunnel.lines)
            for host in (lab.world4, lab.world6) * 10:
                hears_port_unreachable(tunnel, host)
            asked = len(associations(rude))
            assert asked <= 2, f"20 sources asked a proxy without UDP {asked} times"
            wait_for(lambda: any("UDP" in line for line in tunnel.lines[before:]), "a line is read")
            lines = tunnel.lines[before:]
            told = [line for line in lines if "UDP" in line]
            assert len(told) == 1 and len(lines) <= 2, "not one log line:\n" + "\n".join(lines)
            with tunnel.app.connect(lab.world4, 7) as sock:  # TCP goes on
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


def test_udp_block(lab, rude):
    """--udp block: the proxy is not even asked."""
    with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--udp", "block") as tunnel:
        for host in (lab.world4, lab.world6) * 5:
            hears_port_unreachable(tunnel, host)
        assert not rude.requests


def test_proxy_that_is_down(lab):
    """No proxy at all: nothing comes, nothing breaks, few lines."""
    with lab.tunnel(f"socks5://{lab.proxy4}:9") as tunnel:
        before = len(tunnel.lines)
        socks = [tunnel.app.udp() for _ in range(50)]
        for sock in socks:
            sock.sendto(b"x", (lab.world4, 7))
        time.sleep(1)
        assert len(tunnel.lines) - before < 20, "a log line for each datagram"
        tunnel.settle()


# --- what never becomes a flow -------------------------------------------------------------------

@pytest.fixture(scope="module")
def quiet(lab):
    """A rude server that nobody should speak to, and a tunnel with multicast routed into it."""
    with Rude(lab.mid, lab.proxy4) as rude:
        with lab.tunnel(f"socks5://{rude.host}:{rude.port}") as tunnel:
            yield rude, tunnel


NEVER = ("224.0.0.251", "239.255.255.250", "255.255.255.255", "198.19.255.255", "169.254.1.1",
         "0.0.0.0", "127.0.0.1", "ff02::fb", "ff05::1:3", "ff0e::1", "fe80::1", "::1", "::")


@pytest.mark.parametrize("destination", NEVER)
def test_never_a_flow(lab, quiet, destination):
    """Multicast, broadcast, link-local, loopback and no address at all: dropped."""
    rude, tunnel = quiet
    before = rude.connections
    ip = IPv6(src="fdc0::2", dst=destination) if ":" in destination \
        else IP(src="198.18.0.1", dst=destination)
    for port in (53, 80, 1900, 5353):
        tunnel.inject(bytes(ip / UDP(sport=4000, dport=port) / b"hello, everyone"))
        tunnel.inject(bytes(ip / TCP(sport=4000, dport=port, flags="S", seq=1)))
    with tunnel.app.udp() as sock:  # comes after them in the device's queue
        echoed(sock, (lab.world4, 7), b"me")
    time.sleep(0.05)
    assert rude.connections == before + 1, f"packets to {destination} became {rude.requests}"


def test_sockets_multicast_and_broadcast(lab, quiet):
    """The same by sockets: service discovery, printers, routers. No error, no flow."""
    rude, tunnel = quiet
    before = rude.connections
    with tunnel.app.udp() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for destination in ("224.0.0.251", "239.255.255.250", "255.255.255.255",
                            "198.19.255.255"):
            for _ in range(50):
                try:
                    sock.sendto(b"hello", (destination, 5353))
                except OSError as error:
                    assert error.errno in (errno.ENETUNREACH, errno.EACCES), destination
    time.sleep(0.3)
    assert rude.connections == before
