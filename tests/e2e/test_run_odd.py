"""`culvert run` in odd surroundings: what a script, a service manager or a user in a hurry makes of it."""

import contextlib
import os
import signal
import subprocess

import pytest

import lab as laboratory
from desktop import Capture, settle
from lab import CULVERT
from netns import wait_for
from ordinary import GID, UID, processes_of_user
from test_run import (children, culvert_of, folder, host, nginx, nothing_left, python, ready, user)

pytestmark = pytest.mark.skipif(laboratory.DIRECT, reason="is about culvert alone")
__all__ = ["folder", "host", "nginx", "nothing_left", "user"]  # fixtures


def compare(user, serve, *command, before=(), **kwargs):
    """What a program says of itself with and without `culvert run`."""
    outside = user.run(*before, *command, **kwargs)
    inside = user.run(*before, CULVERT, "run", serve.url, "--", *command, **kwargs)
    assert outside.stdout and inside.stdout == outside.stdout, inside.stderr
    assert inside.returncode == outside.returncode


def test_every_status(user, serve):
    script = "for i in $(seq 0 15); do \"$0\" run \"$1\" -- sh -c \"exit $((i*17))\"; echo $?; done"
    done = user.run("sh", "-c", script, CULVERT, serve.url)
    assert [int(status) for status in done.stdout.split()] == list(range(0, 256, 17))


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGFPE,
                                   signal.SIGPIPE, signal.SIGALRM, signal.SIGRTMIN, signal.SIGRTMAX])
def test_every_deadly_signal(user, serve, signo):
    done = user.culvert(serve.url, "sh", "-c", f"ulimit -c 0; kill -{int(signo)} $$")
    assert done.returncode == 128 + signo


