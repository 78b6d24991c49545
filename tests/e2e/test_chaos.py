"""Everything at once, at random: applications that change their minds, a proxy that does not keep
still. What completes must be right byte by byte; in the end nothing may be left, and a plain flow
works. The seed is in the failure's output (CHAOS_SEED repeats it).
"""

import os
import random
import select
import socket
import threading
import time

import pytest

import streams
from lab import wait_for
from netns import reset
from rude import Rude
from servers import TcpServer

SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
SECONDS = float(os.environ.get("CHAOS_SECONDS", 8))


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


@pytest.fixture(scope="module")
def chaotic(lab):
    """A rude server and a tunnel to it that have neither been used for anything else."""
    with Rude(lab.mid, lab.proxy4) as rude:
        tunnel = lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--connect-timeout", "3",
                            "--udp-idle-timeout", "3")
        yield rude, tunnel
        tunnel.stop()


class Applications:
    """Threads that do random things until told to stop; `wrong` holds what must never be."""

    def __init__(self, tunnel, lab, port):
        self.tunnel, self.lab, self.port = tunnel, lab, port
        self.wrong, self.done = [], 0
        self.sent = set()  # datagrams, by all of them
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(SEED + number,), daemon=True)
                        for number in range(24)]
        for thread in self.threads:
            thread.start()

    def _run(self, seed):
        chance = random.Random(seed)
        acts = (self._transfer, self._transfer, self._give_up, self._cut, self._slow,
                self._datagrams)
        while not self.over.is_set():
            try:
                chance.choice(acts)(chance)
                self.done += 1
            except AssertionError as problem:
                if "differs" in str(problem) or "more than" in str(problem):
                    self.wrong.append(str(problem))
            except OSError:
                time.sleep(0.01)

    def _host(self, chance):
        return chance.choice((self.lab.world4, self.lab.world6))

    def _connect(self, chance):
        return self.tunnel.app.connect(self._host(chance), self.port, timeout=5)

    def _transfer(self, chance):
        size = chance.choice((0, 1, 1000, 100_000, 3_000_000))
        with self._connect(chance) as sock:
            chance.choice((streams.upload, streams.download))(sock, chance.randrange(99), size)

    def _give_up(self, chance):
        host = self._host(chance)
        with self.tunnel.app.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                                    socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect_ex((host, self.port))
            time.sleep(chance.random() * 0.02)

    def _cut(self, chance):
        sock = self._connect(chance)
        streams.ask(sock, chance.choice((b"U", b"D", b"L")), 1, 2_000_000)
        if chance.random() < 0.5:
            sock.sendall(bytes(chance.randrange(1, 100_000)))
        else:
            sock.recv(chance.randrange(1, 100_000))
        chance.choice((reset, socket.socket.close))(sock)

    def _slow(self, chance):
        with self._connect(chance) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, chance.choice((4096, 65536)))
            streams.ask(sock, b"D", 7, 300_000)
            time.sleep(chance.random() * 0.3)
            streams.expect(sock, 7, 300_000)
            streams.expect_end(sock)

    def _datagrams(self, chance):
        host = self._host(chance)
        with self.tunnel.app.udp(family=socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            for _ in range(10):
                data = os.urandom(chance.choice((8, 1200, 1472, 5000)))
                self.sent.add(data)
                sock.sendto(data, (host, 7))
            while select.select([sock], [], [], 0.2)[0]:
                data = sock.recv(65535)
                # A late one may be meant for a socket that had this port before.
                assert data in self.sent, "a datagram differs from all that were sent"

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads), "an application hangs"
        assert not self.wrong, f"CHAOS_SEED={SEED}: {self.wrong[0]}"


def misbehave(rude, chance):
    """One of the ways of misbehaving, or none, for the connections to come."""
    rude.tame()
    step = chance.choice(("greeting", "request"))
    kind = chance.randrange(12)
    if kind == 0:
        rude.delay = {step: chance.random()}
    elif kind == 1:
        rude.cut, rude.reset = {step: chance.randrange(10)}, chance.random() < 0.5
    elif kind == 2:
        rude.noise = {step: chance.randbytes(chance.randrange(1, 40))}
    elif kind == 3:
        rude.mute = {step}
    elif kind == 4:
        rude.reply = chance.randrange(1, 12)
    elif kind == 5:
        rude.drip = 0.001
    elif kind == 6:
        rude.deaf = True
    elif kind == 7:
        rude.bound = chance.choice(("ipv6", "domain"))
    elif kind == 8:
        rude.udp = chance.choice(("close", "deny"))
    elif kind == 9:
        rude.udp_mangle = lambda good: [good[:chance.randrange(10)], chance.randbytes(30), good]


@pytest.mark.deadline(120)
def test_chaos(lab, chaotic, stream_server):
    rude, tunnel = chaotic
    chance = random.Random(SEED)
    applications = Applications(tunnel, lab, stream_server.port)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        controls = list(rude.controls)
        misbehave(rude, chance)
        time.sleep(chance.random() * 0.4)
        if chance.random() < 0.3:
            rude.controls += controls
            rude.close_controls()
    rude.tame()
    time.sleep(0.5)
    applications.stop()
    assert applications.done > 20 * SECONDS, f"only {applications.done} things got done"
    wait_for(lambda: rude.open_connections() == 0, "every connection to the proxy ends", 20)
    tunnel.settle(20)
    for host in (lab.world4, lab.world6):
        with tunnel.app.connect(host, stream_server.port) as sock:
            streams.upload(sock, 1, 1_000_000)
    spent = tunnel.cpu_seconds()
    time.sleep(1)
    assert tunnel.cpu_seconds() - spent < 0.05, f"CHAOS_SEED={SEED}: it spins afterwards"
    assert len(tunnel.lines) < 50 * SECONDS, "a log line for everything that goes wrong"
