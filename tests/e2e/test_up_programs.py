"""Real programs on a desktop under `culvert up`: none of their packets goes beside the proxy."""

import os
import subprocess

import pytest

from desktop import Capture
from netns import wait_for
from programs import Nginx, many_images
from proxies import make_keys, ssh_command, start_sshd
from test_run import STATIC


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("up-programs")


@pytest.fixture(scope="module")
def nginx(lab, folder):
    (folder / "nginx").mkdir()
    return lab.serve(Nginx(lab.world, folder / "nginx"))


@pytest.fixture(scope="module")
def quic(lab, folder, nginx):
    server = lab.world.popen("gtlsserver", "-q", "-d", nginx.root, "*", 4433,
                             folder / "nginx/server.key", nginx.certificate,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lab.world.listening(4433, "u"), "gtlsserver listens")
    yield server
    server.kill()


@pytest.fixture
def run(desktop, lab, serve):
    """Run a program; in the end nothing was beside the proxy, on either side of the gateway."""
    with desktop.up(serve.url), Capture(desktop.gw, "d0") as lan, \
            Capture(desktop.gw, "wan0") as uplink:
        yield lambda *argv, **kwargs: desktop.space.run(*argv, timeout=50, check=True, **kwargs).stdout
    for side in (lan, uplink):
        assert side.packets and side.beside(lab.proxy4) == []


def test_curl(run, nginx):
    assert "It goes through." in run("curl", "-sS", "--http2", "--cacert", nginx.certificate,
                                     "https://www.test/")


def test_ssh(run, lab, folder):
    make_keys(folder)
    sshd = start_sshd(lab.world, folder, 22)
    for family in ("-4", "-6"):
        out = run(*ssh_command(folder, 22), family, "root@www.test", "echo $SSH_CONNECTION")
        assert out.split()[2] in (lab.world4, lab.world6)
    sshd.close()


def test_git(run, nginx, folder):
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", folder / "source"], **quiet)
    for command in ([*me, "commit", "--allow-empty", "-qm", "x"],
                    ["clone", "-q", "--bare", ".", nginx.root / "repo.git"]):
        subprocess.run(["git", "-C", folder / "source", *command], **quiet)
    subprocess.run(["git", "-C", nginx.root / "repo.git", "update-server-info"], **quiet)
    run("git", "clone", "-q", "http://www.test/repo.git", folder / "clone")
    assert (folder / "clone" / ".git").exists()


def test_static_binary(run, lab, folder):
    (folder / "static.c").write_text(STATIC)
    subprocess.run(["gcc", "-static", "-o", folder / "static", folder / "static.c"], check=True)
    run(folder / "static")


@pytest.mark.parametrize("resolver", ["go", "cgo"])
def test_go_program(run, nginx, resolver):
    out = run("hey", "-n", 20, "-c", 5, "http://www.test/",
              env={**os.environ, "GODEBUG": f"netdns={resolver}"})
    assert "[200]\t20 responses" in out, out


def test_chromium(run, nginx, folder):
    many_images(nginx.root, 100)
    out = run("chromium-headless-shell", "--no-sandbox", "--ignore-certificate-errors", "--dump-dom",
              "--virtual-time-budget=10000", f"--user-data-dir={folder}/web",
              "https://www.test/many.html")
    assert "images: 100" in out, out[-500:]


def fetch_by_quic(folder, name, *options):
    return ["gtlsclient", "--exit-on-all-streams-close", *options, "--download", folder / name,
            "www.test", 4433, "https://www.test:4433/index.html"]


def test_quic(run, folder, quic, nginx):
    (folder / "quic").mkdir()
    run(*fetch_by_quic(folder, "quic", "-q"))
    assert (folder / "quic/index.html").read_text() == (nginx.root / "index.html").read_text()


def test_quic_falls_back_where_udp_is_refused(desktop, lab, serve, nginx, folder, quic):
    """The first datagram is refused at once (ngtcp2's client waits all the same), TCP is there."""
    (folder / "refused").mkdir()
    with desktop.up(serve.url, "--udp", "block"), Capture(desktop.gw, "wan0") as uplink:
        for host in (lab.world4, lab.world6):
            with desktop.space.udp("::" if ":" in host else "0.0.0.0") as sock:
                sock.connect((host, 4433))
                sock.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    sock.recv(1)
        script = 'curl=$1; shift; "$@" || true; test -e "$0" || $curl'
        page = folder / "refused/index.html"
        done = desktop.space.run(
            "sh", "-c", script, page, f"curl -sS --cacert {nginx.certificate} https://www.test/",
            *fetch_by_quic(folder, "refused", "-q", "--handshake-timeout=500ms"))
        assert "It goes through." in done.stdout, done.stderr
        assert not page.exists() and "HANDSHAKE_TIMEOUT" in done.stderr
    assert uplink.packets and uplink.beside(lab.proxy4) == []