def test_a_reader_that_leaves(user, serve):
    done = user.run("bash", "-c", f"{CULVERT} run {serve.url} -- yes | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"


def test_big_environment_and_odd_arguments(user, serve):
    env = {f"BIG{i}": "x" * 100000 for i in range(15)}
    done = user.culvert(serve.url, "sh", "-c", "env | wc -c", env=env)
    assert int(done.stdout) > 1500000, done.stderr
    odd = [b"", b"\xff\xfe", b"a\nb", b"--", b"-x", b"'\"$(false)`false`"]
    argv = user.space.argv(*user.argv(CULVERT, "run", serve.url, "--", "/usr/bin/printf", "<%s>"))
    out = subprocess.run([os.fsencode(str(word)) for word in argv] + odd, stdout=subprocess.PIPE,
                         env=user.env(), stdin=subprocess.DEVNULL, check=True).stdout
    assert out == b"".join(b"<%s>" % word for word in odd)


def test_directory_that_was_removed(user, serve, folder):
    gone = folder / "parent" / "gone"
    gone.mkdir(parents=True)
    os.chown(gone.parent, UID, GID)
    compare(user, serve, "sh", "-c", "readlink /proc/self/cwd",
            before=("sh", "-c", f'mkdir -p {gone}; cd {gone} && rmdir {gone} && "$@"', "sh"))


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_stay_closed(user, serve, folder, closed):
    """None of them is replaced by a descriptor of culvert's own."""
    out = folder / f"streams{len(closed)}{closed[0]}"
    look = (f"import os, sys; names = os.listdir('/proc/self/fd'); out = open({str(out)!r}, 'w');"
            "print([n for n in range(3) if str(n) in names], file=out)")
    seen = []
    for start in ('"$@"', f'{CULVERT} run {serve.url} -- "$@"'):
        out.touch()
        os.chown(out, UID, GID)
        user.run("sh", "-c", f"{start} {closed}", "sh", "/usr/bin/python3", "-S", "-c", look)
        seen.append(out.read_text())
        out.unlink()
    assert seen[0] and seen[1] == seen[0]


def test_passed_descriptors_are_let_go(user, serve):
    """What is served in the background holds none of them."""
    ours, theirs = os.pipe()
    command = f"sleep 2 </dev/null >/dev/null 2>&1 {theirs}>&- & echo through >&{theirs}"
    user.run(CULVERT, "run", serve.url, "--", "bash", "-c", command, pass_fds=[theirs])
    os.close(theirs)
    with open(ours, "rb") as file:
        os.set_blocking(ours, False)  # the end is there already, if nobody holds it
        assert file.read() == b"through\n" and os.read(ours, 1) == b""
    assert processes_of_user(), "nothing was left in the background"


def test_limits_and_priorities(user, serve):
    start = ("bash", "-c", "ulimit -Ss 4096; ulimit -Sf 1000; ulimit -c 0; ulimit -Sn 64; exec nice -n 5 "
                           '"$@"', "bash")
    script = ("cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup; nice; "
              "grep -e NoNewPrivs -e Seccomp -e ^Cpus /proc/self/status")
    compare(user, serve, "sh", "-c", script, before=start)


def test_nothing_of_it_stays(user, serve):
    """No file of the user's, no mount, nothing in /run."""
    def traces():
        script = f"find /tmp /run /dev/shm /dev/net -user {UID} 2>/dev/null; grep -v netns /proc/mounts"
        return set(subprocess.run(["sh", "-c", script], text=True, stdout=subprocess.PIPE,
                                  check=False).stdout.splitlines())
    before = traces()
    user.culvert(serve.url, "true")
    assert traces() <= before


@pytest.mark.deadline(180)
def test_fifty_at_once(user, serve, nginx):
    started = [user.start(serve.url, "sh", "-c", f"curl -sS -m 60 http://www.test/ && exit {i}",
                          stdout=subprocess.PIPE) for i in range(50)]
    for i, process in enumerate(started):
        out, err = process.communicate(timeout=90)
        assert process.returncode == i and "It goes through." in out, (i, process.returncode, err)


def descendants(pid):
    found = children(pid)
    for child in found:
        with contextlib.suppress(OSError):
            found += children(child)
    return found


def test_all_of_culvert_killed_fails_closed(lab, host, user, serve):
    """Whatever is killed, the command hears that there is no network, and nothing goes beside."""
    command = ("echo ready; read x; curl -sS -m 3 http://10.88.0.2/; echo $?; "
               "curl -sS -g -m 3 'http://[fd88::2]/'; echo $?; "
               "dig +time=1 +tries=1 @10.77.0.1 v4.test >/dev/null; echo $?")
    process = user.start(serve.url, "sh", "-c", command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    ready(process)
    victims = []
    for pid in descendants(culvert_of(process)):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().startswith(CULVERT.encode()):
                victims.append(pid)
    assert len(victims) >= 3, "relay, worker and reaper at least"
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in victims), "they are gone")
    settle(host, [lab.mid])
    with Capture(host, "up0") as uplink:
        out, _ = process.communicate("go\n", timeout=20)
    assert out.split() == ["7", "7", "9"] and uplink.packets == []
    assert process.returncode == 1


def test_own_namespaces_inside_are_no_way_out(host, user, serve):
    """A command that makes itself root of another user namespace is none of the network's."""
    script = ("ip route add 10.77.0.0/16 dev lo; ip addr add 10.9.9.9/32 dev culvert0; "
              "umount /etc/resolv.conf; nsenter -t 1 -n true; cat /etc/resolv.conf; "
              "curl -sS -m 3 telnet://10.88.0.2:7 </dev/null")
    with Capture(host, "up0") as uplink:
        done = user.culvert(serve.url, "unshare", "-r", "sh", "-c", script)
    assert done.stdout == "nameserver 198.18.0.2\n", done.stdout + done.stderr
    assert done.stderr.count("ermi") >= 2  # Operation not permitted, Permission denied
    assert uplink.beside("10.77.0.1") == []


def test_local_services_inside(user, serve):
    """Programs that talk to one another over loopback, both families, do so."""
    done = user.culvert(serve.url, *python("""
        import socket
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"),
                             (socket.AF_INET, "localhost")):
            with socket.create_server((host, 0), family=family) as server:
                with socket.create_connection(server.getsockname()[:2], 5) as client:
                    server.accept()[0].sendall(b"x")
                    assert client.recv(1) == b"x"
        """))
    assert (done.returncode, done.stderr) == (0, "")
