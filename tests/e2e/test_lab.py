"""The laboratory itself, without culvert: what the other tests take for granted."""

import errno
import os
import socket
import struct

import pytest

from netns import reset
from proxies import INDEPENDENT


def test_app_reaches_nothing_but_the_proxy(lab):
    app = lab.client()
    for host in (lab.world4, lab.world6):
        with pytest.raises(OSError) as failure:
            app.connect(host, 7)
        assert failure.value.errno == errno.ENETUNREACH
    for host in (lab.proxy4, lab.proxy6):
        with pytest.raises(ConnectionRefusedError):
            app.connect(host, 9)
    app.close()


def test_mid_knows_each_kind_of_failure(lab):
    for host, expected in ((lab.dead4, errno.EHOSTUNREACH), (lab.dead6, errno.EHOSTUNREACH),
                           (lab.lost4, errno.ENETUNREACH), (lab.lost6, errno.ENETUNREACH),
                           (lab.world4, errno.ECONNREFUSED), (lab.world6, errno.ECONNREFUSED)):
        with pytest.raises(OSError) as failure:
            lab.mid.connect(host, 9, timeout=3)
        assert failure.value.errno == expected, host


def test_programs_find_the_namespace_s_resolver(lab):
    out = lab.mid.run("dig", "+short", "v4.test", "www.test", "AAAA").stdout
    assert out.split() == ["10.88.0.2", "fd88::2"]


def test_names_are_removed_with_the_namespace(lab):
    app = lab.client()
    app.set_resolver("198.18.0.2")
    app.close()
    assert not os.path.exists(f"/run/netns/{app.name}")
    assert not os.path.exists(f"/etc/netns/{app.name}")


def socks_connect(app, proxy, host, port):
    """The simplest possible SOCKS5 client: returns the socket and the whole reply."""
    sock = app.connect(proxy.host, proxy.port)
    sock.sendall(b"\5\1\0")
    assert sock.recv(2) == b"\5\0"
    if host.endswith(".test"):
        target = bytes([3, len(host)]) + host.encode()
    elif ":" in host:
        target = b"\4" + socket.inet_pton(socket.AF_INET6, host)
    else:
        target = b"\1" + socket.inet_aton(host)
    sock.sendall(b"\5\1\0" + target + struct.pack("!H", port))
    return sock, sock.recv(300)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_proxy_works_without_a_tunnel(lab, tmp_path_factory, name):
    proxy = INDEPENDENT[name](lab, tmp_path_factory.mktemp(name))
    app = lab.client()
    for host in (lab.world4, lab.world6, "v4.test", "v6.test"):
        sock, reply = socks_connect(app, proxy, host, 7)
        assert reply[:2] == b"\5\0", host
        sock.sendall(b"through")
        assert sock.recv(7) == b"through"
        sock.close()
    _, reply = socks_connect(app, proxy, lab.world4, 9)
    if proxy.tells:
        assert reply[1:2] == (b"\5" if proxy.codes else b""), "CONNECT to a closed port"
    app.close()
    proxy.close()


def test_rude_server_is_a_proxy(lab, rude):
    app = lab.client()
    sock, reply = socks_connect(app, rude, lab.world4, 7)
    assert reply[:2] == b"\5\0"
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    assert rude.requests == [(1, lab.world4, 7)]

    sock, reply = socks_connect(app, rude, lab.world4, 7)
    sock.sendall(b"x")
    sock.recv(1)
    reset(sock)
    rude.reply, rude.bound = 4, "domain"
    sock, reply = socks_connect(app, rude, lab.world4, 7)
    assert reply == b"\5\4\0\3\x0aproxy.test\0\0"
    assert sock.recv(1) == b""
    assert sorted(rude.closed) == ["fin", "fin", "reset"]
    app.close()


def test_rude_server_relays_udp(lab, rude):
    app = lab.client()
    control = app.connect(rude.host, rude.port)
    control.sendall(b"\5\1\0\5\3\0\1\0\0\0\0\0\0")
    reply = b""
    while len(reply) < 12:
        reply += control.recv(300)
    port = int.from_bytes(reply[10:12], "big")
    sock = app.udp("0.0.0.0")
    header = b"\0\0\0\1" + socket.inet_aton(lab.world4) + struct.pack("!H", 7)
    sock.sendto(header + b"ping", (rude.host, port))
    assert sock.recv(100) == header + b"ping"
    rude.close_controls()
    assert control.recv(1) == b""
    app.close()
