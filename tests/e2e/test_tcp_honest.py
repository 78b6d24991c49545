"""The honest handshake: connect() succeeds when the proxy has connected, and fails as it did.

What the application sees for each answer of the proxy stands in the issue: 5 is a reset; 3, 4 and
6 are unreachable messages; 2 is "administratively prohibited"; all else is a reset. None of it may
take the application's patience: it fails at once.
"""

import errno
import os
import socket
import threading
import time

import pytest

from lab import wait_for
from netns import reset
from rude import Rude
from servers import TcpServer

AT_ONCE = 1.0  # seconds; a SYN repeated because an answer was lost comes after 1 s
REFUSED, NET, HOST, ACCESS = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH,
                              errno.EACCES)
# reply code: (errno seen by an IPv4 application, by an IPv6 one)
ERRNO_OF_REPLY = {
    1: (REFUSED, REFUSED),  # general failure: RST
    2: (HOST, ACCESS),  # not allowed by ruleset: ICMP 3/13, ICMPv6 1/1
    3: (NET, NET),  # network unreachable: ICMP 3/0, ICMPv6 1/0
    4: (HOST, HOST),  # host unreachable: ICMP 3/1, ICMPv6 1/3
    5: (REFUSED, REFUSED),  # connection refused: RST
    6: (HOST, HOST),  # TTL expired: host unreachable
    7: (REFUSED, REFUSED),  # command not supported: RST
    8: (REFUSED, REFUSED),  # address type not supported: RST
    9: (REFUSED, REFUSED),  # unassigned: RST
    255: (REFUSED, REFUSED),
}


def missed_error(sock):
    """The error of a socket that was told that it is connected; 0 where that is true.

    Linux queues an ICMP error, which wakes the application, before it sets SO_ERROR (tcp_v4_err(),
    ip_icmp_error()). Who looks in between, one in some hundreds on a busy machine, finds no error
    and takes the socket for connected. Nobody but the kernel can mend that.
    """
    syn_sent, close = 2, 7
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in (syn_sent, close):
        return 0
    return wait_for(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "SO_ERROR", 1)


def attempt(app, host, port=80, timeout=15.0):
    """connect(); returns its errno (0: connected) and how long it took."""
    begin = time.monotonic()
    try:
        with app.connect(host, port, timeout) as sock:
            number = missed_error(sock)
    except TimeoutError:
        number = errno.ETIMEDOUT
    except OSError as error:
        number = error.errno
    return number, time.monotonic() - begin


def assert_fails(app, host, expected, port=80, within=AT_ONCE):
    number, seconds = attempt(app, host, port)
    assert number == expected, (
        f"connect() to {host}: {errno.errorcode.get(number, 'connected')} instead of "
        f"{errno.errorcode[expected]}")
    assert seconds < within, f"connect() failed only after {seconds:.2f} s"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("code", ERRNO_OF_REPLY)
def test_reply_code_decides_errno(lab, rude, rude_tunnel, code, family):
    rude.reply = code
    host = lab.world4 if family == 4 else lab.world6
    assert_fails(rude_tunnel.app, host, ERRNO_OF_REPLY[code][family == 6])
    assert rude.requests[0] == (1, host, 80), "the proxy was asked for something else"


@pytest.mark.parametrize("bound", ["ipv4", "ipv6", "domain"])
def test_reply_s_address_form_does_not_matter(lab, rude, rude_tunnel, bound):
    rude.bound = bound
    sock = rude_tunnel.app.connect(lab.world4, 7)
    sock.sendall(b"x")
    assert sock.recv(10) == b"x"
    rude.reply = 4
    assert_fails(rude_tunnel.app, lab.world4, HOST)


