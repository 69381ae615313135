"""Implements `penstock demo`: a dozen clips of the demo world with their ground truth, captions,
labels and a score.
"""

import argparse
import json
import secrets
import tempfile
from pathlib import Path
from typing import Any

import penstock_demo
from artifacts.labels import Labelled, read_labels, spans_of
from flows.console.display import Display
from flows.console.lines import print_lines
from flows.console.units import duration, size
from flows.machine.launch import DirectLauncher, ForkingLauncher
from flows.media.labels import label_set
from flows.options.commands import CaptionConfig
from flows.options.model import DEMO_MODEL
from flows.pipelines import STAGES
from flows.results.run_record import RUN_RECORD
from flows.running.label import LabelRequest, label
from flows.running.run import LauncherMaker, caption
from penstock_demo.clips import write_clips
from penstock_demo.scoring import read_truths, score_captions
from penstock_demo.words import COLOURS, SHAPES, parse
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener

LABELS = ",".join(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def demo_command(given: argparse.Namespace) -> int:
    """Caption the shipped clips and fresh ones, and return the run's exit code. Raises
    PenstockError."""
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder, ForkServer() as forks:

        def launcher(listen: Listener) -> ForkingLauncher:
            # One server for both runs, so that the libraries are imported once.
            return ForkingLauncher(DirectLauncher(listen), forks, listen)

        fresh = Path(folder, "clips")
        if given.clips:
            print_lines(f"drawing {given.clips} fresh clips, seed {seed}")
            truths = write_clips(fresh, given.clips, seed)
        shipped = str(penstock_demo.CLIPS)
        config = CaptionConfig(
            sources=(shipped, str(fresh)) if given.clips else (shipped,),
            model=DEMO_MODEL,
            out=str(Path(folder, "out")),
            store=str(Path(folder, "store")),
            precision=given.precision,
            batch_size=16,
        )
        result = caption(config, Display(), launcher)
        captions = _captions(result.out)
        _print_shipped(captions.get(shipped, {}), _labels(Path(folder), config.store, launcher))
        if given.clips:
            scored = score_captions(truths, captions.get(str(fresh), {})).table()
            print_lines("", f"{given.clips} fresh clips, seed {seed}:", *scored.splitlines())
        _print_stages(json.loads((result.out / RUN_RECORD).read_text(encoding="utf-8")))
    print_lines(
        "This is a demo: its model knows only moving shapes.",
        "For your own files: penstock caption VIDEOS/ --model MODEL",
    )
    return result.exit_code


def _captions(out: Path) -> dict[str, dict[str, str]]:
    """Return source → file → caption."""
    found: dict[str, dict[str, str]] = {}
    with (out / "captions.jsonl").open(encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            found.setdefault(row["source"], {})[row["media_path"]] = row["caption"]
    return found


def _labels(folder: Path, store: str, make_launcher: LauncherMaker) -> dict[str, list[Labelled]]:
    """Return file → labels of its frames, for the shipped clips. Raises PenstockError."""
    config = CaptionConfig(
        sources=(str(penstock_demo.CLIPS),),
        model=DEMO_MODEL,
        out=str(folder / "labels"),
        store=store,
        batch_size=32,
    )
    request = LabelRequest(labels=label_set(LABELS))
    out = label(config, request, Display(quiet=True, fleeting=True), make_launcher).out
    found: dict[str, list[Labelled]] = {}
    for row in read_labels(out / "labels.jsonl"):
        found.setdefault(row.media_path, []).append(row)
    return found


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


def _print_stages(record: dict[str, Any]) -> None:
    print_lines("")
    for stage in record["stages"]:
        peak, seconds = size(stage["peak_host_bytes"]), duration(stage["seconds"])
        part = STAGES[stage["name"]].part
        found = stage["precision"] or record["plan"]["precision"]
        precision = f"  {part} half in {found[part]}" if part else ""
        print_lines(
            f"{stage['name']:8s}{stage['items']:5d} items  {seconds:>8s}  peak {peak}{precision}"
        )
