"""An ordinary user, made by the tests: `culvert run` as anybody would start it.

The machine's /dev/net/tun is left alone: the user's programs see a node of the tests' own, open to
all, mounted over it in their private mount namespace (each `ip netns exec` has one).
"""

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
import fcntl
import struct

from lab import CULVERT, FINDINGS, SANITIZER_ENV
from netns import wait_for

UID = GID = 100000 + os.getpid()  # several test runs at a time stay apart
PREPARE = 'mount --bind "$0" /dev/net/tun || exit 99; '
AS_USER = f"exec setpriv --reuid {UID} --regid {GID} --clear-groups --pdeathsig KILL -- \"$@\""
NOISE = re.compile(r"^culvert: (ready|warn|info|debug)")


class User:
    """Runs programs in a namespace as the user; `before` is shell that root runs first."""

    def __init__(self, space, folder, mode=0o666):
        self.space = space
        self.node = str(folder / f"tun{mode:o}")
        self.mode = mode
        if not os.path.exists(self.node):
            os.mknod(self.node, 0o020000 | mode, os.makedev(10, 200))
        os.chmod(self.node, mode)

    def argv(self, *argv, before="", root=False):
        become = 'exec "$@"' if root else AS_USER
        return ["sh", "-c", PREPARE + before + become, self.node, *map(str, argv)]

    def env(self, env=None):
        return {**os.environ, **SANITIZER_ENV, "HOME": "/", **(env or {})}

    def run(self, *argv, before="", root=False, env=None, **kwargs):
        return self.space.run(*self.argv(*argv, before=before, root=root), env=self.env(env),
                              **kwargs)

    def popen(self, *argv, before="", root=False, env=None, **kwargs):
        kwargs.setdefault("stderr", subprocess.PIPE)
        kwargs.setdefault("text", True)
        return self.space.popen(*self.argv(*argv, before=before, root=root), env=self.env(env),
                                **kwargs)

    def culvert(self, url, *command, options=(), **kwargs):
        """`culvert run` to its end; what culvert itself had to say is in `.said`."""
        done = self.run(CULVERT, "run", *options, url, "--", *command, **kwargs)
        return sorted_out(done)

    def start(self, url, *command, options=(), **kwargs):
        return self.popen(CULVERT, "run", *options, url, "--", *command, **kwargs)


def sorted_out(done):
    """Take culvert's own lines out of stderr, into `.said`; no finding of a sanitizer."""
    assert not FINDINGS.search(done.stderr), done.stderr
    lines = done.stderr.splitlines(keepends=True)
    done.said = "".join(line for line in lines if line.startswith("culvert: "))
    done.stderr = "".join(line for line in lines if not NOISE.match(line))
    return done


class Terminal:
    """A shell of the user's with a terminal of its own, for job control."""

    def __init__(self, user, *argv):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.environ.update(user.env({"PS1": "prompt> ", "TERM": "dumb", "PATH":
                                            os.environ["PATH"], "LC_ALL": "C"}))
                command = user.space.argv(*user.argv(*argv))
                os.execvp(command[0], command)
            finally:
                os._exit(98)

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern, timeout=20):
        """Read until the pattern has come, and forget what came up to its end."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.text)
            if found:
                self.text = self.text[found.end():]
                return found
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.fd], [], [], left)[0]
            assert ready, f"/{pattern}/ did not come within {timeout} s:\n{self.text}"
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the terminal ended before /{pattern}/:\n{self.text}") \
                    from None

    def close(self):
        os.close(self.fd)  # hangs the session up
        try:
            wait_for(lambda: os.waitpid(self.pid, os.WNOHANG)[0], "the shell's end", 5)
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def processes_of_user():
    """Process ids and command lines of whatever the user has running."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as file:
                status = file.read()
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"\nUid:\t{UID}\t" in status and "\nState:\tZ" not in status:
            found[int(name)] = line
    return found
