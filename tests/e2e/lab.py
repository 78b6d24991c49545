"""The laboratory: where the applications, the proxy and the world are, and culvert between them.

    app (one a tunnel) ---veth--- mid (the proxies) ---veth--- world (the servers)

An application's way out is the TUN device alone; beside it `app` has a route to the proxy's
addresses (10.77.0.1, fd77::1) and to nothing else. Only mid knows the world, and the world has no
route back to app: what arrives there has passed a proxy. mid has no default route, so that a
proxy's connect() to a strange network fails with ENETUNREACH; 10.99.0.0/24 is EHOSTUNREACH there.

    with Lab() as lab:
        with lab.tunnel(proxy_url, "--dns", "relay") as tunnel:
            tunnel.app.run("curl", ...)       a program as an application behind the tunnel
            tunnel.app.connect(host, port)    a socket of one

The binary comes from CULVERT (default build/culvert). Each of its processes is checked: sanitizer
findings, exit status on SIGTERM, device and routes gone. With E2E_DIRECT=1 nothing is tunnelled:
the application is routed to the world through mid, which shows what of a test is the test's own.
"""

import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import threading
import time

from netns import SLOWER, Namespace, family_of, veth, wait_for
from servers import DnsServer, TcpServer, UdpEcho, echo

ROOT = pathlib.Path(__file__).resolve().parents[2]
CULVERT = os.path.abspath(os.environ.get("CULVERT", ROOT / "build" / "culvert"))
SANITIZED = os.access(CULVERT, os.R_OK) and b"__asan_init" in open(CULVERT, "rb").read()
DIRECT = os.environ.get("E2E_DIRECT") == "1"
FINDINGS = re.compile(r"(Address|Leak|UndefinedBehavior)Sanitizer|runtime error:|[Aa]ssertion .*")
SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:exitcode=99:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
}
NAMES = {
    "www.test": ["10.88.0.2", "fd88::2"],
    "v4.test": ["10.88.0.2"],
    "v6.test": ["fd88::2"],
    "proxy.test": ["10.77.0.1", "fd77::1"],
}


