"""What the attack tests share: a good flow beside the attack, what it costs, and the figures.

    with Siege(lab, tunnel, "SYN flood", "100,000 spoofed sources") as siege:
        ...the attack...

At the end: the good flow has missed nothing, memory stayed below the limit, and once the attack
is over the process is idle again. Each siege adds a line to the figures file (CULVERT_FIGURES, or
figures.json beside the binary), which tests/e2e/figures makes the README's table from.

Attacks are run at a part of their full size, CULVERT_ATTACKS (0.1 by default, 1 for the table).
Attackers and good flows are processes of their own: Python's threads would share one core.
"""

import ctypes
import json
import multiprocessing
import os
import pathlib
import secrets
import selectors
import signal
import socket
import struct
import threading
import time

import lab as laboratory
from netns import family_of

SCALE = float(os.environ.get("CULVERT_ATTACKS", "0.1"))
FIGURES = pathlib.Path(os.environ.get("CULVERT_FIGURES",
                                      pathlib.Path(laboratory.CULVERT).parent / "figures.json"))
_fork = multiprocessing.get_context("fork")


def scaled(count, least=1):
    return max(least, int(count * SCALE))


class Process:
    """function(*args, stopping) in a process of its own, in a namespace; `result` when stopped."""

    def __init__(self, space, function, *args):
        self._stopping = _fork.Event()
        self._reader, writer = _fork.Pipe(False)
        self._process = _fork.Process(target=self._run, args=(space, function, args, writer),
                                      daemon=True)
        self._process.start()
        writer.close()

    def _run(self, space, function, args, writer):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(0)
        with space.inside():
            try:
                writer.send(function(*args, self._stopping))
            except BaseException as problem:  # the test wants to hear of it
                writer.send(problem if isinstance(problem, Exception) else None)
        writer.close()
        os._exit(0)

    def wait(self, timeout=60):
        """Its result once it has come to its end by itself."""
        assert self._reader.poll(timeout), "the process does not come to an end"
        result = self._reader.recv()
        self._process.join(5)
        if isinstance(result, Exception):
            raise result
        return result

    def stop(self, timeout=20):
        self._stopping.set()
        return self.wait(timeout)


# --- good flows ----------------------------------------------------------------------------------

STEP_S = 0.01  # a round trip of the good flow each


