"""Implements `penstock demo`: a dozen clips of the demo world with their ground truth, captions
and labels, a score on new ones, and a file of the user's by the default model.
"""

import argparse
import json
import secrets
import shlex
import tempfile
from itertools import islice
from pathlib import Path

import penstock_demo
from artifacts.errors import Unanswered, UsageError
from artifacts.texts.labels import Labelled, read_labels, spans_of
from flows.commands.label.run import label
from flows.core.console.display import Display
from flows.core.console.lines import duration, escaped, print_lines, size
from flows.core.machine.launch import DirectLauncher, ForkingLauncher
from flows.core.options.commands import CaptionConfig
from flows.core.options.model import DEMO_MODEL
from flows.core.options.precision import PRECISIONS
from flows.core.options.vectors import LabelConfig
from flows.core.pipelines import STAGES
from flows.execution.run import LauncherMaker, caption
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RunRecord
from penstock_demo.clips import write_clips
from penstock_demo.scoring import read_truths, score_captions
from penstock_demo.words import COLOURS, SHAPES, parse
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener

LABELS = ",".join(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


OWN_SHOWN = 3
"""Chunks of the user's file whose captions are printed."""


def demo_command(given: argparse.Namespace) -> int:
    """Caption the shipped clips, fresh ones and the given file, and return the exit code. Raises
    PenstockError."""
    if given.file and not Path(given.file).is_file():
        raise UsageError(f"{given.file}: no such file", hint="Give a photo or a video")
    print_lines("The test model of this demo knows drawn shapes only, no photos or films")
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder, ForkServer() as forks:

        def launcher(listen: Listener) -> ForkingLauncher:
            # One server for all runs, so that the libraries are imported once.
            return ForkingLauncher(DirectLauncher(listen), forks, listen)

        exit_code = _show_shipped(Path(folder), given.precision, launcher)
        if given.clips:
            exit_code = max(exit_code, _score_fresh(given, Path(folder), launcher))
        if given.file:
            return max(exit_code, _caption_own(given.file, Path(folder), launcher))
    print_lines("", "For your own files: penstock caption VIDEOS/")
    return exit_code


def _config(source: Path, folder: Path, name: str, precision: str) -> CaptionConfig:
    """Return the run of one source in the demo's folder; `name` is that of its output folder."""
    out, store = str(folder / name), str(folder / "store")
    return CaptionConfig(
        sources=(str(source),),
        model=DEMO_MODEL,
        out=out,
        store=store,
        precision=precision,
        batch_size=16,
    )


def _show_shipped(folder: Path, precision: str, launcher: LauncherMaker) -> int:
    """Caption and label the shipped clips, and print them with the truth; returns the exit code."""
    config = _config(penstock_demo.CLIPS, folder, "shipped", precision)
    result = caption(config, Display(), launcher)
    _print_shipped(_captions(result.out), _labels(folder, launcher))
    return result.exit_code


def _score_fresh(given: argparse.Namespace, folder: Path, launcher: LauncherMaker) -> int:
    """Caption clips that were drawn this moment, and print the score; returns the exit code."""
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    clips, display = folder / "clips", Display()
    print_lines("")
    display.doing(f"drawing {given.clips} fresh clips, seed {seed}")
    truths = write_clips(clips, given.clips, seed)
    config = _config(clips, folder, "fresh", given.precision)
    result = caption(config, display, launcher)
    scored = score_captions(truths, _captions(result.out)).table()
    print_lines("", f"{given.clips} fresh clips, seed {seed}:", *scored.splitlines())
    _print_stages(load_record(result.out))
    return result.exit_code


def _caption_own(file: str, folder: Path, launcher: LauncherMaker) -> int:
    """Caption the user's file by the default model of `penstock caption`, and print its captions.
    Without the model and without the hub, name the command for later; returns the exit code."""
    config = CaptionConfig(sources=(file,), out=str(folder / "own"))
    command = f"penstock caption {shlex.quote(file)}"
    print_lines("", f"Now {escaped(file)}, by {config.model}, the default of `penstock caption`")
    display = Display()
    try:
        result = caption(config, display, launcher)
    except Unanswered as error:
        display.close()
        print_lines(f"{error.message}. Later, run: {command}")
        return 0
    with (result.out / "captions.jsonl").open(encoding="utf-8") as rows:
        print_lines("", *(escaped(json.loads(row)["caption"]) for row in islice(rows, OWN_SHOWN)))
    print_lines("", f"To write them into files: {command}")
    return result.exit_code


def _captions(out: Path) -> dict[str, str]:
    """Return file → caption."""
    with (out / "captions.jsonl").open(encoding="utf-8") as rows:
        return {row["media_path"]: row["caption"] for row in map(json.loads, rows)}


def _labels(folder: Path, make_launcher: LauncherMaker) -> dict[str, list[Labelled]]:
    """Return file → labels of its frames, for the shipped clips. Raises PenstockError."""
    config = LabelConfig(
        sources=(str(penstock_demo.CLIPS),),
        model=DEMO_MODEL,
        labels=LABELS,
        out=str(folder / "labels"),
        store=str(folder / "store"),
    )
    out = label(config, Display(), make_launcher).out
    labels: dict[str, list[Labelled]] = {}
    for row in read_labels(out / "labels.jsonl"):
        labels.setdefault(row.media_path, []).append(row)
    return labels


def _print_shipped(captions: dict[str, str], labels: dict[str, list[Labelled]]) -> None:
    truths, right = read_truths(penstock_demo.CLIPS / "truth.jsonl"), 0
    for truth in truths:
        caption_text, rows = captions.get(truth.file, ""), labels.get(truth.file, [])
        mark = "exact" if caption_text == truth.caption else "     "
        print_lines("", f"{truth.file}  {mark}".rstrip(), f"  truth    {truth.caption}")
        print_lines(f"  caption  {caption_text}", f"  labels   {_spans(rows)}")
        sentence = parse(truth.caption)
        things = {f"{t.colour} {t.shape}" for t in sentence.things} if sentence else set()
        right += {name for row in rows for name in row.given} == things
    print_lines("", f"labels: exact for {right} of {len(truths)} clips")


def _spans(rows: list[Labelled]) -> str:
    """Return the labels of each span of a clip. Its frames are one second apart."""
    frames = [(row.time or 0.0, row.given) for row in rows]
    end = frames[-1][0] if frames else 0.0
    spans = [f"{s.start:g}-{s.end:g} s {', '.join(s.labels)}" for s in spans_of(frames, end + 1)]
    return " · ".join(spans) or "none"


def _print_stages(record: RunRecord) -> None:
    print_lines("")
    for stage in record.stages:
        peak, seconds = size(stage.peak_host_bytes), duration(stage.seconds)
        part = STAGES[stage.name].part
        precisions = stage.precision or record.plan.precision
        precision = f"  {part} half in {precisions[part]}" if part else ""
        print_lines(f"{stage.name:8s}{stage.items:5d} items  {seconds:>8s}  peak {peak}{precision}")


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", default="", metavar="FILE", help="then caption it, by the default model")
    add("--clips", type=int, default=200, metavar="N", help="number of random clips to score [200]")
    add("--seed", type=int, metavar="S", help="random seed of these clips [new]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
