"""What is freed while a half is loaded does not count any more."""

import json
import subprocess
import sys

PROGRAM = """
import contextlib, ctypes, json, sys
from stages.memory.heap import given_back
from stages.process.memory import taken

def block(size):
    made = ctypes.create_string_buffer(size)
    ctypes.memset(made, 1, size)
    return made

before = taken().data
with given_back() if sys.argv[1] == "given" else contextlib.nullcontext():
    del (first := [block(24 << 20)])[:]  # after which blocks up to that size stay with glibc
    held = []
    for _ in range(20):
        large, small = block(8 << 20), block(1000)
        held.append(small)
        del large
print(json.dumps((taken().data - before) / (1 << 20)))
"""


def mebibytes(how: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def test_freed_blocks_go_back_to_the_system() -> None:
    assert mebibytes("given") < 2 < mebibytes("kept")


AFTER = """
import ctypes, json, sys
from stages.memory.heap import given_back
from stages.process.budget import enforce
from stages.process.memory import taken

def block(size):
    made = ctypes.create_string_buffer(size)
    ctypes.memset(made, 1, size)
    return made

enforce("cpu", int(sys.argv[1]) << 20)
with given_back():
    pass
before = taken().data
pairs = [[block(8 << 20), block(200_000)] for _ in range(10)]
for pair in pairs:
    del pair[0]
print(json.dumps((taken().data - before) / (1 << 20)))
"""


def kept_within(budget: int) -> float:
    """Mebibytes that a limit still counts of 80 that were freed, within so many."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER, str(budget)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def test_they_go_on_doing_so_within_any_limit() -> None:
    for budget in (200, 4 << 10, 0):
        assert kept_within(budget) < 4
