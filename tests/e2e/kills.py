"""Processes of culvert's killed with -9 at random moments under load, and what is promised then.

    the worker or its broker    another takes over: new flows are served, names keep their addresses
    `tun`, the supervisor       no process and no device is left; the next one works
    `up`, the supervisor        traffic goes direct again at once, with --kill-switch nowhere; `down` restores
                                everything to the letter; so does the next `up` by itself
    `run`, what the user sees   the command keeps its way out
    `run`, the relay            the command's connections fail at once, nothing leaves beside the tunnel

Each function kills once or several times, at moments of `chance`'s choice, and returns how often.
"""

import os
import signal
import subprocess
import textwrap
import threading
import time

import dns.message
import dns.query

import streams
from netns import wait_for

GIVES_UP = 5  # deaths of workers within 10 s


class Load:
    """Applications in a namespace that go on whatever happens; what is altered is kept."""

    def __init__(self, space, lab, port, count=6):
        self.space, self.lab, self.port = space, lab, port
        self.done, self.wrong = 0, []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True)
                         for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        acts = (self._download, self._upload, self._short, self._datagram)
        while not self._over.is_set():
            try:
                acts[number % len(acts)](number)
                self.done += 1
            except AssertionError as problem:
                if "differs" in str(problem):
                    self.wrong.append(str(problem))
            except (OSError, EOFError):
                pass
            self._over.wait(0.01)

    def _connect(self, port, number):
        host = self.lab.world6 if number % 2 else self.lab.world4
        return self.space.connect(host, port, timeout=5)

    def _download(self, number):
        with self._connect(self.port, number) as sock:
            streams.download(sock, number, streams.MIB)

    def _upload(self, number):
        with self._connect(self.port, number) as sock:
            streams.upload(sock, number, streams.MIB)

    def _short(self, number):
        with self._connect(7, number) as sock:
            sock.sendall(b"short")
            assert sock.recv(100) in (b"short", b""), "it differs"

    def _datagram(self, _number):
        with self.space.udp(timeout=0.5) as sock:
            sock.sendto(b"datagram", (self.lab.world4, 7))
            assert sock.recv(100) == b"datagram", "it differs"

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "an application hangs"
        assert not self.wrong, self.wrong[0]


def echo_works(space, host, timeout=5):
    try:
        with space.connect(host, 7, timeout=timeout) as sock:
            sock.settimeout(timeout)
            sock.sendall(b"hello")
            return sock.recv(10) == b"hello"
    except OSError:
        return False


def gone(pid):
    """Has the process ended? A zombie has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def fake_address(space, name):
    reply = dns.query.udp(dns.message.make_query(name, "A"), "198.18.0.2", timeout=5, sock=space.udp())
    return reply.answer[0][0].address


def kill_workers(process, space, lab, chance, times):
    """Workers and brokers, each replaced; then what an application was told of a name still holds."""
    address = fake_address(space, "v4.test")
    for _ in range(times):
        time.sleep(chance.random() * 1.5)
        victims = process.workers() + process.brokers()
        victim = chance.choice(victims)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda victim=victim: gone(victim), "it is gone")
        wait_for(lambda: echo_works(space, lab.world4), "another relays")
        wait_for(lambda: echo_works(space, address), "a name's address is still known")
    return times


def kill_tunnel(lab, url, port, chance):
    """`tun`: some of its workers, then the supervisor."""
    tunnel = lab.tunnel(url, "--workers", str(chance.choice((1, 1, 2))))
    load = Load(tunnel.app, lab, port)
    wait_for(lambda: load.done > 3, "the load runs")
    times = kill_workers(tunnel, tunnel.app, lab, chance, chance.randrange(GIVES_UP - 1))
    time.sleep(chance.random())
    tree = tunnel.tree()
    tunnel.kill()
    tunnel.stopped = True
    wait_for(lambda: all(gone(pid) for pid in tree), "no process of its is left")
    wait_for(lambda: tunnel.device not in tunnel.app.links(), "its device is gone")
    load.stop()
    with lab.tunnel(url, app=tunnel.app) as after:
        wait_for(lambda: echo_works(after.app, lab.world4), "the next one works")
    tunnel.app.close()
    return times + 1


def kill_up(lab, desktop, url, port, chance):
    """`up`: at any moment from its start on."""
    before = desktop.state()
    switch = chance.random() < 0.5
    process = desktop.start_up(url, *(["--kill-switch"] if switch else []))
    process.checked = process.stopped = True
    load, times = Load(desktop.space, lab, port), 0
    if chance.random() < 0.7:
        process.wait_ready()
        times = kill_workers(process, desktop.space, lab, chance, chance.randrange(GIVES_UP - 1))
    time.sleep(chance.random())
    tree = process.tree()
    was_ready = process.count("culvert: ready")
    process.kill()
    wait_for(lambda: all(gone(pid) for pid in tree), "no process of its is left")
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    if switch and was_ready:
        assert not echo_works(desktop.space, lab.world4, 0.5), "--kill-switch lets traffic pass"
    elif not switch:
        wait_for(lambda: echo_works(desktop.space, lab.world4), "traffic goes direct again")
    load.stop()
    if chance.random() < 0.3:
        desktop.up(url).stop()  # the next one finds the journal, and restores both
    else:
        done = desktop.down()
        assert done.returncode == 0, done.stderr
    desktop.assert_state(before)
    return times + 1


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


# A command that transfers for ever, and says whether it works when asked.
COMMAND = """
    import socket, sys, threading, time

    def transfer():
        while True:
            try:
                with socket.create_connection(("www.test", 7), 3) as s:
                    for _ in range(50):
                        s.sendall(bytes(20000))
                        left = 20000
                        while left:
                            left -= len(s.recv(left)) or left
            except OSError:
                time.sleep(0.05)

    for _ in range(4):
        threading.Thread(target=transfer, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        fine, end = False, time.monotonic() + float(line)
        while not fine:
            try:
                with socket.create_connection(("v4.test", 7), 3) as s:
                    s.sendall(b"x")
                    fine = s.recv(1) == b"x"
            except OSError:
                if time.monotonic() > end:
                    break
                time.sleep(0.05)
        print("fine" if fine else "cut off", flush=True)
    """


def kill_run(user, url, chance, root=False):
    """`run`: workers, then what the user sees of it, or the relay."""
    process = user.start(url, "/usr/bin/python3", "-c", textwrap.dedent(COMMAND), root=root,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def works(seconds=10):
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return process.stdout.readline().strip() == "fine"

    assert process.stdout.readline() == "ready\n", process.stderr.read()
    front = process.pid
    relay = children(front)[0]
    assert works()
    times = chance.randrange(GIVES_UP - 1)
    for _ in range(times):
        time.sleep(chance.random())
        worker = chance.choice([pid for pid in children(relay) if not children(pid)])
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda worker=worker: gone(worker), "it is gone")
        assert works(), "no other worker relays"
    time.sleep(chance.random())
    if chance.random() < 0.5:
        os.kill(front, signal.SIGKILL)
        wait_for(lambda: gone(front), "it is gone")
        assert works(), "the command has lost its way out"
    else:
        os.kill(relay, signal.SIGKILL)
        wait_for(lambda: gone(relay), "it is gone")
        assert not works(1), "there is a way out without a relay"
    process.stdin.close()
    process.wait(10)
    return times + 1
