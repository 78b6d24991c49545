"""`culvert up` on a desktop: what is captured, what stays direct, and that all of it comes back."""

import contextlib
import os
import signal
import socket
import time

import pytest

from desktop import Capture
from netns import wait_for


@pytest.fixture
def up(desktop, serve):
    before = desktop.state()
    process = desktop.up(serve.url)
    yield process
    process.stop()
    desktop.assert_state(before)


def exchange(space, host, port=7, payload=b"hello"):
    with space.connect(host, port, timeout=5) as sock:
        sock.sendall(payload)
        got = sock.recv(len(payload), socket.MSG_WAITALL)
    assert got == payload


def test_desktop_reaches_all_without_culvert(desktop, lab):
    for host in (lab.world4, lab.world6, desktop.printer4, desktop.printer6):
        exchange(desktop.space, host)
    assert desktop.space.run("dig", "+short", "v4.test").stdout.split() == ["10.88.0.2"]


def test_everything_goes_through_the_proxy(desktop, lab, up):
    with Capture(desktop.gw, "d0") as lan, Capture(desktop.gw, "wan0") as uplink:
        exchange(desktop.space, lab.world4)
        exchange(desktop.space, lab.world6)
        with desktop.space.udp() as sock:
            sock.sendto(b"datagram", (lab.world4, 7))
            assert sock.recv(100) == b"datagram"
    assert uplink.packets and uplink.beside(lab.proxy4) == []
    assert lan.beside(lab.proxy4) == []


def test_names_go_through_the_proxy(desktop, lab, up):
    with Capture(desktop.gw, "d0") as lan:
        out = desktop.space.run("curl", "-sS", "-m", "5", "telnet://www.test:7", input="hi\n")
        for server in ((), (f"@{desktop.gateway4}",), ("@9.9.9.9",), ("@9.9.9.9", "+tcp")):
            answer = desktop.space.run("dig", "+short", "+time=2", "+tries=1", *server, "v4.test")
            assert answer.stdout.startswith("198.18."), (server, answer.stdout)
    assert lan.to_port(53) == [] and lan.beside(lab.proxy4) == []
    assert "hi" in out.stdout, out.stderr


def test_lan_stays_direct(desktop, lab, up):
    with Capture(desktop.gw, "p0") as lan:
        exchange(desktop.space, desktop.printer4)
        exchange(desktop.space, desktop.printer6)
    assert any(p.src == desktop.lan4 for p in lan.packets)
    assert any(p.src == desktop.lan6 for p in lan.packets)


def test_second_up_says_who_runs(desktop, serve, up):
    second = desktop.start_up(serve.url)
    assert second.wait_end() == 1
    assert f"process id {up.pid}" in second.log
    second.checked = True


def test_interrupt_stops_it(desktop, serve):
    before = desktop.state()
    process = desktop.up(serve.url)
    process.stop(signal.SIGINT)
    desktop.assert_state(before)


def test_killed_one_is_undone_by_down(desktop, lab, serve):
    before = desktop.state()
    process = desktop.up(serve.url)
    process.kill()
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    exchange(desktop.space, lab.world4)  # direct again
    exchange(desktop.space, lab.world6)
    started = time.monotonic()  # resolv.conf still names us first: unreachable, at once
    done = desktop.space.run("getent", "ahosts", "v4.test")
    assert done.stdout.startswith("10.88.0.2 ") and time.monotonic() - started < 2
    done = desktop.down()
    assert done.returncode == 0, done.stderr
    desktop.assert_state(before)
    assert "nothing to undo" in desktop.down().stderr


def test_killed_one_is_undone_by_the_next_up(desktop, serve):
    before = desktop.state()
    desktop.up(serve.url).kill()
    desktop.up(serve.url).stop()
    desktop.assert_state(before)


def test_several_at_once(desktop, lab, serve):
    """Of many that are started at one moment one runs; the others say which, and change nothing."""
    before = desktop.state()
    ups = [desktop.start_up(serve.url) for _ in range(5)]
    wait_for(lambda: sum(up.process.poll() is not None for up in ups) == 4, "four have ended")
    runs, = [up for up in ups if up.process.poll() is None]
    runs.wait_ready()
    for up in ups:
        up.checked = up is not runs
        assert up is runs or up.wait_end() == 1
        assert up is runs or "is running already" in up.log
    exchange(desktop.space, lab.world4)
    runs.stop()
    desktop.assert_state(before)


@pytest.mark.parametrize("victims", ("all", "all, the last first", "broker", "worker"))
def test_any_process_may_be_killed(desktop, lab, serve, victims):
    before = desktop.state()
    up = desktop.up(serve.url)
    if victims.startswith("all"):
        up.checked = True
        for pid in up.tree() if victims == "all" else reversed(up.tree()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        up.process.wait(5)
        assert desktop.down().returncode == 0
    else:
        for pid in wait_for(lambda: up.children(f"culvert-{victims}"), "it goes by its name"):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: reaches(desktop.space, lab.world4), "all is as it was", 5)
        up.stop()
    desktop.assert_state(before)
    assert "nothing to undo" in desktop.down().stderr


def reaches(space, host):
    try:
        exchange(space, host)
    except (OSError, AssertionError):
        return False
    return True


def test_more_specific_routes_stay(desktop, lab, serve):
    """Other VPNs' routes, and Docker's: whatever is not the default route."""
    desktop.space.ip(f"route add {lab.world_v4(3)}/32 via {desktop.gateway4}")
    desktop.space.ip(f"-6 route add {lab.world_v6(3)}/128 via {desktop.gateway6}")
    before = desktop.state()
    with desktop.up(serve.url):
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world_v4(3))
            exchange(desktop.space, lab.world_v6(3))
        assert uplink.packets and uplink.beside(lab.world_v4(3), lab.world_v6(3)) == []
    desktop.assert_state(before)
    desktop.space.ip(f"route del {lab.world_v4(3)}/32")
    desktop.space.ip(f"-6 route del {lab.world_v6(3)}/128")


@pytest.mark.parametrize("mode", ("tcp", "relay"))
def test_dns_by_a_resolver_of_the_world(desktop, lab, serve, mode):
    """Without fake addresses: through the proxy all the same, whatever resolver is asked."""
    with desktop.up(serve.url, "--dns", mode, "--dns-server", lab.world4):
        with Capture(desktop.gw, "d0") as lan:
            assert desktop.space.run("dig", "+short", "v4.test").stdout.split() == [lab.world4]
            assert desktop.space.run("getent", "ahosts", "v4.test").stdout.startswith(lab.world4)
            if mode == "tcp":
                answer = desktop.space.run("dig", "+short", f"@{desktop.gateway4}", "v4.test")
                assert answer.stdout.split() == [lab.world4]
        assert lan.packets and lan.beside(lab.proxy4) == []
