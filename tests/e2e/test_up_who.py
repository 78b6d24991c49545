"""Who and what `culvert up` captures: users, cgroups, ranges, bound sockets, others' packets."""

import contextlib
import errno
import os
import pathlib
import socket
import subprocess
import threading
import time

import pytest

from desktop import Capture, Wrapped
from netns import Namespace, veth, wait_for
from servers import TcpServer
from test_up import exchange
from test_up_changes import run_as


TUNNEL = ("198.18.0.1", "fdc0:4c56::1")  # the addresses that captured sockets have


def test_excluded_users(desktop, lab, serve):
    with desktop.up(serve.url, "--exclude-uid", "nobody", "--exclude-uid", "5000-5999"):
        assert run_as(desktop, "nobody", lab.world4) == desktop.lan4
        assert run_as(desktop, "5500", lab.world4) == desktop.lan4
        assert run_as(desktop, "6000", lab.world4) == "198.18.0.1"
        with Capture(desktop.gw, "d0") as lan:  # its names come from the resolver of before
            done = desktop.space.run("setpriv", "--reuid", "nobody", "--clear-groups", "getent",
                                     "ahosts", "v4.test")
        assert done.stdout.startswith("10.88.0.2 "), done.stdout + done.stderr
        assert lan.to_port(53)


def test_included_users(desktop, lab, serve):
    before = desktop.state()
    with desktop.up(serve.url, "--include-uid", "nobody"):
        assert run_as(desktop, "nobody", lab.world4) == "198.18.0.1"
        assert run_as(desktop, "nobody", "v4.test") in TUNNEL
        assert run_as(desktop, "5500", lab.world4) == desktop.lan4
        exchange(desktop.space, lab.world6)
        done = desktop.space.run("getent", "ahosts", "v4.test")
        assert done.stdout.startswith("10.88.0.2 "), done.stdout + done.stderr
    desktop.assert_state(before)


def test_bypass(desktop, lab, serve):
    with desktop.up(serve.url, "--bypass", "10.88.0.0/24"):
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world4)
        assert uplink.beside(lab.world4) == []
        desktop.settle()
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world6)
        assert uplink.beside(lab.proxy4) == []


def bound_socket(space, device, kind=socket.SOCK_DGRAM):
    sock = space.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.settimeout(0.5)
    return sock


QUERY = bytes.fromhex("123401000001000000000000" "027634" "0474657374" "0000010001")


def test_no_query_leaves_from_a_bound_socket(desktop, lab, serve):
    before = desktop.state()
    with desktop.up(serve.url):
        with Capture(desktop.gw, "d0") as lan:
            for resolver in (desktop.gateway4, "9.9.9.9"):
                with bound_socket(desktop.space, "eth0") as sock:
                    with pytest.raises(OSError):
                        sock.sendto(QUERY, (resolver, 53))
                        sock.recv(512)
            with bound_socket(desktop.space, "eth0", socket.SOCK_STREAM) as sock:
                with pytest.raises(OSError):
                    sock.connect((desktop.gateway4, 53))
        assert lan.to_port(53) == []
        with bound_socket(desktop.space, "eth0") as sock:  # all else may, without a kill switch
            sock.sendto(b"x", (lab.world4, 7))
            assert sock.recv(9) == b"x"
    desktop.assert_state(before)


def test_kill_switch(desktop, lab, serve):
    before = desktop.state()
    up = desktop.up(serve.url, "--kill-switch", "--bypass", "10.88.0.3/32")
    exchange(desktop.space, lab.world4)
    exchange(desktop.space, desktop.printer4)
    desktop.settle()  # before the kill, so that nothing has to be left out after it
    up.kill()
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    with Capture(desktop.gw, "wan0") as uplink, Capture(desktop.gw, "d0") as lan:
        for host in (lab.world4, lab.world6):
            with pytest.raises(OSError) as failure:
                exchange(desktop.space, host)
            assert failure.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        with bound_socket(desktop.space, "eth0") as sock:
            with pytest.raises(OSError):
                sock.sendto(b"x", (lab.world4, 7))
                sock.recv(9)
        desktop.space.run("dig", "+time=1", "+tries=1", f"@{desktop.gateway4}", "v4.test")
    assert uplink.packets == [] and lan.to_port(53) == [] and lan.packets == []
    exchange(desktop.space, desktop.printer4)
    exchange(desktop.space, desktop.printer6)
    exchange(desktop.space, "10.88.0.3")  # bypassed
    done = desktop.down()
    assert done.returncode == 0, done.stderr
    desktop.assert_state(before)
    exchange(desktop.space, lab.world4)


