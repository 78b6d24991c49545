"""Programs that know nothing of proxies, through the tunnel, by host name where they take one."""

import hashlib
import json
import os
import random
import subprocess
import time

import pytest

import lab as laboratory
from netns import wait_for
from programs import Iperf3, Nginx, sha256
from proxies import make_keys, ssh_command, start_sshd
from servers import TcpServer

BIG = 100 * 1000 * 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def nginx(lab, folder):
    (folder / "nginx").mkdir()
    return lab.serve(Nginx(lab.world, folder / "nginx"))


@pytest.fixture(scope="module")
def big_file(nginx):
    """100 MB of noise on the web server; returns its checksum."""
    path = nginx.root / "big"
    noise = random.Random(100)
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(noise.randbytes(BIG // 100))
    return sha256(path)


def curl(app, *argv, timeout=30, **kwargs):
    return app.run("curl", "-sS", "--noproxy", "*", "-m", timeout, *argv, timeout=timeout + 5,
                   check=True, **kwargs).stdout


# --- curl and nginx ------------------------------------------------------------------------------

@pytest.mark.parametrize("host", ["10.88.0.2", "[fd88::2]", "www.test", "v4.test", "v6.test"])
def test_curl_fetches_a_page(lab, tunnel, nginx, host):
    assert "It goes through." in curl(tunnel.app, f"http://{host}/")


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_curl_by_name_in_either_family(lab, tunnel, nginx, family):
    """Whatever family the application chooses, the name goes to the proxy."""
    if laboratory.DIRECT:
        pytest.skip("names do not reach the proxy")
    for name in ("v4.test", "v6.test"):  # each exists in one family only
        assert "It goes through." in curl(tunnel.app, family, f"http://{name}/")


def test_curl_by_https_and_http_2(lab, tunnel, nginx):
    out = curl(tunnel.app, "--http2", "--cacert", nginx.certificate, "-w", "%{http_version}",
               "https://www.test/")
    assert "It goes through." in out and out.endswith("2")


def test_100_mb_down(lab, tunnel, nginx, big_file, folder):
    for host in ("v4.test", "v6.test"):
        curl(tunnel.app, "-o", folder / "fetched", f"http://{host}/big")
        assert sha256(folder / "fetched") == big_file


def test_100_mb_up(lab, tunnel, nginx, big_file):
    for host in ("v4.test", "v6.test"):
        curl(tunnel.app, "-T", nginx.root / "big", f"http://{host}/upload/{host}")
        assert sha256(nginx.root / "upload" / host) == big_file
        (nginx.root / "upload" / host).unlink()


def test_many_fetches_at_once(lab, tunnel, nginx):
    """200 URLs, 50 at a time, each on a connection of its own."""
    out = curl(tunnel.app, "-Z", "--parallel-max", "50", "-H", "Connection: close", "-o",
               "/dev/null", "-w", "%{http_code}\n", "http://www.test/?[1-200]")
    assert out.split() == ["200"] * 200


def test_curl_is_told_of_a_refusal(lab, tunnel):
    done = tunnel.app.run("curl", "-sS", "-m", 5, "http://v4.test:9/")
    assert done.returncode == 7, f"curl did not fail to connect: {done.stderr}"


# --- HTTP/2 --------------------------------------------------------------------------------------

@pytest.mark.parametrize("url", ["http://www.test:82/", "https://www.test/"])
def test_nghttp(lab, tunnel, nginx, url):
    """nghttp2's client, without and with TLS: many streams on one connection."""
    out = tunnel.app.run("nghttp", "-v", "--no-dep", "-m", "20", url, timeout=20).stdout
    assert out.count(":status: 200") == 20, out[-3000:]
    assert "It goes through." in out


def test_h2load(lab, tunnel, nginx):
    out = tunnel.app.run("h2load", "-n", "2000", "-c", "10", "-m", "10", "http://www.test:82/",
                         check=True).stdout
    assert "2000 succeeded, 0 failed" in out, out


# --- iperf3 --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def iperf3(lab):
    return lab.serve(Iperf3(lab.world))


def measure(tunnel, host, *argv):
    """iperf3's own figures; its server takes one client at a time and may not be done yet."""
    for _ in range(5):
        out = tunnel.app.run("iperf3", "-J", *argv, "-c", host, timeout=30).stdout
        figures = json.loads(out)
        if "error" not in figures:
            return figures["end"]
        time.sleep(0.5)
    raise AssertionError(f"iperf3: {figures['error']}")


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3_tcp(lab, tunnel, iperf3, direction, streams):
    argv = ["-R"] if direction == "down" else []
    end = measure(tunnel, lab.world4, "-t", "1.5", "-P", streams, *argv)
    rate = end["sum_received"]["bits_per_second"]
    assert rate > 50e6, f"{rate / 1e6:.0f} Mbit/s {direction}: something stalls"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_iperf3_udp(lab, tunnel, iperf3, direction):
    """A busy machine may lose some once, not three times in a row."""
    argv = ["-R"] if direction == "down" else []
    for _ in range(3):
        end = measure(tunnel, lab.world4, "-u", "-b", "20M", "-t", "1", "-l", "1200", *argv)
        total = end["sum"]
        assert total["packets"] > 1000
        if total["lost_percent"] < 5:
            return
    raise AssertionError(f"{total['lost_percent']:.1f} % of 20 Mbit/s lost")


# --- ncat ----------------------------------------------------------------------------------------

def answer_after_fin(sock):
    """What sha256sum would do as a server."""
    digest = hashlib.sha256()
    while data := sock.recv(1 << 16):
        digest.update(data)
    sock.sendall(digest.hexdigest().encode())


@pytest.mark.parametrize("family", [4, 6])
def test_ncat_half_close(lab, tunnel, family):
    """ncat sends its input and FIN, then waits for the server, which answers only after that."""
    server = lab.serve(TcpServer(lab.world, answer_after_fin))
    question = random.Random(family).randbytes(5_000_000)
    host = lab.world4 if family == 4 else lab.world6
    done = tunnel.app.run("ncat", host, server.port, input=question, text=False, check=True)
    assert done.stdout.decode() == hashlib.sha256(question).hexdigest()


def test_ncat_server_closes_first(lab, tunnel):
    """The server sends and ends; the client sees all of it and its end."""
    server = lab.world.popen("ncat", "-l", 9401, "--send-only", "-c", "seq 200000",
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: lab.world.listening(9401), "ncat listens")
    out = tunnel.app.run("ncat", "--recv-only", lab.world4, 9401, check=True).stdout
    assert out.splitlines()[-1] == "200000" and out.count("\n") == 200000
    server.wait(5)


# --- ssh -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sshd(lab, folder):
    make_keys(folder)
    return lab.serve(start_sshd(lab.world, folder, 22))


def test_ssh_session(lab, tunnel, folder, sshd):
    """Commands with input, output, status; a session that idles between keystrokes."""
    for host in ("v4.test", "v6.test"):
        login = [*ssh_command(folder, 22), f"root@{host}"]
        done = tunnel.app.run(*login, "cat; echo seen; exit 7", input="typed\n")
        assert (done.stdout, done.returncode) == ("typed\nseen\n", 7), done.stderr
    blob = os.urandom(10_000_000)
    done = tunnel.app.run(*login, "cat", input=blob, text=False)
    assert done.stdout == blob
    done = tunnel.app.run(*login, "for i in 1 2 3; do echo $i; sleep 1; done")
    assert done.stdout == "1\n2\n3\n"


def test_ssh_terminal_session(lab, tunnel, folder, sshd):
    """An interactive shell on a terminal of the server's."""
    done = tunnel.app.run(*ssh_command(folder, 22), "-tt", "root@v4.test", "/bin/sh",
                          input="stty size; test -t 0 && echo terminal; exit 3\n")
    assert "terminal" in done.stdout and done.returncode == 3, done.stdout + done.stderr


# --- dig -----------------------------------------------------------------------------------------

def test_dig_and_getent(lab, tunnel):
    """Names resolve for tools that speak DNS and for those that ask libc."""
    app = tunnel.app
    addresses = app.run("dig", "+short", "+time=2", "+tries=1", "www.test", check=True).stdout
    assert addresses.strip(), "no address for www.test"
    by_tcp = app.run("dig", "+short", "+tcp", "+time=2", "+tries=1", "www.test", check=True).stdout
    assert by_tcp == addresses
    assert app.run("getent", "ahosts", "www.test").returncode == 0
