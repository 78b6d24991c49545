"""What is left to the processes that read packets and the proxy's answers."""

import os
import socket

import pytest
from lab import CULVERT, Culvert, wait_for

NOBODY = "65534"
SANITIZED = b"AddressSanitizer" in open(CULVERT, "rb").read()
PASSWORD = "pa55-of-the-test"


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


@pytest.fixture(scope="module")
def confined(lab, serve):
    with lab.tunnel(serve.url) as tunnel:
        yield tunnel


def test_worker_is_nobody_without_capabilities(confined):
    pid, = confined.workers()
    found = status(pid)
    assert found["Uid"].split() == [NOBODY] * 4
    assert found["Gid"].split() == [NOBODY] * 4
    assert found["Groups"].split() == []
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_broker_keeps_what_sockets_need_and_no_more(confined):
    pid, = confined.brokers()
    found = status(pid)
    assert found["Uid"].split() == [NOBODY] * 4
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[kind], 16) == 1 << 12 | 1 << 13, kind  # CAP_NET_ADMIN, CAP_NET_RAW
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


@pytest.mark.skipif(SANITIZED, reason="sanitizers read /proc")
def test_what_they_see_is_next_to_nothing(confined):
    for pid in confined.workers() + confined.brokers():
        assert sorted(os.listdir(f"/proc/{pid}/root")) == ["dev", "etc"]
        assert os.listdir(f"/proc/{pid}/root/dev") == ["urandom"]
        for kind in ("mnt", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != \
                os.readlink(f"/proc/{confined.pid}/ns/{kind}")
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
            for line in file:
                mounted_at, options = line.split()[4:6]
                # what was mounted on a file of /etc keeps its own options: nobody cannot write it
                assert "ro" in options.split(",") or mounted_at.startswith("/etc/"), line


def test_descriptors_are_their_own(confined):
    """No netlink socket, lock or journal that somebody privileged has opened."""
    pid, = confined.workers()
    inherited = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert inherited.count("/dev/net/tun") == 1
    assert not any("netns" in path for path in inherited), inherited
    assert sum("signalfd" in path for path in inherited) == 1, "its own"


def test_marked_sockets_come_from_the_broker(lab, serve):
    """The worker could not set a mark, and yet its connections follow the marked route."""
    app = lab.client()
    app.ip(f"route add {lab.proxy4} via {app.gateway4} table 77")
    app.ip("rule add fwmark 0x4d priority 77 lookup 77")
    app.ip(f"route del {lab.proxy4}")
    with lab.tunnel(serve.url, "--mark", "0x4d", "--bind-interface", "up0", app=app) as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"marked")
            assert sock.recv(10) == b"marked"
        with tunnel.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"marked too", (lab.world4, 7))
            assert sock.recv(20) == b"marked too"
    app.close()


def test_broker_that_dies_is_replaced_with_its_worker(lab, serve):
    with lab.tunnel(serve.url) as tunnel:
        before = tunnel.workers() + tunnel.brokers()
        os.kill(tunnel.brokers()[0], 9)
        wait_for(lambda: len(tunnel.workers()) == len(tunnel.brokers()) == 1 and
                 not set(before) & set(tunnel.tree()), "both are new", 2)
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"hello")
            assert sock.recv(10) == b"hello"


def test_another_user(lab, serve):
    with lab.tunnel(serve.url, "--user", "daemon") as tunnel:
        assert status(tunnel.workers()[0])["Uid"].split() == ["1"] * 4


def test_a_user_that_is_not_there(lab, serve):
    culvert = Culvert(lab.mid, "tun", "--user", "no-such-user", serve.url)
    culvert.checked = culvert.stopped = True
    assert culvert.wait_end() == 1
    assert "no-such-user" in culvert.log and "--user" in culvert.log


def test_the_proxys_name_resolves_inside(lab, serve):
    """resolv.conf, hosts and random numbers are there."""
    with lab.tunnel(f"socks5://proxy.test:{serve.port}") as tunnel:
        with tunnel.app.connect(lab.world4, 7) as sock:
            sock.sendall(b"by name")
            assert sock.recv(10) == b"by name"


def test_password_shows_nowhere(lab, serve):
    """Not in the command line, the environment or a core file, of no process of ours."""
    url = f"socks5://user:{PASSWORD}@{serve.host}:{serve.port}"
    with lab.tunnel(url, env={"ALL_PROXY": url}) as tunnel:
        for pid in tunnel.tree():
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    assert PASSWORD.encode() not in file.read(), (pid, name)
        assert PASSWORD not in tunnel.log
        for pid in tunnel.workers() + tunnel.brokers():
            with open(f"/proc/{pid}/limits", encoding="ascii") as file:
                core, = [line for line in file if line.startswith("Max core file size")]
            assert core.split()[4:6] == ["0", "0"]
            # a process that is not dumpable belongs to root in /proc, whoever it runs as
            assert SANITIZED or os.stat(f"/proc/{pid}/mem").st_uid == 0