def misbehaviours():
    """name: what the proxy does instead of a proper answer. Each is a reset to the application."""
    return {
        "closes at once": {"cut": {"greeting": 0}},
        "closes within the greeting's answer": {"cut": {"greeting": 1}},
        "closes without a reply": {"cut": {"request": 0}},
        "closes within the reply": {"cut": {"request": 5}},
        "resets without a reply": {"cut": {"request": 0}, "reset": True},
        "accepts no method": {"method": 0xFF},
        "chooses a method not offered": {"method": 0x80},
        "wants a password": {"method": 2},
        "talks HTTP": {"noise": {"greeting": b"HTTP/1.1 400 Bad Request\r\n\r\n"}},
        "talks SOCKS4": {"noise": {"greeting": b"\0\x5a\0\0\0\0\0\0"}},
        "replies with noise": {"noise": {"request": bytes(range(200, 256))}},
        "replies with version 4": {"noise": {"request": b"\4\0\0\1\0\0\0\0\0\0"}},
        "replies with an unknown address type": {"noise": {"request": b"\5\0\0\2" + b"\0" * 20}},
        "replies with an empty name and closes": {"noise": {"request": b"\5\0\0\3\0"}},
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", misbehaviours())
def test_misbehaving_proxy_is_a_refusal(lab, rude, rude_tunnel, name, family):
    for key, value in misbehaviours()[name].items():
        setattr(rude, key, value)
    assert_fails(rude_tunnel.app, lab.world4 if family == 4 else lab.world6, REFUSED)


def test_rejected_credentials_are_a_refusal(lab, rude):
    rude.auth = ("alice", "right")
    with lab.tunnel(f"socks5://alice:hunter3y@{rude.host}:{rude.port}") as tunnel:
        assert_fails(tunnel.app, lab.world4, REFUSED)
        wait_for(lambda: rude.credentials == [("alice", "hunter3y")] * len(rude.credentials)
                 and rude.credentials, "credentials reach the proxy")
        assert "hunter3y" not in tunnel.log


def test_deaf_proxy_s_no_is_heard(lab, rude):
    """The plain handshake that follows a trial of pipelining fails: that is the answer."""
    for behaviour in ({"auth": ("alice", "other")}, {"cut": {"request": 0}}, {"reply": 5}):
        rude.tame()
        rude.auth, rude.deaf = ("alice", "secret"), True
        for key, value in behaviour.items():
            setattr(rude, key, value)
        with lab.tunnel(f"socks5://alice:secret@{rude.host}:{rude.port}") as tunnel:
            assert_fails(tunnel.app, lab.world4, REFUSED, within=AT_ONCE + 1)


def test_credentials_are_decoded_and_sent(lab, rude):
    rude.auth = ("al:ice", "p@ss/wörd")
    with lab.tunnel(f"socks5://al%3Aice:p%40ss%2Fw%C3%B6rd@{rude.host}:{rude.port}") as tunnel:
        sock = tunnel.app.connect(lab.world4, 7)
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
        assert set(rude.credentials) == {rude.auth}
        assert "wörd" not in tunnel.log


def test_proxy_that_is_down_is_a_refusal(lab):
    with lab.tunnel(f"socks5://{lab.proxy4}:9") as tunnel:
        for host in (lab.world4, lab.world6):
            assert_fails(tunnel.app, host, REFUSED)


def test_failures_are_always_fast(lab, rude, rude_tunnel):
    """An ICMP error that comes while connect() still holds the socket is lost: it must not be."""
    slowest = 0
    for code, expected in ((3, NET), (4, HOST), (5, REFUSED)):
        rude.reply = code
        for host in (lab.world4, lab.world6) * 150:
            number, seconds = attempt(rude_tunnel.app, host)
            assert number == expected, f"reply {code}: {errno.errorcode.get(number, 'connected')}"
            slowest = max(slowest, seconds)
    assert slowest < AT_ONCE, f"one connect() of 900 took {slowest:.2f} s to fail"


@pytest.mark.parametrize("host, protocol, kind", [("world4", 0x0800, (9, 1, 3)),
                                                  ("world6", 0x86DD, (6, 58, 1))])
def test_unreachable_is_said_again(lab, rude, rude_tunnel, host, protocol, kind):
    """... which takes saying it more than once: whether the first was heard cannot be known."""
    rude.reply = 4
    at, next_header, message = kind
    with rude_tunnel.app.inside():
        watch = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
    with watch:
        watch.bind((rude_tunnel.device, protocol))
        watch.settimeout(0.5)
        assert_fails(rude_tunnel.app, getattr(lab, host), HOST)
        said = 0
        try:
            while said < 2:
                packet = watch.recv(2000)
                header_len = 20 if protocol == 0x0800 else 40
                said += packet[at] == next_header and packet[header_len] == message
        except TimeoutError:
            pass
        assert said == 2, f"host unreachable was said {said} time(s)"


def test_connect_waits_for_the_proxy(lab, rude, rude_tunnel):
    """Longer than the SYN's first repetition, which must not become a second CONNECT."""
    rude.delay = {"request": 1.5}
    begin = time.monotonic()
    sock = rude_tunnel.app.connect(lab.world4, 7)
    seconds = time.monotonic() - begin
    assert seconds >= 1.5, f"connected after {seconds:.2f} s, before the proxy had answered"
    assert seconds < 3.0, f"connected {seconds - 1.5:.2f} s after the proxy's answer"
    sock.sendall(b"late but true")
    assert sock.recv(100) == b"late but true"
    assert rude.requests == [(1, lab.world4, 7)]


@pytest.mark.parametrize("step", ["accept", "greeting", "request"])
def test_refusal_waits_for_the_proxy(lab, rude, rude_tunnel, step):
    rude.delay, rude.reply = {step: 0.7}, 5
    number, seconds = attempt(rude_tunnel.app, lab.world4)
    assert number == REFUSED
    assert 0.7 <= seconds < 0.7 + AT_ONCE


def test_answer_may_come_byte_by_byte(lab, rude, rude_tunnel):
    rude.drip = 0.02
    sock = rude_tunnel.app.connect(lab.world4, 7)
    sock.sendall(b"drop by drop")
    assert sock.recv(100) == b"drop by drop"
    rude.reply = 3
    assert_fails(rude_tunnel.app, lab.world4, NET, within=AT_ONCE + 0.5)


def test_black_hole_ends_by_connect_timeout(lab, rude):
    rude.mute = {"request"}
    with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--connect-timeout", "2") as tunnel:
        number, seconds = attempt(tunnel.app, lab.world4)
        assert number in (REFUSED, HOST, NET, errno.ETIMEDOUT), errno.errorcode.get(number)
        assert 1.5 < seconds < 4, f"--connect-timeout 2 ended the attempt after {seconds:.2f} s"
        tunnel.settle()
        wait_for(lambda: rude.open_connections() == 0, "the proxy's connection is given up")


def give_up_while_held(app, host, count):
    """Start connects that nobody waits for."""
    for _ in range(count):
        with app.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((host, 7)) == errno.EINPROGRESS
            time.sleep(0.01)


@pytest.mark.parametrize("reply", [0, 5])
def test_application_that_gives_up_leaves_nothing(lab, rude, reply):
    """Its SYN is held, it closes; the proxy's late yes (or no) must end in nothing at all."""
    rude.delay, rude.reply = {"request": 0.6}, reply
    # A trial of pipelining would be hedged by a connection more than there are attempts.
    with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--no-pipeline") as tunnel:
        give_up_while_held(tunnel.app, lab.world4, 20)
        wait_for(lambda: len(rude.requests) == 20, "20 CONNECT requests at the proxy")
        wait_for(lambda: len(rude.closed) == 20, "the proxy's late answers are closed")
        wait_for(lambda: rude.open_connections() == 0, "no connection is left")
        tunnel.settle()


def test_reset_while_held(lab, rude, rude_tunnel):
    """A reset for a held SYN ends the attempt; the same port works again at once."""
    rude.delay = {"request": 0.5}
    app = rude_tunnel.app
    sock = app.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", 44444))
    sock.setblocking(False)
    sock.connect_ex((lab.world4, 7))
    time.sleep(0.1)
    sock.close()
    again = app.socket(socket.AF_INET, socket.SOCK_STREAM)
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    again.bind(("0.0.0.0", 44444))
    again.settimeout(10)
    again.connect((lab.world4, 7))
    again.sendall(b"again")
    assert again.recv(10) == b"again"


def test_four_tuple_can_be_reused(lab, rude_tunnel, rude):
    """A client that reuses its port within 2 MSL of its own close is served (TIME-WAIT reuse)."""
    for turn in range(3):
        sock = rude_tunnel.app.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 44445))
        sock.settimeout(5)
        sock.connect((lab.world4, 7))
        sock.sendall(b"turn")
        assert sock.recv(10) == b"turn", f"turn {turn}"
        reset(sock)
    closer = lab.serve(TcpServer(lab.world, lambda sock: sock.sendall(b"bye")))
    for turn in range(3):  # closed by the other side first: TIME-WAIT is culvert's
        sock = rude_tunnel.app.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 44446))
        sock.settimeout(5)
        sock.connect((lab.world4, closer.port))
        assert sock.recv(10) == b"bye", f"turn {turn}"
        assert sock.recv(10) == b""
        sock.close()
        time.sleep(0.1)


