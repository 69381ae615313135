"""Runs `penstock demo`: a dozen clips of the demo world beside the truth, with a score."""

import argparse
import json
import secrets
import tempfile
from pathlib import Path
from typing import Any

import penstock_demo
from flows.console.display import Display, duration, size
from flows.job.config import DEMO_MODEL, CaptionConfig
from flows.pipelines import STAGES
from flows.running.run import caption
from penstock_demo.clips import write_clips
from penstock_demo.scoring import read_truths, score_captions


def demo_command(given: argparse.Namespace) -> int:
    """Caption the shipped clips and fresh ones; returns the exit code of the run. Raises
    PenstockError."""
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        fresh = Path(folder, "clips")
        if given.clips:
            print(f"drawing {given.clips} fresh clips, seed {seed}")
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
        result = caption(config, Display())
        said = _captions(result.out)
        _print_dozen(said.get(shipped, {}))
        if given.clips:
            print(f"\n{given.clips} fresh clips, seed {seed}:")
            print(score_captions(truths, said.get(str(fresh), {})).table())
        _print_stages(json.loads((result.out / "run.json").read_text(encoding="utf-8")))
    print("A demo: this model knows moving shapes and nothing of the world.")
    print("Your own files: penstock caption VIDEOS/ --model MODEL")
    return result.exit_code


def _captions(out: Path) -> dict[str, dict[str, str]]:
    """Return source → file → caption."""
    found: dict[str, dict[str, str]] = {}
    for line in (out / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["source"], {})[row["media_path"]] = row["caption"]
    return found


def _print_dozen(said: dict[str, str]) -> None:
    for truth in read_truths(penstock_demo.CLIPS / "truth.jsonl"):
        caption_text = said.get(truth.file, "")
        mark = "exact" if caption_text == truth.caption else "     "
        print(f"\n{truth.file}  {mark}\n  truth    {truth.caption}\n  caption  {caption_text}")


def _print_stages(record: dict[str, Any]) -> None:
    print()
    for stage in record["stages"]:
        peak, seconds = size(stage["peak_host_bytes"]), duration(stage["seconds"])
        part = STAGES[stage["name"]].part
        found = stage["precision"] or record["plan"]["precision"]
        precision = f"  {part} half in {found[part]}" if part else ""
        print(f"{stage['name']:8s}{stage['items']:5d} items  {seconds:>8s}  peak {peak}{precision}")
