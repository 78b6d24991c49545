"""`culvert check`: each verdict against a proxy that deserves it, and nothing changed."""

import json
import os
import socket
import time

import pytest

from lab import CULVERT, DIRECT, SANITIZER_ENV, FINDINGS
from netns import Namespace, veth, wait_for
from proxies import start_microsocks, start_ssh_d
from servers import TcpServer
from stun import StunServer

pytestmark = pytest.mark.skipif(DIRECT, reason="what check says of a proxy is the point of it")

STEPS = ["name", "reach", "rtt", "login", "connect-name", "connect-v6", "connect-v4", "dns-tcp",
         "pipelining", "udp-associate", "udp-answer", "udp-filtering", "udp-mapping", "route-loop",
         "tun", "privileges", "rules", "offloads", "rp-filter", "namespaces"]
PROXY_STEPS = STEPS[:13]


@pytest.fixture(scope="module")
def app(lab):
    space = lab.client()
    space.set_resolver(lab.proxy4)
    yield space
    space.close()


@pytest.fixture(scope="module")
def _stun(lab):
    yield lab.serve(StunServer(lab.world, lab.world_v4(3), lab.world_v4(4)))


@pytest.fixture
def stun(_stun):
    _stun.tame()
    return _stun


class Checked:
    """One run of check, and what it said."""

    def __init__(self, done, seconds):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.seconds = seconds
        assert not FINDINGS.search(self.err), self.err
        self.json = json.loads(self.out)
        self.steps = {step["name"]: step for step in self.json["steps"]}
        assert [step["name"] for step in self.json["steps"]] == STEPS
        for step in self.steps.values():
            assert step["verdict"] in ("ok", "warn", "fail", "skipped")
            assert step["detail"], step
            assert step["verdict"] in ("ok", "skipped") or step["remedy"], step
            assert (step["ms"] is None) == (step["verdict"] == "skipped")
        failed = any(step["verdict"] == "fail" for step in self.steps.values())
        assert self.status == (1 if failed else 0), self.out
        assert self.json["up_works"] is not failed

    def verdict(self, name):
        return self.steps[name]["verdict"]

    def verdicts(self, *names):
        return [self.verdict(name) for name in names]

    def says(self, name, text):
        step = self.steps[name]
        return text in step["detail"] or text in (step["remedy"] or "")


def targets(lab):
    return ["--target-host", "www.test:7", "--target-v4", f"{lab.world4}:7",
            "--target-v6", f"[{lab.world6}]:7", "--dns-server", lab.world4,
            "--stun", lab.world_v4(3), "--connect-timeout", "3"]


def run(space, *argv, **kwargs):
    return space.run(CULVERT, "check", *argv, env={**os.environ, **SANITIZER_ENV}, **kwargs)


def check(lab, space, url, *options, **kwargs):
    began = time.monotonic()
    done = run(space, "--json", *targets(lab), *options, url, **kwargs)
    return Checked(done, time.monotonic() - began)


def rude_url(rude):
    return f"socks5://{rude.host}:{rude.port}"


# --- a good proxy ---------------------------------------------------------------------------------


def test_good_proxy(lab, app, serve, stun):
    result = check(lab, app, serve.url)
    assert set(result.verdicts(*STEPS[:-1])) == {"ok"}, result.out
    assert result.status == 0
    assert result.says("reach", f"{serve.host}:{serve.port} in")
    assert result.says("login", "no authentication")
    assert result.says("connect-name", "www.test:7")
    assert result.seconds < 5
    assert result.err == ""


def test_nothing_is_changed(lab, app, serve, stun):
    def state():
        return [app.ip(command) for command in
                ("-o link", "-o addr", "rule", "-6 rule", "route show table all",
                 "-6 route show table all")] + [app.run("sysctl", "net.ipv4", "net.ipv6.conf").stdout]

    before = state()
    run(app, *targets(lab), serve.url)
    assert state() == before


def test_text_has_the_same_steps(lab, app, serve, stun):
    done = run(app, *targets(lab), serve.url)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines()
             if line.startswith(("ok ", "warn ", "fail ", "skipped "))]
    assert len(lines) == len(STEPS), done.stdout
    assert done.stdout.startswith(f"culvert check {serve.url}\n")
    assert done.stdout.splitlines()[-1].startswith("culvert up works")


