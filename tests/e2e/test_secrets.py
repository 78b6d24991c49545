"""The proxy's password: where it is, which is one page of who logs in with it, and nowhere else."""

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import tempfile
import time

import pytest

import memory
import socks5
from desktop import Desktop
from lab import CULVERT, DIRECT, SANITIZED, Culvert, wait_for
from ordinary import User, processes_of_user
from servers import TcpServer

PASSWORD, OTHER = secrets.token_hex(100), secrets.token_hex(100)
PROXIES = ("ALL_PROXY", "all_proxy", "http_proxy", "HTTPS_PROXY")

pytestmark = pytest.mark.skipif(DIRECT, reason="is about culvert alone")


@pytest.fixture(scope="module")
def proxy(lab):
    """A server that wants the password; where this is one of ours, it keeps it as well as others."""
    with lab.culvert_serve("--auth", f"user:{PASSWORD}") as server:
        server.url_with_password = f"socks5://user:{PASSWORD}@{server.host}:{server.port}"
        yield server


def tree(pid):
    pids = [pid]
    for each in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                children = pathlib.Path(f"/proc/{each}/task/{task}/children")
                pids += map(int, children.read_text(encoding="ascii").split())
    return pids


def name_of(pid):
    return pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()


def environment(url):
    """Sanitizers keep a copy of the environment for themselves."""
    return {} if SANITIZED else dict.fromkeys(PROXIES, url)


def pieces(secret):
    """What is left of it in a register is worth something, too: any 15 bytes of it hold one."""
    return [secret[i:i + 8].encode() for i in range(0, len(secret), 8)]


def assert_hidden(pids, users, secret=PASSWORD):
    """`users`, by name, have it in memory that is left out of core files; the others have not."""
    seen = []
    for pid in pids:
        for shown in ("cmdline", "environ"):
            assert secret.encode() not in pathlib.Path(f"/proc/{pid}/{shown}").read_bytes(), \
                (pid, shown)
        name, found = name_of(pid), memory.holding(pid, pieces(secret))
        # the sanitizers' run-time has copies of what passes through its hands
        assert SANITIZED or not [m.name for m in found if m.dumped], \
            (name, [m.name for m in found if m.dumped])
        if any(not m.dumped for m in found):
            seen.append(name)
    assert sorted(seen) == sorted(users)


def use(tunnel, lab):
    """Handshakes leave nothing behind, refused ones neither."""
    for port in (7, 1, 7):
        with contextlib.suppress(ConnectionError), tunnel.app.connect(lab.world4, port) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    tunnel.settle()


@pytest.mark.parametrize("options", [(), ("--no-pipeline",)], ids=["pipelined", "step-by-step"])
def test_tunnel(lab, proxy, options):
    url = proxy.url_with_password
    with lab.tunnel(url, *options, env=environment(url)) as tunnel:
        use(tunnel, lab)
        assert_hidden(tunnel.tree(), ["culvert-worker"])
        os.kill(tunnel.workers()[0], signal.SIGKILL)
        wait_for(lambda: tunnel.count("starting another"), "the worker's death is noticed")
        wait_for(tunnel.workers, "there is another", 5)
        use(tunnel, lab)
        assert_hidden(tunnel.tree(), ["culvert-worker"])
        assert PASSWORD not in tunnel.log


def test_server(lab, proxy):
    """Neither its own nor what clients guess."""
    app = lab.client()
    for user, password in (("user", PASSWORD), ("user", OTHER), ("user", PASSWORD)):
        with contextlib.suppress(AssertionError, ConnectionError, EOFError), \
                socks5.connect(app, (proxy.host, proxy.port), lab.world4, 7,
                               auth=(user, password)) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    assert_hidden(proxy.tree(), ["culvert-server"])
    assert_hidden(proxy.tree(), [], OTHER)
    app.close()


