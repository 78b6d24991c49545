"""--dns tcp: every query goes over few pipelined TCP connections through the proxy."""

import contextlib
import pathlib
import secrets
import subprocess
import threading
import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest

import lab as laboratory
from lab import wait_for
from resolver import RESOLVER, Resolver, ask, frame, read_frame, seconds, values
from rude import CONNECT

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="what the proxy sees is the point of it")


@pytest.fixture(scope="module")
def _server(lab):
    yield lab.serve(Resolver(lab.world, lab.world_v4(11)))


@pytest.fixture
def server(_server):
    """The DNS server, well-behaved and ignorant at first, and not connected."""
    _server.tame()
    yield _server
    _server.tame()


@pytest.fixture(scope="module")
def tunnel(lab, _rude, _server):
    yield lab.tunnel(f"socks5://{_rude.host}:{_rude.port}", "--dns", "tcp",
                     "--dns-server", _server.host)


def unique():
    return f"n{secrets.token_hex(6)}.test"


def txt(server, count=1, size=20):
    """A name of its own in the zone, with TXT records."""
    name = unique()
    server.zone[name] = {"TXT": [f'"{i:03}{"x" * size}"' for i in range(count)]}
    return name


def test_everything_is_asked_of_the_server(tunnel, server, rude):
    server.zone["real.test"] = {"A": ["10.88.0.2"], "AAAA": ["fd88::2"], "HTTPS": ["1 ."],
                                "TXT": ['"words"']}
    server.zone["2.0.18.198.in-addr.arpa"] = {"PTR": ["real.test."]}
    for kind, expected in (("A", "10.88.0.2"), ("AAAA", "fd88::2"), ("TXT", '"words"')):
        assert values(ask(tunnel.app, "real.test", kind)) == [expected]
        assert values(ask(tunnel.app, "ReaL.TesT.", kind, tcp=True)) == [expected]
    assert values(ask(tunnel.app, "2.0.18.198.in-addr.arpa", "PTR")) == ["real.test."]
    assert len(values(ask(tunnel.app, "real.test", "HTTPS"))) == 1
    assert ask(tunnel.app, unique()).rcode() == dns.rcode.NXDOMAIN
    assert server.datagrams() == []
    assert all(request == (CONNECT, server.host, 53) for request in rude.requests)


def test_a_flow_to_an_address_of_the_fake_range_is_like_any_other(lab, tunnel, rude):
    """In this mode there are no fake addresses: it is for the proxy to refuse."""
    with pytest.raises(OSError):
        tunnel.app.connect("198.19.3.3", 81, timeout=5)
    assert (CONNECT, "198.19.3.3", 81) in rude.requests


def test_few_pipelined_connections(tunnel, server):
    """500 questions, 200 of them at once, asked by many sockets."""
    names = [txt(server) for _ in range(500)]
    failures = []

    def client(mine):
        for name in mine:
            try:
                if len(values(ask(tunnel.app, name, "TXT"))) != 1:
                    failures.append(name)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=client, args=(names[i::20],)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    assert len({number for number, _ in server.queries}) <= 2
    assert sorted(server.names()) == sorted(names)


def test_queries_do_not_wait_for_one_another(tunnel, server):
    """Out of order: the answers to all but the first come while the first is thought about."""
    slow = txt(server)
    held = []

    def behave(resolver, _number, query):
        out = frame(resolver.answer(query).to_wire())
        if query.question[0].name.to_text().rstrip(".") == slow:
            held.append(out)
            return None
        if len(resolver.queries) >= 6 and held:
            return out + held.pop()
        return out

    server.behave = behave
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(tunnel.app, slow, "TXT")))
    thread.start()
    wait_for(lambda: held, "the slow one has arrived")
    for _ in range(5):
        assert ask(tunnel.app, txt(server), "TXT").rcode() == dns.rcode.NOERROR
    thread.join()
    assert values(answers[0])
    assert len({number for number, _ in server.queries}) == 1


def test_ids_are_rewritten_at_random(tunnel, server):
    ids = []
    for _ in range(60):
        query = dns.message.make_query(txt(server), "TXT")
        query.id = 7
        with tunnel.app.udp() as sock:
            sock.sendto(query.to_wire(), (RESOLVER, 53))
            assert dns.message.from_wire(sock.recv(4096)).id == 7
    ids = [query.id for _, query in server.queries]
    assert len(set(ids)) > 50, "ids repeat"
    steps = {(b - a) % 65536 for a, b in zip(ids, ids[1:])}
    assert len(steps) > 50, f"ids follow one another: {ids[:5]}"


