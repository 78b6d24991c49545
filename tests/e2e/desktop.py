"""A desktop on a LAN: where `culvert up` is tried, with captures of what leaves it.

    desk --eth0-- d0 [br0] gw --wan0-- mid (the proxies) -- world
    printer --eth0-- p0 [br0]

gw is the LAN's gateway and its resolver. Without culvert the desktop reaches the world through
gw and mid; `Capture(gw, "d0")` is the LAN side, `Capture(gw, "wan0")` the uplink side.

A capture sees the last packets of connections that were over, for the test, before it began: a proxy
that says goodbye a moment late looks like a leak. Each test therefore ends with no connection under
way, and where one needs that in its midst it says `desktop.settle()`; no kind of packet is ever left
out of what is asserted.

/etc/netns/NAME/resolv.conf is the desktop's resolv.conf, a bind mount in each program.
"""

import contextlib
import glob
import os
import shutil
import socket
import struct
import subprocess
import threading
import time

from lab import CULVERT, NAMES, Culvert
from netns import Namespace, veth, wait_for
from servers import DnsServer, TcpServer, UdpEcho, echo

SO_NETNS_COOKIE = 71
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
HOST_NETNS = os.stat("/proc/self/ns/net").st_ino
LINK_NAMES = {**NAMES, "only.lan": ["192.168.50.9"]}


class State(list):
    """Lines of text that show how they differ."""

    def __repr__(self):
        return f"{len(self)} lines"

    def diff(self, other, shown=12):
        """What other has more and less, in words; of many lines the first few."""
        lines = [f"- {line}" for line in self if line not in other] + \
                [f"+ {line}" for line in other if line not in self]
        if not lines:
            return "the same lines in another order"
        more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
        return f"{len(lines)} lines differ: " + "\n".join([*(line[:160] for line in lines[:shown]), *more])


class Packet:
    """What of a captured packet the tests look at."""

    def __init__(self, frame):
        self.protocol = self.sport = self.dport = self.icmp_type = self.flags = 0
        self.src = self.dst = ""
        kind = struct.unpack("!H", frame[12:14])[0]
        at = 0
        if kind == 0x0800 and len(frame) >= 34:
            self.src = socket.inet_ntop(socket.AF_INET, frame[26:30])
            self.dst = socket.inet_ntop(socket.AF_INET, frame[30:34])
            self.protocol = frame[23]
            at = 14 + (frame[14] & 15) * 4
        elif kind == 0x86DD and len(frame) >= 54:
            self.src = socket.inet_ntop(socket.AF_INET6, frame[22:38])
            self.dst = socket.inet_ntop(socket.AF_INET6, frame[38:54])
            self.protocol = frame[20]
            at = 54
        if self.protocol in (6, 17) and len(frame) >= at + 4:
            self.sport, self.dport = struct.unpack("!HH", frame[at:at + 4])
            if self.protocol == 6 and len(frame) > at + 13:
                self.flags = frame[at + 13]
        elif self.protocol in (1, 58) and len(frame) > at:
            self.icmp_type = frame[at]

    @property
    def is_ip(self):
        return self.src != ""

    @property
    def is_chatter(self):
        """Neighbour discovery, IGMP, MLD: the link's own."""
        discovery = self.protocol == 58 and 130 <= self.icmp_type <= 143
        return discovery or self.protocol in (0, 2) or self.dst.startswith("ff") or self.src == "::"

    def __repr__(self):
        flags = "".join(name for bit, name in enumerate("FSRPAUEC") if self.flags >> bit & 1)
        return f"{self.src}:{self.sport}>{self.dst}:{self.dport}/{self.protocol}" + (flags and f" {flags}")


class Capture:
    """All IP packets on a link of a namespace, or on all its links, while the context lasts; chatter left out."""

    def __init__(self, space, link=None):
        with space.inside():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        if link:
            self._sock.bind((link, 3))
        self._sock.settimeout(0.02)  # how late the thread hears of the end
        self._open = True
        self.packets = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while self._open:
            with contextlib.suppress(socket.timeout):
                self._read()

    def _read(self):
        packet = Packet(self._sock.recv(256))
        if packet.is_ip and not packet.is_chatter:
            self.packets.append(packet)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, failure, *_):
        time.sleep(0.1)
        missed = not self._thread.is_alive()
        self._open = False
        self._thread.join(3)
        self._read_rest()
        dropped = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        self._sock.close()
        assert failure or not (missed or dropped), "what was not captured cannot be judged"

    def _read_rest(self):
        """What had come in when the context ended; on a busy machine the thread is behind."""
        self._sock.setblocking(False)
        deadline = time.monotonic() + 3
        with contextlib.suppress(BlockingIOError):
            while time.monotonic() < deadline:
                self._read()

    def beside(self, *hosts):
        """The packets that are to and from none of the hosts."""
        return [p for p in self.packets if p.src not in hosts and p.dst not in hosts]

    def to_port(self, port):
        return [p for p in self.packets if p.dport == port]


