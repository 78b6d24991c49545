"""What is in a process' memory, as a core file that leaves out nothing but what asks for it."""

import os
import re

HUGE = 1 << 30  # a sanitizer's shadow, which holds no bytes of anybody's
HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)")


class Mapping:
    def __init__(self, found):
        self.start, self.end = int(found[1], 16), int(found[2], 16)
        self.readable = found[3][0] == "r"
        self.name = found[4]
        self.resident = 0
        self.flags = []

    @property
    def dumped(self):
        """madvise(2), MADV_DONTDUMP."""
        return "dd" not in self.flags


def mappings(pid):
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if head := HEAD.match(line):
                found.append(Mapping(head))
            elif line.startswith("Rss:"):
                found[-1].resident = int(line.split()[1])
            elif line.startswith("VmFlags:"):
                found[-1].flags = line.split()[1:]
    return found


def _resident_pages(pid, mapping):
    """Looking at other pages would make them."""
    page = os.sysconf("SC_PAGE_SIZE")
    count = (mapping.end - mapping.start) // page
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(mapping.start // page * 8)
        entries = memoryview(file.read(count * 8)).cast("Q")
    start = None
    for i, entry in enumerate(entries):
        there = entry >> 62 != 0  # present, or swapped out
        if there and start is None:
            start = i
        if not there and start is not None:
            yield mapping.start + start * page, (i - start) * page
            start = None
    if start is not None:
        yield mapping.start + start * page, (len(entries) - start) * page


def holding(pid, pieces):
    """The mappings of a process that hold one of these strings of bytes."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in mappings(pid):
            if not mapping.readable or not mapping.resident or mapping.name == "[vvar]" \
                    or mapping.end - mapping.start > HUGE:
                continue
            for start, size in _resident_pages(pid, mapping):
                try:
                    content = os.pread(memory.fileno(), size, start)
                    if any(piece in content for piece in pieces):
                        found.append(mapping)
                        break
                except OSError:  # a device's memory
                    break
    return found