def test_an_answer_to_another_question_is_not_believed(tunnel, server):
    def behave(resolver, _number, query):
        forged = resolver.answer(query)
        forged.question[0].name = dns.name.from_text("other.test")
        forged.answer.clear()
        forged.set_rcode(dns.rcode.NOERROR)
        return frame(forged.to_wire())

    server.behave = behave
    assert ask(tunnel.app, txt(server), "TXT", timeout=12).rcode() == dns.rcode.SERVFAIL
    server.behave = None
    assert values(ask(tunnel.app, txt(server), "TXT"))


def test_answers_with_a_wrong_id_are_ignored(tunnel, server):
    def behave(resolver, _number, query):
        right = resolver.answer(query)
        wrong = resolver.answer(query)
        wrong.id ^= 0x5555
        wrong.answer.clear()
        return frame(wrong.to_wire()) * 20 + frame(right.to_wire())

    server.behave = behave
    assert values(ask(tunnel.app, txt(server), "TXT"))


@pytest.mark.parametrize("garbage", [b"\x00\x01x", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000,
                                     b"\x00\x00" * 100, secrets.token_bytes(70000)],
                         ids=["short", "http", "empty", "random"])
def test_garbage_is_answered_with_servfail(tunnel, server, garbage):
    server.behave = lambda *_: garbage
    assert ask(tunnel.app, txt(server), "TXT", timeout=15).rcode() == dns.rcode.SERVFAIL
    server.behave = None
    assert values(ask(tunnel.app, txt(server), "TXT", timeout=15))


# --- time-outs and failures ----------------------------------------------------------------------

def test_a_silent_connection_is_left_for_a_fresh_one(tunnel, server):
    silent = []

    def behave(resolver, number, query):
        if not silent or number == silent[0]:
            silent[:1] = [number]
            return None
        return frame(resolver.answer(query).to_wire())

    server.behave = behave
    took = seconds(lambda: values(ask(tunnel.app, txt(server), "TXT", timeout=9)))
    assert 4 < took < 7, f"answered after {took:.1f} s"
    assert len({number for number, _ in server.queries}) == 2
    took = seconds(lambda: values(ask(tunnel.app, txt(server), "TXT")))
    assert took < 1, "the fresh connection serves those that follow"


def test_a_silent_server_is_servfail(tunnel, server):
    server.behave = lambda *_: None
    answers = []
    took = seconds(lambda: answers.append(ask(tunnel.app, txt(server), "TXT", timeout=15)))
    assert answers[0].rcode() == dns.rcode.SERVFAIL
    assert took < 12
    assert len(server.queries) == 2, "asked twice, no more"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_that_breaks_is_replaced(tunnel, server, how):
    broken = []

    def behave(resolver, number, query):
        if not broken:
            broken.append(number)
            return how
        return frame(resolver.answer(query).to_wire())

    server.behave = behave
    assert values(ask(tunnel.app, txt(server), "TXT"))
    server.behave = lambda *_: how
    took = seconds(lambda: broken.append(ask(tunnel.app, txt(server), "TXT")))
    assert broken[-1].rcode() == dns.rcode.SERVFAIL
    assert took < 2


