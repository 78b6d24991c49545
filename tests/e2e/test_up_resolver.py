"""/etc/resolv.conf as a file and as a link, and systemd-resolved, handed over and back."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

from desktop import Capture, Wrapped, copy_etc
from lab import CULVERT
from netns import wait_for
from test_up import exchange

ORIGINAL = "# by hand\nnameserver 192.168.50.1\nsearch lan"  # no newline at the end


def listing(folder):
    return sorted((p.name, p.lstat().st_ino, p.lstat().st_mode, p.lstat().st_mtime_ns)
                  for p in folder.iterdir() if "resolv" in p.name)


def test_file_is_replaced_and_comes_back(desktop, lab, serve, tmp_path):
    with desktop.private_etc(tmp_path) as (etc, space):
        (etc / "resolv.conf").write_text(ORIGINAL)
        before = listing(etc)
        with space.up(serve.url):
            assert "nameserver 198.18.0.2" in (etc / "resolv.conf").read_text()
            assert space.run("getent", "ahosts", "www.test").stdout.startswith("fdc0:")
        assert listing(etc) == before
        assert (etc / "resolv.conf").read_text() == ORIGINAL
        space.up(serve.url).kill()
        assert "nameserver 198.18.0.2" in (etc / "resolv.conf").read_text()
        assert space.run(CULVERT, "down").returncode == 0
        assert listing(etc) == before


@pytest.fixture
def open_folder():
    """One that all may enter, unlike pytest's: the proxy's name is looked up by a child that is nobody."""
    with tempfile.TemporaryDirectory(prefix="culvert-managed-") as path:
        os.chmod(path, 0o755)
        yield pathlib.Path(path)


def test_link_stays_a_link(desktop, lab, serve, tmp_path, open_folder):
    with desktop.private_etc(tmp_path) as (etc, space):
        managed = open_folder
        (managed / "resolv.conf").write_text(ORIGINAL)
        (etc / "resolv.conf").symlink_to(managed / "resolv.conf")
        before = listing(etc)
        with space.up(f"socks5://proxy.test:{serve.port}"):
            exchange(desktop.space, lab.world4)
            assert (managed / "resolv.conf").read_text() == ORIGINAL
            # what manages it goes on doing so: our own look-ups follow
            fresh = managed / "fresh"
            fresh.write_text("nameserver 192.168.50.1\n# fresh\n")
            fresh.rename(managed / "resolv.conf")
            time.sleep(0.5)
            exchange(desktop.space, lab.world4)
        assert listing(etc) == before
        assert (etc / "resolv.conf").read_text() == "nameserver 192.168.50.1\n# fresh\n"


def test_readers_see_one_file_or_the_other(desktop, serve, tmp_path):
    """Whoever reads while it is exchanged, and again back, gets a whole file."""
    with desktop.private_etc(tmp_path) as (etc, space):
        original = "".join(f"nameserver 192.168.50.{i}\n" for i in range(1, 200))
        (etc / "resolv.conf").write_text(original)
        seen, over = set(), threading.Event()

        def read():
            while not over.is_set():
                seen.add((etc / "resolv.conf").read_text())

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(3):
            space.up(serve.url).stop()
        over.set()
        reader.join()
        assert original in seen and len(seen) == 2, seen


@pytest.mark.parametrize("end", ("stop", "kill"))
def test_link_in_a_folder_that_cannot_be_written(desktop, lab, serve, tmp_path, open_folder, end):
    """Where it leads to is written in place, and comes back with its time."""
    with desktop.private_etc(tmp_path) as (etc, space):
        managed = open_folder / "managed"
        managed.write_text(ORIGINAL)
        managed.chmod(0o664)
        os.utime(managed, (1, 1000000007))
        (etc / "resolv.conf").symlink_to(managed)
        before = [*listing(etc), managed.stat()[:7], managed.stat().st_mtime_ns]
        space.wrapper = [*space.wrapper, "sh", "-c", 'mount -o remount,bind,ro /etc && exec "$@"', "sh"]
        up = space.up(f"socks5://proxy.test:{serve.port}")
        assert "nameserver 198.18.0.2" in managed.read_text()
        exchange(desktop.space, lab.world4)
        if end == "stop":
            up.stop()
        else:
            up.kill()
            assert space.run(CULVERT, "down").returncode == 0
        assert managed.read_text() == ORIGINAL
        assert [*listing(etc), managed.stat()[:7], managed.stat().st_mtime_ns] == before


def test_mounted_file_beside_another_culvert(desktop, serve, tmp_path):
    """What another culvert, in the namespace whose /etc it is, keeps there until it ends stays."""
    with desktop.private_etc(tmp_path) as (etc, _):
        (etc / "resolv.conf").write_text("# Written by culvert.\n")
        (etc / ".resolv.conf.culvert").symlink_to("../run/resolver/the.others")
        mounted = tmp_path / "mounted"
        mounted.write_text(ORIGINAL)
        before = listing(etc)
        script = f'mount --bind {etc} /etc && mount --bind {mounted} /etc/resolv.conf && exec "$@"'
        space = Wrapped(desktop, *desktop.space.argv("unshare", "-m", "setpriv", "--pdeathsig", "KILL",
                                                     "sh", "-c", script, "sh"))
        with space.up(serve.url):
            assert mounted.read_text().startswith("# Written by culvert")
            assert listing(etc) == before
        assert mounted.read_text() == ORIGINAL
        space.up(serve.url).kill()
        assert space.run(CULVERT, "down").returncode == 0
        assert mounted.read_text() == ORIGINAL
        assert listing(etc) == before


def test_mounted_file_too_large_to_be_copied(desktop, serve):
    """It could not be restored, and so is not overwritten."""
    path = pathlib.Path(desktop.resolv_conf())
    original = path.read_text()
    path.write_text(original + "# a comment\n" * 10000)
    before = desktop.state()
    up = desktop.start_up(serve.url)
    up.checked = True
    assert up.wait_end() == 1 and up.count("File too large; --no-dns-setup") == 1
    desktop.assert_state(before)
    path.write_text(original)


def test_dhcp_renames_a_new_file_over_it(desktop, serve, tmp_path):
    with desktop.private_etc(tmp_path) as (etc, space):
        (etc / "resolv.conf").write_text(ORIGINAL)
        with space.up(serve.url) as up:
            (etc / "resolv.conf.new").write_text("# dhclient\nnameserver 192.168.50.1\n")
            (etc / "resolv.conf.new").rename(etc / "resolv.conf")
            wait_for(lambda: "198.18.0.2" in (etc / "resolv.conf").read_text(), "taken over again")
            assert up.count("rewritten") == 1
        assert (etc / "resolv.conf").read_text() == "# dhclient\nnameserver 192.168.50.1\n"
        assert [name for name, *_ in listing(etc)] == ["resolv.conf"]


@pytest.mark.parametrize("options", ((), ("--kill-switch",)))
def test_nothing_is_left_in_run(desktop, serve, tmp_path, options):
    """Neither files nor the folder; but after a kill, what `down` needs."""
    script = f'mount --bind {tmp_path} /run && exec "$@"'
    space = Wrapped(desktop, *desktop.space.argv("unshare", "-m", "sh", "-c", script, "sh"))
    space.up(*options, serve.url).stop()
    assert list(tmp_path.iterdir()) == []
    space.up(*options, serve.url).kill()
    assert (tmp_path / "culvert").exists()
    for _ in range(2):
        assert space.run(CULVERT, "down").returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_after_a_power_failure(desktop, serve, tmp_path):
    """/run is gone, /etc is not: down still knows whose file it is."""
    with desktop.private_etc(tmp_path) as (etc, space):
        (etc / "resolv.conf").write_text(ORIGINAL)
        before = listing(etc)
        space.up(serve.url).kill()
        for _ in range(2):
            wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
        journals = [p for p in os.listdir("/run/culvert") if p.startswith(desktop.state_prefix())]
        for name in journals:
            shutil.move(f"/run/culvert/{name}", tmp_path / name)
        assert space.run(CULVERT, "down").returncode == 0
        assert listing(etc) == before
        os.makedirs("/run/culvert", exist_ok=True)  # down removes it where it is empty
        for name in journals:  # and the rest of it, which a power failure would have undone
            shutil.move(tmp_path / name, f"/run/culvert/{name}")
        assert space.run(CULVERT, "down").returncode == 0


# --- a resolver on this machine ----------------------------------------------------------------------

@pytest.fixture
def dnsmasq(desktop):
    """It forwards to the LAN's resolver, as the user nobody."""
    process = desktop.space.popen("dnsmasq", "-k", "-C", "/dev/null", "--user=nobody", "--no-resolv",
                                  "--no-hosts", "--pid-file", "--listen-address=127.0.0.1", "--bind-interfaces",
                                  f"--server={desktop.gateway4}", stderr=subprocess.DEVNULL)
    wait_for(lambda: desktop.space.listening(53), "dnsmasq listens")
    desktop.space.set_resolver("127.0.0.1")
    desktop.dns.ttl = 1
    yield process
    desktop.dns.ttl = 60
    desktop.space.set_resolver(desktop.gateway4)
    process.kill()
    process.wait()