def test_several_addresses_one_dead(lab, app, serve, stun):
    """proxy.test has an IPv4 and an IPv6 address; the proxy listens on the first alone."""
    result = check(lab, app, f"socks5://proxy.test:{serve.port}")
    assert result.status == 0
    assert result.says("name", "proxy.test is") and result.says("name", lab.proxy6)
    assert result.verdict("reach") == "warn"
    assert result.says("reach", "Connection refused")
    assert result.verdict("login") == "ok"


def test_proxy_over_ipv6(lab, app, stun):
    with lab.culvert_serve(host=lab.proxy6) as proxy:
        result = check(lab, app, proxy.url)
    assert set(result.verdicts(*PROXY_STEPS)) == {"ok"}, result.out


def test_proxy_from_the_environment(lab, app, serve, stun):
    done = app.run(CULVERT, "check", "--json", *targets(lab),
                   env={**os.environ, **SANITIZER_ENV, "ALL_PROXY": serve.url})
    assert json.loads(done.stdout)["proxy"] == serve.url


# --- names and addresses --------------------------------------------------------------------------


def test_name_does_not_resolve(lab, app):
    result = check(lab, app, "socks5://nowhere.test")
    assert result.status == 1
    assert result.verdict("name") == "fail"
    assert set(result.verdicts(*PROXY_STEPS[1:])) == {"skipped"}
    assert result.verdict("tun") == "ok"


def test_no_resolver_answers(lab):
    space = lab.client()
    space.set_resolver("10.99.99.99")
    result = check(lab, space, "socks5://proxy.test", "--connect-timeout", "1")
    space.close()
    assert result.status == 1 and result.verdict("name") == "fail"
    assert result.seconds < 5


def test_name_with_a_fake_address(lab, app):
    lab.mid_dns.zone["faked.test"] = ["198.18.3.4"]
    result = check(lab, app, "socks5://faked.test", "--connect-timeout", "1")
    assert result.verdict("name") == "fail"
    assert result.says("name", "198.18.3.4 lies in the range of fake addresses")


def test_proxy_is_down(lab, app):
    result = check(lab, app, f"socks5://{lab.proxy4}:9")
    assert result.status == 1
    assert result.verdict("reach") == "fail" and result.says("reach", "Connection refused")
    assert result.says("reach", "nothing listens there")
    assert set(result.verdicts(*PROXY_STEPS[2:])) == {"skipped"}


def test_proxy_is_black_holed(lab, app):
    app.ip("route add 10.98.0.1 dev up0")
    app.ip("neigh add 10.98.0.1 lladdr 02:00:00:00:00:01 dev up0")
    result = check(lab, app, "socks5://10.98.0.1", "--connect-timeout", "1")
    assert result.status == 1
    assert result.verdict("reach") == "fail" and result.says("reach", "timed out")
    assert result.seconds < 5


# --- who is let in --------------------------------------------------------------------------------


def test_credentials(lab, app, rude, stun):
    rude.auth = ("us er", "se:cret")
    result = check(lab, app, f"socks5://us%20er:se%3Acret@{rude.host}:{rude.port}")
    assert result.status == 0
    assert result.says("login", "user and password accepted")
    assert result.verdict("pipelining") == "ok"
    assert set(rude.credentials) == {("us er", "se:cret")}


@pytest.mark.parametrize("form", ["--json", "--log-level=trace"])
def test_wrong_credentials_never_shown(lab, app, rude, form):
    rude.auth = ("user", "right")
    url = f"socks5://user:sesame77@{rude.host}:{rude.port}"
    done = run(app, form, *targets(lab), url)
    assert done.returncode == 1
    assert "user or password rejected" in done.stdout
    assert "sesame77" not in done.stdout + done.stderr
    assert f"user@{rude.host}" in done.stdout


def test_credentials_missing(lab, app, rude):
    rude.auth = ("user", "right")
    result = check(lab, app, rude_url(rude))
    assert result.status == 1
    assert result.verdict("login") == "fail" and result.says("login", "wants a user")
    assert set(result.verdicts(*PROXY_STEPS[4:])) == {"skipped"}


def test_credentials_not_wanted(lab, app, rude, stun):
    result = check(lab, app, f"socks5://user:word@{rude.host}:{rude.port}")
    assert result.verdict("login") == "ok" and result.says("login", "not asked for")
    assert result.status == 0
    assert result.verdict("pipelining") == "warn"


