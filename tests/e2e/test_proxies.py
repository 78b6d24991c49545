"""The same traffic through five SOCKS5 servers, each asked only for what it can do."""

import errno
import secrets
import socket
import time

import pytest

import streams
from netns import wait_for
from proxies import INDEPENDENT, Proxy, start_microsocks
from servers import TcpServer
from streams import MIB


def start_culvert_serve(lab, _folder):
    process = lab.culvert_serve()
    return Proxy("culvert serve", process.host, process.port, udp_max=65000)


PROXIES = {**INDEPENDENT, "culvert-serve": start_culvert_serve}


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request, lab, tmp_path_factory):
    """Each proxy in turn."""
    started = PROXIES[request.param](lab, tmp_path_factory.mktemp(request.param))
    yield started
    started.close()


@pytest.fixture(scope="module")
def through(lab, proxy):
    """A tunnel through the proxy."""
    with lab.tunnel(proxy.url) as tunnel:
        yield tunnel


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


def fake_address(tunnel, name, kind="A"):
    """What the applications of the tunnel get for the name."""
    out = tunnel.app.run("dig", "+short", "+time=3", "+tries=2", name, kind, check=True).stdout
    assert out.strip(), f"no {kind} for {name}"
    return out.split()[0]


def test_tcp_both_ways(lab, proxy, through, stream_server):
    for host in (lab.world4, lab.world6):
        with through.app.connect(host, stream_server.port) as sock:
            streams.upload(sock, 1, 4 * MIB, half_close=proxy.half_close)
        with through.app.connect(host, stream_server.port) as sock:
            streams.download(sock, 2, 4 * MIB)


def test_names_go_to_the_proxy(lab, proxy, through):
    """The proxy, not the application, resolves: the world's DNS server hears it from there."""
    name = f"{secrets.token_hex(4)}.test"
    lab.world_dns.zone[name] = [lab.world4]
    for kind in ("A", "AAAA"):
        with through.app.connect(fake_address(through, name, kind), 7) as sock:
            sock.sendall(b"by name")
            assert sock.recv(100) == b"by name"
    asked = {query.rstrip(".").lower() for _, query, _ in lab.world_dns.queries}
    assert name in asked


def test_refusal(lab, proxy, through):
    """A closed port: refused at once where the proxy tells, an early end where it cannot."""
    try:
        sock = through.app.connect(lab.world4, 9)
    except ConnectionRefusedError:
        return
    assert not proxy.tells, f"{proxy.name} told of the refusal, the application was connected"
    with sock:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def test_unreachable(lab, proxy, through):
    """The error that the proxy tells; any where it does not say why; an early end where it cannot."""
    for host in (lab.dead4, lab.dead6):
        with pytest.raises(OSError) as failure:
            with through.app.connect(host, 9) as sock:
                assert not proxy.tells and sock.recv(1) == b""
                raise ConnectionResetError("an early end")
        number = failure.value.errno
        if not (proxy.tells and proxy.codes):
            continue
        if proxy.name == "microsocks":  # its table of errors is short: anything it says is right
            assert number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED)
        else:
            assert number == errno.EHOSTUNREACH, errno.errorcode[number]


def test_many_short_flows(lab, proxy, through):
    for index in range(100):
        with through.app.connect(lab.world4 if index % 2 else lab.world6, 7) as sock:
            sock.sendall(b"short")
            if proxy.half_close:
                sock.shutdown(socket.SHUT_WR)
            assert sock.recv(10) == b"short"


def test_udp(lab, proxy, through):
    """Datagrams up to the proxy's limit, to IPv4 and IPv6.

    Refused where it has no UDP: QUIC and DNS fall back at once. Port unreachable, not silence.
    """
    for host in (lab.world4, lab.world6):
        with through.app.udp("0.0.0.0" if host == lab.world4 else "::") as sock:
            for size in (1, 100, 1200, 1400, 1472, 1473, 8000, 30000, 60000):
                if size <= proxy.udp_max:
                    exchange(sock, (host, 7), size, f"{proxy.name}, {host}")
            if not proxy.udp_max:
                sock.connect((host, 7))
                sock.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    sock.recv(1)


def exchange(sock, target, size, what):
    """One datagram and its echo; datagrams may be lost, so a second and third try are allowed."""
    data = secrets.token_bytes(size)
    sock.settimeout(1.0)
    for _ in range(3):
        sock.sendto(data, target)
        try:
            answer, source = sock.recvfrom(65535)
        except TimeoutError:
            continue
        assert answer == data, f"{what}: {size} bytes came back as {len(answer)}, or altered"
        assert source[:2] == target
        return
    raise AssertionError(f"{what}: no echo of a datagram of {size} bytes")


def test_flows_end_with_the_application(lab, proxy, through):
    """Only what UDP associations and DNS hold may be left at the proxy."""
    def left():
        return through.app.run("ss", "-Htn", "state", "established",
                               f"dport = :{proxy.port}").stdout.splitlines()

    wait_for(lambda: len(left()) <= 4, f"{proxy.name}: connections of ended flows are gone")


def test_user_and_password(lab, tmp_path):
    proxy = start_microsocks(lab, tmp_path, port=1092, credentials="alice:secret")
    with lab.tunnel(proxy.url) as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    with lab.tunnel(proxy.url.replace("secret", "guess")) as tunnel:
        begin = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            tunnel.app.connect(lab.world4, 7)
        assert time.monotonic() - begin < 2, "rejected credentials are not told at once"
        assert "guess" not in tunnel.log
    proxy.close()
