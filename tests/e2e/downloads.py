"""A load that goes on whatever becomes of culvert and its proxy."""

import threading
import time

import streams
from streams import MIB


class Downloads:
    """Threads that download again and again; counts what worked and what was cut."""

    def __init__(self, tunnel, lab, port, count=10, timeout=12):
        self.timeout = timeout
        self.done, self.failed, self.wrong = 0, 0, []
        self.problem = None  # the last one
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(tunnel, lab, port, index),
                                          daemon=True)  # a test that fails may not come to stop()
                         for index in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, tunnel, lab, port, index):
        while not self._stop.is_set():
            host = lab.world4 if index % 2 else lab.world6
            try:
                with tunnel.app.connect(host, port, timeout=self.timeout) as sock:
                    streams.download(sock, index, MIB)
                self.done += 1
            except AssertionError as problem:
                if "differs" in str(problem):
                    self.wrong.append(str(problem))
                self.failed, self.problem = self.failed + 1, problem
            except OSError as problem:
                self.failed, self.problem = self.failed + 1, problem
                time.sleep(0.02)

    def give_up(self):
        """Begin nothing new, whatever becomes of what is under way."""
        self._stop.set()

    def stop(self):
        self.give_up()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "flows hang"
        assert not self.wrong, self.wrong[0]
