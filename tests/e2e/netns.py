"""Network namespaces of the tests' own: made, entered, populated and always removed.

A test that wants a socket in a namespace does not start a program for it: a thread enters the
namespace (setns), makes the socket and returns; the socket stays where it was made. Programs are
started with `ip netns exec`, which also gives them /etc/netns/NAME/resolv.conf, and with a
parent-death signal, so that nothing outlives the test run, however it ends.
"""

import atexit
import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_live = []

# How many times longer everything may take than usual: culvert under valgrind, a machine under load.
SLOWER = float(os.environ.get("E2E_SLOWER", "1"))


def _setns(fd):
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def wait_for(condition, what, timeout=10.0, interval=0.02):
    """Poll `condition` until it is true and return its value; fail saying `what` never came."""
    timeout *= SLOWER
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(interval)


class Namespace:
    """One network namespace with a random name, loopback up, TCP Reno and no address detection."""

    def __init__(self, role):
        self.role = role
        self.name = f"cv{os.getpid():x}{secrets.token_hex(3)}-{role}"
        self.processes = []
        _live.append(self)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        self.sysctl(
            "net.ipv4.tcp_congestion_control=reno",
            "net.ipv4.ip_local_port_range=10000 65535",
            "net.ipv4.tcp_max_tw_buckets=500",
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.accept_ra=0",
        )
        self.ip("link set lo up")

    # --- the namespace ------------------------------------------------------------------------

    def sysctl(self, *settings):
        self.run("sysctl", "-q", "-w", *settings, check=True)

    def ip(self, command, check=True):
        """`ip COMMAND` in here; returns its output, and what it complains of where it fails.

        Succeeding, it complains of other namespaces that come or go while it looks for their names.
        """
        done = subprocess.run(["ip", "-n", self.name] + command.split(), text=True, capture_output=True)
        said = done.stdout + (done.stderr if done.returncode else "")
        assert not check or done.returncode == 0, f"ip {command}: {said}"
        return said

    def set_resolver(self, *addresses):
        """What programs started from now on find in /etc/resolv.conf."""
        folder = f"/etc/netns/{self.name}"
        os.makedirs(folder, exist_ok=True)
        fresh = f"{folder}/resolv.conf.new"
        with open(fresh, "w", encoding="ascii") as file:
            file.writelines(f"nameserver {address}\n" for address in addresses)
            file.write("options timeout:2 attempts:2\n")
        os.replace(fresh, f"{folder}/resolv.conf")  # earlier bind mounts keep the old inode

    def links(self):
        return [line.split(":")[1].strip().split("@")[0]
                for line in self.ip("-o link").splitlines()]

    def close(self):
        if self not in _live:
            return
        _live.remove(self)
        for process in reversed(self.processes):
            _end(process)
        os.close(self._fd)
        subprocess.run(["ip", "netns", "del", self.name], check=False)
        shutil.rmtree(f"/etc/netns/{self.name}", ignore_errors=True)

    # --- programs -----------------------------------------------------------------------------

    def argv(self, *argv):
        return ["ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", "--",
                *map(str, argv)]

    def run(self, *argv, timeout=30, check=False, **kwargs):
        """Run a program to its end; stdout and stderr as text. `input` and others as usual."""
        kwargs.setdefault("text", True)
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        if "input" not in kwargs:
            kwargs.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(self.argv(*argv), timeout=timeout and timeout * SLOWER, **kwargs)
        assert not check or done.returncode == 0, \
            f"{' '.join(map(str, argv))}: exit status {done.returncode}: {done.stderr}{done.stdout}"
        return done

    def popen(self, *argv, **kwargs):
        """Start a program that ends with the namespace at the latest. Its pid is the program's."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("start_new_session", True)
        process = subprocess.Popen(self.argv(*argv), **kwargs)
        self.processes.append(process)
        return process

    # --- sockets ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def inside(self):
        """This thread, and threads it starts meanwhile, are in the namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fd)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def socket(self, family, kind):
        with self.inside():
            return socket.socket(family, kind)

    def connect(self, host, port, timeout=15.0):
        """A TCP connection from in here; raises what connect() says."""
        sock = self.socket(family_of(host), socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout and timeout * SLOWER)
            sock.connect((host, port))
            _really_connected(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def udp(self, host="", port=0, timeout=5.0, family=None):
        """A UDP socket in here, bound to an address."""
        family = family or (family_of(host) if host else socket.AF_INET)
        sock = self.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(timeout and timeout * SLOWER)
        sock.bind((host, port))
        return sock

    def listening(self, port, kind="t"):
        """Does anything listen on the TCP (or with kind "u" UDP) port?"""
        out = self.run("ss", f"-Hln{kind}", f"sport = :{port}").stdout
        return out.strip() != ""


def _really_connected(sock):
    """Linux wakes poll() for an IPv4 ICMP error some microseconds before SO_ERROR has it.

    Seen in one of 500 failures on two busy cores (6.18): tcp_v4_err() queues the message for
    IP_RECVERR, which raises POLLERR, and only then sets the error. Python takes that for success.
    """
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        time.sleep(0.01)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        raise OSError(number, os.strerror(number)) from None


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url_host(host):
    """As a URL writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def reset(sock):
    """Close so that the peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def veth(one, one_name, other, other_name, *addresses):
    """Join two namespaces; `addresses` are (address of one, of the other), with prefix length."""
    one.ip(f"link add {one_name} type veth peer name {other_name} netns {other.name}")
    for space, name in ((one, one_name), (other, other_name)):
        space.ip(f"link set {name} up")
    for first, second in addresses:
        flags = " nodad" if ":" in first else ""
        one.ip(f"addr add {first} dev {one_name}{flags}")
        other.ip(f"addr add {second} dev {other_name}{flags}")


def _end(process):
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(3 * SLOWER)
    except subprocess.TimeoutExpired:
        process.kill()  # and no more waiting: the other processes and the namespace come next


def close_all():
    for space in reversed(list(_live)):
        space.close()


def _interrupted(signo, _frame):
    raise KeyboardInterrupt(signal.Signals(signo).name)


def clean_up_when_interrupted():
    """Remove the namespaces however this process ends, kill -9 apart.

    A shell without job control starts what runs in its background with SIGINT and SIGQUIT ignored, and what is ignored stays
    so in all that is started from here: programs under test would never hear a Ctrl-C.
    """
    atexit.register(close_all)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        for signo in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signo, _interrupted)