def test_local_resolver(desktop, lab, serve, dnsmasq):
    """Kept out it knows the proxy's name as before; both commands say that it should be."""
    url = f"socks5://proxy.test:{serve.port}"
    for options, warned in (((), True), (("--exclude-uid", "nobody"), False)):
        done = desktop.space.run(CULVERT, "check", "--json", "--connect-timeout", "1", *options, url)
        steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
        loop = steps["route-loop"]
        assert loop["verdict"] == ("warn" if warned else "ok"), loop
        assert ("--exclude-uid" in (loop["remedy"] or "")) == warned
        with desktop.up(url, *options) as up:
            assert up.count("whose own queries are captured") == warned
            exchange(desktop.space, lab.world4)
            time.sleep(2.5)  # the answer's time to live, and ours
            if not warned:
                exchange(desktop.space, lab.world4)


# --- systemd-resolved --------------------------------------------------------------------------------

BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/>
    <allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
  </policy>
</busconfig>
"""


@pytest.fixture(scope="module")
def resolved_binary(tmp_path_factory):
    """systemd-resolved, unpacked: an installation would change the machine's own resolver."""
    for path in ("/lib/systemd/systemd-resolved", os.environ.get("SYSTEMD_RESOLVED", "")):
        if path and os.access(path, os.X_OK):
            return path
    folder = tmp_path_factory.mktemp("resolved")
    script = ("apt-get -qq download systemd-resolved && dpkg -x systemd-resolved_*.deb . && "
              "chmod 755 .")
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    path = folder / "lib/systemd/systemd-resolved"
    if done.returncode != 0 or not path.exists() or not shutil.which("dbus-daemon"):
        pytest.skip("no systemd-resolved and no dbus-daemon to be had")
    return path