def test_up(lab, proxy):
    url = proxy.url_with_password
    with Desktop(lab) as desktop, desktop.up(url, env=environment(url)) as up:
        with desktop.space.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert_hidden(up.tree(), ["culvert-worker"])
        files = list(pathlib.Path("/run/culvert").glob(f"{desktop.state_prefix()}*"))
        assert files and not [f for f in files if PASSWORD.encode() in f.read_bytes()]


COMMAND = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], 7))
sock.sendall(b"x")
print(sock.recv(1).decode(), flush=True)
time.sleep(60)
"""


def test_run(lab, proxy):
    """The command does not learn it either, but for another proxy's, which is its own affair."""
    host = lab.client()
    host.set_resolver(lab.proxy4)
    url = proxy.url_with_password
    other = f"socks5://user:{OTHER}@10.1.2.3:1080"
    env = {} if SANITIZED else {**environment(url), "all_proxy": other}
    with tempfile.TemporaryDirectory(prefix="culvert-secrets-") as folder:
        os.chmod(folder, 0o755)
        process = User(host, pathlib.Path(folder)).start(
            url, "/usr/bin/python3", "-c", COMMAND, lab.world4, env=env, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == "x\n"
            pids = [pid for pid in processes_of_user() if name_of(pid) != "python3"]
            assert sorted(map(name_of, pids)) == ["culvert"] * 3 + ["culvert-worker"]
            assert_hidden(pids, ["culvert-worker"])
            assert_hidden(pids, [], OTHER)
            command, = set(processes_of_user()) - set(pids)
            environ = pathlib.Path(f"/proc/{command}/environ").read_bytes()
            assert PASSWORD.encode() not in environ
            assert SANITIZED or OTHER.encode() in environ
        finally:
            process.terminate()
            process.communicate(timeout=10)
    host.close()


def test_check(lab):
    """While it waits for a proxy that does not answer the password."""
    asked = []

    def silent(sock):
        sock.recv(100)
        sock.sendall(b"\x05\x02")
        asked.append(sock.recv(1000))
        sock.recv(100)

    stalling = TcpServer(lab.mid, silent)
    url = f"socks5://user:{PASSWORD}@{lab.proxy4}:{stalling.port}"
    process = lab.mid.popen(CULVERT, "check", url, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: asked, "the password is sent")
        time.sleep(0.1)
        pids = tree(process.pid)
        names = ["culvert", "culvert-broker", "culvert-errand"]
        assert sorted(map(name_of, pids)) == names
        # the child is about to need it again, in the step that is waiting
        assert_hidden([pid for pid in pids if name_of(pid) != "culvert-errand"], [])
    finally:
        process.terminate()
        process.wait(10)
        stalling.close()


def end_of(pid):
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return ended.si_code, ended.si_status


CORES = ("prlimit", "--core=unlimited:unlimited")


@pytest.mark.skipif(SANITIZED, reason="sanitizers want to be dumpable")
@pytest.mark.parametrize("signo", [signal.SIGABRT, signal.SIGSEGV])
def test_no_core_file_of_the_supervisor(lab, proxy, tmp_path, signo):
    """Not even with the user's blessing. The others' are forbidden in tests/unit/test_confine.c."""
    with subprocess.Popen([*CORES, "sleep", "60"], cwd=tmp_path) as sleeper:
        time.sleep(0.2)
        sleeper.send_signal(signo)
        if end_of(sleeper.pid) != (os.CLD_DUMPED, signo):
            pytest.skip("nobody leaves core files on this machine")
    culvert = Culvert(lab.mid, "tun", "--tun", "culvert9", proxy.url_with_password, before=CORES,
                      cwd=tmp_path)
    culvert.checked = culvert.stopped = True
    culvert.wait_ready()
    for file in tmp_path.iterdir():  # the sleeper's
        file.unlink()
    os.kill(culvert.pid, signo)
    assert end_of(culvert.pid) == (os.CLD_KILLED, signo)
    assert not list(tmp_path.iterdir())
    culvert.wait_end()