def test_pipelining_falls_back(lab, rude):
    """A proxy that throws away what came with the greeting is served without pipelining."""
    rude.deaf = True
    with lab.tunnel(f"socks5://{rude.host}:{rude.port}", "--connect-timeout", "4") as tunnel:
        wait_for(lambda: _echoes(tunnel, lab), "a flow through a proxy that is deaf to pipelining",
                 timeout=20)
        begin = time.monotonic()
        assert _echoes(tunnel, lab), "what was learned is forgotten"
        assert time.monotonic() - begin < AT_ONCE, "each flow tries pipelining anew"


def _echoes(tunnel, lab):
    try:
        with tunnel.app.connect(lab.world4, 7, timeout=15) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b"x"
    except OSError:
        return False


def test_pipelining_can_be_chosen(lab, rude):
    """On, greeting and request are one write once the proxy's ways are known; off, never."""
    url = f"socks5://{rude.host}:{rude.port}"
    for option, pipelined in (("on", True), ("off", False)):
        rude.tame()
        with lab.tunnel(url, "--pipeline", option) as tunnel:
            for _ in range(4):
                assert _echoes(tunnel, lab)
            greeting_alone = 3  # version, one method
            later = rude.first_reads[1:]
            if pipelined:
                assert min(later) > greeting_alone, f"first reads of {later} bytes at the proxy"
            else:
                assert max(rude.first_reads) <= greeting_alone + 1