def connections(space):
    """The TCP connections that a namespace has an end of: state, local address, peer's address."""
    with space.inside():
        out = subprocess.run(["ss", "-Htan"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in out.splitlines():
        state, _, _, *ends = line.split()[:5]
        near, far = (end.rpartition(":")[0].partition("%")[0].strip("[]").removeprefix("::ffff:") for end in ends)
        if state not in ("LISTEN", "TIME-WAIT"):
            yield state, near, far


def under_way(space, peers):
    """The TCP connections of a namespace's that may yet send something, seen from either end.

    Both count: the one may have forgotten what the other still wants to close. An end whose address the
    namespace has no longer is that of a program behind a tunnel that has gone: it would say goodbye for
    minutes, from that address, to somebody who does not know it. It is removed.
    """
    own = [line.split()[3].partition("/")[0] for line in space.ip("-o addr").splitlines()]
    found = []
    for state, near, far in connections(space):
        if near.startswith("127.") or near == "::1":
            continue
        if near in own:
            found.append(f"{space.role}: {state} {near} {far}")
        else:
            space.run("ss", "-K", "src", near)
    for peer in peers:
        found += [f"{peer.role}: {state} {near} {far}" for state, near, far in connections(peer)
                  if far in own and state != "FIN-WAIT-2"]  # which says nothing before this end does
    return found


def settle(space, peers):
    """Wait until no connection of a namespace's with `peers`, other namespaces, is under way."""
    left = []

    def settled():
        left[:] = under_way(space, peers)
        return not left

    try:
        wait_for(settled, "no connection is under way")
    except AssertionError as problem:
        raise AssertionError(f"{problem}: {left[:12]}") from None


def copy_etc(folder):
    """Other test runs come and go in /etc/netns meanwhile."""
    shutil.copytree("/etc", folder, symlinks=True, ignore=shutil.ignore_patterns("netns", ".resolv.conf*"))


class Wrapped:
    """Starts programs in the desktop's network by another command line."""

    def __init__(self, desktop, *wrapper):
        self.desktop, self.wrapper = desktop, wrapper

    def popen(self, *argv, **kwargs):
        process = subprocess.Popen([*self.wrapper, *map(str, argv)], stdin=subprocess.DEVNULL,
                                   start_new_session=True, **kwargs)
        self.desktop.space.processes.append(process)
        return process

    def run(self, *argv):
        return subprocess.run([*self.wrapper, *map(str, argv)], stdin=subprocess.DEVNULL,
                              text=True, capture_output=True, timeout=30)

    def up(self, *argv):
        """`culvert up`, ready."""
        self.desktop.assert_harmless()
        process = Culvert(self, "up", *argv)
        self.desktop.processes.append(process)
        process.wait_ready()
        return process


class Desktop:
    """The desktop, its LAN and its way out; `lab` has the proxies and the world."""

    lan4, lan6 = "192.168.50.2", "fd50::2"
    gateway4, gateway6 = "192.168.50.1", "fd50::1"
    printer4, printer6 = "192.168.50.9", "fd50::9"

    def __init__(self, lab):
        self.lab = lab
        self.gw, self.space, self.printer = Namespace("gw"), Namespace("desk"), Namespace("prn")
        assert os.stat(f"/run/netns/{self.space.name}").st_ino != HOST_NETNS
        self._join_lan()
        self._join_world()
        self.dns = DnsServer(self.gw, self.gateway4, dict(LINK_NAMES))
        self.printer_echo = TcpServer(self.printer, echo, port=7)
        self.printer_udp = UdpEcho(self.printer, self.printer4)
        self.space.set_resolver(self.gateway4)
        self.processes = []

    def _join_lan(self):
        self.gw.ip("link add br0 type bridge")
        self.gw.ip("link set br0 up addrgenmode none")
        for space, inner, addresses in ((self.space, "d0", (self.lan4, self.lan6)),
                                        (self.printer, "p0", (self.printer4, self.printer6))):
            veth(space, "eth0", self.gw, inner)
            self.gw.ip(f"link set {inner} master br0")
            space.ip(f"addr add {addresses[0]}/24 dev eth0")
            space.ip(f"addr add {addresses[1]}/64 dev eth0 nodad")
            self.default_route(space)
        self.gw.ip(f"addr add {self.gateway4}/24 dev br0")
        self.gw.ip(f"addr add {self.gateway6}/64 dev br0 nodad")

    def default_route(self, space=None):
        space = space or self.space
        space.ip(f"route add default via {self.gateway4}")
        space.ip(f"-6 route add default via {self.gateway6}")

    def _join_world(self):
        lab = self.lab
        veth(self.gw, "wan0", lab.mid, "gw0", ("10.76.0.2/24", "10.76.0.1/24"),
             ("fd76::2/64", "fd76::1/64"))
        self.gw.ip("route add default via 10.76.0.1")
        self.gw.ip("-6 route add default via fd76::1")
        for space in (self.gw, lab.mid):
            space.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        lab.mid.ip("route replace 192.168.50.0/24 via 10.76.0.2")
        lab.mid.ip("-6 route replace fd50::/64 via fd76::2")
        lab.world.ip("route replace 192.168.50.0/24 via 10.88.0.1")
        lab.world.ip("-6 route replace fd50::/64 via fd88::1")

    def resolv_conf(self):
        return f"/etc/netns/{self.space.name}/resolv.conf"

    @contextlib.contextmanager
    def private_etc(self, folder):
        """A copy of /etc, in `folder`, that programs started by the result see: no bind mounts."""
        etc = folder / "etc"
        copy_etc(etc)
        (etc / "resolv.conf").unlink()
        script = f'mount --bind {etc} /etc && exec "$@"'
        yield etc, Wrapped(self, "nsenter", f"--net=/run/netns/{self.space.name}", "unshare", "-m",
                           "setpriv", "--pdeathsig", "KILL", "sh", "-c", script, "sh")

    # --- culvert ----------------------------------------------------------------------------------

    def up(self, url, *options, **kwargs):
        """`culvert up`, ready. The namespace is the test's own: asserted."""
        process = self.start_up(url, *options, **kwargs)
        process.wait_ready()
        return process

    def start_up(self, url, *options, **kwargs):
        self.assert_harmless()
        process = Culvert(self.space, "up", *options, url, **kwargs)
        self.processes.append(process)
        return process

    def down(self):
        self.assert_harmless()
        return self.space.run(CULVERT, "down")

    def assert_harmless(self):
        """Programs started in here see another network and another resolv.conf than the machine's."""
        out = self.space.run("stat", "-Lc", "%i", "/proc/self/ns/net", "/etc/resolv.conf",
                             check=True).stdout.split()
        assert int(out[0]) != HOST_NETNS
        assert int(out[1]) == os.stat(self.resolv_conf()).st_ino != os.stat("/etc/resolv.conf").st_ino

    # --- state ------------------------------------------------------------------------------------

    def settle(self):
        """Wait until nothing of what was before is on its way."""
        settle(self.space, self._peers())

        def silent():
            with Capture(self.gw) as late:
                pass
            return late.packets == []

        wait_for(silent, "silence on the links")

    def _peers(self):
        return self.printer, self.gw, self.lab.mid, self.lab.world

    def assert_left_alone(self):
        """The end of a test: it has left no culvert behind, no journal, no connection."""
        running = [up.pid for up in self.processes if up.process.poll() is None]
        assert not running, f"the test leaves culvert running, process id {running}"
        self.processes.clear()
        files = self._files()
        assert not files, f"the test leaves {files}"
        settle(self.space, self._peers())

    def _files(self):
        return glob.glob(f"/run/culvert/{self.state_prefix()}*")

    def state_prefix(self):
        """How the names of this namespace's files in /run/culvert begin."""
        with self.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            cookie = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        return f"up-{cookie}."

    def state(self):
        """All that `up` may change, as text; compare before and after."""
        out = [self.space.ip(f"{family} {what}")
               for what in ("-d link", "-d addr", "-d rule", "-d route show table all")
               for family in ("-4", "-6")]
        script = ("sysctl -a -r '^net' 2>/dev/null; nft list ruleset; ls /run/culvert;"
                  " stat -c '%F %a %u %g %y' /etc/resolv.conf; grep -v netns /proc/self/mounts")
        settings = self.space.run("sh", "-c", script).stdout
        with open(self.resolv_conf(), encoding="utf-8") as file:
            resolver = file.read()
        lines = "\n".join([*out, settings, resolver]).splitlines()
        ours = self.state_prefix()  # other tests' are there too
        lines = [line for line in lines if not line.startswith("up-") or line.startswith(ours)]
        volatile = ("Error: Peer netns", "expires", "valid_lft", "preferred_lft", "total ",
                    ".stable_secret", "nf_conntrack_count")
        return State(line for line in lines if not any(word in line for word in volatile))

    def assert_state(self, before, when=""):
        """All is as it was."""
        now = self.state()
        if now != before:  # no assert: pytest would show how long lists differ, in hundreds of lines
            raise AssertionError(when + before.diff(now))

    def close(self):
        for process in self.processes:
            process.kill()
        if under_way(self.space, self._peers()):  # after a test that failed: the next desktop is not to hear of it
            for peer in self._peers():
                for address in (self.lan4, self.lan6):
                    peer.run("ss", "-K", "dst", address)
        for path in self._files():
            os.unlink(path)
        for server in (self.dns, self.printer_echo, self.printer_udp):
            server.close()
        for space in (self.space, self.printer, self.gw):
            space.close()
        # the next one takes the same addresses
        self.lab.mid.ip("route del 192.168.50.0/24", check=False)
        self.lab.mid.ip("-6 route del fd50::/64", check=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
