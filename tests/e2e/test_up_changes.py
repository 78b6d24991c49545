"""`culvert up` while the machine changes under it: routes, resolver, rules, the worker itself."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from desktop import Capture, Wrapped
from lab import CULVERT
from netns import wait_for
from test_up import exchange


@pytest.mark.parametrize("level", (0, 1, 2))
@pytest.mark.parametrize("where", ("all", "eth0"))
@pytest.mark.parametrize("excluded", ("4711", "0"))
def test_reverse_path_filter(desktop, lab, serve, level, where, excluded):
    """The kernel looks reverse paths up as user 0, who may be excluded, and without a mark."""
    desktop.space.sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0",
                         f"net.ipv4.conf.{where}.rp_filter={level}",
                         f"net.ipv4.conf.default.rp_filter={level}")
    before = desktop.state()
    with desktop.up(serve.url, "--exclude-uid", excluded):
        fake = desktop.space.run("setpriv", "--reuid", "nobody", "--clear-groups", "dig", "+short",
                                 "v4.test").stdout.strip()
        assert fake.startswith("198.18.")
        for host in (lab.world4, lab.world6, fake):
            run_as(desktop, "nobody", host)
    desktop.assert_state(before)
    desktop.space.sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0",
                         "net.ipv4.conf.default.rp_filter=0")


def run_as(desktop, user, host, port=7):
    """An exchange by a program of another user."""
    script = (f"import socket; s=socket.create_connection(({host!r}, {port}), 5); s.sendall(b'hi');"
              "assert s.recv(9) == b'hi'; print(s.getsockname()[0])")
    done = desktop.space.run("setpriv", "--reuid", user, "--clear-groups", "/usr/bin/python3", "-c",
                             script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_default_route_changes_and_vanishes(desktop, lab, serve):
    with desktop.up(serve.url):
        exchange(desktop.space, lab.world4)
        desktop.space.ip("route del default")
        desktop.space.ip("-6 route del default")
        with pytest.raises(OSError):
            exchange(desktop.space, lab.world4)
        exchange(desktop.space, desktop.printer4)
        desktop.default_route()
        exchange(desktop.space, lab.world4)
        exchange(desktop.space, lab.world6)
        desktop.gw.ip("addr add 192.168.50.7/24 dev br0")
        desktop.space.ip("route replace default via 192.168.50.7")
        exchange(desktop.space, lab.world4)
        desktop.space.ip("route replace default via 192.168.50.1")


def test_rules_that_others_take_away_come_back(desktop, lab, serve):
    before = desktop.state()
    with desktop.up(serve.url):
        rules = desktop.space.ip("rule"), desktop.space.ip("-6 rule")
        desktop.space.ip("rule flush")
        desktop.space.ip("-6 rule flush")
        for table, priority in (("main", 32766), ("default", 32767)):
            desktop.space.ip(f"rule add from all lookup {table} pref {priority}")
        desktop.space.ip("-6 rule add from all lookup main pref 32766")
        wait_for(lambda: (desktop.space.ip("rule"), desktop.space.ip("-6 rule")) == rules,
                 "the rules are back", 5)
        desktop.space.ip("link set culvert0 down")
        desktop.space.ip("link set culvert0 up")
        wait_for(lambda: "culvert0" in desktop.space.ip("route show table 8500"), "the route is back")
        exchange(desktop.space, lab.world4)
    desktop_rules = desktop.state()
    assert [line for line in desktop_rules if "8500" in line] == []
    assert len(desktop_rules) == len(before)


def test_nftables_that_a_firewall_flushes_come_back(desktop, serve):
    before = desktop.state()
    with desktop.up(serve.url, "--kill-switch"):
        table = desktop.space.run("nft", "list", "ruleset").stdout
        assert "table inet culvert" in table
        for _ in range(2):
            desktop.space.run("nft", "flush", "ruleset")
            wait_for(lambda: desktop.space.run("nft", "list", "ruleset").stdout == table,
                     "the table is back", 3)
        desktop.space.ip("route add 172.31.0.0/24 via 192.168.50.9")
        wait_for(lambda: "172.31.0.0/24 accept" in desktop.space.run("nft", "list", "ruleset").stdout,
                 "a new network is direct", 3)
        desktop.space.ip("route del 172.31.0.0/24")
    desktop.assert_state(before)


def test_worker_is_replaced(desktop, lab, serve):
    before = desktop.state()
    with desktop.up(serve.url) as up:
        worker, = up.workers()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: up.workers() not in ([], [worker]), "another worker", 3)
        exchange(desktop.space, lab.world4)
    desktop.assert_state(before)


def test_worker_that_always_dies_ends_it(desktop, serve):
    before = desktop.state()
    up = desktop.up(serve.url)
    up.checked = True
    up.kill_workers(5)
    assert up.wait_end() == 1
    assert "giving up" in up.log
    desktop.assert_state(before)


def test_device_that_is_deleted_ends_it(desktop, serve):
    before = desktop.state()
    up = desktop.up(serve.url)
    desktop.space.ip("link del culvert0")
    assert up.wait_end() == 1
    up.checked = True
    assert "vanished" in up.log
    desktop.assert_state(before)


def test_resolv_conf_that_dhcp_rewrites(desktop, lab, serve):
    with open(desktop.resolv_conf(), encoding="ascii") as file:
        original = file.read()
    with desktop.up(serve.url) as up:
        with open(desktop.resolv_conf(), encoding="ascii") as file:
            assert "nameserver 198.18." in file.read()
        for fresh in ("# dhclient\nnameserver 192.168.50.1\nsearch fresh.lan\n", original):
            with open(desktop.resolv_conf(), "w", encoding="ascii") as file:
                file.write(fresh)
            def taken_over():
                with open(desktop.resolv_conf(), encoding="ascii") as file:
                    text = file.read()
                return "nameserver 198.18." in text and fresh.splitlines()[-1] in text
            wait_for(taken_over, "it is handed over again")
            time.sleep(0.5)  # two rewritings at one moment are one
        with open(desktop.resolv_conf(), "w", encoding="ascii") as file:
            file.write("nameserver 192.168.50.1\n# last\n")
        wait_for(lambda: up.count("rewritten") == 3, "the last rewriting is noticed")
        time.sleep(0.2)
    with open(desktop.resolv_conf(), encoding="ascii") as file:
        assert file.read() == "nameserver 192.168.50.1\n# last\n"
    desktop.space.set_resolver(desktop.gateway4)


def test_no_dns_setup(desktop, lab, serve):
    with open(desktop.resolv_conf(), encoding="ascii") as file:
        original = file.read()
    with desktop.up(serve.url, "--no-dns-setup"):
        with open(desktop.resolv_conf(), encoding="ascii") as file:
            assert file.read() == original
        with Capture(desktop.gw, "d0") as lan:  # an on-link resolver, captured all the same
            answer = desktop.space.run("dig", "+short", "v4.test")
        assert answer.stdout.startswith("198.18.")
        assert lan.to_port(53) == []


def test_proxy_by_name_with_changing_addresses(desktop, lab, serve):
    """The name is resolved by the resolver of before, marked, and again when its TTL is over."""
    desktop.dns.zone["moving.test"] = [lab.proxy4]
    desktop.dns.ttl = 1
    port = serve.port
    with desktop.up(f"socks5://moving.test:{port}"):
        exchange(desktop.space, lab.world4)
        desktop.dns.zone["moving.test"] = [lab.proxy6]
        time.sleep(1.2)
        with Capture(desktop.gw, "d0") as lan:
            try:
                exchange(desktop.space, lab.world4)
            except OSError:
                pass  # this proxy listens on its IPv4 address alone
        assert lan.to_port(53), "it was asked anew"
        assert all(p.dst == desktop.gateway4 for p in lan.to_port(53))
        desktop.dns.zone["moving.test"] = [lab.proxy4]
        time.sleep(5.2)  # a failure is remembered that long
        exchange(desktop.space, lab.world4)
    desktop.dns.ttl = 60


def test_proxy_within_a_fake_or_captured_range(desktop, lab):
    """On a LAN; and the mark decides, not the address, so the LAN's being captured is no loop."""
    proxy = lab.culvert_serve(host=desktop.printer4, space=desktop.printer)
    with desktop.up(proxy.url, "--no-lan"):
        with Capture(desktop.gw, "d0") as lan:
            exchange(desktop.space, lab.world4)
            exchange(desktop.space, desktop.printer4)
        assert lan.beside(desktop.printer4) == []
    proxy.stop()
    lab.processes.remove(proxy)