def test_kill_switch_has_no_gap_when_up_is_started_again(desktop, lab, serve):
    before = desktop.state()
    desktop.up(serve.url, "--kill-switch").kill()
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    stop = threading.Event()

    def send():
        with desktop.space.udp() as sock:
            while not stop.wait(0.002):
                with contextlib.suppress(OSError):
                    sock.sendto(b"x", (lab.world4, 7))

    with Capture(desktop.gw, "wan0") as uplink:
        thread = threading.Thread(target=send)
        thread.start()
        up = desktop.up(serve.url, "--kill-switch")
        exchange(desktop.space, lab.world4)
        stop.set()
        thread.join()
    assert uplink.packets and uplink.beside(lab.proxy4) == []
    assert sum("fwmark 0x63756c76" in line for line in desktop.space.ip("rule").splitlines()) == 1
    up.kill()  # and once more: the journal tells the state before the first of them
    desktop.up(serve.url, "--kill-switch").stop()
    desktop.assert_state(before)


def test_kill_switch_holds_when_the_worker_gives_up(desktop, lab, serve):
    before = desktop.state()
    up = desktop.up(serve.url, "--kill-switch")
    desktop.space.ip("link del culvert0")
    assert up.wait_end() == 1
    up.checked = True
    with pytest.raises(OSError):
        exchange(desktop.space, lab.world4)
    assert desktop.down().returncode == 0
    desktop.assert_state(before)


def test_proxy_on_this_machine(desktop, lab):
    """On 127.0.0.1, resolving names itself: its user is excluded, so it reaches the world."""
    before = desktop.state()
    proxy = desktop.space.popen("setpriv", "--reuid", "nobody", "--clear-groups",
                                "microsocks", "-i", "127.0.0.1", "-p", "1080",
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: desktop.space.listening(1080), "the proxy listens")
    with desktop.up("socks5://127.0.0.1", "--exclude-uid", "nobody"):
        assert run_as(desktop, "5500", lab.world4) == "198.18.0.1"
        assert run_as(desktop, "5500", "v4.test") in TUNNEL
        assert run_as(desktop, "5500", "v6.test") in TUNNEL
    desktop.assert_state(before)
    proxy.kill()
    proxy.wait()


def test_forwarded_packets(desktop, lab, serve):
    """A container behind the desktop: past it without --gateway, through the proxy with it."""
    inner = Namespace("inner")
    veth(desktop.space, "vm0", inner, "eth0", ("172.30.0.1/24", "172.30.0.2/24"),
         ("fd30::1/64", "fd30::2/64"))
    inner.ip("route add default via 172.30.0.1")
    inner.ip("-6 route add default via fd30::1")
    inner.set_resolver("9.9.9.9")
    for space, via4, via6 in ((desktop.gw, desktop.lan4, desktop.lan6),
                              (lab.mid, "10.76.0.2", "fd76::2"),
                              (lab.world, "10.88.0.1", "fd88::1")):
        space.ip(f"route replace 172.30.0.0/24 via {via4}")
        space.ip(f"-6 route replace fd30::/64 via {via6}")
    before = desktop.state()
    with desktop.up(serve.url, "--gateway"):
        with Capture(desktop.gw, "d0") as lan:
            exchange(inner, lab.world4, payload=b"x" * 90)
            exchange(inner, lab.world6)
            with inner.udp() as sock:
                sock.sendto(b"datagram", (lab.world4, 7))
                assert sock.recv(100) == b"datagram"
            assert inner.run("dig", "+short", "v4.test").stdout.startswith("198.18.")
            done = inner.run("curl", "-sS", "-m", "5", "telnet://www.test:7", input="hi\n")
            assert "hi" in done.stdout, done.stderr
        assert lan.packets and lan.beside(lab.proxy4) == []
        for counter in ("TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors"):
            assert inner.run("nstat", "-az", counter, check=True).stdout.split(counter)[1].split()[0] == "0"
    desktop.assert_state(before)
    # reverse paths of what is forwarded are looked up as user 0's
    desktop.space.sysctl("net.ipv4.conf.all.rp_filter=1")
    before = desktop.state()
    for who in ("--exclude-uid", "--include-uid"):
        with desktop.up(serve.url, "--gateway", who, "0" if who == "--exclude-uid" else "4711"):
            exchange(inner, lab.world4)
            exchange(inner, inner.run("dig", "+short", "v4.test").stdout.strip())
            done = desktop.space.run("curl", "-sS", "-m", "3", "telnet://198.18.0.9:7")
            assert "onnect" in done.stderr and "timed out" not in done.stderr, done.stderr
    desktop.assert_state(before)
    desktop.space.sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.ip_forward=1",
                         "net.ipv6.conf.all.forwarding=1")
    before = desktop.state()
    with desktop.up(serve.url):
        with Capture(desktop.gw, "d0") as lan:
            exchange(inner, lab.world4)
            exchange(inner, lab.world6)
        assert any(p.src == "172.30.0.2" for p in lan.packets)
    desktop.assert_state(before)
    with desktop.up(serve.url, "--gateway"):
        exchange(inner, lab.world4)
    desktop.assert_state(before)
    desktop.space.sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    desktop.space.ip("link del vm0")
    inner.close()


