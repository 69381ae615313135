"""A server on the device: what it answers, whose the device is meanwhile, turns within a budget,
and how fast it is."""

import contextlib
import http.client
import itertools
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks._common import PENSTOCK
from scripts.gpu_check.rows import DEMO, SAMPLES, Row, Setting, mib, row
from scripts.gpu_check.whole import (
    AS_ON_CPU,
    ON_DEVICE,
    WAITING,
    alike,
    command,
    environment,
    good_run,
)
from stages.process import stage_process
from stages.process.device import device_holders, device_used_bytes
from tests.support.servers import answer_to
from tests.support.serving import Serving, a_picture, serving

LOOK_SECONDS = 0.1
ASK_SECONDS = 240.0
SIZE = (640, 480)
COMMENT = b"\xff\xfe\x00\x16%020d"
"""A comment of a JPEG with a number in it, by which it is one that was never seen."""
AWAY = ("away", "waiting")
BATCH_SECONDS = "penstock_batch_seconds"
LABELS = "red circle,blue square,green triangle,purple cross"
IDLE_MINUTES = "0.1"
ROOM = 1.25
"""Budget of halves that take turns, in parts of what the larger one is planned to take."""
PROMPTS = ("", "What moves?")
LOAD_SECONDS = 3.0
AT_ONCE = 64
LIGHT_PAUSE = 0.05
"""Seconds between an answer and the next question at light load."""


def message_of(server: Serving, path: str, body: bytes | None = None) -> Any:
    """What it answers. Raises RuntimeError where that is a refusal."""
    found = server.ask("GET" if body is None else "POST", path, body, seconds=ASK_SECONDS)
    if found.status != 200:
        raise RuntimeError(f"{path} was answered with {found.status}: {found.body.decode()[:200]}")
    return json.loads(found.body)


def here(server: Serving) -> list[str]:
    """The halves that are on the device, or on the way to it."""
    return [
        half["name"]
        for half in message_of(server, "/v1/stats")["halves"]
        if half["state"] not in AWAY
    ]


