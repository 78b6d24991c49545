"""What small exchanges cost in system calls: a count that the machine's load cannot touch.

strace slows the worker down, so that events gather and counts only fall: the limits hold whatever
else runs.
"""

import contextlib
import re
import shutil
import subprocess

import pytest

import socks5
from lab import DIRECT
from servers import TcpServer

ROUND_TRIPS, CONNECTIONS = 300, 100
SMALL = b"x" * 100

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="no strace"),
    pytest.mark.skipif(DIRECT, reason="the tunnel's calls are counted"),
]


class Count:
    """Counts a process's system calls, by name, while it is entered."""

    def __init__(self, pid, path):
        self.path = path
        self.command = ["strace", "-f", "-c", "-o", path, "-p", str(pid)]
        self.calls = {}

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        assert "attached" in self.process.stderr.readline()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=10)
        for line in self.path.read_text().splitlines():
            found = re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)", line)
            if found and found[2] != "total":
                self.calls[found[2]] = int(found[1])

    def total(self):
        return sum(self.calls.values())


@pytest.fixture(scope="module")
def echo(lab):
    def answer(sock):
        while data := sock.recv(4096):
            sock.sendall(data)

    return lab.serve(TcpServer(lab.world, answer))


def exchange(sock):
    sock.sendall(SMALL)
    got = b""
    while len(got) < len(SMALL):
        got += sock.recv(4096)


def test_a_round_trip(lab, tunnel, echo, tmp_path):
    """Six: a wait, a read and a write for each direction. No EAGAIN is read, no ACK written."""
    with tunnel.app.connect(lab.world4, echo.port) as sock:
        exchange(sock)
        with Count(tunnel.workers()[0], tmp_path / "calls") as count:
            for _ in range(ROUND_TRIPS):
                exchange(sock)
    assert count.total() > 4 * ROUND_TRIPS, f"not all are counted: {count.calls}"
    assert count.total() < 6.5 * ROUND_TRIPS, f"for {ROUND_TRIPS} round trips: {count.calls}"


def test_a_short_connection(lab, tunnel, echo, tmp_path):
    """Connect, exchange, close: also no keep-alive and no second look at a socket."""
    with Count(tunnel.workers()[0], tmp_path / "calls") as count:
        for _ in range(CONNECTIONS):
            with tunnel.app.connect(lab.world4, echo.port) as sock:
                exchange(sock)
        tunnel.settle()
    assert count.calls["socket"] == CONNECTIONS, f"not all are counted: {count.calls}"
    assert count.calls["setsockopt"] <= 2 * CONNECTIONS, f"{count.calls}"
    assert count.calls["epoll_ctl"] <= 4 * CONNECTIONS, f"{count.calls}"
    assert count.total() < 40 * CONNECTIONS, f"for {CONNECTIONS} connections: {count.calls}"


def test_a_short_connection_through_serve(lab, echo, tmp_path):
    """As much for the proxy: of a socket's options it sets one, and keep-alives on none."""
    with lab.culvert_serve() as server, contextlib.closing(lab.client()) as app:
        pid, = server.children("culvert-server")
        with Count(pid, tmp_path / "calls") as count:
            for _ in range(CONNECTIONS):
                with socks5.connect(app, (server.host, server.port), lab.world4, echo.port) as sock:
                    exchange(sock)
            server.settle()
    assert count.calls["socket"] == CONNECTIONS, f"not all are counted: {count.calls}"
    assert count.calls["setsockopt"] <= CONNECTIONS, f"{count.calls}"
    assert count.total() < 36 * CONNECTIONS, f"for {CONNECTIONS} connections: {count.calls}"
