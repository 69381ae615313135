"""`doctor`: looks at the machine and changes nothing."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from artifacts.errors import redacted
from artifacts.store import open_store
from flows.config import default_store
from flows.display import size
from flows.models import cores
from flows.precision import cpu_has_bfloat16
from flows.run_record import versions
from stages.process.memory import device_name, device_uuid


def doctor_command(given: argparse.Namespace) -> int:
    """What this machine has and what is in the way; exit 5 when something is."""
    device = device_name()
    store = open_store(default_store())
    meminfo = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    memory = int(meminfo["MemAvailable"].split()[0]) * 1024
    bf16 = "with" if cpu_has_bfloat16() else "without"
    print(f"python    {platform.python_version()} in {sys.prefix}")
    print(f"machine   {cores()} cores {bf16} bfloat16, {size(memory)} of memory free")
    print(f"device    {device}{'' if device == 'cpu' else ' ' + device_uuid(device)}")
    if device == "cpu":
        print("          no NVIDIA driver answers: models run on the CPU, which suits small ones")
    for name, number in versions().items():
        print(f"{name:14s}{number}")
    store.check_writable()
    print(f"store     {store.url}, {size(store.free_bytes())} free")
    api = os.environ.get("PREFECT_API_URL", "")
    print(f"prefect   {redacted(api) or 'no server named; --prefect starts one of its own'}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": doctor_command,
}
