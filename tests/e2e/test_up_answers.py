"""Connections from beyond the local networks to a machine under `culvert up`: answered directly.

And nothing else with them: what the machine itself begins goes through the proxy as ever.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading

import pytest

from desktop import Capture
from lab import CULVERT
from netns import Namespace, veth, wait_for
from proxies import make_keys, ssh_command, start_sshd
from servers import TcpServer, UdpEcho, echo
from test_up import exchange

PORT = 2022
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def service(desktop):
    """What the desktop serves, on all its addresses of both families."""
    server = TcpServer(desktop.space, echo, port=PORT)
    yield server
    server.close()


def addresses(desktop):
    return desktop.lan4, desktop.lan6


def assert_answers(world, desktop):
    for host in addresses(desktop):
        exchange(world, host, PORT)


def assert_pinged(world, host):
    with world.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(5)
        sock.sendto(bytes.fromhex("0800f7fe00000001"), (host, 0))
        packet, (peer, _) = sock.recvfrom(99)
    assert peer == host and packet[20] == 0, "no echo reply"


class Talk:
    """Says something on a connection and has it back, all the time."""

    def __init__(self, sock):
        self.sock, self.rounds, self.problem = sock, 0, None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            while not self._over.is_set():
                self.sock.sendall(b"talk")
                assert self.sock.recv(9) == b"talk"
                self.rounds += 1
        except (OSError, AssertionError) as problem:
            self.problem = problem

    def stop(self):
        self._over.set()
        self._thread.join(10)
        assert self.rounds and self.problem is None, self.problem


@pytest.mark.parametrize("options", [(), ("--kill-switch",), ("--no-lan",), ("--gateway",),
                                     ("--exclude-uid", "nobody"), ("--mtu", "9000")],
                         ids=lambda options: " ".join(options) or "plain")
def test_connections_from_afar(desktop, lab, serve, service, options):
    """Begun before `up`, while it runs, and still there after it; the machine's own are captured."""
    before = desktop.state()
    early = [lab.world.connect(host, PORT) for host in addresses(desktop)]
    talks = [Talk(sock) for sock in early]
    with desktop.up(serve.url, *options):
        for talk in talks:
            talk.stop()
        with Capture(desktop.gw, "wan0") as uplink:
            assert_answers(lab.world, desktop)
            late = [lab.world.connect(host, PORT) for host in addresses(desktop)]
            for sock in (*early, *late):
                sock.sendall(b"x" * 100000)
                left = 100000
                while left > 0 and (got := sock.recv(left)):
                    left -= len(got)
                assert left == 0
            exchange(desktop.space, lab.world4)
            exchange(desktop.space, lab.world6)
        beside = uplink.beside(lab.proxy4)
        assert beside and all(PORT in (p.sport, p.dport) for p in beside)
        assert_pinged(lab.world, desktop.lan4)
        with pytest.raises(ConnectionRefusedError):  # the kernel's own answer
            lab.world.connect(desktop.lan4, 4)
        exchange(desktop.printer, desktop.lan4, PORT)
        talks = [Talk(sock) for sock in (*early, *late)]
    for talk in talks:
        talk.stop()
        talk.sock.close()
    desktop.assert_state(before)


