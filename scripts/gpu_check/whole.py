"""Whole runs: their record, their bits, budgets, the lock, and plans."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks._common import PENSTOCK
from flows.results.status import stages_of
from scripts.gpu_check.rows import Row, mib, one_line, row
from scripts.gpu_check.runs import command, environment, good_run, run
from scripts.gpu_check.setting import Setting
from stages.process import stage_process
from stages.process.device import device_holders, device_used_bytes

ON_DEVICE = ("encode", "decode")
BUDGETS = ("600MiB", "900MiB")
AS_ON_CPU = 0.9
"""Part of the captions that must be those of the CPU: 16 bit rounds otherwise there."""
PLAN_SHARE = 0.08
"""How far a plan may be from what was taken, as on a CPU."""
TIME_CUT = "there was no time left"
"""What doctor says of figures that a slow machine leaves out."""
WAITING = re.compile(r"waiting for CUDA:0, held by process \d+")
DRIVERS_MIB = re.compile(r"the driver alone takes \d+ MiB[^()]*")


def measured(setting: Setting) -> Iterator[Row]:
    """`penstock doctor --measure`; the plans of later checks know its figures."""
    home = {"PENSTOCK_STORE": str(setting.folder / "doctor-store")}
    started = time.monotonic()
    done = subprocess.run(
        [*PENSTOCK, "doctor", "--measure"],
        env=environment(**home),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    without = [line for line in done.stdout.splitlines() if line.startswith("  without")]
    lacking = [line for line in without if not line.endswith(TIME_CUT)]
    missing = one_line("; ".join(lacking)) or "nothing"
    found = f"exit {done.returncode}, {seconds:.0f} s, {missing} missing"
    good = done.returncode == 0 and not lacking
    yield row("doctor --measure", "exit 0, nothing missing but for time", found, good)


def baselines(setting: Setting) -> Iterator[Row]:
    """Whether each stage gave the device back."""
    record = good_run(setting, "gpu").record
    for stage in record["stages"]:
        if stage["name"] in ON_DEVICE:
            before, after = stage["baseline_before_bytes"], stage["baseline_after_bytes"]
            found = "; ".join([f"{mib(before)} before, {mib(after)} after", *stage["warnings"]])
            good = after <= before + stage_process.SLACK_BYTES and not stage["warnings"]
            expected = f"within {mib(stage_process.SLACK_BYTES)}, no warning"
            yield row(f"device before and after {stage['name']}", expected, found, good)


def bits(setting: Setting) -> Iterator[Row]:
    """The same run twice, and a third time with kernels one after the other."""
    first, again = good_run(setting, "gpu"), good_run(setting, "gpu-again")
    serial = good_run(setting, "gpu-serial", env={"CUDA_LAUNCH_BLOCKING": "1"})
    for name, other in (("run twice", again), ("with CUDA_LAUNCH_BLOCKING=1", serial)):
        yield alike(f"captions, {name}", first.captions, other.captions)
        yield alike(f"bytes of features, {name}", first.features, other.features)


def against_cpu(setting: Setting) -> Iterator[Row]:
    """The same run on the CPU."""
    gpu = good_run(setting, "gpu")
    cpu = good_run(setting, "cpu", env={"CUDA_VISIBLE_DEVICES": ""})
    yield alike("captions, GPU beside CPU", gpu.captions, cpu.captions, AS_ON_CPU)


def alike(name: str, one: Mapping[Any, str], other: Mapping[Any, str], share: float = 1.0) -> Row:
    """How many of all are equal."""
    every = one.keys() | other.keys()
    same = sum(one.get(key) == other.get(key) for key in every)
    expected = "all equal" if share == 1.0 else f"{share:.0%} equal or more"
    good = bool(every) and same >= share * len(every)
    return row(name, expected, f"{same} of {len(every)} equal", good)


def within(budget: str) -> Callable[[Setting], Iterator[Row]]:
    """A check: that budget, with a batch that may be too large for it."""

    def check(setting: Setting) -> Iterator[Row]:
        done = run(setting, f"gpu-{budget}", "--memory", budget, "--batch-size", "64")
        yield kept_to(budget, done.code, done.words, done.record)

    return check


def kept_to(budget: str, code: int, words: str, record: Mapping[str, Any]) -> Row:
    """Whether a run kept to a budget, or said in one line why it cannot."""
    name = f"--memory {budget} --batch-size 64"
    expected = "exit 0 within it, or 3 with the driver's MiB"
    if code:
        named = DRIVERS_MIB.search(words)
        last = named.group() if named else (words.strip().splitlines() or [""])[-1]
        good = code == 3 and named is not None and "Traceback" not in words
        return row(name, expected, f"exit {code}: {one_line(last)}", good)
    rungs = [f"{rung['stage']} with {rung['name']} ({rung['reason']})" for rung in record["rungs"]]
    taken = {stage.name: stage.taken_bytes for stage in stages_of(record, time.time())}
    most = max(taken[name] for name in ON_DEVICE)
    found = f"exit 0, {mib(most)} at most, {'; '.join(rungs) or 'no lower rung'}"
    allowed = record["plan"]["memory"]["budget_bytes"]
    return row(name, expected, found, most <= allowed and "Traceback" not in words)


def lock(setting: Setting) -> Iterator[Row]:
    """Two commands at once, which both have only captions left to make."""
    good_run(setting, "gpu")
    before = set(device_holders(setting.device))
    used = device_used_bytes(setting.device)
    started = [
        subprocess.Popen(
            command(setting, f"lock-{prompt}", "--prompt", prompt, store="gpu"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for prompt in ("first", "second")
    ]
    words = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    waits = [found for said in words for found in WAITING.findall(said)]
    found = "; ".join(waits) or "nobody waited"
    yield row("two commands at once", "one waits", found, len(waits) == 1)
    yield row(
        "how both end", "exit 0, exit 0", ", ".join(f"exit {c}" for c in codes), not any(codes)
    )
    left = stage_process.wait_for_release(setting.device, used, peak=0)[0] - used
    others = set(device_holders(setting.device)) - before
    words_left = f"{len(others)} processes, {mib(max(0, left))} more in use"
    good = not others and left <= stage_process.SLACK_BYTES
    yield row("left on the card after them", "no process", words_left, good)


def peaks(batch: int, record: Mapping[str, Any]) -> Iterator[Row]:
    """A row a stage."""
    told = {stage["rung"]["stage"]: stage for stage in record["plan"]["memory"]["stages"]}
    for stage in stages_of(record, time.time()):
        if stage.name in ON_DEVICE and stage.taken_bytes:
            plan, taken = told[stage.name]["peak_bytes"], stage.taken_bytes
            off = plan / taken - 1
            rungs = [r for r in record["rungs"] if r["stage"] == stage.name]
            lower = "".join(f"; went down to {rung['name']}" for rung in rungs)
            found = f"{mib(taken)}, the plan is {off:+.1%} off{lower}"
            name = f"peak of {stage.name}, {told[stage.name]['name']} (asked for {batch})"
            expected = f"{mib(plan)} within {PLAN_SHARE:.0%}"
            good = abs(off) <= PLAN_SHARE and not rungs
            yield row(name, expected, found, good, bytes=taken, planned_bytes=plan)
