"""The proxy vanishes, returns, moves, has several addresses: flows end, new ones work again."""

import resource
import signal
import time

import pytest

import lab as laboratory
import streams
from downloads import Downloads
from lab import wait_for
from netns import reset, veth
from rude import Rude
from servers import TcpServer

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's proxy")


@pytest.fixture(scope="module")
def stream_server(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream))


def echo_works(tunnel, lab, data=b"alive"):
    try:
        with tunnel.app.connect(lab.world4, 7, timeout=12) as sock:
            sock.sendall(data)
            return sock.recv(100) == data
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_proxy_vanishes_and_returns_under_load(lab, stream_server, how):
    port = 4000 + how
    proxy = lab.culvert_serve(port=port)
    with lab.tunnel(proxy.url) as tunnel:
        load = Downloads(tunnel, lab, stream_server.port)
        udp = tunnel.app.udp(timeout=1)
        for _ in range(3):
            before = load.done
            wait_for(lambda before=before: load.done > before + 20, "downloads work")
            if how == signal.SIGKILL:
                proxy.kill()
            else:
                proxy.stop()
            failed = load.failed
            wait_for(lambda failed=failed: load.failed > failed + 20, "downloads fail at once")
            with pytest.raises(ConnectionRefusedError):
                tunnel.app.connect(lab.world4, 7)
            proxy = lab.culvert_serve(port=port)
            assert wait_for(lambda: echo_works(tunnel, lab), "new flows work again")
            wait_for(lambda: udp_works(udp, lab), "UDP works again")
        load.stop()
        udp.close()
        wait_for(lambda: tunnel.sockets() <= tunnel.idle_sockets + 2,  # an association's two
                 "all flows of the vanished proxies are gone", 10)
        assert len(tunnel.lines) < 300, "a log line for each failure"
    proxy.stop()


def udp_works(sock, lab):
    sock.sendto(b"udp", (lab.world4, 7))
    try:
        return sock.recv(10) == b"udp"
    except TimeoutError:
        return False


def test_open_flows_hear_of_the_proxy_s_end(lab):
    """A proxy that is killed resets its connections: so do the application's flows."""
    proxy = lab.culvert_serve()
    with lab.tunnel(proxy.url) as tunnel:
        socks = [tunnel.app.connect(host, 7) for host in (lab.world4, lab.world6) * 5]
        for sock in socks:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        proxy.kill()
        for sock in socks:
            sock.settimeout(3)
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                pass
            sock.close()
        tunnel.settle()


def test_black_hole_under_load(lab, serve, stream_server):
    """Packets are dropped, without a reset: flows time out as configured, and new ones work later."""
    with lab.tunnel(serve.url, "--connect-timeout", "2", "--tcp-idle-timeout", "5",
                    "--udp-idle-timeout", "5") as tunnel:
        load = Downloads(tunnel, lab, stream_server.port)
        wait_for(lambda: load.done > 20, "downloads work")
        with tunnel.app.connect(lab.world4, 7) as open_flow:
            open_flow.sendall(b"1")
            assert open_flow.recv(1) == b"1"
            tunnel.app.run("nft", "add table inet hole; add chain inet hole in { type filter hook input "
                           "priority 0; iifname up0 drop; }; add chain inet hole out { type filter hook "
                           "output priority 0; oifname up0 drop; }", check=True)
            begin, failed = time.monotonic(), load.failed
            with pytest.raises(OSError):
                tunnel.app.connect(lab.world4, 7)
            assert 1.5 < time.monotonic() - begin < 5, "--connect-timeout 2"
            open_flow.settimeout(15)
            with pytest.raises(ConnectionResetError):
                assert open_flow.recv(1) == b""
                raise ConnectionResetError  # an end is as good
            assert 2 < time.monotonic() - begin < 12, "--tcp-idle-timeout 5"
        wait_for(lambda: load.failed >= failed + 10, "the load's flows have ended, too")
        tunnel.app.run("nft", "delete table inet hole", check=True)
        done = load.done
        wait_for(lambda: load.done > done + 20, "downloads work again")
        load.stop()
        tunnel.settle()


def test_proxy_behind_a_black_hole(lab):
    """Its network swallows everything: new flows time out as configured, then all is well."""
    with Rude(lab.mid, lab.proxy4) as rude:
        with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--connect-timeout", "2") as tunnel:
            assert echo_works(tunnel, lab)
            lab.mid.ip(f"link set {tunnel.app.role} down")
            begin = time.monotonic()
            with pytest.raises(OSError):
                tunnel.app.connect(lab.world4, 7)
            assert time.monotonic() - begin < 5, "--connect-timeout 2 is not what it took"
            lab.mid.ip(f"link set {tunnel.app.role} up")
            wait_for(lambda: echo_works(tunnel, lab), "flows work when the network is back", 20)