def test_a_server_that_closes_after_each_answer(tunnel, server):
    """Some do (RFC 7766 is young); 30 questions at once all the same."""
    done = []

    def behave(resolver, number, query):
        if number in done:
            return "close"
        done.append(number)
        return frame(resolver.answer(query).to_wire())

    server.behave = behave
    names = [txt(server) for _ in range(30)]
    answers = []
    threads = [threading.Thread(
        target=lambda name=name: answers.append(ask(tunnel.app, name, "TXT", timeout=12)))
        for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 30
    assert all(values(answer) for answer in answers)


def test_a_proxy_that_refuses_is_servfail_at_once(lab, server, rude, _rude):
    with lab.tunnel(f"socks5://{_rude.host}:{_rude.port}", "--dns", "tcp",
                    "--dns-server", server.host) as tunnel:
        rude.reply = 5
        answers = []
        took = seconds(lambda: answers.append(ask(tunnel.app, unique(), "TXT")))
        assert answers[0].rcode() == dns.rcode.SERVFAIL
        assert took < 1
        rude.reply = 0
        assert values(ask(tunnel.app, txt(server), "TXT"))


def test_a_proxy_that_vanishes_and_returns(lab, server):
    proxy = lab.culvert_serve()
    with lab.tunnel(proxy.url, "--dns", "tcp", "--dns-server", server.host) as tunnel:
        assert values(ask(tunnel.app, txt(server), "TXT"))
        proxy.stop()
        assert ask(tunnel.app, unique(), "TXT").rcode() == dns.rcode.SERVFAIL
        lab.culvert_serve(port=proxy.port)
        assert values(ask(tunnel.app, txt(server), "TXT"))


# --- the cache -----------------------------------------------------------------------------------

def test_answers_are_cached_by_their_ttl(tunnel, server):
    server.ttl = 3
    name = txt(server)
    first = ask(tunnel.app, name, "TXT")
    assert first.answer[0].ttl == 3
    time.sleep(1.3)
    second = ask(tunnel.app, name.upper(), "TXT", tcp=True)
    assert values(second) == values(first)
    assert second.answer[0].ttl in (1, 2), "the TTL has not aged"
    assert len(server.queries) == 1
    time.sleep(2.2)
    assert ask(tunnel.app, name, "TXT").answer[0].ttl == 3
    assert len(server.queries) == 2


def test_a_ttl_of_zero_is_not_cached(tunnel, server):
    server.ttl = 0
    name = txt(server)
    for _ in range(3):
        assert values(ask(tunnel.app, name, "TXT"))
    assert len(server.queries) == 3


def test_negative_answers_are_cached_as_their_soa_says(tunnel, server):
    server.soa = 2
    server.zone["exists.test"] = {}
    missing = unique()
    for _ in range(3):
        assert ask(tunnel.app, missing).rcode() == dns.rcode.NXDOMAIN
        answer = ask(tunnel.app, "exists.test", "TXT")
        assert answer.rcode() == dns.rcode.NOERROR and not answer.answer
    assert len(server.queries) == 2
    time.sleep(2.2)
    ask(tunnel.app, missing)
    assert len(server.queries) == 3
    server.soa = None  # nothing says for how long
    other = unique()
    for _ in range(2):
        assert ask(tunnel.app, other).rcode() == dns.rcode.NXDOMAIN
    assert server.names().count(other) == 2


def test_failures_are_not_cached(tunnel, server):
    def behave(resolver, _number, query):
        answer = resolver.answer(query)
        answer.answer.clear()
        answer.set_rcode(dns.rcode.SERVFAIL)
        return frame(answer.to_wire())

    server.behave = behave
    name = txt(server)
    assert ask(tunnel.app, name, "TXT").rcode() == dns.rcode.SERVFAIL
    server.behave = None
    assert values(ask(tunnel.app, name, "TXT"))


def test_identical_questions_share_an_answer(tunnel, server):
    name = txt(server)

    def behave(resolver, _number, query):
        time.sleep(0.5)
        return frame(resolver.answer(query).to_wire())

    server.behave = behave
    socks = [tunnel.app.udp() for _ in range(50)]
    for sock in socks:
        sock.sendto(dns.message.make_query(name, "TXT").to_wire(), (RESOLVER, 53))
    for sock in socks:
        assert values(dns.message.from_wire(sock.recv(4096)))
        sock.close()
    assert len(server.queries) == 1


# --- sizes ---------------------------------------------------------------------------------------

def test_what_does_not_fit_is_truncated(tunnel, server):
    name = txt(server, count=20, size=100)  # about 2,400 bytes
    whole = ask(tunnel.app, name, "TXT", tcp=True)
    assert len(values(whole)) == 20 and not whole.flags & dns.flags.TC
    for options in ({}, {"use_edns": 0, "payload": 1232}):
        cut = ask(tunnel.app, name, "TXT", **options)
        assert cut.flags & dns.flags.TC
        assert len(cut.to_wire()) <= options.get("payload", 512)
    fits = ask(tunnel.app, name, "TXT", use_edns=0, payload=4096)
    assert len(values(fits)) == 20 and not fits.flags & dns.flags.TC
    done = tunnel.app.run("dig", f"@{RESOLVER}", "+bufsize=512", "TXT", name)
    assert "retrying in TCP" in done.stdout and "ANSWER: 20" in done.stdout, done.stdout


def test_an_answer_of_60_kb(tunnel, server):
    name = txt(server, count=300, size=190)
    answer = ask(tunnel.app, name, "TXT", tcp=True)
    assert len(values(answer)) == 300
    fits = ask(tunnel.app, name, "TXT", use_edns=0, payload=65000)  # fragmented on its way
    assert len(values(fits)) == 300


def test_many_large_answers_on_one_connection(tunnel, server):
    """What waits for a client that reads slowly comes in the end, in order and whole."""
    name = txt(server, count=200, size=190)
    ask(tunnel.app, name, "TXT", tcp=True)
    queries = [dns.message.make_query(name, "TXT") for _ in range(60)]
    with tunnel.app.connect(RESOLVER, 53, timeout=20) as sock:
        sock.sendall(b"".join(frame(query.to_wire()) for query in queries))
        time.sleep(1)
        for query in queries:
            answer = dns.message.from_wire(read_frame(sock))
            assert answer.id == query.id
            assert len(values(answer)) == 200


def test_dnssec_ok_is_passed_on_and_kept_apart(tunnel, server):
    name = txt(server)
    answer = ask(tunnel.app, name, "TXT", use_edns=0, want_dnssec=True)
    assert answer.ednsflags & dns.flags.DO and values(answer)
    plain = ask(tunnel.app, name, "TXT")
    assert plain.edns < 0 and values(plain)
    seen = [bool(query.ednsflags & dns.flags.DO) for _, query in server.queries]
    assert seen == [True, False]


# --- floods --------------------------------------------------------------------------------------

@pytest.mark.deadline(120)
def test_a_flood_of_unique_questions_to_a_silent_server(tunnel, server):
    """30,000 of them: what waits is bounded, the rest is told SERVFAIL, and it passes."""
    server.behave = lambda *_: None
    before = tunnel.resident_mb()
    query = dns.message.make_query("x" * 20 + ".flood.test", "TXT").to_wire()
    at = query.index(b"x" * 20)
    told = 0
    with tunnel.app.udp(timeout=0.0) as sock:
        for i in range(30000):
            try:
                sock.sendto(query[:at] + b"%020d" % i + query[at + 20:], (RESOLVER, 53))
                while True:
                    told += dns.message.from_wire(sock.recv(512)).rcode() == dns.rcode.SERVFAIL
            except BlockingIOError:
                pass
    assert told > 1000, "past the limit there is an answer at once"
    grown = tunnel.resident_mb() - before
    print(f"30,000 open questions: {grown:.1f} MB")
    assert grown < 24
    server.behave = None
    wait_for(lambda: told_again(tunnel.app, server), "it passes", 25)


def told_again(app, server):
    """The flood may still fill the device's queue, which drops a question as it drops the flood's own."""
    with contextlib.suppress(TimeoutError):
        return values(ask(app, txt(server), "TXT", timeout=11))  # culvert gives up after 10 s
    return False


# --- servers that we did not write ---------------------------------------------------------------

@pytest.fixture(scope="module")
def dnsmasq(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dnsmasq")
    config = folder / "dnsmasq.conf"
    address = lab.world_v4(12)
    config.write_text(f"""
no-resolv
no-hosts
no-daemon
user=root
port=53
listen-address={address}
bind-interfaces
pid-file={folder}/pid
local=/test/
host-record=real.test,10.88.0.2,fd88::2
cname=alias.test,real.test
mx-host=mail.test,mx.mail.test,10
txt-record=words.test,"some words"
srv-host=_http._tcp.test,real.test,80
ptr-record=9.9.9.9.in-addr.arpa,nine.test
local-ttl=30
""")
    process = lab.world.popen("dnsmasq", "-C", pathlib.Path(config), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    wait_for(lambda: lab.world.listening(53), "dnsmasq listens")
    yield address
    process.terminate()
    process.wait(5)


@pytest.mark.parametrize("mode", ["tcp", "fake"])
def test_with_dnsmasq(lab, serve, dnsmasq, mode):
    with lab.tunnel(serve.url, "--dns", mode, "--dns-server", dnsmasq) as tunnel:
        app = tunnel.app
        assert values(ask(app, "mail.test", "MX")) == ["10 mx.mail.test."]
        assert values(ask(app, "words.test", "TXT", tcp=True)) == ['"some words"']
        assert values(ask(app, "_http._tcp.test", "SRV")) == ["0 0 80 real.test."]
        assert values(ask(app, "9.9.9.9.in-addr.arpa", "PTR")) == ["nine.test."]
        if mode == "tcp":
            assert values(ask(app, "alias.test")) == ["real.test.", "10.88.0.2"]
            assert values(ask(app, "real.test", "AAAA")) == ["fd88::2"]
            assert ask(app, "none.test").rcode() == dns.rcode.NXDOMAIN
            done = app.run("getent", "ahostsv4", "alias.test", check=True)
            assert "10.88.0.2" in done.stdout
            with app.connect("10.88.0.2", 7) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"


# --- relay ---------------------------------------------------------------------------------------

def test_relay_leaves_dns_to_the_association(lab, serve):
    with lab.tunnel(serve.url, "--dns", "relay") as tunnel:
        before = len(lab.world_dns.queries)
        answer = ask(tunnel.app, "www.test", server=lab.world4)
        assert values(answer) == ["10.88.0.2"]
        assert values(ask(tunnel.app, "www.test", "AAAA", server=lab.world4, tcp=True)) == \
            ["fd88::2"]
        assert [query[0] for query in lab.world_dns.queries[before:]] == ["udp", "tcp"]
