"""All that a program may send, all the time, while culvert runs, loses its processes and is killed.

What of it leaves the desktop is seen on the uplink and on the LAN's cable.
"""

import contextlib
import os
import signal
import socket
import threading

from desktop import Capture
from netns import veth, wait_for
from test_up import exchange
from test_up_who import QUERY

ECHO4, ECHO6 = bytes.fromhex("0800f7fe00000001"), bytes.fromhex("8000000000000001")
EXPERIMENT = 253  # an IP protocol that nobody carries (RFC 3692)


class Babble:
    """Programs that know nothing of culvert, some with raw sockets and some bound to a device."""

    def __init__(self, desktop, lab, devices=("eth0",), bound=True):
        self.sockets = []
        self.worlds = {socket.AF_INET: lab.world4, socket.AF_INET6: lab.world6}
        self.resolvers = {socket.AF_INET: (desktop.gateway4, "9.9.9.9"),
                          socket.AF_INET6: (desktop.gateway6, "2620:fe::fe")}
        self.rounds = 0
        with desktop.space.inside():
            for family in (socket.AF_INET, socket.AF_INET6):
                for device in (None, *devices):
                    self._open(family, device, everything=bound or not device)
        self.space = desktop.space
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _open(self, family, device, everything):
        """Sockets of all kinds; those that are to be silent but for DNS are not opened."""
        icmp = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        kinds = [(socket.SOCK_DGRAM, 0)]
        if everything:
            kinds += [(socket.SOCK_RAW, icmp), (socket.SOCK_RAW, EXPERIMENT)]
        for kind, protocol in kinds:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            self.sockets.append((sock, device, everything))

    def _send(self, sock, everything):
        family = sock.family
        if sock.type == socket.SOCK_RAW:
            sock.sendto(ECHO4 if family == socket.AF_INET else ECHO6, (self.worlds[family], 0))
            return
        for resolver in self.resolvers[family]:
            with contextlib.suppress(OSError):
                sock.sendto(QUERY, (resolver, 53))
        if everything:
            sock.sendto(b"x", (self.worlds[family], 7))

    def _connect(self, family, device, everything):
        targets = [(resolver, 53) for resolver in self.resolvers[family]]
        if everything:
            targets.append((self.worlds[family], 7))
        for target in targets:
            with self.space.socket(family, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                if device:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
                with contextlib.suppress(OSError):
                    sock.connect(target)

    def _run(self):
        while not self._over.wait(0.02):
            for sock, device, everything in self.sockets:
                with contextlib.suppress(OSError):
                    self._send(sock, everything)
                if sock.type == socket.SOCK_DGRAM:
                    with contextlib.suppress(OSError):
                        self._connect(sock.family, device, everything)
            self.rounds += 1

    def goes_on(self):
        """It has said everything a few times more."""
        before = self.rounds
        wait_for(lambda: self.rounds > before + 5, "the babble goes on")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(5)
        for sock, *_ in self.sockets:
            sock.close()


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_nothing_leaks_with_a_kill_switch(desktop, lab, serve):
    """Not either as processes die one by one and all at once, and `up` is started again."""
    before = desktop.state()
    up = desktop.up(serve.url, "--kill-switch")
    with Babble(desktop, lab) as babble, Capture(desktop.gw, "d0") as lan, \
            Capture(desktop.gw, "wan0") as uplink:
        babble.goes_on()
        for victims in (up.workers(), up.brokers()):
            kill(victims)
            babble.goes_on()
        wait_for(lambda: up.workers() and up.brokers(), "they are replaced")
        exchange(desktop.space, lab.world4)
        for choose in (lambda tree: tree[:1], lambda tree: tree, lambda tree: reversed(tree)):
            with desktop.space.connect(lab.world4, 7) as half_way:  # says more when its tunnel has gone
                up.checked = True
                kill(choose(up.tree()))
                up.process.wait(5)
                with contextlib.suppress(OSError):
                    half_way.sendall(b"more")
                babble.goes_on()
            up = desktop.up(serve.url, "--kill-switch")
            babble.goes_on()
        exchange(desktop.space, lab.world6)
        desktop.space.ip("route del default")
        desktop.space.ip("-6 route del default")
        babble.goes_on()
        desktop.default_route()
        babble.goes_on()
        exchange(desktop.space, lab.world4)
        up.kill()
        babble.goes_on()
    assert uplink.packets and uplink.beside(lab.proxy4) == [] and lan.beside(lab.proxy4) == []
    assert desktop.down().returncode == 0
    desktop.assert_state(before)


def test_nothing_leaks_while_it_runs(desktop, lab, serve):
    """Without a kill switch a device-bound socket goes where it is bound to, but asks no resolver."""
    before = desktop.state()
    with desktop.up(serve.url) as up:
        with Babble(desktop, lab, bound=False) as babble, Capture(desktop.gw, "d0") as lan:
            babble.goes_on()
            kill(up.workers())
            babble.goes_on()
            wait_for(up.workers, "another worker")
            exchange(desktop.space, lab.world4)
        assert lan.packets and lan.beside(lab.proxy4) == []
    desktop.assert_state(before)


def test_another_uplink_comes_and_the_first_goes(desktop, lab, serve):
    """An interface that was not there when `up` began; addresses that come and go."""
    with desktop.up(serve.url, "--kill-switch"):
        with Capture(desktop.gw, "wan0") as uplink:
            veth(desktop.space, "wlan0", desktop.gw, "w0", ("192.168.60.2/24", "192.168.60.1/24"),
                 ("fd60::2/64", "fd60::1/64"))
            lab.mid.ip("route replace 192.168.60.0/24 via 10.76.0.2")
            with Babble(desktop, lab, devices=("eth0", "wlan0")) as babble:
                babble.goes_on()
                desktop.space.ip("route replace default via 192.168.60.1")
                desktop.space.ip("link set eth0 down")
                babble.goes_on()
                exchange(desktop.space, lab.world4)
                exchange(desktop.space, lab.world6)
                desktop.space.ip("link set eth0 up")
                desktop.space.ip("addr add 192.168.50.77/24 dev eth0")
                desktop.space.ip("link del wlan0")
                desktop.space.ip(f"addr add {desktop.lan6}/64 dev eth0 nodad")
                desktop.default_route()
                babble.goes_on()
                exchange(desktop.space, lab.world4)
                exchange(desktop.space, desktop.printer6)
                desktop.space.ip("addr del 192.168.50.77/24 dev eth0")
        assert uplink.packets and uplink.beside(lab.proxy4) == []
    lab.mid.ip("route del 192.168.60.0/24")
