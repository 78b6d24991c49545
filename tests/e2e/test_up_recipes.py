"""The classic uses of a TUN device, as the recipes in core/up/README.md have them."""

import subprocess
import time

import pytest

import proxies
from desktop import Capture
from netns import wait_for
from servers import TcpServer
from test_up import exchange
from test_up_changes import run_as


def test_vpn_of_ssh(desktop, lab, tmp_path):
    """culvert up over `ssh -D`: on the uplink there is ssh and nothing else."""
    sshd = proxies.start_sshd(lab.mid, tmp_path, 2222)
    ssh = desktop.space.popen(*proxies.ssh_command(tmp_path, 2222), "-N", "-D", "127.0.0.1:1080",
                              f"root@{lab.proxy4}", stdout=subprocess.DEVNULL)
    wait_for(lambda: desktop.space.listening(1080), "ssh -D listens", 15)
    before = desktop.state()
    with Capture(desktop.gw, "wan0") as uplink:
        with desktop.up("socks5://127.0.0.1:1080", "--bypass", f"{lab.proxy4}/32") as up:
            assert up.count("its own client") == 0
            exchange(desktop.space, lab.world4)
            exchange(desktop.space, lab.world6)
            done = desktop.space.run("curl", "-sS", "-m", "5", "telnet://www.test:7", input="hi\n")
            assert "hi" in done.stdout, done.stderr
            desktop.space.run("dig", "+time=1", "+tries=1", "@9.9.9.9", "v4.test", "TXT")
            with desktop.space.udp() as sock:  # ssh has no UDP: refused at once, not leaked
                sock.connect((lab.world4, 7))
                started = time.monotonic()
                with pytest.raises(OSError):
                    for _ in range(20):
                        sock.send(b"x")
                        time.sleep(0.1)
                assert time.monotonic() - started < 3
    strange = [p for p in uplink.packets
               if (p.src, p.sport) != (lab.proxy4, 2222) and (p.dst, p.dport) != (lab.proxy4, 2222)]
    assert uplink.packets and strange == []
    desktop.assert_state(before)
    ssh.kill()
    ssh.wait()
    sshd.close()


def test_proxy_that_would_be_its_own_client_is_warned_of(desktop, lab):
    proxy = desktop.space.popen("microsocks", "-i", "127.0.0.1", "-p", "1088",
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: desktop.space.listening(1088), "the proxy listens")
    with desktop.up("socks5://127.0.0.1:1088") as up:
        assert up.count("its own client; keep it out by --exclude-uid 0") == 1
    with desktop.up("socks5://127.0.0.1:1088", "--exclude-uid", "0") as up:
        assert up.count("its own client") == 0
    proxy.kill()
    proxy.wait()


def test_proxy_without_ipv6(desktop, lab):
    """An address family that the proxy cannot carry is refused at once, and does not leak."""
    from netns import Namespace, veth
    narrow = Namespace("narrow")
    veth(narrow, "up0", lab.mid, "narrow0", ("10.79.0.2/24", "10.79.0.1/24"))
    narrow.ip("route add default via 10.79.0.1")
    lab.world.ip("route replace 10.79.0.0/24 via 10.88.0.1")
    lab.mid.ip("addr add 10.79.0.9/32 dev lo")
    proxy = narrow.popen("microsocks", "-i", "10.79.0.2", "-p", "1080",
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: narrow.listening(1080), "the proxy listens")
    with desktop.up("socks5://10.79.0.2") as _:
        with Capture(desktop.gw, "wan0") as uplink:
            exchange(desktop.space, lab.world4)
            started = time.monotonic()
            with pytest.raises(OSError):
                exchange(desktop.space, lab.world6)
            assert time.monotonic() - started < 2
        assert uplink.packets and uplink.beside("10.79.0.2") == []
    proxy.kill()
    proxy.wait()
    narrow.close()


def test_ipv6_that_the_device_cannot_have_does_not_leak(desktop, lab, serve):
    desktop.space.sysctl("net.ipv6.conf.default.disable_ipv6=1")
    before = desktop.state()
    with desktop.up(serve.url):
        exchange(desktop.space, lab.world4)
        desktop.settle()
        with Capture(desktop.gw, "wan0") as uplink:
            with pytest.raises(OSError):
                exchange(desktop.space, lab.world6)
        assert uplink.packets == []
    desktop.assert_state(before)
    desktop.space.sysctl("net.ipv6.conf.default.disable_ipv6=0")


def test_watching_with_tcpdump(desktop, lab, serve, tmp_path):
    """What is captured on the device has right checksums and lengths, read back with tshark."""
    capture = tmp_path / "watched.pcap"
    blob = bytes(range(256)) * 2048
    server = TcpServer(lab.world, lambda connection: connection.sendall(blob), port=8000)
    with desktop.up(serve.url, "--no-offload", "--include-uid", "root"):
        run_as(desktop, "nobody", lab.world4)  # of no concern
        dump = desktop.space.popen("tcpdump", "-i", "culvert0", "-w", capture, "-U", "-Z", "root",
                                   stderr=subprocess.PIPE)
        assert b"listening" in dump.stderr.readline()
        for host in (lab.world4, lab.world6):
            with desktop.space.connect(host, 8000) as sock:
                got = b""
                while data := sock.recv(1 << 16):
                    got += data
            assert got == blob
        exchange(desktop.space, lab.world4, payload=b"y" * 1400)
        time.sleep(0.3)
        dump.terminate()
        dump.wait()
    server.close()
    done = subprocess.run(
        ["tshark", "-r", capture, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
         "-o", "udp.check_checksum:TRUE", "-T", "fields", "-e", "frame.len", "-e",
         "tcp.checksum.status", "-e", "ip.checksum.status", "-e", "_ws.malformed"],
        text=True, capture_output=True, timeout=60)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) > 500, done.stderr
    assert all(int(row[0]) <= 1500 for row in rows)
    assert {row[1] for row in rows} <= {"1", "Good", ""}
    assert {row[2] for row in rows} <= {"1", "Good", ""}
    assert all(row[3] == "" for row in rows)
