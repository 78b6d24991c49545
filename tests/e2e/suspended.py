"""A culvert that is stopped for a minute under load, as with a machine that sleeps; time goes on meanwhile.

It has a laboratory of its own and is woken by a thread, so that other tests run while it sleeps.
"""

import signal
import socket
import threading
import time

import lab as laboratory
import streams
from downloads import Downloads
from lab import wait_for
from servers import TcpServer

SECONDS = 60


class Suspended:
    def __init__(self):
        self.lab = laboratory.Lab()
        port = self.lab.serve(TcpServer(self.lab.world, streams.serve_stream)).port
        self.tunnel = self.lab.tunnel(self.lab.culvert_serve().url)
        app = self.tunnel.app
        self._load = Downloads(self.tunnel, self.lab, port, timeout=2 * SECONDS)
        self._idle, self._half = app.connect(self.lab.world4, 7), app.connect(self.lab.world6, 7)
        self._half.sendall(b"before")
        self._half.shutdown(socket.SHUT_WR)
        wait_for(lambda: self._load.done > 20, "downloads work")
        self.tunnel.signal_all(signal.SIGSTOP)
        self._idle.sendall(b"meanwhile")
        self.problem = None
        self._waker = threading.Thread(target=self._wake, daemon=True)
        self._waker.start()

    def _wake(self):
        time.sleep(SECONDS)
        try:
            self.tunnel.signal_all(signal.SIGCONT)
            self._look()
        except Exception as problem:  # pylint: disable=broad-except
            self.problem = problem

    def _look(self):
        """Flows go on where they stopped, byte by byte; new ones work at once."""
        app, lab, load = self.tunnel.app, self.lab, self._load
        with app.connect(lab.world4, 7) as sock:
            sock.sendall(b"new")
            assert sock.recv(10) == b"new"
        with app.udp() as sock:
            sock.sendto(b"new", (lab.world4, 7))
            assert sock.recv(10) == b"new"
        for sock in (self._idle, self._half):
            sock.settimeout(10)
        assert self._idle.recv(20) == b"meanwhile"
        assert self._half.recv(20) == b"before" and self._half.recv(1) == b""
        done = load.done
        wait_for(lambda: load.done > done + 20, "downloads go on")
        load.stop()
        assert load.failed == 0, f"{load.failed} of the load's flows were cut: {load.problem!r}"

    def wait(self):
        """Until it was woken and looked at: fails for what was wrong then."""
        self._waker.join(3 * SECONDS)
        assert not self._waker.is_alive(), "it hangs after its sleep"
        if self.problem:
            raise self.problem
        for sock in (self._idle, self._half):
            sock.close()
        self.tunnel.idle_sockets += 2  # the association's
        self.tunnel.settle()

    def close(self):
        self._load.give_up()
        self.tunnel.signal_all(signal.SIGCONT)  # where nobody waited
        self.lab.close()