def test_ssh_session_that_starts_culvert(desktop, lab, serve, tmp_path):
    """Whoever administers the machine from afar is not cut off by what he starts there."""
    make_keys(tmp_path)
    sshd = start_sshd(desktop.space, tmp_path, 2222)
    login = [*ssh_command(tmp_path, 2222), f"root@{desktop.lan4}"]
    desktop.assert_harmless()
    session = lab.world.popen(*login, f"{CULVERT} up {serve.url} 2>&1 & cat; kill $!; wait; echo end",
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert "culvert: ready" in session.stdout.readline()
    for i in range(20):
        session.stdin.write(f"line {i}\n")
        session.stdin.flush()
        assert session.stdout.readline() == f"line {i}\n"
    done = lab.world.run(*login, "echo second")
    assert done.stdout == "second\n", done.stderr
    exchange(desktop.space, lab.world4)
    out, _ = session.communicate(timeout=10)
    assert out.endswith("end\n")
    sshd.close()


def test_answers_after_a_kill(desktop, lab, serve, service):
    """The kill switch blocks what the machine begins; it can still be administered."""
    before = desktop.state()
    early = lab.world.connect(desktop.lan4, PORT)
    up = desktop.up(serve.url, "--kill-switch")
    late = lab.world.connect(desktop.lan4, PORT)
    up.kill()
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    late.sendall(b"still there")
    assert late.recv(99) == b"still there"
    assert_answers(lab.world, desktop)
    for host in (lab.world4, lab.world6):
        with pytest.raises(OSError):
            exchange(desktop.space, host)
    early.sendall(b"patient")
    assert desktop.down().returncode == 0
    assert early.recv(99) == b"patient"
    early.close()
    late.close()
    desktop.assert_state(before)


def test_what_is_no_answer(desktop, lab, serve):
    """An accepted socket may be used for another connection; or the peer's port be that of DNS."""
    with desktop.space.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", PORT + 1))
        listener.listen()
        with desktop.up(serve.url), Capture(desktop.gw, "wan0") as uplink:
            with lab.world.connect(desktop.lan4, PORT + 1):
                accepted, _ = listener.accept()
                disconnect(accepted)
                accepted.settimeout(5)
                with pytest.raises(ConnectionRefusedError):
                    accepted.connect((lab.world4, 7))
                accepted.close()
            with lab.world.socket(socket.AF_INET, socket.SOCK_STREAM) as asker:
                asker.settimeout(1)
                asker.bind((lab.world_v4(5), 53))
                with pytest.raises(OSError):
                    asker.connect((desktop.lan4, PORT + 1))
    assert [p for p in uplink.packets if p.src == desktop.lan4 and p.dport in (7, 53)] == []


def disconnect(sock):
    """connect(2) to AF_UNSPEC, which Python cannot say."""
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


def test_datagrams_from_afar_are_no_beginning(desktop, lab, serve):
    """A datagram from outside does not open a way past the proxy; an excluded service has one."""
    script = (f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
              f"s.bind(({desktop.lan4!r}, 5300)); print(flush=True); d, a = s.recvfrom(99); s.sendto(d, a)")
    for user, answered in (("root", False), ("nobody", True)):
        with desktop.up(serve.url, "--exclude-uid", "nobody"), Capture(desktop.gw, "wan0") as uplink:
            service = desktop.space.popen("setpriv", "--reuid", user, "--clear-groups",
                                          "/usr/bin/python3", "-c", script, stdout=subprocess.PIPE)
            service.stdout.readline()
            with lab.world.udp(lab.world4, timeout=1) as sock:
                sock.connect((desktop.lan4, 5300))
                sock.send(b"question")
                if answered:
                    assert sock.recv(99) == b"question"
                else:
                    with pytest.raises(socket.timeout):
                        sock.recv(99)
            assert service.wait(5) == 0
        assert [p for p in uplink.packets if p.sport == 5300] == [] or answered


def test_forwarded_ports(desktop, lab, serve):
    """With --gateway: a port forwarded to a virtual machine, and its own address, from afar."""
    inner = Namespace("inner")
    veth(desktop.space, "vm0", inner, "eth0", ("172.30.0.1/24", "172.30.0.2/24"),
         ("fd30::1/64", "fd30::2/64"))
    inner.ip("route add default via 172.30.0.1")
    inner.ip("-6 route add default via fd30::1")
    ways = ((desktop.gw, desktop.lan6), (lab.mid, "fd76::2"), (lab.world, "fd88::1"))
    for space, via in ways:
        space.ip(f"-6 route replace fd30::/64 via {via}")
    desktop.space.run("nft", "-f", "-", check=True, input="""
        table ip forwards {
            chain ports {
                type nat hook prerouting priority dstnat;
                iifname "eth0" tcp dport 8022 dnat to 172.30.0.2:22
                iifname "eth0" udp dport 8053 dnat to 172.30.0.2:53
            }
        }""")
    before = desktop.state()
    with TcpServer(inner, echo, port=22), contextlib.closing(UdpEcho(inner, "172.30.0.2", port=53)):
        with desktop.up(serve.url, "--gateway"), Capture(desktop.gw, "wan0") as uplink:
            exchange(lab.world, desktop.lan4, 8022)
            exchange(lab.world, "fd30::2", 22)
            with lab.world.udp(lab.world4) as sock:
                sock.sendto(b"datagram", (desktop.lan4, 8053))
                assert sock.recv(99) == b"datagram"
            exchange(inner, lab.world4)
            exchange(inner, lab.world6)
        beside = uplink.beside(lab.proxy4)
        assert beside and all({p.sport, p.dport} & {22, 8022, 8053} for p in beside), beside
    desktop.assert_state(before)
    desktop.space.run("nft", "delete", "table", "ip", "forwards", check=True)
    for space, _ in ways:
        space.ip("-6 route del fd30::/64")
    desktop.space.ip("link del vm0")
    inner.close()


FIREWALLD = """
table inet firewalld {
    chain mangle_PREROUTING {
        type filter hook prerouting priority mangle + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy drop;
        ct state { established, related } accept
        iifname "lo" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        tcp dport 2022 accept
    }
}
"""


def test_beside_firewalld(desktop, lab, serve6, service):
    """Its reverse path filter of IPv6 asks for the mark that the way back has."""
    desktop.space.run("nft", "-f", "-", check=True, input=FIREWALLD)
    before = desktop.state()
    with desktop.up(serve6.url):
        exchange(desktop.space, lab.world4)
        exchange(desktop.space, lab.world6)
        exchange(desktop.space, desktop.printer6)
        assert_answers(lab.world, desktop)
    desktop.assert_state(before)
    desktop.space.run("nft", "delete", "table", "inet", "firewalld", check=True)


@pytest.fixture
def serve6(lab):
    with lab.culvert_serve(host=lab.proxy6) as proxy:
        yield proxy
    lab.processes.remove(proxy)
