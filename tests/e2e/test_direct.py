"""direct://: the tunnel relays by itself, with no proxy, and leads to nobody's own loopback.

Its sockets are bound to the way out beside the TUN device, so that they do not come back in.
"""

import errno
import secrets
import socket
import time

import dns.message
import pytest

import lab as laboratory
import streams
from lab import Culvert, Tunnel, wait_for
from servers import TcpServer, resetting
from streams import MIB
from test_udp import echoed

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's direct://")


def direct_tunnel(lab, *options):
    """An application whose own host is routed to the world by way of mid."""
    space = lab.client()
    lab.mid.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    lab.world.ip("route replace 10.77.0.0/16 via 10.88.0.1")
    lab.world.ip("-6 route replace fd77::/16 via fd88::1")
    space.ip(f"route add default via {space.gateway4} metric 5000")
    space.ip(f"-6 route add default via {space.gateway6} metric 5000")
    tunnel = Tunnel(lab, "direct://", "--bind-interface", "up0", *options, app=space, route=False)
    lab.processes.append(tunnel)
    space.ip("route add default dev culvert0 metric 10")
    space.ip("-6 route add default dev culvert0 metric 10")
    return tunnel


@pytest.fixture(scope="module")
def direct(lab):
    return direct_tunnel(lab)


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


def fake_address(tunnel, name, kind="A"):
    out = tunnel.app.run("dig", "+short", "+time=3", "+tries=2", name, kind, check=True).stdout
    assert out.strip(), f"no {kind} for {name}"
    return out.split()[0]


@pytest.mark.parametrize("host", ["world4", "world6"])
def test_tcp(lab, direct, stream_server, host):
    with direct.app.connect(getattr(lab, host), stream_server.port) as sock:
        streams.upload(sock, 1, 8 * MIB)
    with direct.app.connect(getattr(lab, host), stream_server.port) as sock:
        streams.download(sock, 2, 8 * MIB)


def test_failures_are_the_real_ones(lab, direct):
    """A refusal by the server, and what a router on the way has said.

    mid's answer for fd99:: is "no route" (ICMPv6 1/0). Such an answer may come while the kernel's
    own connect() holds the socket; then it takes another SYN, a second later.
    """
    for host, port, expected in ((lab.world4, 9, errno.ECONNREFUSED),
                                 (lab.world6, 9, errno.ECONNREFUSED),
                                 (lab.dead4, 7, errno.EHOSTUNREACH),
                                 (lab.dead6, 7, errno.ENETUNREACH),
                                 (lab.lost4, 7, errno.ENETUNREACH),
                                 (lab.lost6, 7, errno.ENETUNREACH)):
        begin = time.monotonic()
        with pytest.raises(OSError) as failure:
            direct.app.connect(host, port)
        assert failure.value.errno == expected, (host, errno.errorcode[failure.value.errno])
        assert time.monotonic() - begin < 3, f"{host} failed late"


def test_names(lab, direct):
    """The name behind a fake address is resolved by culvert, whatever the application's family."""
    for name in ("v4.test", "v6.test", "www.test"):
        for kind in ("A", "AAAA"):
            with direct.app.connect(fake_address(direct, name, kind), 7) as sock:
                sock.sendall(b"by name")
                assert sock.recv(100) == b"by name"
    with pytest.raises(OSError) as failure:
        direct.app.connect(fake_address(direct, "nowhere.test"), 7)
    assert failure.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize("host", ["world4", "world6"])
def test_udp(lab, direct, host):
    family = socket.AF_INET if host == "world4" else socket.AF_INET6
    with direct.app.udp(family=family) as sock:
        for size in (0, 1, 1447, 1448, 1449, 1452, 1453, 1472, 1473, 8000, 65000, 65506, 65507):
            echoed(sock, (getattr(lab, host), 7), secrets.token_bytes(size))


def test_udp_has_one_mapping(lab, direct):
    with direct.app.udp() as sock, lab.world.udp(lab.world_v4(3), 5556) as stranger:
        echoed(sock, (lab.world4, 7), b"where am I?")
        stranger.sendto(b"I was not asked", lab.udp_echo.last)
        data, source = sock.recvfrom(100)
        assert (data, source) == (b"I was not asked", (lab.world_v4(3), 5556))


def test_resets_and_half_closes(lab, direct):
    resetter = lab.serve(TcpServer(lab.world, resetting))
    with direct.app.connect(lab.world4, resetter.port) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with direct.app.connect(lab.world6, 7) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"last words"
        assert sock.recv(1) == b""


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_own_loopback(lab, address, allowed):
    """A name that leads to the host's own loopback must not reach its private services."""
    name = "trap4.test" if address == "127.0.0.1" else "trap6.test"
    lab.world_dns.zone[name] = [address]
    options = ["--allow-loopback"] if allowed else []
    with TcpServer(lab.mid, lambda sock: sock.sendall(b"private")) as own, \
            Culvert(lab.mid, "tun", *options, "direct://") as process:
        process.wait_ready()  # mid has no other way to the fake range than the device
        with lab.mid.udp(timeout=5) as sock:
            sock.sendto(dns.message.make_query(name, "A").to_wire(), ("198.18.0.2", 53))
            fake = dns.message.from_wire(sock.recv(4096)).answer[0][0].to_text()
        if allowed:
            with lab.mid.connect(fake, own.port) as sock:
                assert sock.recv(100) == b"private"
            return
        begin = time.monotonic()
        with pytest.raises(OSError) as failure:
            lab.mid.connect(fake, own.port)
        assert failure.value.errno == errno.EHOSTUNREACH, "is not told as prohibited"
        assert time.monotonic() - begin < 2
        assert not own.peers, "a private service was reached"


def test_nothing_is_left(lab, direct):
    wait_for(lambda: direct.sockets() <= direct.idle_sockets + 4, "flows are gone but for UDP's")