def test_not_socks(lab, app):
    def http(connection):
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with TcpServer(lab.mid, http, host=lab.proxy4) as server:
        result = check(lab, app, f"socks5://{lab.proxy4}:{server.port}")
    assert result.status == 1
    assert result.verdict("login") == "fail" and result.says("login", "does not speak SOCKS5")


@pytest.mark.parametrize("step", ["greeting", "request"])
def test_silent_proxy(lab, app, rude, step):
    rude.mute = {step}
    result = check(lab, app, rude_url(rude), "--connect-timeout", "1")
    assert result.status == 1
    assert result.seconds < 12
    assert result.verdict("reach") == "ok"
    if step == "greeting":
        assert result.verdict("login") == "fail" and result.says("login", "says nothing")
        return
    assert result.verdict("login") == "ok"
    assert result.verdicts("connect-name", "connect-v4") == ["fail", "fail"]
    assert result.says("connect-v4", "timed out")


def test_proxy_that_closes(lab, app):
    with TcpServer(lab.mid, lambda connection: connection.recv(1), host=lab.proxy4) as server:
        result = check(lab, app, f"socks5://{lab.proxy4}:{server.port}")
    assert result.verdict("login") == "fail" and result.says("login", "closes")


# --- CONNECT --------------------------------------------------------------------------------------


def test_proxy_without_ipv6(lab, app, serve, stun):
    result = check(lab, app, serve.url, "--target-v6", f"[{lab.dead6}]:7")
    assert result.status == 0
    assert result.verdicts("connect-v6", "connect-v4") == ["warn", "ok"]
    assert result.says("connect-v6", "reply 4")
    assert result.says("connect-v6", "no IPv6")


def test_proxy_without_ipv4(lab, app, serve, stun):
    """One family is enough."""
    result = check(lab, app, serve.url, "--target-v4", f"{lab.dead4}:7")
    assert result.status == 0
    assert result.verdicts("connect-v6", "connect-v4") == ["ok", "warn"]
    result = check(lab, app, serve.url, "--target-v4", f"{lab.dead4}:7",
                   "--target-v6", f"[{lab.dead6}]:7")
    assert result.status == 1
    assert result.verdicts("connect-v6", "connect-v4") == ["warn", "fail"]


def test_proxy_that_resolves_nothing(lab, app, serve, stun):
    """Names are needed for fake addresses only."""
    host = ["--target-host", "nowhere.test:7"]
    result = check(lab, app, serve.url, *host)
    assert result.status == 1 and result.verdict("connect-name") == "fail"
    result = check(lab, app, serve.url, *host, "--dns", "tcp")
    assert result.status == 0 and result.verdict("connect-name") == "warn"


def test_proxy_that_says_yes_too_early(lab, app, rude):
    rude.glue = b"\0"  # says yes to anything ...
    result = check(lab, app, rude_url(rude))
    assert result.verdict("connect-v4") == "ok"
    rude.tame()

    def liar(connection):
        connection.recv(3)
        connection.sendall(b"\5\0")
        connection.recv(10)
        connection.sendall(b"\5\0\0\1\0\0\0\0\0\0")  # ... and ends

    with TcpServer(lab.mid, liar, host=lab.proxy4) as server:
        result = check(lab, app, f"socks5://{lab.proxy4}:{server.port}")
    assert result.status == 1
    assert result.verdict("connect-v4") == "fail" and result.says("connect-v4", "says yes")


def test_dns_over_tcp(lab, app, serve, stun):
    """Needed with --dns tcp, a limit with --dns fake, not used with --dns relay."""
    broken = ["--dns-server", f"{lab.world4}:7"]  # echoes the query, which is no answer
    for mode, verdict, status in (("tcp", "fail", 1), ("fake", "warn", 0), ("relay", "skipped", 1)):
        result = check(lab, app, serve.url, *broken, "--dns", mode, "--connect-timeout", "1")
        assert (result.verdict("dns-tcp"), result.status) == (verdict, status), result.out


# --- pipelining -----------------------------------------------------------------------------------


def test_choking_on_pipelining(lab, app, rude, stun):
    rude.deaf = True
    result = check(lab, app, rude_url(rude))
    assert result.status == 0
    assert result.verdict("pipelining") == "warn" and result.says("pipelining", "chokes")
    assert result.verdict("connect-v4") == "ok"