def test_local_networks_too(desktop, lab, serve):
    """--no-lan: what is on the desktop's own cable is reached by way of the proxy."""
    with desktop.up(serve.url, "--no-lan"), Capture(desktop.gw, "d0") as lan:
        for host in (desktop.printer4, desktop.printer6):
            exchange(desktop.space, host)
        with desktop.space.udp() as sock:
            sock.sendto(b"datagram", (desktop.printer4, 7))
            assert sock.recv(100) == b"datagram"
    assert lan.packets and lan.beside(lab.proxy4) == []


def test_proxy_in_the_fake_range_is_refused(desktop):
    """Nothing outside of the tunnel can be reached there: a line says so, before any change."""
    before = desktop.state()
    for url in ("socks5://198.18.7.7", "socks5://[fdc0:4c56::7]"):
        up = desktop.start_up(url)
        assert up.wait_end() == 1
        up.checked = True
        assert "--fake-range" in up.log and len(up.lines) == 1
    desktop.assert_state(before)


def test_no_other_program_is_started(desktop, serve, tmp_path):
    """Neither ip nor nft nor a shell: not to begin, not to end, not for down."""
    for argv in (("up", serve.url), ("up", "--gateway", "--kill-switch", serve.url), ("down",)):
        desktop.assert_harmless()
        tracer = desktop.space.popen("strace", "-f", "-qq", "-e", "trace=execve", "-o", tmp_path / "calls",
                                     CULVERT, *argv, stderr=subprocess.PIPE, text=True)
        line = tracer.stderr.readline()
        assert "ready" in line or "nothing to undo" in line
        if argv[0] == "up":
            with open(f"/proc/{tracer.pid}/task/{tracer.pid}/children", encoding="ascii") as file:
                os.kill(int(file.read().split()[0]), signal.SIGTERM)
        tracer.wait(20)
        calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "execve(" in line]
        assert len(calls) == 1 and "culvert" in calls[0], calls