# --- cgroups ----------------------------------------------------------------------------------------

def cgroup_mount():
    with open("/proc/self/mounts", encoding="ascii") as file:
        for line in file:
            where, kind = line.split()[1:3]
            if kind == "cgroup2":
                return pathlib.Path(where)
    return None


@pytest.fixture
def cgroup():
    mount = cgroup_mount()
    if mount is None or not os.access(mount, os.W_OK):
        pytest.skip("no cgroup v2 here")
    made = mount / f"culvert-test-{os.getpid()}"
    made.mkdir()
    yield made
    time.sleep(0.1)
    made.rmdir()


def in_cgroup(desktop, cgroup, host, port=7):
    script = (f"echo $$ > {cgroup}/cgroup.procs && exec nsenter --net=/run/netns/"
              f"{desktop.space.name} /usr/bin/python3 -c \"import socket; "
              f"s=socket.create_connection(('{host}', {port}), 5); s.sendall(b'hi'); "
              "assert s.recv(9) == b'hi'; print(s.getpeername()[0])\"")
    return subprocess.run(["sh", "-c", script], text=True, capture_output=True, timeout=20)


def start_seeing_cgroups(desktop, *argv):
    """`ip netns exec` mounts another /sys, without cgroups."""
    script = f'mount --bind {desktop.resolv_conf()} /etc/resolv.conf && exec "$@"'
    space = Wrapped(desktop, "nsenter", f"--net=/run/netns/{desktop.space.name}", "unshare", "-m",
                    "setpriv", "--pdeathsig", "KILL", "sh", "-c", script, "sh")
    return space.up(*argv)


def test_excluded_cgroup(desktop, lab, serve, cgroup):
    before = desktop.state()
    with start_seeing_cgroups(desktop, "--exclude-cgroup", cgroup, serve.url):
        for host in (lab.world4, lab.world6):
            with Capture(desktop.gw, "wan0") as uplink:
                done = in_cgroup(desktop, cgroup, host)
            assert done.returncode == 0, done.stderr
            assert uplink.packets and uplink.beside(host) == []
            desktop.settle()
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world4)
        assert uplink.beside(lab.proxy4) == []
    desktop.assert_state(before)


def test_included_cgroup(desktop, lab, serve, cgroup):
    before = desktop.state()
    with start_seeing_cgroups(desktop, "--include-cgroup", f"/{cgroup.name}", serve.url):
        for host in (lab.world4, lab.world6):
            with Capture(desktop.gw, "wan0") as uplink:
                done = in_cgroup(desktop, cgroup, host)
            assert done.returncode == 0, done.stderr
            assert uplink.packets and uplink.beside(lab.proxy4) == []
        desktop.settle()
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world4)
        assert uplink.beside(lab.world4) == []
        done = desktop.space.run("getent", "ahosts", "v4.test")
        assert done.stdout.startswith("10.88.0.2 "), done.stdout + done.stderr
    desktop.assert_state(before)


def closing_late(connection):
    connection.sendall(connection.recv(9))
    connection.recv(9)
    time.sleep(0.4)


def test_included_cgroup_closes_first(desktop, lab, serve, cgroup):
    """The server's FIN finds a socket that has no process any more, and a mark instead of a cgroup."""
    server = lab.serve(TcpServer(lab.world, closing_late))
    with start_seeing_cgroups(desktop, "--include-cgroup", cgroup, serve.url):
        for host in (lab.world4, lab.world6):
            with Capture(desktop.gw, "wan0") as uplink:
                done = in_cgroup(desktop, cgroup, host, server.port)
                time.sleep(1)
                desktop.settle()
            assert done.returncode == 0, done.stderr
            assert uplink.packets and uplink.beside(lab.proxy4) == []


def test_cgroup_that_is_not_there(desktop, serve):
    up = desktop.start_up(serve.url, "--exclude-cgroup", "/no/such")
    assert up.wait_end() == 1
    up.checked = True
    assert "cgroup" in up.log


def test_nftables_missing_is_told(desktop, lab, serve):
    """Without libnftables up works, and says what that costs."""
    library = subprocess.run(["sh", "-c", "ldconfig -p | sed -n 's/.*libnftables.so.1.*=> //p'"],
                             text=True, capture_output=True, check=True).stdout.strip()
    script = f'mount --bind /dev/null {os.path.realpath(library)} && exec "$@"'
    before = desktop.state()
    space = Wrapped(desktop, *desktop.space.argv("sh", "-c", script, "sh"))
    with space.up(serve.url) as up:
        assert up.count("no nftables") == 1
        exchange(desktop.space, lab.world4)
    desktop.assert_state(before)
    with pytest.raises(AssertionError, match="need cgroup v2, which is not mounted"):
        space.up("--exclude-cgroup", "/no/such", serve.url)
    desktop.processes[-1].checked = True
    desktop.assert_state(before)