def test_microsocks(lab, app, tmp_path):
    """It has no UDP, and reads the greeting with one recv()."""
    proxy = start_microsocks(lab, tmp_path, port=1182, credentials="some:body")
    try:
        result = check(lab, app, proxy.url)
    finally:
        proxy.close()
    assert result.status == 0
    assert result.verdicts("login", "connect-name", "connect-v4", "connect-v6") == ["ok"] * 4
    assert result.verdict("pipelining") == "warn"
    assert result.verdict("udp-associate") == "warn"
    assert result.verdicts("udp-answer", "udp-filtering", "udp-mapping") == ["skipped"] * 3


def test_ssh(lab, app, tmp_path):
    """It closes where others send a reply."""
    proxy = start_ssh_d(lab, tmp_path, port=1183)
    try:
        result = check(lab, app, proxy.url, "--target-v6", f"[{lab.dead6}]:7")
    finally:
        proxy.close()
    assert result.status == 0
    assert result.verdicts("login", "connect-name", "connect-v4") == ["ok"] * 3
    assert result.verdict("connect-v6") == "warn" and result.verdict("udp-associate") == "warn"


# --- UDP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refuse", "close", "deny"])
def test_no_udp(lab, app, rude, how):
    rude.udp = how
    result = check(lab, app, rude_url(rude))
    assert result.status == 0
    assert result.verdict("udp-associate") == "warn"
    assert result.verdicts("udp-answer", "udp-filtering", "udp-mapping") == ["skipped"] * 3
    assert check(lab, app, rude_url(rude), "--dns", "relay").status == 1
    blocked = check(lab, app, rude_url(rude), "--udp", "block")
    assert blocked.verdict("udp-associate") == "skipped"
    assert blocked.says("udp-associate", "--udp block")


def test_udp_leads_nowhere(lab, app, rude):
    """UDP ASSOCIATE succeeds, and no datagram comes back."""
    rude.udp_mangle = lambda datagram: []
    result = check(lab, app, rude_url(rude), "--connect-timeout", "1")
    assert result.status == 0
    assert result.verdicts("udp-associate", "udp-answer") == ["ok", "warn"]
    assert result.verdicts("udp-filtering", "udp-mapping") == ["skipped"] * 2
    assert result.seconds < 10


def test_udp_without_dns(lab, app, serve, stun):
    """A proxy whose host may not ask resolvers over UDP relays the rest all the same."""
    result = check(lab, app, serve.url, "--dns-server", lab.dead4, "--connect-timeout", "1")
    assert result.verdicts("udp-associate", "udp-answer") == ["ok", "warn"]
    assert result.verdicts("udp-filtering", "udp-mapping") == ["ok", "ok"]


def test_relay_address_that_names_none(lab, app, rude, stun):
    rude.udp_bound = "any"
    result = check(lab, app, rude_url(rude))
    assert result.verdicts("udp-associate", "udp-answer", "udp-mapping") == ["ok"] * 3


def test_nonsense_for_datagrams(lab, app, rude, stun):
    """What is not the answer is passed over."""
    junk = [b"", b"\0\0\0", b"\0\0\1\1" + bytes(20), bytes(1900), b"\0\0\0\3\xff", bytes(3000)]
    rude.udp_mangle = lambda datagram: junk + [datagram[:-3], datagram]
    result = check(lab, app, rude_url(rude))
    assert result.verdicts("udp-answer", "udp-filtering", "udp-mapping") == ["ok"] * 3, result.out


def test_full_cone(lab, app, serve, stun):
    result = check(lab, app, serve.url)
    assert result.verdicts("udp-filtering", "udp-mapping") == ["ok", "ok"]
    assert result.says("udp-filtering", lab.world_v4(4))
    first, second, third = stun.requests
    assert [first[0], second[0], third[0]] == [lab.world_v4(3), lab.world_v4(3), lab.world_v4(4)]
    assert second[2], "the stranger is heard before it is sent to"
    assert first[1] == second[1] == third[1], "one association, one port"
    assert result.says("udp-mapping", f"{first[1][0]}:{first[1][1]}")


def test_symmetric(lab, app, serve, stun):
    """What a symmetric NAT before the proxy would do: another port for each destination."""
    stun.moves = lambda host, source: (source[0], 20000 + int(host.rpartition(".")[2]))
    result = check(lab, app, serve.url)
    assert result.status == 0
    assert result.verdict("udp-mapping") == "warn" and result.says("udp-mapping", "symmetric")


