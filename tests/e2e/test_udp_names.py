"""UDP to names: an application sends to a fake address, and its answers come from there.

The proxy (or culvert itself, with direct://) resolves the name, perhaps to an address of the other
family; what the application sees is the fake address in either case.
"""

import secrets
import socket

import dns.message
import pytest

import lab as laboratory
from lab import Culvert
from servers import UdpEcho

FAMILIES = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}
RESOLVER = "198.18.0.2"

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about fake addresses")


def lookup(space, name, kind):
    """The fake address that culvert gives to a name."""
    query = dns.message.make_query(name, kind)
    with space.udp(timeout=3) as sock:
        sock.sendto(query.to_wire(), (RESOLVER, 53))
        answer = dns.message.from_wire(sock.recv(4096))
    return answer.answer[0][0].to_text()


def talks(space, name, kind, port=7):
    host = lookup(space, name, kind)
    with space.udp(family=FAMILIES[kind], timeout=3) as sock:
        for size in (0, 1, 1400, 3000, 20000):
            data = secrets.token_bytes(size)
            sock.sendto(data, (host, port))
            answer, source = sock.recvfrom(65535)
            assert answer == data
            assert source[:2] == (host, port), f"the answer came from {source[:2]}"


@pytest.fixture(scope="module")
def directly(lab):
    """culvert relaying without a proxy, in the namespace that knows the world."""
    with Culvert(lab.mid, "tun", "direct://") as process:
        process.wait_ready()
        yield lab.mid


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["www.test", "v4.test", "v6.test"])
def test_through_the_proxy(tunnel, name, kind):
    talks(tunnel.app, name, kind)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["www.test", "v4.test", "v6.test"])
def test_directly(directly, name, kind):
    talks(directly, name, kind)


def test_two_names_and_an_address_on_one_socket(lab, tunnel):
    """Each answer comes from where its question went."""
    hosts = [lookup(tunnel.app, "v4.test", "A"), lookup(tunnel.app, "v6.test", "A"),
             lab.world_v4(5)]
    server = UdpEcho(lab.world, hosts[2], port=7)
    with tunnel.app.udp(timeout=3) as sock:
        for host in hosts + hosts[::-1]:
            sock.sendto(host.encode(), (host, 7))
            answer, source = sock.recvfrom(100)
            assert answer == source[0].encode(), f"{source[0]} answers for {answer}"
    server.close()


def test_unknown_fake_address_is_refused(tunnel):
    with tunnel.app.udp(timeout=3) as sock:
        sock.connect(("198.18.200.200", 7))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
