"""Kills stage processes of real runs at random moments, and the runs themselves; the same command
then ends with the captions of an undisturbed run, and has made nothing twice.

    python -m scripts.prove.kills [NUMBER] [--seed SEED] [--only KIND]

The runs are of the demo's clips and model, in one wave, in many, under --max-store, as vectors and
as answers, and of a tiny model that hears. A key that stands twice in the journals of a folder was
made twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock_demo.clips import write_clips
from scripts.run.stage_processes import CheckFailed, checked, descendants, stage_of
from tests.support.omni import OMNI, omni_checkpoint

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
import flows.core.plan.store_limit
flows.core.plan.store_limit.MAX_WAVE_BYTES = int(sys.argv.pop(1))
from flows.interfaces.cli.main import main
sys.exit(main())
"""
ONE_WAVE, SMALL_WAVE = 1 << 36, 1 << 19
OUTPUTS = ("captions.jsonl", "embeddings.npy", "answers.jsonl")
QUESTIONS = ("--question", "red=Is there a red thing?", "--question", "moves=Does it move left?")
RUN = "run"
"""Victim that is the run itself."""
SECONDS = 300.0
"""Longest time of one run."""
AGAIN = 3
"""How often a command is given again after a run that ended with an error."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of run."""

    name: str
    arguments: tuple[str, ...]
    stages: tuple[str, ...]
    wave: int = ONE_WAVE

    def start(self, folder: Path) -> "subprocess.Popen[bytes]":
        where = ["--out", str(folder / "out"), "--store", str(folder / "store"), "--quiet"]
        with (folder / "errors").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(self.wave), *self.arguments, *where],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )


def cases_in(folder: Path) -> list[Case]:
    """Return the kinds of runs, with what they read in this folder."""
    write_clips(folder / "clips", 12, seed=1)
    write_clips(folder / "few", 3, seed=2)
    shutil.copy(ROOT / "tests" / "data" / "tone.mp4", folder / "few")
    captions = ("caption", str(folder / "clips"), "--model", "demo")
    hearing = ("caption", str(folder / "few"), "--model", str(omni_checkpoint(OMNI[0])))
    short = ("--chunk", "2", "--max-new-tokens", "8")
    stages = ("frames", "encode", "decode")
    return [
        Case(name="one wave", arguments=captions, stages=stages),
        Case(name="waves", arguments=captions, stages=stages, wave=SMALL_WAVE),
        Case(name="max store", arguments=(*captions, "--max-store", "2MB"), stages=stages),
        Case(
            name="vectors",
            arguments=("embed", str(folder / "clips"), "--model", "demo"),
            stages=("frames", "embed"),
        ),
        Case(
            name="answers",
            arguments=("ask", str(folder / "clips"), "--model", "demo", *QUESTIONS),
            stages=("frames", "encode", "answer"),
        ),
        Case(
            name="sound",
            arguments=(*hearing, "--prompt", "Say what is heard.", *short),
            stages=("frames", "encode", "sound", "hear", "decode"),
        ),
    ]


def outputs_of(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {name: (out / name).read_bytes() for name in OUTPUTS if (out / name).exists()}


def twice_made(folder: Path) -> list[str]:
    """Return the keys that stand in the journals more than once."""
    counts = Counter[str]()
    for journal in (folder / "out" / "logs").glob("*.items.jsonl"):
        lines = journal.read_text(encoding="utf-8").splitlines()
        counts.update(f"{journal.name} {json.loads(line)['key']}" for line in lines)
    return [key for key, count in counts.items() if count > 1]


def kill(running: "subprocess.Popen[bytes]", victim: str, after: float) -> bool:
    """Kill a process that runs the stage `victim`, or the run. The signal is sent `after` seconds
    from when such a process appeared. Return whether one was killed."""
    seen = 0.0
    while running.poll() is None:
        processes = [running.pid] if victim == RUN else descendants(running.pid)
        named = [pid for pid in processes if victim in (RUN, stage_of(pid))]
        if named and not seen:
            seen = time.monotonic()
        if seen and time.monotonic() - seen >= after:
            for pid in named[:1]:
                os.kill(pid, signal.SIGKILL)
            return bool(named)
        time.sleep(0.005)
    return False


def ended(running: "subprocess.Popen[bytes]", what: str) -> int:
    try:
        return running.wait(SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{what}: still running after {SECONDS:.0f} s") from None


def trial(case: Case, folder: Path, expected: dict[str, bytes], chance: random.Random) -> str:
    """Kill one process of a run, and end the work. Return the victim, or nothing if the run ended
    before. Raises CheckFailed."""
    victim, after = chance.choice((*case.stages, RUN)), chance.uniform(0.0, 1.0)
    after *= 6 if victim == RUN else 1.5
    running = case.start(folder)
    hit = kill(running, victim, after)
    what = f"{case.name}, {victim} killed after {after:.2f} s"
    code = ended(running, what)
    for _ in range(AGAIN):
        if code:
            code = ended(case.start(folder), f"{what}, again")
    if code:
        raise CheckFailed(f"{what}: exit {code}: {(folder / 'errors').read_text()}")
    if outputs_of(folder) != expected:
        raise CheckFailed(f"{what}: other outputs, in {folder}")
    if twice := twice_made(folder):
        raise CheckFailed(f"{what}: made twice: {twice[0]}, in {folder}")
    return victim if hit else ""


def prove(number: int, seed: int, only: str) -> None:
    """Kill so many processes, of the kind `only` if there is one. Prints how many of each kind.
    Raises CheckFailed."""
    chance, kills = random.Random(seed), Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    cases = [case for case in cases_in(folder) if only in ("", case.name)]
    expected = {}
    for case in cases:
        (whole := folder / case.name).mkdir()
        ended(case.start(whole), case.name)
        expected[case.name] = outputs_of(whole)
        if not any(expected[case.name].values()):
            raise CheckFailed(f"{case.name}: no output: {(whole / 'errors').read_text()}")
    while kills.total() < number:
        case = chance.choice(cases)
        (place := folder / "trial").mkdir()
        if victim := trial(case, place, expected[case.name], chance):
            kills[f"{case.name}: {victim}"] += 1
        shutil.rmtree(place)
    for what, count in sorted(kills.items()):
        print(f"{count:4} {what}")
    shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("number", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    given = parser.parse_args(arguments)
    good = f"{given.number} kills: the same outputs, and nothing made twice"
    return checked(lambda: prove(given.number, given.seed, given.only), good)


if __name__ == "__main__":
    sys.exit(main())