# --- the proxy's host name -----------------------------------------------------------------------

def test_proxy_by_name(lab, rude):
    """Resolved by culvert itself, not through its own tunnel, and once for all flows (TTL 60)."""
    lab.mid_dns.queries.clear()
    with lab.tunnel(f"socks5://proxy.test:{rude.port}") as tunnel:
        for _ in range(20):
            assert echo_works(tunnel, lab)
        asked = [kind for _, name, kind in lab.mid_dns.queries if name.rstrip(".") == "proxy.test"]
        assert 1 <= asked.count("A") <= 2, f"20 flows asked for {asked}"  # 2: at the same time


def test_first_address_refuses(lab, rude):
    """Every address is tried: those where nobody listens come first, or in between."""
    lab.mid.ip("addr add 10.77.0.2/32 dev lo")
    lab.mid.ip("addr add 10.77.0.3/32 dev lo")
    space = lab.client()
    for address in ("10.77.0.2", "10.77.0.3"):
        space.ip(f"route add {address} via {space.gateway4}")
    space.ip("-6 route add unreachable fd70::/64")
    lab.mid_dns.zone["many.test"] = ["10.77.0.2", "fd77::1", "10.77.0.3", "fd70::1", rude.host]
    tunnel = lab.tunnel(f"socks5://many.test:{rude.port}", app=space)
    for _ in range(5):
        begin = time.monotonic()
        assert echo_works(tunnel, lab)
        assert time.monotonic() - begin < 2
    with tunnel.app.udp() as sock:
        wait_for(lambda: udp_works(sock, lab), "UDP through the address that works")
    tunnel.stop()
    space.close()


def test_first_address_is_silent(lab, rude):
    """An address that swallows packets costs some time, not the flow."""
    space = lab.client()
    hole = laboratory.Namespace("hole")
    veth(space, "hole0", hole, "h0", ("10.78.0.1/24", "10.78.0.2/24"))
    hole.ip("addr add 10.78.0.3/24 dev h0")
    hole.ip("route add blackhole 10.78.0.1/32")  # what would answer is dropped
    lab.mid_dns.zone["silent.test"] = ["10.78.0.2", "10.78.0.3", rude.host]
    tunnel = lab.tunnel(f"socks5://silent.test:{rude.port}", "--connect-timeout", "9", app=space)
    assert echo_works(tunnel, lab), "the address that answers was never tried"
    begin = time.monotonic()
    assert echo_works(tunnel, lab)
    assert time.monotonic() - begin < 10
    tunnel.stop()
    hole.close()
    space.close()


def test_proxy_moves(lab):
    """Its address changes in DNS: after the TTL new flows go where it is now."""
    lab.mid.ip("addr replace 10.77.0.8/32 dev lo")
    lab.mid_dns.ttl = 1
    with Rude(lab.mid, lab.proxy4, port=6111) as old, Rude(lab.mid, "10.77.0.8", port=6111) as new:
        lab.mid_dns.zone["moves.test"] = [lab.proxy4]
        space = lab.client()
        space.ip(f"route add 10.77.0.8 via {space.gateway4}")
        tunnel = lab.tunnel("socks5://moves.test:6111", app=space)
        assert echo_works(tunnel, lab)
        assert old.requests and not new.requests
        lab.mid_dns.zone["moves.test"] = ["10.77.0.8"]
        time.sleep(1.5)
        wait_for(lambda: echo_works(tunnel, lab) and new.requests, "flows go to its new address")
        tunnel.stop()
        space.close()
    lab.mid_dns.ttl = 60


def test_proxy_moves_under_load(lab, stream_server):
    """Killed where it was, it serves from another address, which its name tells."""
    lab.mid.ip("addr replace 10.77.0.9/32 dev lo")
    lab.mid_dns.ttl = 1
    old = lab.culvert_serve(port=6112)
    new = lab.culvert_serve(port=6112, host="10.77.0.9")
    lab.mid_dns.zone["moves.test"] = [lab.proxy4]
    space = lab.client()
    space.ip(f"route add 10.77.0.9 via {space.gateway4}")
    tunnel = lab.tunnel("socks5://moves.test:6112", app=space)
    load = Downloads(tunnel, lab, stream_server.port)
    wait_for(lambda: load.done > 20, "downloads work")
    lab.mid_dns.zone["moves.test"] = ["10.77.0.9"]
    old.kill()
    done = load.done
    wait_for(lambda: load.done > done + 20, "downloads work through its new address")
    load.stop()
    tunnel.settle()
    tunnel.stop()
    space.close()
    new.stop()
    lab.mid_dns.ttl = 60


