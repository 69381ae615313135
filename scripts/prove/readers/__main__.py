"""Has others read what runs write, and ask what `serve` answers; prints tables, and ends with 1
where one of them disagrees.

    python -m scripts.prove.readers [--only clips|rules|clients|limits] [--folder DIR]
        [--clips DIR] [--sources DIR] [--tokenizers DIR]

Videos whose frames carry their number are captioned in chunks of 6 s, in shots, and whole. Each
clip of the data sets is then read by PyAV, decord, OpenCV, torchcodec, ffmpeg and imageio-ffmpeg,
and by the rules of trainers. The table of limits is compared with the sources of trainers, which
are not downloaded here. The readers are installed into `.venv-readers` (1.2 GB) from their own
lock.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.prove.readers import limits
from scripts.prove.readers.sources import Source, write
from tests.support.builders.common import cells, heads, run_penstock
from tests.support.serving import REAL, serving
from tests.support.trainers import READERS, RULES, STILLS

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements" / "readers.txt"
VENV = ROOT / ".venv-readers"
OTHER_CLIPS = Path(os.environ.get("PENSTOCK_TEST_CLIPS", ROOT.parent / "shared" / "clips"))
PARTS = ("clips", "rules", "clients", "limits")
RUNS = {"chunk 6": ("--chunk", "6"), "shots": ("--shots",), "whole": ("--whole",)}
"""Name of a run → its options."""
FORMATS = ("musubi", "diffusion-pipe", "ltx", "hf")
CONSTANT_ONLY = "imageio-ffmpeg"
"""A reader that makes the rate of a clip constant."""
ROUNDING = 1e-3
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def install() -> Path:
    """Make `.venv-readers`, unless it is there, and return its Python. torch, PyAV and what else
    it lacks are those of `.venv`."""
    python, made = VENV / "bin" / "python", VENV / "installed"
    own = next(Path(each) for each in sys.path if each.endswith("site-packages"))
    expected = sha256(LOCK.read_bytes() + os.fsencode(own)).hexdigest()
    if made.exists() and made.read_text(encoding="utf-8") == expected:
        return python
    print(f"installing the readers into {VENV}", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-P", "-m", "venv", VENV], check=True)
    pip = (python, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes")
    subprocess.run([*pip, "--requirement", LOCK], check=True)
    (site,) = VENV.glob("lib/python*/site-packages")
    (site / "penstock.pth").write_text(f"{own}\n", encoding="utf-8")
    made.write_text(expected, encoding="utf-8")
    return python


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the captions of a run, in the order of the lines of the trainers' lists."""
    lines = (out / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def expected_of(
    rows: Sequence[Mapping[str, Any]], sources: Mapping[str, Source]
) -> list[list[int]]:
    """Return the numbers that the clip of each caption shows: those of the frames that begin in its
    chunk, or of the one on display."""
    last = {row["media_path"]: row["start"] for row in rows}
    first = {row["media_path"]: row["start"] for row in reversed(rows)}  # behind the sound's start
    found = []
    for row in rows:
        name, start = row["media_path"], row["start"]
        end = float("inf") if start == last[name] else row["end"]
        times = [at + first[name] for at in sources[name].seconds]
        own = [n for n, at in enumerate(times) if start - ROUNDING <= at < end - ROUNDING]
        found.append(own or [max(n for n, at in enumerate(times) if at <= start)])
    return found


def caption(media: Path, out: Path, store: Path, options: Sequence[str]) -> Path:
    """Caption media with the demo's model, and return the folder of the data sets."""
    few = ("--frames", "1", "--max-new-tokens", "4", "--format", ",".join(FORMATS))
    run_penstock("caption", media, "demo", out, store, *few, *options)
    return out


class Trial:
    """The runs of one folder, and what others made of them."""

    def __init__(self, folder: Path, parts: Sequence[str], clips: Path | None) -> None:
        self.folder, self._parts, self._python = folder, parts, install()
        self._sources = write(folder / "media")
        self.kinds: dict[str, str] = {}
        """Path of a clip → the run that made it."""
        self._varied: set[str] = set()
        """Paths of clips whose frames come at no constant rate."""
        self._task: dict[str, Any] = {"clips": {}, "sets": defaultdict(list), "folders": {}}
        for name, options in RUNS.items():
            out = caption(folder / "media", folder / name, folder / "store", options)
            self._take(name, out)
            if clips is not None and "rules" in parts and name != "shots":
                out = folder / f"real {name}"
                with contextlib.suppress(RuntimeError):  # some are damaged, and fail
                    caption(clips, out, folder / "store", ("--recursive", *options))
                self._take_sets(out)

    def _take(self, name: str, out: Path) -> None:
        rows = rows_of(out)
        lists = (out / "musubi" / "videos.jsonl").read_text(encoding="utf-8").splitlines()
        paths = [json.loads(line)["video_path"] for line in lists]
        numbers = expected_of(rows, self._sources)
        for path, row, own in zip(paths, rows, numbers, strict=True):
            times = [self._sources[row["media_path"]].seconds[number] for number in own]
            if len({round(b - a, 6) for a, b in pairwise(times)}) != 1:
                self._varied.add(path)
        if "clips" in self._parts:
            self.kinds |= dict.fromkeys(paths, name)
            self._task["clips"] |= dict(zip(paths, numbers, strict=True))
            self._task["folders"][str(out / "hf" / "videos")] = len(rows)
        if "rules" in self._parts:
            self._take_sets(out)

    def _take_sets(self, out: Path) -> None:
        for name in RULES:
            videos = [path for path in READERS[name](out) if Path(path).suffix not in STILLS]
            self._task["sets"][name] += videos

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what the readers say."""
        task = self.folder / "task.json"
        task.write_text(json.dumps(self._task), encoding="utf-8")
        cache = {"HF_DATASETS_CACHE": str(self.folder / "datasets")}
        judge = subprocess.Popen(
            [self._python, "-m", "scripts.prove.readers.judge", task],
            cwd=ROOT,
            env={**os.environ, **QUIET, **cache},
            stdout=subprocess.PIPE,
            stderr=(self.folder / "judge.log").open("w"),
            text=True,
        )
        assert judge.stdout is not None
        for line in judge.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if judge.wait():
            print(f"the judge ended with {judge.returncode}: {self.folder / 'judge.log'}")
            yield {"set": "judge", "path": "", "found": "ended early"}

    def is_constant(self, path: str) -> bool:
        """Return whether the frames of a clip come at one rate."""
        return path not in self._varied


def judge_media(trial: Trial) -> bool:
    """Print what the readers make of all data sets. Return whether they agree."""
    good: Counter[tuple[str, str]] = Counter()
    every: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for line in trial.lines():
        found = line["found"]
        if "clip" in line:
            kind, path = trial.kinds[line["clip"]], line["clip"]
            checks = {(name, kind): why for name, why in found.items()}
            if not trial.is_constant(path):
                del checks[CONSTANT_ONLY, kind]
        elif "set" in line:
            path, checks = line["path"], {(f"rule of {line['set']}", "all"): found}
        else:
            path, why = line["folder"], "" if found == line["rows"] else f"loads {found}"
            checks = {("datasets", "all"): why}
        for key, why in checks.items():
            every[key] += 1
            good[key] += not why
            wrong += [f"{key[0]}: {path} {why}"] * bool(why)
    columns = [*RUNS, "all"]
    print(heads(f"reader | {' | '.join(columns)}"))
    for name in dict.fromkeys(name for name, _ in every):
        messages = [
            f"{good[name, c]} of {every[name, c]}" if every[name, c] else "" for c in columns
        ]
        print(cells([name, *messages]))
    print("\n".join(wrong))
    return not wrong


def ask(folder: Path) -> bool:
    """Have the clients ask a server; they print. Return whether all checks hold."""
    from tests.rooms.flows.interfaces.serve.test_chat import VLLM

    (folder / "fields.json").write_text(json.dumps(VLLM), encoding="utf-8")
    options = ("--caption-model", "demo", "--labels", "a ball,a box")
    with serving(folder, *options, command=REAL) as server:
        address = f"http://127.0.0.1:{server.port}"
        messages = [address, str(penstock_demo.CLIPS / "clip-01.mp4"), str(folder)]
        done = subprocess.run(
            [install(), "-m", "scripts.prove.readers.clients", *messages],
            cwd=ROOT,
            env={**os.environ, **QUIET},
            check=False,
        )
    return not done.returncode


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--folder", type=Path, help="where all is kept for the next time")
    parser.add_argument("--clips", type=Path, help="further videos, for the rules of trainers")
    parser.add_argument("--sources", type=Path, help="checkouts of trainers, for `limits`")
    parser.add_argument("--tokenizers", type=Path, help="folders of tokenizers, for `limits`")
    given: Any = parser.parse_args(words)
    parts = [given.only] if given.only else PARTS
    clips = given.clips or (OTHER_CLIPS if OTHER_CLIPS.is_dir() else None)
    good = True
    with tempfile.TemporaryDirectory() as made:
        folder = (given.folder or Path(made)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if {"clips", "rules"} & {*parts}:
            good &= judge_media(Trial(folder, parts, clips))
        if "clients" in parts:
            good &= ask(folder)
    if "limits" in parts:
        good &= not limits.failures(given.sources, given.tokenizers)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
