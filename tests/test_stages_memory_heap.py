"""What is freed while a half is loaded does not count any more."""

import json
import subprocess
import sys

BLOCKS = """
import contextlib, ctypes, json, sys
from stages.memory.heap import trim_freed_blocks
from stages.process.memory_limit import enforce
from stages.process.memory import process_memory

def block(size):
    made = ctypes.create_string_buffer(size)
    ctypes.memset(made, 1, size)
    return made
"""
LOADING = """
before = process_memory().data
with trim_freed_blocks() if sys.argv[1] == "given" else contextlib.nullcontext():
    del (first := [block(24 << 20)])[:]  # after which blocks up to that size stay with glibc
    held = []
    for _ in range(20):
        large, small = block(8 << 20), block(1000)
        held.append(small)
        del large
print(json.dumps((process_memory().data - before) / (1 << 20)))
"""
AFTERWARDS = """
enforce("cpu", int(sys.argv[1]) << 20)
with trim_freed_blocks():
    pass
before = process_memory().data
pairs = [[block(8 << 20), block(200_000)] for _ in range(10)]
for pair in pairs:
    del pair[0]
print(json.dumps((process_memory().data - before) / (1 << 20)))
"""


def kept(program: str, given: str) -> float:
    """Mebibytes that still count after they were freed."""
    command = [sys.executable, "-c", BLOCKS + program, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def test_freed_blocks_go_back_to_the_system() -> None:
    assert kept(LOADING, "given") < 2 < kept(LOADING, "kept")


def test_they_go_on_doing_so_within_any_limit() -> None:
    for budget in ("200", "0"):
        assert kept(AFTERWARDS, budget) < 4
