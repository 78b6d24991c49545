"""How the release binary is built: what makes an error in it harder to use."""

import re
import subprocess

import pytest
from lab import CULVERT

with open(CULVERT, "rb") as binary:
    SANITIZED = b"AddressSanitizer" in binary.read()
pytestmark = pytest.mark.skipif(SANITIZED, reason="is about release builds")


def read(*options):
    return subprocess.run(["readelf", "-W", *options, CULVERT], check=True, text=True,
                          capture_output=True).stdout


def test_position_independent():
    assert re.search(r"Type:\s+DYN", read("-h"))
    assert re.search(r"FLAGS_1.*\bPIE\b", read("-d"))


def test_full_relro():
    assert "GNU_RELRO" in read("-l")
    assert re.search(r"FLAGS.*BIND_NOW|FLAGS_1.*\bNOW\b", read("-d"))


def test_stack_is_not_executable_nor_is_what_can_be_written():
    segments = re.findall(r"^\s+(LOAD|GNU_STACK)\s.*?\s([R ][W ][E ])\s+0x", read("-l"), re.M)
    assert {name for name, _ in segments} == {"LOAD", "GNU_STACK"}
    assert not [segment for segment in segments if "W" in segment[1] and "E" in segment[1]]


def test_stack_protector_and_fortify():
    symbols = read("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert len(set(re.findall(r"__(?:memcpy|snprintf|vsnprintf|read|recv|recvfrom)_chk", symbols))) >= 2


def test_stack_clash_protection():
    """A frame of more than a page is taken page by page, each touched (`orq $0x0,(%rsp)`)."""
    if "X86-64" not in read("-h"):
        pytest.skip("looks for an instruction of x86-64")
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", CULVERT], check=True, text=True,
                          capture_output=True).stdout
    probes = re.findall(r"sub\s+\$0x1000,%rsp\n[^\n]*orq\s+\$0x0,(?:0x0)?\(%rsp\)", code)
    assert probes, "no large stack frame is probed"


def test_no_search_path():
    assert not re.search(r"RPATH|RUNPATH", read("-d"))