def batch_seconds(server: Serving) -> tuple[float, float]:
    """(seconds, batches) of the vision half so far."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    named = dict(line.rsplit(" ", 1) for line in lines if line.startswith(BATCH_SECONDS))
    seconds, count = (named[f'{BATCH_SECONDS}_{kind}{{half="embed"}}'] for kind in ("sum", "count"))
    return float(seconds), float(count)


def load(server: Serving, seconds: float, at_once: int, pause: float = 0.0) -> list[float]:
    """Ask for vectors of pictures that were never seen, so many at once, each as soon as one is
    answered; returns the seconds of each answer. Raises RuntimeError for a refusal."""
    numbers, jpeg = itertools.count(time.time_ns()), a_picture(SIZE)
    end = time.monotonic() + seconds

    def asker(_: int) -> list[float]:
        taken = []
        made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ASK_SECONDS)
        with contextlib.closing(made) as connection:
            while (began := time.monotonic()) < end:
                body = jpeg[:2] + COMMENT % next(numbers) + jpeg[2:]
                connection.request("POST", "/v1/embed", body)
                found = answer_to(connection)
                if found.status != 200:
                    raise RuntimeError(f"answered with {found.status}: {found.body.decode()[:200]}")
                taken.append(time.monotonic() - began)
                time.sleep(pause)
        return taken

    with ThreadPoolExecutor(at_once) as pool:
        return [one for taken in pool.map(asker, range(at_once)) for one in taken]


@contextlib.contextmanager
def served(setting: Setting, name: str, *options: str) -> Iterator[Serving]:
    """A server with a store of its own, once it is ready. Raises RuntimeError with its last words
    where it does not come to that, or ends otherwise than well."""
    folder = setting.folder / f"{name}-served"
    folder.mkdir()
    command, env = [*PENSTOCK, "serve"], {"PREFECT_API_URL": ""}
    try:
        with serving(folder, *options, command=command, env=env) as server:
            yield server
        ended = f"the server ended with {server.process.returncode}"
        assert server.process.returncode == 0, ended
    except AssertionError as error:
        words = (folder / "serve.log").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{error}: {words[-1] if words else 'not a word'}") from error


def beside_commands(setting: Setting) -> Iterator[Row]:
    """Answers beside what the commands write, and whose the device is."""
    captions, labels = good_run(setting, "gpu").captions, _labels(setting)
    before, used = set(device_holders(setting.device)), device_used_bytes(setting.device)
    models = ("--model", DEMO, "--caption-model", DEMO, "--labels", LABELS)
    with served(setting, "serve", *models, "--idle", IDLE_MINUTES) as server:
        texts: dict[tuple[str, float], str] = {}
        seen: dict[tuple[str, float], str] = {}
        for path in _clips():
            found = message_of(server, "/v1/caption", path.read_bytes())["captions"]
            texts |= {(path.name, each["start"]): each["caption"] for each in found}
            frames = message_of(server, "/v1/label", path.read_bytes())["frames"]
            seen |= {(path.name, frame["time"]): str(frame["top"]) for frame in frames}
        yield alike("captions, server beside command", texts, captions, AS_ON_CPU)
        yield alike("labels, server beside command", seen, labels, AS_ON_CPU)
        yield from _lock(setting, server)
        left = stage_process.wait_for_release(setting.device, used, peak=0)[0] - used
        others = set(device_holders(setting.device)) - before
        found = f"{len(others)} processes, {mib(max(0, left))} more in use"
        good = not (others or here(server)) and left <= stage_process.SLACK_BYTES
        yield row(f"device after --idle {IDLE_MINUTES}", "no process", found, good)
        again = message_of(server, "/v1/caption?prompt=again", _clips()[0].read_bytes())["captions"]
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
                together = max(together, len(here(server)))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        requests = [(path, prompt) for prompt in PROMPTS for path in _clips()[:2]]
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = [
                pool.submit(
                    server.ask,
                    "POST",
                    f"/v1/caption?prompt={quote(prompt)}",
                    path.read_bytes(),
                    seconds=ASK_SECONDS,
                )
                for path, prompt in requests
            ]
            statuses = [each.result().status for each in answers]
        over.set()
        watching.join()
    found = f"{statuses.count(200)} of {len(statuses)}; {mib(most)} at most, {together} at once"
    good = statuses.count(200) == len(statuses) and most <= budget and together == 1
    yield row("captions by halves in turns", f"all, within {mib(budget)}, 1 at once", found, good)


def under_load(setting: Setting) -> Iterator[Row]:
    """Pictures a second, and the time of one."""
    with served(setting, "load", "--model", DEMO, "--tiles", "off") as server:
        load(server, LOAD_SECONDS / 5, AT_ONCE)  # what is loaded when it is used first
        alone = len(load(server, LOAD_SECONDS, 1)) / LOAD_SECONDS
        began = time.monotonic()
        answered = len(load(server, LOAD_SECONDS, AT_ONCE))
        rate = answered / (time.monotonic() - began)
        found = f"{rate:.0f} beside {alone:.0f}, x {rate / alone:.1f}"
        yield row(f"images per second, {AT_ONCE} at once beside one", "more", found, rate > alone)
        seconds, batches = batch_seconds(server)
        p50 = statistics.median(load(server, LOAD_SECONDS, 1, LIGHT_PAUSE))
        after, more = batch_seconds(server)
        half = (after - seconds) / max(1.0, more - batches)
        found = f"p50 {1000 * p50:.1f} ms, {1000 * half:.1f} of it in the half"
        yield row("a picture at light load", "reported", found, p50 > 0)


def _clips() -> list[Path]:
    return sorted(SAMPLES.glob("*.mp4"))


def _labels(setting: Setting) -> dict[tuple[str, float], str]:
    """(file, time) → the label that the command gives a frame first."""
    options = (str(SAMPLES), "--model", DEMO, "--labels", LABELS)
    done = good_run(setting, "labels", *options, verb="label")
    lines = (done.out / "labels.jsonl").read_text().splitlines()
    return {(c["media_path"], c["time"]): str(c["top"]) for c in map(json.loads, lines)}


def _lock(setting: Setting, server: Serving) -> Iterator[Row]:
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
        message_of(server, f"/v1/caption?prompt={number}", path.read_bytes())
    words = log.read_text()
    process.wait()
    found = " ".join(WAITING.findall(words)) or "it did not wait"
    good = f"held by process {server.process.pid}" in found
    yield row("a command beside a server", f"waits for process {server.process.pid}", found, good)
    code = process.returncode
    yield row("how it ends once the server is idle", "exit 0", f"exit {code}", code == 0)
