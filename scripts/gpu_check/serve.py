"""A server on the device: what it answers, whose the device is meanwhile, turns within a budget,
and how fast it is."""

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from scripts.gpu_check.rows import Row, mib, row
from scripts.gpu_check.runs import command, environment, good_run
from scripts.gpu_check.serving import LOOK_SECONDS, Served, served
from scripts.gpu_check.setting import DEMO, SAMPLES, Setting
from scripts.gpu_check.whole import AS_ON_CPU, ON_DEVICE, WAITING, alike
from stages.process import stage_process
from stages.process.device import device_holders, device_used_bytes

LABELS = "red circle,blue square,green triangle,purple cross"
IDLE_MINUTES = "0.1"
ROOM = 1.25
"""Budget of halves that take turns, in parts of what the larger one is planned to take."""
PROMPTS = ("", "What moves?")
LOAD_SECONDS = 3.0
AT_ONCE = 64
LIGHT_PAUSE = 0.05
"""Seconds between an answer and the next question at light load."""


def beside_commands(setting: Setting) -> Iterator[Row]:
    """Answers beside what the commands write, and whose the device is."""
    captions, labels = good_run(setting, "gpu").captions, _labels(setting)
    before, used = set(device_holders(setting.device)), device_used_bytes(setting.device)
    models = ("--model", DEMO, "--caption-model", DEMO, "--labels", LABELS)
    with served(setting, "serve", *models, "--idle", IDLE_MINUTES) as server:
        said: dict[tuple[str, float], str] = {}
        seen: dict[tuple[str, float], str] = {}
        for path in _clips():
            found = server.told("/v1/caption", path.read_bytes())["captions"]
            said |= {(path.name, each["start"]): each["caption"] for each in found}
            frames = server.told("/v1/label", path.read_bytes())["frames"]
            seen |= {(path.name, frame["time"]): str(frame["top"]) for frame in frames}
        yield alike("captions, server beside command", said, captions, AS_ON_CPU)
        yield alike("labels, server beside command", seen, labels, AS_ON_CPU)
        yield from _lock(setting, server)
        left = stage_process.wait_for_release(setting.device, used, peak=0)[0] - used
        others = set(device_holders(setting.device)) - before
        found = f"{len(others)} processes, {mib(max(0, left))} more in use"
        good = not (others or server.here()) and left <= stage_process.SLACK_BYTES
        yield row(f"device after --idle {IDLE_MINUTES}", "no process", found, good)
        again = server.told("/v1/caption?prompt=again", _clips()[0].read_bytes())["captions"]
        yield row("asked after that", "answered", f"{len(again)} captions", bool(again))


def in_turns(setting: Setting) -> Iterator[Row]:
    """Both halves of a model in a budget that has room for one."""
    plan = good_run(setting, "gpu").record["plan"]["memory"]["stages"]
    peaks = [s["peak_bytes"] for s in plan if s["rung"]["stage"] in ON_DEVICE]
    budget = int(ROOM * max(peaks))
    used, most, together = device_used_bytes(setting.device), 0, 0
    over = threading.Event()
    with served(setting, "turns", "--caption-model", DEMO, "--memory", str(budget)) as server:

        def watch() -> None:
            nonlocal most, together
            while not over.wait(LOOK_SECONDS):
                most = max(most, device_used_bytes(setting.device) - used)
                together = max(together, len(server.here()))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        asked = [(path, prompt) for prompt in PROMPTS for path in _clips()[:2]]
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [
                pool.submit(server.ask, f"/v1/caption?prompt={quote(prompt)}", path.read_bytes())
                for path, prompt in asked
            ]
            statuses = [each.result()[0] for each in answers]
        over.set()
        watching.join()
    found = f"{statuses.count(200)} of {len(statuses)}; {mib(most)} at most, {together} at once"
    good = statuses.count(200) == len(statuses) and most <= budget and together == 1
    yield row("captions by halves in turns", f"all, within {mib(budget)}, 1 at once", found, good)


def under_load(setting: Setting) -> Iterator[Row]:
    """Pictures a second, and the time of one."""
    with served(setting, "load", "--model", DEMO, "--tiles", "off") as server:
        server.load(LOAD_SECONDS / 5, AT_ONCE)  # what is loaded when it is used first
        alone = len(server.load(LOAD_SECONDS, 1)) / LOAD_SECONDS
        began = time.monotonic()
        answered = len(server.load(LOAD_SECONDS, AT_ONCE))
        rate = answered / (time.monotonic() - began)
        found = f"{rate:.0f} beside {alone:.0f}, x {rate / alone:.1f}"
        yield row(f"images per second, {AT_ONCE} at once beside one", "more", found, rate > alone)
        seconds, batches = server.batch_seconds()
        p50 = statistics.median(server.load(LOAD_SECONDS, 1, LIGHT_PAUSE))
        after, more = server.batch_seconds()
        half = (after - seconds) / max(1.0, more - batches)
        found = f"p50 {1000 * p50:.1f} ms, {1000 * half:.1f} of it in the half"
        yield row("a picture at light load", "told", found, p50 > 0)


def _clips() -> list[Path]:
    return sorted(SAMPLES.glob("*.mp4"))


def _labels(setting: Setting) -> dict[tuple[str, float], str]:
    """(file, time) → the label that the command gives a frame first."""
    options = (str(SAMPLES), "--model", DEMO, "--labels", LABELS)
    done = good_run(setting, "labels", *options, verb="label")
    lines = (done.out / "labels.jsonl").read_text().splitlines()
    return {(c["media_path"], c["time"]): str(c["top"]) for c in map(json.loads, lines)}


def _lock(setting: Setting, server: Served) -> Iterator[Row]:
    """A command that is started while the server is asked on and on, and then left in peace."""
    log = setting.folder / "serve-lock.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(setting, "serve-lock", "--prompt", "beside a server", store="gpu"),
            env=environment(),
            stdout=output,
            stderr=output,
        )
    for number, path in enumerate(_clips() * 100):
        if process.poll() is not None or WAITING.search(log.read_text()):
            break
        server.told(f"/v1/caption?prompt={number}", path.read_bytes())
    words = log.read_text()
    process.wait()
    found = " ".join(WAITING.findall(words)) or "it did not wait"
    good = f"held by process {server.pid}" in found
    yield row("a command beside a server", f"waits for process {server.pid}", found, good)
    code = process.returncode
    yield row("how it ends once the server is idle", "exit 0", f"exit {code}", code == 0)