def test_filtered(lab, app, serve, stun):
    stun.filtered = True
    result = check(lab, app, serve.url)
    assert result.status == 0
    assert result.verdicts("udp-filtering", "udp-mapping") == ["warn", "ok"]
    assert result.says("udp-filtering", "not full cone")


def test_filtered_by_the_proxy(lab, app, rude, stun):
    """A proxy that lets only those answer who were sent to."""
    other = b"\1" + socket.inet_aton(lab.world_v4(4))
    dropped = []

    def mangle(datagram):
        was_sent_to = any(host == lab.world_v4(4) for host, _, _ in stun.requests)
        if datagram[3:8] != other or was_sent_to:
            return [datagram]
        dropped.append(datagram)
        return []

    rude.udp_mangle = mangle
    result = check(lab, app, rude_url(rude))
    assert dropped
    assert result.verdicts("udp-filtering", "udp-mapping") == ["warn", "ok"]


def test_two_plain_stun_servers(lab, app, serve, stun):
    """Without a second address of its own one server cannot tell of filtering; two tell of ports."""
    stun.other = False
    result = check(lab, app, serve.url, "--stun", f"{lab.world_v4(4)}:3478")
    assert result.verdicts("udp-filtering", "udp-mapping") == ["skipped", "ok"]
    alone = check(lab, app, serve.url)
    assert alone.verdicts("udp-filtering", "udp-mapping") == ["skipped", "skipped"]
    assert alone.says("udp-mapping", "--stun")


def test_stun_by_name(lab, app, serve, stun):
    """Resolved here; a name that only the proxy knows goes there."""
    lab.mid_dns.zone["here.test"] = [lab.world_v4(3)]
    lab.world_dns.zone["there.test"] = [lab.world_v4(4)]
    stun.other = False
    done = run(app, "--json", *targets(lab)[:8], "--connect-timeout", "3", "--stun", "here.test",
               "--stun", "there.test", serve.url)
    result = Checked(done, 0)
    assert result.verdict("udp-mapping") == "ok", result.out


# --- the machine ----------------------------------------------------------------------------------


def listening_as(space, uid, port=1080):
    """A SOCKS5 server on the namespace's loopback that runs as `uid`."""
    process = space.popen("setpriv", "--reuid", str(uid), "--clear-groups", CULVERT, "serve",
                          "--listen", f"127.0.0.1:{port}")
    wait_for(lambda: space.listening(port), "the server listens")
    return process


@pytest.fixture(scope="module")
def machine(lab):
    """A host with proxies of its own."""
    space = lab.client()
    space.set_resolver(lab.proxy4)
    for uid, port in ((4321, 1080), (0, 1081)):
        listening_as(space, uid, port)
    yield space
    space.close()


@pytest.mark.parametrize("options, verdict", [
    ([], "fail"),
    (["--exclude-uid", "4321"], "ok"),
    (["--exclude-uid", "4000-5000"], "ok"),
    (["--exclude-uid", "4322"], "fail"),
    (["--include-uid", "1000"], "ok"),
    (["--include-uid", "1000-9999"], "fail"),
    (["--exclude-cgroup", "proxy.slice"], "ok"),
    (["--bypass", "10.0.0.0/8"], "warn"),
    (["--mark", "7"], "warn"),
])
def test_proxy_on_this_machine(lab, machine, options, verdict):
    result = check(lab, machine, "socks5://127.0.0.1", *options, "--connect-timeout", "1")
    assert result.verdict("route-loop") == verdict, result.out
    assert result.says("route-loop", "uid 4321")
    if verdict == "fail":
        assert result.status == 1 and result.says("route-loop", "--exclude-uid 4321")


def test_proxy_in_the_fake_range(lab, app):
    for url in ("socks5://198.18.7.7", "socks5://[fdc0:4c56::7]"):
        result = check(lab, app, url, "--connect-timeout", "1")
        assert result.verdict("route-loop") == "fail"
        assert result.says("route-loop", "--fake-range")


def test_proxy_of_root_on_this_machine(lab, machine):
    result = check(lab, machine, "socks5://127.0.0.1:1081", "--connect-timeout", "1")
    assert result.verdict("route-loop") == "fail"
    assert result.says("route-loop", "a user of its own")


