"""A culvert whose nth allocation or system call fails: see tests/support/faults.c."""

import mmap
import os
import pathlib
import struct
import tempfile

import lab as laboratory

MEMORY, CALL = 1, 2
BUILD = pathlib.Path(laboratory.CULVERT).parent
FAULTY = BUILD / "culvert_faulty"
PRELOAD = BUILD / "faults.so"


class Control:
    """What is to fail, in memory that the culvert process shares."""

    def __init__(self):
        fd, self.path = tempfile.mkstemp(prefix="culvert-faults-")
        os.ftruncate(fd, 4096)
        os.fchmod(fd, 0o666)
        self._map = mmap.mmap(fd, 4096)
        os.close(fd)

    def arm(self, kind, nth, error=0):
        self._map[0:4] = struct.pack("=I", 0)
        self._map[4:64] = struct.pack("=III48s", nth, 0, error, b"")
        self._map[0:4] = struct.pack("=I", kind)

    def disarm(self):
        """The name of the call that failed, or None if it never came to that."""
        self._map[0:4] = struct.pack("=I", 0)
        failed, _, where = struct.unpack("=II48s", self._map[8:64])
        return where.rstrip(b"\0").decode() if failed else None

    def shift_clock(self, seconds):
        self._map[64:68] = struct.pack("=i", seconds)

    @property
    def env(self):
        return {"CULVERT_FAULTS": self.path}

    def close(self):
        self._map.close()
        os.unlink(self.path)
