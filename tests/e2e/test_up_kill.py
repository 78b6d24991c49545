"""kill -9 at each stage of `culvert up`, starting and stopping: `down` restores the exact state.

UP_KILL_STEP=1 tries every stage; by default each run of the test tries some of them.
"""

import os
import random
import signal
import subprocess

import pytest

import lab as laboratory
from netns import wait_for

STEP = int(os.environ.get("UP_KILL_STEP", "16"))
HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    library = tmp_path_factory.mktemp("kill") / "kill_at.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, f"{HERE}/kill_at.c", "-ldl"],
                   check=True)
    asan = subprocess.run(["nm", "-D", laboratory.CULVERT], text=True, capture_output=True).stdout
    if "__asan_init" in asan:
        pytest.skip("the sanitizers want to be loaded first")
    return library


def run_until_killed(desktop, killer, at, count_file, *argv):
    """Start up, stop it when it gets that far; killed at its `at`-th call."""
    process = desktop.start_up(*argv, env={"LD_PRELOAD": str(killer), "KILL_AT": str(at),
                                           "KILL_COUNT": str(count_file)})
    process.checked = True
    wait_for(lambda: process.process.poll() is not None or process.count("culvert: ready"),
             "it is ready or dead")
    if process.process.poll() is None:
        process.process.send_signal(signal.SIGTERM)
    return process.wait_end()


@pytest.mark.deadline(600)
@pytest.mark.parametrize("rp_filter,options", ((0, ()), (1, ("--kill-switch", "--gateway")), (2, ())))
def test_killed_at_any_stage(desktop, serve, killer, tmp_path, rp_filter, options):
    desktop.space.sysctl(f"net.ipv4.conf.eth0.rp_filter={rp_filter}")
    before = desktop.state()
    argv = (serve.url, *options)
    assert run_until_killed(desktop, killer, 0, tmp_path / "count", *argv) == 0
    desktop.assert_state(before)
    total = int((tmp_path / "count").read_text())
    assert total > 50
    for at in range(1 + random.randrange(STEP), total + 1, STEP):
        status = run_until_killed(desktop, killer, at, tmp_path / "count", *argv)
        if status == 0 and at > total - 20:
            break  # it is not always the same number of calls
        assert status == -signal.SIGKILL, f"stage {at} of {total}: status {status}"
        done = desktop.down()
        assert done.returncode == 0, f"stage {at} of {total}: {done.stderr}"
        desktop.assert_state(before, f"stage {at} of {total}: ")


@pytest.mark.deadline(600)
def test_down_killed_at_any_stage(desktop, serve, killer, tmp_path):
    """Undoing that is itself killed is begun anew by the next."""
    before = desktop.state()
    at = 0
    while True:
        at += 1 + random.randrange(STEP)
        desktop.up(serve.url, "--kill-switch").kill()
        env = {**os.environ, "LD_PRELOAD": str(killer), "KILL_AT": str(at)}
        done = desktop.space.run(laboratory.CULVERT, "down", env=env)
        assert desktop.down().returncode == 0
        desktop.assert_state(before)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr


def test_journal_that_cannot_be_read_is_told(desktop, serve):
    """By `down` and by the next `up`, which leave all as it is; once it can be read, `down` undoes it."""
    before = desktop.state()
    desktop.up(serve.url).kill()
    journal = f"/run/culvert/{desktop.state_prefix()}journal"
    os.rename(journal, f"{journal}.aside")
    os.mkdir(journal)
    try:
        down, again = desktop.down(), desktop.start_up(serve.url)
        again.checked = True
        assert again.wait_end() == down.returncode == 1
        assert f"cannot read {journal}" in down.stderr
        assert again.count(f"cannot read {journal}") == 1
    finally:
        os.rmdir(journal)
        os.rename(f"{journal}.aside", journal)
    assert desktop.down().returncode == 0
    desktop.assert_state(before)