def test_no_privileges(lab, app, serve, stun):
    done = app.run("setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", CULVERT,
                   "check", "--json", *targets(lab), serve.url,
                   env={**os.environ, **SANITIZER_ENV})
    result = Checked(done, 0)
    assert result.status == 1
    assert result.verdict("privileges") == "fail" and result.says("privileges", "as root")
    assert result.verdict("rules") == "skipped"
    assert set(result.verdicts(*PROXY_STEPS)) == {"ok"}


def test_no_device(lab, app, serve):
    """In a mount namespace without /dev/net."""
    done = app.run("unshare", "--mount", "sh", "-c",
                   'mount -t tmpfs none /dev/net && exec "$@"', "sh", CULVERT, "check", "--json",
                   *targets(lab), serve.url, env={**os.environ, **SANITIZER_ENV})
    result = Checked(done, 0)
    assert result.status == 1
    assert result.verdict("tun") == "fail" and result.says("tun", "modprobe tun")
    assert result.verdict("offloads") == "skipped"


def test_rules(lab, app, serve, stun):
    """What the kernel takes of up's options is tried, not assumed."""
    result = check(lab, app, serve.url, "--exclude-uid", "1-9", "--bypass", "10.0.0.0/8", "--gateway")
    assert result.verdict("rules") == "ok" and result.status == 0
    result = check(lab, app, serve.url, "--exclude-cgroup", "there/is/no/such")
    assert result.verdict("rules") == "fail" and result.status == 1, result.out


def test_rp_filter(lab, app, serve):
    app.sysctl("net.ipv4.conf.up0.rp_filter=1")
    try:
        result = check(lab, app, serve.url, "--stun", lab.world4)
        assert result.verdict("rp-filter") == "ok" and result.says("rp-filter", "strict on up0")
        done = app.run("unshare", "--mount", "sh", "-c",
                       'mount -o remount,bind,ro /proc/sys 2>/dev/null ||'
                       ' { mount --bind /proc/sys /proc/sys && '
                       'mount -o remount,bind,ro /proc/sys; } && exec "$@"', "sh",
                       CULVERT, "check", "--json", *targets(lab), serve.url,
                       env={**os.environ, **SANITIZER_ENV})
        result = Checked(done, 0)
        assert result.verdict("rp-filter") == "fail" and result.status == 1
    finally:
        app.sysctl("net.ipv4.conf.up0.rp_filter=0")


def test_direct(lab):
    """Without a proxy most steps make no sense."""
    space = Namespace("direct")
    veth(space, "out0", lab.mid, "dir0", ("10.76.0.2/24", "10.76.0.1/24"))
    result = check(lab, space, "direct://", "--connect-timeout", "1",
                   "--target-v4", "10.76.0.1:7", "--dns", "tcp", "--target-host", "10.76.0.1:7")
    space.close()
    assert result.verdicts("name", "login", "udp-associate") == ["skipped"] * 3
    assert result.verdict("route-loop") == "ok"


# --- beside up ------------------------------------------------------------------------------------


def test_up_works_as_said_and_check_works_beside_it(lab, desktop, serve, stun):
    """A culvert that is up does not carry the check: the proxy is reached past it."""
    assert check(lab, desktop.space, serve.url).status == 0
    process = desktop.up(serve.url)
    try:
        with desktop.space.connect(lab.world4, 7) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        dials = process.log
        beside = check(lab, desktop.space, serve.url)
        assert set(beside.verdicts(*PROXY_STEPS)) == {"ok"}, beside.out
        assert beside.status == 0
        assert process.log == dials
        named = check(lab, desktop.space, f"socks5://proxy.test:{serve.port}")
        assert named.verdict("name") == "fail" and named.says("name", "stop the culvert that is up")
    finally:
        process.stop()


# --- the command line -----------------------------------------------------------------------------


def test_usage(app):
    for argv in ([], ["--target-v4", "::1", "direct://"], ["http://127.0.0.1"]):
        done = run(app, *argv)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("culvert: ")
    done = run(app, "--help")
    assert done.returncode == 0 and "--target-host" in done.stdout and "--json" in done.stdout


def test_full_output(lab, app, serve):
    """What cannot be written is no success."""
    with open("/dev/full", "w", encoding="ascii") as full:
        done = run(app, *targets(lab), serve.url, stdout=full)
    assert done.returncode == 1
