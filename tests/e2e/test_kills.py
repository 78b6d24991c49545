"""kill -9 at random moments under load: a sample of what tests/soak/kills does for longer.

KILLS_SEED repeats one.
"""

import os
import pathlib
import random
import tempfile

import pytest

import kills
import lab as laboratory
import streams
from desktop import Desktop
from ordinary import User
from servers import TcpServer

pytestmark = [pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert's processes"),
              pytest.mark.deadline(120)]

SEED = int(os.environ.get("KILLS_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.fixture
def chance():
    print(f"KILLS_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="module")
def port(lab):
    return lab.serve(TcpServer(lab.world, streams.serve_stream)).port


def test_tun_killed_under_load(lab, serve, port, chance):
    assert kills.kill_tunnel(lab, serve.url, port, chance) > 0


def test_up_killed_under_load(lab, serve, port, chance):
    with Desktop(lab) as desktop:
        assert kills.kill_up(lab, desktop, serve.url, port, chance) > 0


def test_run_killed(lab, serve, chance):
    host = lab.client()
    host.set_resolver(lab.proxy4)
    with tempfile.TemporaryDirectory(prefix="culvert-kills-") as folder:
        os.chmod(folder, 0o755)
        assert kills.kill_run(User(host, pathlib.Path(folder)), serve.url, chance) > 0
    host.close()