def test_resolver_that_is_down_for_a_while(lab, rude):
    """The name is cached by its TTL; a resolver's outage after that is a failure, then past."""
    lab.mid_dns.ttl = 1
    with lab.tunnel(f"socks5://proxy.test:{rude.port}", "--connect-timeout", "3") as tunnel:
        assert echo_works(tunnel, lab)
        zone, lab.mid_dns.zone = lab.mid_dns.zone, {}
        time.sleep(1.5)
        echo_works(tunnel, lab)  # with the address known last, or not at all: both are right
        lab.mid_dns.zone = zone
        wait_for(lambda: echo_works(tunnel, lab), "flows work when the name is back", 15)
    lab.mid_dns.ttl = 60


def switches(tunnel):
    """How often something woke its processes."""
    total = 0
    for pid in tunnel.tree():
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file)
        total += int(fields["voluntary_ctxt_switches"])
    return total


def open_and_end_flows(tunnel, lab):
    with tunnel.app.connect(lab.world4, 7) as sock:
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        reset(sock)  # TIME_WAIT would be a flow that ends after a minute
    with pytest.raises(ConnectionRefusedError):
        tunnel.app.connect(lab.world4, 9)
    with tunnel.app.udp() as sock:
        sock.sendto(b"hello", (lab.world4, 7))
        assert sock.recv(10) == b"hello"
    tunnel.settle()


def test_nothing_wakes_it_when_there_are_no_flows(lab, serve):
    """For longer than any timer that dials and flows may have left behind; at the start too."""
    with lab.tunnel(serve.url, "--udp-idle-timeout", "1") as used, lab.tunnel(serve.url) as fresh:
        open_and_end_flows(used, lab)
        time.sleep(2.5)  # what the flows needed is given back
        before = switches(used), switches(fresh)
        time.sleep(12)
        assert (switches(used), switches(fresh)) == before


# --- culvert's own surroundings ------------------------------------------------------------------

def test_device_deleted_under_it(lab, serve):
    """It cannot go on: a clear line and status 1, nothing left."""
    tunnel = lab.tunnel(serve.url)
    tunnel.app.connect(lab.world4, 7).close()
    tunnel.app.ip("link del culvert0")
    tunnel.checked = tunnel.stopped = True  # it ends by itself
    assert tunnel.wait_end(10) == 1
    assert "culvert0" in tunnel.lines[-1], tunnel.log
    tunnel.app.close()


@pytest.mark.deadline(200)
def test_suspended_for_a_minute(suspended):
    """SIGSTOP under load, and SIGCONT a minute later; begun by test_faults.py where that ran."""
    suspended.wait()


def test_ports_run_out(lab, serve):
    """More flows than local ports towards the proxy: the oldest give way at once, and a line."""
    app = lab.client()
    app.sysctl("net.ipv4.ip_local_port_range=20000 20049")
    with lab.tunnel(serve.url, app=app) as tunnel:
        socks = []
        started = time.monotonic()
        for _ in range(80):
            sock = app.connect(lab.world4, 7, timeout=5)
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
            socks.append(sock)
        assert time.monotonic() - started < 10
        assert tunnel.count("every local port towards") >= 1, tunnel.log
        assert len(tunnel.lines) < 20, "a log line for each"
        alive = 0
        for sock in socks:
            try:
                sock.sendall(b"2")
                alive += sock.recv(1) == b"2"
            except OSError:
                pass
        assert 40 <= alive <= 50, alive
        spent = tunnel.cpu_seconds()
        time.sleep(1)
        assert tunnel.cpu_seconds() - spent < 0.2, "it spins without ports"
        for sock in socks:
            reset(sock)
        tunnel.settle()
        for _ in range(60):
            with app.connect(lab.world4, 7, timeout=5) as sock:
                sock.sendall(b"3")
                assert sock.recv(1) == b"3"
                reset(sock)
    app.close()


def test_descriptors_run_out(lab, serve):
    """More flows than descriptors: refusals and a line, no spin, and it recovers."""
    space = lab.client()
    tunnel = lab.tunnel(serve.url, app=space, route=True,
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    socks = []
    for _ in range(60):
        try:
            socks.append(space.connect(lab.world4, 7, timeout=5))
        except OSError:
            pass  # refused, or it gave way
    spent = tunnel.cpu_seconds()
    time.sleep(1)
    assert tunnel.cpu_seconds() - spent < 0.2, "it spins without descriptors"
    assert len(tunnel.lines) < 40, "a log line for each"
    for sock in socks:
        sock.close()
    wait_for(lambda: echo_works(tunnel, lab), "new flows work once others have ended")
    tunnel.stop()
    space.close()
