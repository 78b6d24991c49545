"""Fixtures: one laboratory a test module, the common tunnels in it, and a check after each test."""

import os
import signal
import types

import pytest

import lab as laboratory
import netns
from desktop import Desktop
from rude import Rude
from suspended import Suspended


def pytest_configure(config):
    config.addinivalue_line("markers", "deadline(seconds): this test may take longer than 60 s")
    if not laboratory.DIRECT and not os.access(laboratory.CULVERT, os.X_OK):
        pytest.exit(f"no culvert at {laboratory.CULVERT}: build it, or set CULVERT", returncode=2)
    netns.clean_up_when_interrupted()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A test that hangs is a failure like any other, with its traceback."""
    marker = item.get_closest_marker("deadline")
    seconds = int((marker.args[0] if marker else 60) * netns.SLOWER)

    def expired(_signo, _frame):
        raise TimeoutError(f"the test took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def lab():
    with laboratory.Lab() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_found(request):
    """After each test: no sanitizer finding, no culvert gone that should be there."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").check()


@pytest.fixture(scope="module")
def serve(lab):
    """`culvert serve` in mid."""
    if laboratory.DIRECT:
        yield type("Direct", (), {"url": "direct://"})
        return
    yield lab.culvert_serve()


@pytest.fixture(scope="module")
def tunnel(lab, serve):
    """A tunnel through `culvert serve`, with default options."""
    yield lab.tunnel(serve.url)


@pytest.fixture(scope="module")
def _desktop(request, lab):
    """The desktop in use, and how many tests had failed when it was made."""
    kept = types.SimpleNamespace(made=Desktop(lab), failures=request.session.testsfailed)
    yield kept
    kept.made.close()


@pytest.fixture
def desktop(request, lab, _desktop):
    """One for the module, but another after a test that failed, in whatever state it left the first.

    A test that passes leaves it as it was, or fails for that.
    """
    failures = request.session.testsfailed
    if _desktop.failures != failures:
        _desktop.made.close()
        _desktop.made, _desktop.failures = Desktop(lab), failures
    yield _desktop.made
    if request.session.testsfailed == failures:
        _desktop.made.assert_left_alone()


@pytest.fixture(scope="module")
def _rude(lab):
    names = {name: addresses[0] for name, addresses in laboratory.NAMES.items()}
    with Rude(lab.mid, lab.proxy4, names=names) as server:
        yield server


@pytest.fixture(scope="module")
def rude_tunnel(lab, _rude):
    """A tunnel through the rude server; pipelining as by default."""
    if laboratory.DIRECT:
        pytest.skip("what the proxy sees is the point of it")
    yield lab.tunnel(f"socks5://{_rude.host}:{_rude.port}")


@pytest.fixture
def rude(_rude):
    """The rude server, well-behaved at first."""
    _rude.tame()
    yield _rude
    _rude.tame()


@pytest.fixture(scope="session")
def suspended():
    """Sleeps for a minute from its first use on, while tests go on."""
    asleep = Suspended()
    yield asleep
    asleep.close()