def good_flow(ready, host, port, stopping):
    """16 KiB to an echo service and back, a hundred times a second as long as that works."""
    waits, sent = [], 0
    with socket.create_connection((host, port), timeout=30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin = time.monotonic()
        while not stopping.is_set():
            data = secrets.token_bytes(16 << 10)
            at = time.monotonic()
            sock.sendall(data)
            back = bytearray()
            while len(back) < len(data):
                piece = sock.recv(1 << 16)
                assert piece, "the good flow was ended"
                back += piece
            assert back == data, "the good flow's bytes were altered"
            waits.append(time.monotonic() - at)
            ready.set()
            sent += 1
            time.sleep(max(0.0, begin + sent * STEP_S - time.monotonic()))
        took = time.monotonic() - begin
    waits.sort()
    assert waits, "the good flow did nothing at all"
    return {"rounds": sent, "rate": sent / took, "median_ms": 1000 * waits[len(waits) // 2],
            "worst_ms": 1000 * waits[-1]}


class Siege:
    def __init__(self, lab, tunnel, attack, amount, memory_mb=96, least_rate=0.5, good=True):
        self.lab, self.tunnel = lab, tunnel
        self.attack, self.amount = attack, amount
        self.memory_mb = memory_mb * (4 if laboratory.SANITIZED else 1)
        self.least_rate = least_rate  # of the hundred round trips a second
        self.good = None
        if good:
            ready = _fork.Event()
            self.good = Process(tunnel.app, good_flow, ready, lab.world4, lab.echo.port)
            assert ready.wait(30), "the good flow does not even begin"
        self.extra = {}
        self.peak = 0.0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def _sample(self):
        while not self._done.is_set():
            try:
                self.peak = max(self.peak, self.tunnel.resident_mb())
            except OSError:
                pass
            self._done.wait(0.05)

    def __enter__(self):
        time.sleep(0.2)
        self.before_mb = self.peak = self.tunnel.resident_mb()
        self.cpu = self.tunnel.cpu_seconds()
        self.begin = time.monotonic()
        self._sampler.start()
        return self

    def __exit__(self, kind, value, _trace):
        took = time.monotonic() - self.begin
        cpu = self.tunnel.cpu_seconds() - self.cpu
        self._done.set()
        self._sampler.join()
        if kind:
            print(f"cpu {cpu:.2f} s in {took:.1f} s, peak {self.peak:.1f} MB")
            return
        figures = {"attack": self.attack, "device_drops": self.device_drops(), "amount": self.amount, "scale": SCALE,
                   "seconds": round(took, 1), "cpu_seconds": round(cpu, 2),
                   "before_mb": round(self.before_mb, 1), "peak_mb": round(self.peak, 1),
                   "sanitized": laboratory.SANITIZED, **self.extra}
        if self.good:
            good = self.good.stop()
            figures.update({f"good_{name}": round(number, 1) for name, number in good.items()})
            assert good["rate"] >= self.least_rate / STEP_S, f"the good flow fell behind: {figures}"
        figures["idle_cpu"] = round(self.idle_cpu(), 3)
        record(figures)
        assert self.peak - self.before_mb < self.memory_mb, f"memory: {figures}"
        assert figures["idle_cpu"] < 0.1, f"it does not come to rest: {figures}"
        self.tunnel.check()

    def device_drops(self):
        """Packets that came faster than they were read."""
        out = self.tunnel.app.run("cat", "/proc/net/dev").stdout
        line = next(line for line in out.splitlines() if self.tunnel.device + ":" in line)
        return int(line.partition(":")[2].split()[11])

    def idle_cpu(self, timeout=25):
        """The part of a core that it uses once the attack's last flows are gone."""
        deadline = time.monotonic() + timeout
        while True:
            cpu, at = self.tunnel.cpu_seconds(), time.monotonic()
            time.sleep(0.5)
            used = (self.tunnel.cpu_seconds() - cpu) / (time.monotonic() - at)
            if used < 0.05 or time.monotonic() > deadline:
                return used


def record(figures):
    print(figures)
    try:
        known = json.loads(FIGURES.read_text())
    except (OSError, ValueError):
        known = {}
    known[figures["attack"]] = figures
    FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


# --- packets, fast -------------------------------------------------------------------------------

def ones_sum(data):
    if len(data) & 1:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


def ipv4(src, dst, protocol, payload, ident=0, fragment=0):
    """`fragment`: flags and offset as the header has them."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol,
                       0, src, dst)
    return head[:10] + struct.pack("!H", 0xffff - ones_sum(head)) + head[12:] + payload


def tcp4(src, dst, sport, dport, seq, ack=0, flags=2, window=64240, payload=b"",
         options=b"\x02\x04\x05\xb4"):
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, (20 + len(options)) << 2, flags,
                       window, 0, 0) + options
    pseudo = src + dst + struct.pack("!BBH", 0, 6, len(head) + len(payload))
    total = ones_sum(pseudo + head + payload)
    return ipv4(src, dst, 6, head[:16] + struct.pack("!H", 0xffff - total) + head[18:] + payload)


def udp4(src, dst, sport, dport, payload):
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)  # without a checksum
    return ipv4(src, dst, 17, head + payload)


def spoofed(index):
    """The index-th source: addresses in the device's own network, ports that vary."""
    return bytes((198, 19, index >> 8 & 0xff, index & 0xff)), 1024 + index % 60000


class Injector:
    """Hands bare packets to the device, no faster than they are read: a full queue would drop them.

    Half the queue (500 packets) at once at most, then the rest when the device has passed it on;
    with a `rate`, so many packets a second and no more.
    """

    def __init__(self, device, rate=None):
        self.device = device
        self.rate = rate
        self.burst = 20 if rate else 200
        self._begin = time.monotonic()
        self.sent = 0
        self._start = self._taken()
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def _taken(self):
        """Packets that were read from the device."""
        with open("/proc/thread-self/net/dev", encoding="ascii") as file:
            for line in file:
                name, _, numbers = line.partition(":")
                if name.strip() == self.device:
                    return int(numbers.split()[9])
        raise FileNotFoundError(self.device)

    def _wait(self):
        """Until what was sent is read, or is no more to come."""
        for _ in range(2000):
            if self._taken() - self._start >= self.sent:
                return
            time.sleep(0.0005)
        raise TimeoutError("nobody reads the device")

    def send(self, packet):
        if self.sent % self.burst == 0:
            self._wait()
            if self.rate:
                time.sleep(max(0, self._begin + self.sent / self.rate - time.monotonic()))
        self.sent += 1
        address = (self.device, 0x86DD if packet[0] >> 4 == 6 else 0x0800)
        for _ in range(20000):
            try:
                self.sock.sendto(packet, address)
                return
            except OSError as error:
                if error.errno not in (105, 11):  # ENOBUFS, EAGAIN
                    raise
                time.sleep(0.0005)
        raise TimeoutError("nobody reads the device")


# --- servers that take a lot ---------------------------------------------------------------------

def sink(ready, host, port, stopping):
    """Accepts whatever comes and throws away what is sent; the most that were open at a time."""
    selector = selectors.DefaultSelector()
    listener = socket.socket(family_of(host), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(4096)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    ready.set()
    count = most = total = 0
    while not stopping.is_set():
        for key, _ in selector.select(0.1):
            sock = key.fileobj
            try:
                if sock is listener:
                    made, _ = sock.accept()
                    made.setblocking(False)
                    selector.register(made, selectors.EVENT_READ)
                    total += 1
                    count += 1
                    most = max(most, count)
                elif not sock.recv(1 << 16):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                if sock is not listener:
                    selector.unregister(sock)
                    sock.close()
                    count -= 1
    return {"most": most, "total": total}


def start_sink(space, host, port):
    ready = _fork.Event()
    process = Process(space, sink, ready, host, port)
    assert ready.wait(10), "the sink did not start"
    return process
