"""`status` and `doctor`: commands that look and change nothing."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.store import open_store
from flows.config import default_store
from flows.display import duration, printable, size
from flows.models import cores
from flows.precision import cpu_has_bfloat16
from flows.run_record import versions
from stages.process.memory import device_name, device_uuid


def status_command(given: argparse.Namespace) -> int:
    """How a run stands, from its record; exit 0 unless there is none."""
    path = Path(given.out) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"no run has written to {given.out}", hint="Name the --out folder of a run"
        ) from error
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read", hint="Run the command again") from error
    if record["state"] == "running" and not os.path.exists(f"/proc/{record['pid']}"):
        record["state"] = "died"
    if given.json:
        print(json.dumps(record, indent=1))
        return 0
    media = record["media"]
    hint = "; run the same command again to go on" if record["state"] != "done" else ""
    print(f"{record['state']} at {record['updated']}{hint if record['state'] != 'running' else ''}")
    print(f"{media['total']} files, {media['failed']} failed, {record['captions']} captions")
    for stage in record["stages"]:
        done = stage["items"] + stage["running"]
        before = max(0, stage["before"] - stage["running"])
        seconds = duration(stage["seconds"])
        peak = size(stage["peak_host_bytes"])
        print(
            f"  {stage['name']:7s}{done:6d} made  {before:6d} before  {seconds:>12s}  peak {peak}"
        )
    if record["error"]:
        print(record["error"])
    for failure in _failures(Path(given.out)):
        text = f"failed: {failure['media_path']}: {failure['message']}. {failure['hint']}"
        print(printable(text))
    return 0


def _failures(out: Path) -> Iterator[dict[str, str]]:
    try:
        lines = (out / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines[:20]:
        yield json.loads(line)


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
    api = os.environ.get("PREFECT_API_URL")
    print(f"prefect   {api or 'no server named; --prefect starts one of its own'}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": status_command,
    "doctor": doctor_command,
}