def test_device_that_was_there_before(desktop, lab, serve):
    """A persistent device is left as it was found, also by down, and leads nowhere after a kill."""
    desktop.space.ip("tuntap add dev kept0 mode tun vnet_hdr")
    desktop.space.ip("link set kept0 mtu 1400 up")  # gives it the queue that it keeps
    desktop.space.ip("link set kept0 down")
    before = desktop.state()
    with desktop.up(serve.url, "--tun", "kept0", "--mtu", "1300"):
        exchange(desktop.space, lab.world4)
    desktop.assert_state(before)
    for options in ((), ("--kill-switch",)):
        up = desktop.up(serve.url, "--tun", "kept0", "--mtu", "1300", *options)
        tree = up.tree()
        up.kill()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in tree), "all have ended")
        for host in (lab.world4, lab.world6):
            with pytest.raises(OSError) if options else contextlib.nullcontext():
                exchange(desktop.space, host)
        assert desktop.down().returncode == 0
        desktop.assert_state(before)
    desktop.space.ip("link del kept0")


def test_down_beside_a_running_up(desktop, lab, serve):
    with desktop.up(serve.url) as up:
        done = desktop.down()
        assert done.returncode == 1 and f"process id {up.pid}" in done.stderr
        exchange(desktop.space, lab.world4)


def test_hangup_stops_it_but_not_under_nohup(desktop, serve):
    before = desktop.state()
    up = desktop.up(serve.url)
    up.stop(signal.SIGHUP)
    desktop.assert_state(before)
    space = Wrapped(desktop, *desktop.space.argv("nohup"))
    up = space.up(serve.url)
    up.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    up.stop()
    desktop.assert_state(before)


def test_needs_root(desktop, serve):
    before = desktop.state()
    desktop.assert_harmless()
    done = desktop.space.run("setpriv", "--reuid", "nobody", "--clear-groups", CULVERT, "up",
                             serve.url)
    assert done.returncode == 1 and "run as root" in done.stderr
    desktop.assert_state(before)
