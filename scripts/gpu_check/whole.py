"""Runs of the command line on the device, and what their records say."""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.packs import RecordSet
from artifacts.store import open_store
from benchmarks._common import PENSTOCK
from flows.results.run_status import stages_of
from scripts.gpu_check.rows import DEMO, Row, Setting, mib, one_line, row, skipped
from stages.process import stage_process
from stages.process.device import device_holders, device_used_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run that has ended."""

    out: Path
    store: Path
    code: int
    words: str
    """All that it said."""
    seconds: float
    """From its start to its end."""

    @property
    def exit_report(self) -> str:
        lines = self.words.strip().splitlines()
        return lines[-1] if lines else "not a word"

    @property
    def record(self) -> dict[str, Any]:
        """Its run.json; empty where there is none."""
        path = self.out / "run.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def stage(self, name: str) -> dict[str, Any]:
        """What its record says of a stage. Raises StopIteration for one that was not run."""
        return next(stage for stage in self.record["stages"] if stage["name"] == name)

    @property
    def captions(self) -> dict[tuple[str, float], str]:
        """(file, start) → caption."""
        lines = (self.out / "captions.jsonl").read_text().splitlines()
        return {(c["media_path"], c["start"]): c["caption"] for c in map(json.loads, lines)}

    @property
    def features(self) -> dict[tuple[str, str], str]:
        """(namespace, key) → digest of the bytes of the features in its store."""
        store, found = open_store(str(self.store)), {}
        for folder in (self.store / "features").glob("*/*"):
            record_set = RecordSet(store, "features", folder.name)
            for key in sorted(record_set.keys()):
                digest = hashlib.sha256(bytes(record_set.read(key).payload)).hexdigest()
                found[folder.name, key] = digest
        return found


def command(
    setting: Setting, name: str, *options: str, store: str = "", verb: str = "caption"
) -> list[str]:
    """The demo model over its samples, into a folder of that name, unless `options` name others."""
    out, kept = setting.folder / name, setting.folder / f"{store or name}-store"
    messages = [*PENSTOCK, verb, "--out", str(out), "--store", str(kept)]
    named = [] if "--model" in options else [str(setting.samples), "--model", DEMO]
    return [*messages, *named, *options]


def environment(**changes: str) -> dict[str, str]:
    """Without the server of whoever calls."""
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**kept, **changes}


def run(
    setting: Setting,
    name: str,
    *options: str,
    env: Mapping[str, str] | None = None,
    **how: str,
) -> Run:
    """That run, which another check may have made already. `how` is of `command`."""
    kept = setting.folder / f"{name}.ended.json"
    if not kept.exists():
        began = time.monotonic()
        done = subprocess.run(
            command(setting, name, *options, **how),
            env=environment(**(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        kept.write_text(json.dumps([done.returncode, done.stdout, seconds]))
    code, words, seconds = json.loads(kept.read_text())
    store = setting.folder / f"{how.get('store') or name}-store"
    return Run(out=setting.folder / name, store=store, code=code, words=words, seconds=seconds)


def good_run(setting: Setting, name: str, *options: str, **how: Any) -> Run:
    """A run that must end well. Raises RuntimeError with its last words."""
    done = run(setting, name, *options, **how)
    if done.code:
        raise RuntimeError(f"the run {name} ended with {done.code}: {done.exit_report}")
    return done


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
    waits = [found for text in words for found in WAITING.findall(text)]
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
    messages = {stage["rung"]["stage"]: stage for stage in record["plan"]["memory"]["stages"]}
    for stage in stages_of(record, time.time()):
        if stage.name in ON_DEVICE and stage.taken_bytes:
            plan, taken = messages[stage.name]["peak_bytes"], stage.taken_bytes
            off = plan / taken - 1
            rungs = [r for r in record["rungs"] if r["stage"] == stage.name]
            lower = "".join(f"; went down to {rung['name']}" for rung in rungs)
            found = f"{mib(taken)}, the plan is {off:+.1%} off{lower}"
            name = f"peak of {stage.name}, {messages[stage.name]['name']} (asked for {batch})"
            expected = f"{mib(plan)} within {PLAN_SHARE:.0%}"
            good = abs(off) <= PLAN_SHARE and not rungs
            yield row(name, expected, found, good, bytes=taken, planned_bytes=plan)


PRECISIONS = ("fp32", "native")
FEW = "3"
"""Chunks of a run beside which there are fewer."""


def trial(setting: Setting) -> Iterator[Row]:
    """Which engine serves the demo's language half, and why; either may be right."""
    for precision in PRECISIONS:
        notes = _slot_run(setting, precision).stage("decode")["notes"]
        why = notes.get("engine_reason") or "a row's logits are the same whatever is beside it"
        found = f"{notes['engine']}: {one_line(why)}"
        if rows := notes.get("rows"):
            found += f"; {rows} rows a step, {one_line(notes.get('rows_reason', 'the most'))}"
        yield row(f"engine of decode in {precision}", "reported", found, bool(notes["engine"]))


def slot_bits(setting: Setting) -> Iterator[Row]:
    """A few captions beside the same ones among all, where slots serve."""
    for precision in PRECISIONS:
        name = f"captions in {precision}, a few beside all"
        every = _slot_run(setting, precision)
        if every.stage("decode")["notes"]["engine"] != "inflight":
            yield skipped(name, "batches serve here, which decide bytes", "all equal")
            continue
        few = _slot_run(setting, precision, "--limit", FEW)
        both = every.captions.keys() & few.captions.keys()
        yield alike(name, {key: every.captions[key] for key in both}, few.captions)


def _slot_run(setting: Setting, precision: str, *options: str) -> Run:
    if precision == "native" and not options:
        return good_run(setting, "gpu")  # which other checks share
    name = f"gpu-slots-{precision}" + "".join(options)
    return good_run(setting, name, "--precision", precision, *options)