def scan(app, host, ports):
    """nmap's connect scan: {port: state}."""
    family = ["-6"] if ":" in host else []
    out = app.run("nmap", "-sT", "-Pn", "-n", "--max-retries", "1", *family, "-p",
                  ",".join(map(str, ports)), "-oG", "-", host, check=True, timeout=40).stdout
    states = out.partition("Ports: ")[2].partition("\t")[0]
    return {int(field.split("/")[0]): field.split("/")[1] for field in states.split(", ") if field}


@pytest.mark.parametrize("family", [4, 6])
def test_port_scan_is_truthful(lab, tunnel, family):
    host = lab.world4 if family == 4 else lab.world6
    closed = [1, 22, 80, 443, 8080, 9999]
    states = scan(tunnel.app, host, [7, 53, *closed])
    truth = {port: "closed" for port in closed} | {7: "open"}
    truth[53] = "open"  # DNS over TCP is answered by culvert itself
    assert states == truth


def test_port_scan_of_unreachable_hosts_shows_no_open_port(lab, tunnel):
    for host in (lab.dead4, lab.lost4, lab.dead6, lab.lost6):
        states = scan(tunnel.app, host, [7, 80, 443])
        assert "open" not in states.values(), f"{host}: {states}"


@pytest.mark.parametrize("where, expected", [("dead", HOST), ("lost", NET)])
@pytest.mark.parametrize("family", [4, 6])
def test_real_failures_through_culvert_serve(lab, tunnel, where, expected, family):
    """The errno of the proxy's own connect() arrives unchanged."""
    assert_fails(tunnel.app, getattr(lab, f"{where}{family}"), expected)


def test_many_held_handshakes_at_once(lab, rude, rude_tunnel):
    """500 wait together; each is answered."""
    rude.delay = {"request": 0.5}
    outcomes = []

    def one():
        outcomes.append(attempt(rude_tunnel.app, lab.world4, 7)[0])

    threads = [threading.Thread(target=one) for _ in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [0] * 500, f"{sum(map(bool, outcomes))} of 500 failed, with " \
        f"{ {os.strerror(number) for number in outcomes if number} }"


def test_last_port_is_a_port_like_others(lab, rude, rude_tunnel):
    rude.reply = 5
    assert_fails(rude_tunnel.app, lab.world4, REFUSED, port=65535)
    assert rude.requests[0] == (1, lab.world4, 65535)


def test_proxy_on_ipv6(lab):
    with Rude(lab.mid, lab.proxy6) as rude:
        with lab.tunnel(f"socks5://[{rude.host}]:{rude.port}") as tunnel:
            assert _echoes(tunnel, lab)
            assert rude.requests == [(1, lab.world4, 7)]