class Resolved:
    """A systemd-resolved with a bus, /etc and /run of its own, in the desktop's network."""

    def __init__(self, desktop, folder, binary):
        self.desktop, self.folder = desktop, folder
        folder.chmod(0o755)
        etc = folder / "etc"
        copy_etc(etc)
        for name in ("passwd", "group"):
            tail = ":x:4712:4712::/:/bin/false\n" if name == "passwd" else ":x:4712:\n"
            with open(etc / name, "a", encoding="ascii") as file:
                file.write("systemd-resolve" + tail)
        (etc / "resolv.conf").unlink()
        (etc / "resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
        (etc / "systemd").mkdir(exist_ok=True)
        (etc / "systemd" / "resolved.conf").write_text(
            "[Resolve]\nDNS=192.168.50.1\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n")
        run = folder / "run"
        for path in (run / "systemd" / "resolve", run / "dbus", run / "culvert"):
            path.mkdir(parents=True)
        os.chown(run / "systemd" / "resolve", 4712, 4712)
        (folder / "bus.conf").write_text(BUS_CONFIG.format(path="/run/dbus/system_bus_socket"))
        script = (f"mount --bind {etc} /etc && mount --rbind {run} /run && exec \"$@\"")
        self.space = Wrapped(desktop, "nsenter", f"--net=/run/netns/{desktop.space.name}",
                             "unshare", "-m", "setpriv", "--pdeathsig", "KILL", "sh", "-c", script,
                             "sh")
        self.bus = self.space.popen("dbus-daemon", f"--config-file={folder}/bus.conf",
                                    "--nofork", "--nopidfile")
        wait_for((run / "dbus" / "system_bus_socket").exists, "the bus is there")
        self.log = open(folder / "log", "w+", encoding="utf-8")
        self.daemon = self.space.popen(binary, stdout=self.log, stderr=self.log)
        wait_for(self.answers, "resolved answers", 15)

    def answers(self):
        return "10.88.0.2" in self.dig("v4.test")

    def dig(self, name):
        return self.space.run("dig", "+short", "+time=1", "+tries=1", "@127.0.0.53", name).stdout

    def close(self):
        for process in (self.daemon, self.bus):
            process.kill()
            process.wait()
        self.log.close()


@pytest.fixture
def resolved(desktop, tmp_path, resolved_binary):
    made = Resolved(desktop, tmp_path, resolved_binary)
    yield made
    made.close()


def test_resolved_is_handed_over(desktop, lab, serve, resolved):
    etc = resolved.folder / "etc"
    before = listing(etc)
    queries = len(desktop.dns.queries)
    with resolved.space.up(f"socks5://proxy.test:{serve.port}"):
        assert listing(etc) == before  # resolv.conf is left alone
        with Capture(desktop.gw, "d0") as lan:
            assert resolved.dig("v4.test").startswith("198.18.")
            assert resolved.dig("www.test").startswith("198.18.")
            exchange(desktop.space, lab.world4)
        # resolved asks nobody; culvert may ask for the proxy's name, from its marked socket
        assert all(53 in (p.sport, p.dport) for p in lan.beside(lab.proxy4, lab.proxy6))
        asked = {name for _, name, _ in desktop.dns.queries[queries:]}
        assert asked <= {"proxy.test", "proxy.test."}
    assert listing(etc) == before
    assert "10.88.0.2" in resolved.dig("v4.test")  # nothing fake is left in its cache


def test_resolved_after_a_kill(desktop, lab, serve, resolved):
    resolved.space.up(serve.url).kill()
    wait_for(lambda: "culvert0" not in desktop.space.links(), "the device is gone")
    assert resolved.space.run(CULVERT, "down").returncode == 0
    wait_for(lambda: "10.88.0.2" in resolved.dig("v4.test"), "names are resolved as before")
