"""The processes that relay: what dies with one of them, how it is replaced, when that ends."""

import os
import signal
import time

import dns.message
import dns.query
from lab import wait_for


def echo_works(tunnel, lab):
    try:
        with tunnel.app.connect(lab.world4, 7, timeout=3) as sock:
            sock.sendall(b"hello")
            return sock.recv(10) == b"hello"
    except OSError:
        return False


def fake_address(tunnel, name):
    reply = dns.query.udp(dns.message.make_query(name, "A"), "198.18.0.2", timeout=5,
                          sock=tunnel.app.udp())
    return reply.answer[0][0].address


def gone(pid):
    """Has the process ended? A zombie has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_worker_is_replaced(lab, serve):
    """Within a second, with the device and its routes in place."""
    with lab.tunnel(serve.url) as tunnel:
        assert echo_works(tunnel, lab)
        before, = tunnel.workers()
        os.kill(before, signal.SIGKILL)
        started = time.monotonic()
        wait_for(lambda: echo_works(tunnel, lab), "a new worker relays", 3)
        assert time.monotonic() - started < 1
        after, = tunnel.workers()
        assert after != before
        assert "culvert0" in tunnel.app.links()
        assert tunnel.count("was ended by signal 9") == 1, tunnel.log


def test_fake_addresses_outlive_a_worker(lab, serve):
    """Applications keep what they were told."""
    with lab.tunnel(serve.url) as tunnel:
        address = fake_address(tunnel, "v4.test")
        os.kill(tunnel.workers()[0], signal.SIGKILL)
        wait_for(lambda: echo_works(tunnel, lab), "a new worker relays", 3)
        with tunnel.app.connect(address, 7) as sock:
            sock.sendall(b"by its fake address")
            assert sock.recv(30) == b"by its fake address"


def test_workers_that_die_at_once_are_given_up(lab, serve):
    """Five deaths within ten seconds are no accident: a clear line, status 1, all undone."""
    with lab.tunnel(serve.url) as tunnel:
        tunnel.checked = True
        for _ in range(5):
            wait_for(lambda: len(tunnel.workers()) == 1 or tunnel.process.poll() is not None,
                     "there is a worker", 3)
            os.kill(tunnel.workers()[0], signal.SIGKILL)
            time.sleep(0.05)
        assert tunnel.wait_end(5) == 1
        assert tunnel.count("giving up") == 1, tunnel.log
        assert "culvert0" not in tunnel.app.links()


def test_no_worker_outlives_its_supervisor(lab, serve):
    tunnel = lab.tunnel(serve.url)
    pids = tunnel.tree()
    tunnel.kill()
    wait_for(lambda: all(map(gone, pids)), "all processes are gone", 2)
    wait_for(lambda: "culvert0" not in tunnel.app.links(), "the device is gone", 2)
    tunnel.stop()


def test_control_c_reaches_all_and_all_stop_once(lab, serve):
    """A terminal sends SIGINT to the workers too; it is no death to be answered."""
    with lab.tunnel(serve.url, start_new_session=True) as tunnel:
        assert echo_works(tunnel, lab)
        tunnel.checked = True
        os.killpg(tunnel.pid, signal.SIGINT)
        assert tunnel.wait_end(5) == 0
        assert tunnel.count("worker") == 0, tunnel.log