class Culvert:
    """A culvert process, its stderr line by line, and what it costs."""

    def __init__(self, space, *argv, env=None, before=(), binary=CULVERT,
                 **kwargs):
        self.space = space
        self.lines = []
        self.checked = False  # its end is known and was judged
        self.stopped = False
        self.process = space.popen(
            *before, binary, *argv, stderr=subprocess.PIPE, text=True, errors="replace",
            env={**os.environ, **SANITIZER_ENV, **(env or {})}, **kwargs)
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("culvert: ready"):
                self._ready.set()
        self._ready.set()

    def wait_ready(self, timeout=10):
        assert self._ready.wait(timeout * SLOWER), f"no `culvert: ready` within {timeout} s:\n{self.log}"
        if not any(line.startswith("culvert: ready") for line in self.lines):
            self.process.wait(5 * SLOWER)
            raise AssertionError(f"culvert ended instead of getting ready, status "
                                 f"{self.process.returncode}:\n{self.log}")
        self.idle_sockets = self.sockets()

    @property
    def log(self):
        return "\n".join(self.lines)

    def count(self, text):
        """How many log lines hold the text."""
        return sum(text in line for line in self.lines)

    @property
    def pid(self):
        return self.process.pid

    def tree(self):
        """The pids of the process and of all it started."""
        pids = [self.process.pid]
        for pid in pids:
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                        pids += map(int, file.read().split())
            except OSError:
                pass
        return pids

    def signal_all(self, signo):
        """Send it to the process and to all it started."""
        for pid in self.tree():
            os.kill(pid, signo)

    def limit_descriptors(self, spare):
        """Let each of its processes open so many more, as the user that it runs as, who may."""
        for pid in self.tree():
            count = len(os.listdir(f"/proc/{pid}/fd")) + spare
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                ids = dict(line.split(":", 1) for line in file)
            user, group = int(ids["Uid"].split()[0]), int(ids["Gid"].split()[0])
            subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={count}:{count}"], check=True,
                           user=user, group=group, extra_groups=[])

    def children(self, name):
        """The pids of those it started that go by a name, in that order."""
        found = []
        for pid in self.tree()[1:]:
            try:
                with open(f"/proc/{pid}/comm", encoding="ascii") as file:
                    if file.read().strip() == name:
                        found.append(pid)
            except OSError:
                pass
        return found

    def workers(self):
        return self.children("culvert-worker")

    def kill_workers(self, times):
        """Kill its one worker, and each that comes in its place; the dead are seen until it has buried them."""
        killed = set()
        for _ in range(times):
            alive = wait_for(lambda: set(self.workers()) - killed, "there is another worker")
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            killed |= alive

    def brokers(self):
        return self.children("culvert-broker")

    def cpu_seconds(self):
        """User and system time of all its processes."""
        ticks = 0
        for pid in self.tree():
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mb(self):
        total = 0
        for pid in self.tree():
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.tree())

    def sockets(self):
        """How many of its descriptors are sockets: proxy connections and UDP associations."""
        count = 0
        for pid in self.tree():
            for name in os.listdir(f"/proc/{pid}/fd"):
                try:
                    count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
                except OSError:
                    pass
        return count

    def settle(self, timeout=10):
        """Wait until it holds no more sockets than when it got ready: every flow is gone."""
        timeout *= SLOWER
        deadline = time.monotonic() + timeout
        while self.sockets() > self.idle_sockets:
            assert time.monotonic() < deadline, \
                f"{self.sockets() - self.idle_sockets} sockets more than at the start, " \
                f"{timeout} s after the last flow ended:\n" \
                f"{self.space.run('ss', '-tunap', 'exclude', 'time-wait').stdout}\n" \
                f"{self.log[-3000:]}"
            time.sleep(0.05)

    def check(self):
        """Fail if the sanitizers found something, or if it is gone though nobody stopped it."""
        found = [line for line in list(self.lines) if FINDINGS.search(line)]
        if found and not self.checked:
            self.checked = True  # once is enough: the test that did it fails
            time.sleep(0.5)  # the report's other lines
            raise AssertionError("culvert's own checks found:\n" + self.log[-8000:])
        if self.process.poll() is not None and not self.checked:
            self.checked = True
            raise AssertionError(f"culvert ended with status {self.process.returncode}:\n"
                                 + self.log[-4000:])

    def wait_end(self, timeout=10):
        """Its exit status; its log is complete then."""
        self.process.wait(timeout * SLOWER)
        self._reader.join(5)
        return self.process.returncode

    def stop(self, signo=signal.SIGTERM):
        """Ask it to stop and see that it does so cleanly."""
        if self.stopped:
            return
        self.stopped = True
        if self.checked:
            self.kill()
            return
        self.check()
        self.checked = True
        self.process.send_signal(signo)
        try:
            status = self.wait_end(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there 15 s after {signo.name}:\n{self.log}") from None
        found = [line for line in self.lines if FINDINGS.search(line)]
        assert not found, "culvert's own checks found at its end:\n" + self.log[-8000:]
        assert status == 0, f"{signo.name} ends with status {status} instead of 0:\n{self.log}"

    def kill(self):
        self.checked = True
        self.process.kill()
        self.process.wait(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Tunnel(Culvert):
    """`culvert tun` in a namespace `app` of its own, which it gives its way out."""

    def __init__(self, lab, url, *options, device="culvert0", app=None, route=True, **kwargs):
        self.lab = lab
        self.device = device
        self.app = app or lab.client()
        self._own_app = app is None
        self.app.set_resolver(lab.proxy4)  # culvert's own: for the proxy's host name
        super().__init__(self.app, "tun", "--tun", device, *options, url, **kwargs)
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            if self._own_app:
                self.app.close()
            raise
        if route:
            self.route()
        self.app.set_resolver("198.18.0.2")  # the applications'

    def route(self):
        """Make the device the way to everywhere."""
        self.app.ip(f"route add default dev {self.device}")
        self.app.ip(f"-6 route add default dev {self.device}")

    def inject(self, packet):
        """Hand culvert a bare IP packet that no socket of the kernel's would make."""
        protocol = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        with self.app.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
            sock.sendto(bytes(packet), (self.device, protocol))

    def stop(self, signo=signal.SIGTERM):
        if self.stopped:
            return
        try:
            super().stop(signo)
            assert self.device not in self.app.links(), \
                f"{self.device} is still there after culvert's end"
        finally:
            if self._own_app:
                self.app.close()


class Lab:
    """mid, world and what always runs there; clients come with tunnels."""

    proxy4, proxy6 = "10.77.0.1", "fd77::1"  # mid, as the applications' hosts see it
    world4, world6 = "10.88.0.2", "fd88::2"
    dead4, dead6 = "10.99.0.1", "fd99::1"  # EHOSTUNREACH in mid
    lost4, lost6 = "10.111.0.1", "fd11::1"  # ENETUNREACH in mid
    world_count = 20  # 10.88.0.2 to .21 and fd88::2 to ::15 are the world's
    mid_world_link = "w0"

    def __init__(self):
        if os.geteuid() != 0:
            raise PermissionError("the end-to-end tests make network namespaces: run them as root")
        self.processes = []
        self.servers = []
        self._clients = []
        self.mid = Namespace("mid")
        self.world = Namespace("world")
        self._build()

    def _build(self):
        veth(self.mid, self.mid_world_link, self.world, "m0", ("10.88.0.1/24", "10.88.0.2/24"),
             ("fd88::1/64", "fd88::2/64"))
        for last in range(3, 2 + self.world_count):
            self.world.ip(f"addr add 10.88.0.{last}/24 dev m0")
            self.world.ip(f"addr add fd88::{last:x}/64 dev m0 nodad")
        self.mid.ip(f"addr add {self.proxy4}/32 dev lo")
        self.mid.ip(f"addr add {self.proxy6}/128 dev lo nodad")
        self.mid.ip("route add unreachable 10.99.0.0/24")
        self.mid.ip("-6 route add unreachable fd99::/64")
        self.mid.set_resolver(self.world4)
        self.world_dns = self.serve(DnsServer(self.world, self.world4, dict(NAMES)))
        self.mid_dns = self.serve(DnsServer(self.mid, self.proxy4, dict(NAMES)))
        self.echo = self.serve(TcpServer(self.world, echo, port=7))
        self.udp_echo = self.serve(UdpEcho(self.world, self.world4))
        self.udp_echo6 = self.serve(UdpEcho(self.world, self.world6))

    def serve(self, server):
        """Have a server closed with the lab."""
        self.servers.append(server)
        return server

    def client(self):
        """A new namespace for applications: it reaches the proxy's addresses and nothing else."""
        n = len(self._clients) + 1
        app = Namespace(f"app{n}")
        self._clients.append(app)
        veth(app, "up0", self.mid, f"app{n}", (f"10.77.{n}.2/24", f"10.77.{n}.1/24"),
             (f"fd77:{n:x}::2/64", f"fd77:{n:x}::1/64"))
        app.ip(f"route add {self.proxy4} via 10.77.{n}.1")
        app.ip(f"-6 route add {self.proxy6} via fd77:{n:x}::1")
        app.gateway4, app.gateway6 = f"10.77.{n}.1", f"fd77:{n:x}::1"
        return app

    def route_past_tunnel(self, app):
        """E2E_DIRECT: the same topology without the tunnel."""
        self.mid.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        app.ip(f"route add default via {app.gateway4}")
        app.ip(f"-6 route add default via {app.gateway6}")
        self.world.ip("route replace 10.77.0.0/16 via 10.88.0.1")
        self.world.ip("-6 route replace fd77::/16 via fd88::1")
        app.set_resolver(self.world4)

    def tunnel(self, url, *options, **kwargs):
        kind = DirectTunnel if DIRECT else Tunnel
        tunnel = kind(self, url, *options, **kwargs)
        self.processes.append(tunnel)
        return tunnel

    def culvert_serve(self, *options, host=None, port=None, space=None):
        """`culvert serve` in mid; its `.url` is its PROXY_URL."""
        host, port = host or self.proxy4, port or 20000 + secrets.randbelow(20000)
        listen = f"[{host}]:{port}" if family_of(host).name == "AF_INET6" else f"{host}:{port}"
        process = Culvert(space or self.mid, "serve", "--listen", listen, *options)
        process.url = f"socks5://{listen}"
        process.host, process.port = host, port
        self.processes.append(process)
        process.wait_ready()
        return process

    def check(self):
        """Fail for whatever a culvert process has found about itself."""
        for process in self.processes:
            process.check()

    def world_v4(self, n):
        return f"10.88.0.{2 + n}"

    def world_v6(self, n):
        return f"fd88::{2 + n:x}"

    def close(self):
        problems = []
        for process in reversed(self.processes):
            try:
                process.stop()
            except AssertionError as problem:
                problems.append(str(problem))
        for server in reversed(self.servers):
            server.close()
        for space in (*self._clients, self.world, self.mid):
            space.close()
        assert not problems, "\n".join(problems)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class DirectTunnel:
    """Stands in for a tunnel with E2E_DIRECT=1."""

    def __init__(self, lab, url, *_options, **_kwargs):
        self.app = lab.client()
        self.url = url
        self.lines, self.log = [], ""
        lab.route_past_tunnel(self.app)

    def __getattr__(self, name):
        return lambda *_args, **_kwargs: 0

    def stop(self, *_):
        self.app.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


__all__ = ["CULVERT", "Culvert", "DIRECT", "Lab", "Tunnel", "wait_for"]
