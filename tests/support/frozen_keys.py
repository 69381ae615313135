"""Runs commands of the program with made-up stages, and records all that decides what they make:
namespaces, keys, the arguments of every stage, and what `run.json` says of the run.

tests/data/frozen_keys.json holds what an earlier version did. `python -m tests.support.frozen_keys
--write` writes it anew (`--write-jobs`: frozen_job_keys.json), which is right only where finished
work is meant to be done again. The seam at the end is the only function that names flows.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from artifacts.errors import CannotFit, Interrupted
from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet, stored_namespaces
from artifacts.stamps import ModelFileStamp, Stamp
from artifacts.store import FolderStore, open_store
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from stages.decode.generation import SamplingParams
from stages.models.published import FIELD, runs_as_published
from stages.process.events import StageOutcome
from stages.process.job import job_fields
from stages.summarize.job import TimedText
from tests.support.frozen_cells import CELLS, JOBS, Cell
from tests.support.frozen_surface import forms, surface
from tests.support.stand_ins import Stages

DATA = Path(__file__).parent.parent / "data"
RECORDED = DATA / "frozen_keys.json"
RECORDED_JOBS = DATA / "frozen_job_keys.json"
PROFILES = DATA / "frozen_profiles.json"
"""What `describe` told of tiny checkpoints: name → profile."""
CLIPS = DATA / "clips"
BASE = "caption"
"""The cell whose stage arguments stand in full; other cells hold what differs from them."""
KINDS = ("media", "frames", "features", "captions", "embeddings", "texts", "summaries", "failures")
MACHINE = {"files", "stamp", "fp16_check", "workers"}
"""Arguments whose values depend on the machine, or on when a file was written."""
UNRECORDED = {"memory", "seconds", "folder", "device"}
"""Facts of a run's plan that depend on the machine."""
LONG = 300
"""Letters of an argument, as JSON, from which on its digest stands for it."""
WIDTH = 4
"""Numbers of a made-up vector."""


class MadeUpStages(Stages):
    """Makes records of every kind from their keys. `refuse` counts, by stage, the processes that
    run out of memory at first."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._told = _profiles()[cell.model]
        self._refuse = dict(cell.refuse)
        self._stop = cell.stop

    def _answer(self, call: Any, outcome: StageOutcome) -> StageOutcome:
        arguments = job_fields(call.job)
        if call.name == "describe":
            published = runs_as_published(Path(arguments["model"]), arguments["as_published"])
            limits = {name: arguments[name] for name in ("max_pixels", "max_video_pixels")}
            messages = {"folder": arguments["model"], "as_published": published, **limits}
            outcome.notes["profile"] = {**self._told, **messages}
            return outcome
        return super()._answer(call, outcome)

    def _make(self, call: Any, outcome: StageOutcome) -> None:
        if self._refuse.get(call.name, 0):
            self._refuse[call.name] -= 1
            raise CannotFit(f"{call.name} needs more memory", hint="Give it more")
        if call.name == self._stop:
            raise Interrupted(f"{call.name} was stopped")
        if call.name in MAKERS:
            MAKERS[call.name](flat(job_fields(call.job)), outcome)
        else:
            super()._make(call, outcome)


def _vectors(key: str, count: int) -> Record:
    import numpy as np

    from artifacts.vectors import vector_record

    drawn = np.random.default_rng(int(key[:8], 16)).standard_normal((count, WIDTH))
    return vector_record(key, drawn.astype("<f4"))


def _embed(values: dict[str, Any], outcome: StageOutcome) -> None:
    from artifacts.tiles import OFF, boxes_of

    store = open_store(values["store"])
    frames = RecordSet(store, "frames", values["frames_namespace"])
    records = RecordSet(store, "embeddings", values["namespace"])
    for member in (each for batch in values["batches"] for each in batch):
        meta = frames.meta(member["frames"])
        count = len(meta["times"])
        if values.get("tiles", OFF) != OFF and member["kind"] == "image":
            count = len(boxes_of(meta["height"], meta["width"], values["tiles"], values["edge"]))
        outcome.items += len(records.publish([_vectors(member["key"], count)]))


def _embed_texts(values: dict[str, Any], outcome: StageOutcome) -> None:
    records = RecordSet(open_store(values["store"]), "texts", values["namespace"])
    made = _vectors(values["key"], len(values["groups"]))
    meta = {**made.meta, "scale": 10.0, "bias": -1.0, "cut": [], "tokens": 16}
    records.publish([Record(key=made.key, meta=meta, payload=made.payload)])
    outcome.items += 1


def _decode(values: dict[str, Any], outcome: StageOutcome) -> None:
    records = RecordSet(open_store(values["store"]), "captions", values["namespace"])
    meta = {"caption": '{"a": true}' if "schema" in values["generation"] else "all", "tokens": 1}
    meta["ended"] = "stop"
    keys = [member["key"] for batch in values["batches"] for member in batch]
    outcome.items += len(records.publish([Record(key=key, meta=meta) for key in keys]))


def _summarize(values: dict[str, Any], outcome: StageOutcome) -> None:
    records = RecordSet(open_store(values["store"]), "summaries", values["namespace"])
    texts = {"summary": "all", "chapters": [], "tokens": 3, "levels": [[1]], "cut": 0, "ended": ""}
    records.publish([Record(key=medium["key"], meta=texts) for medium in values["media"]])
    outcome.items += len(values["media"])


MAKERS: dict[str, Callable[[dict[str, Any], StageOutcome], None]] = {
    "decode": _decode,
    "judge": lambda *_: None,
    "embed": _embed,
    "embed_texts": _embed_texts,
    "summarize": _summarize,
}
"""Name of a stage → makes what it is told to make."""


def flat(arguments: Any) -> dict[str, Any]:
    """Return the arguments of a stage by name, those of its half among them, as they were when jobs
    held neither halves nor items."""
    values = json.loads(json.dumps(_by_name(arguments)))
    if "generation" in values:
        params = SamplingParams(**values["generation"])
        values["generation"] = params.non_defaults
    if "fit_image" in values:
        fits = {kind: values.pop(f"fit_{kind}") for kind in ("video", "image")}
        values["fit"] = {kind: fit["long_edges"] for kind, fit in fits.items()}
        values["shrinks"] = fits["image"]["shrinks"]
    return {**values.pop("half", {}), **values}


def _by_name(value: Any) -> Any:
    """Return the items in a value as mappings."""
    if hasattr(value, "_asdict") and not isinstance(value, TimedText | Stamp | ModelFileStamp):
        return _by_name(value._asdict())
    if isinstance(value, Mapping):
        return {name: _by_name(each) for name, each in value.items()}
    return [_by_name(each) for each in value] if isinstance(value, list) else value


def record(name: str) -> dict[str, Any]:
    """Return what a cell's command does in an empty folder after the commands before it."""
    cell = (CELLS | JOBS)[name]
    in_batches = mock.patch("flows.job.pass_mode._has_pass_modes", return_value=False)
    with tempfile.TemporaryDirectory() as made, in_batches:
        root = Path(made).resolve()
        stages = MadeUpStages(cell)
        _write_model(root / "model", cell)
        _write_data(root / "data.jsonl")
        for more in cell.before:
            run(stages, _words(root, cell, more), root)
        stages.calls.clear()
        ended = run(stages, _words(root, cell, cell.options), root)
        found = {
            "exit": ended,
            "calls": {
                f"{at} {call.name}": {n: _told(v) for n, v in _arguments(root, call).items()}
                for at, call in enumerate(stages.calls)
            },
            "namespaces": {n: digest_of(_plain(root, note)) for n, note in _noted(root / "store")},
            "stored": dict(_stored(root / "store")),
            "run": _plain(root, _run(root / "out")),
        }
        if (root / "out" / "index.json").exists():
            index = json.loads((root / "out" / "index.json").read_text())
            found["maker"] = _plain(root, index["maker"])
        return json.loads(_shortened(json.dumps(found)))  # type: ignore[no-any-return]


def _arguments(root: Path, call: Any) -> dict[str, Any]:
    message: dict[str, Any] = _plain(root, flat(job_fields(call.job)))
    return message


def _words(root: Path, cell: Cell, more: tuple[str, ...]) -> list[str]:
    """Return the command line of a cell."""
    names = {"{data}": str(DATA), "{root}": str(root), "{clips}": str(CLIPS)}
    given = list(more)
    for name, folder in names.items():
        given = [each.replace(name, folder) for each in given]
    kept = ["--store", str(root / "store"), "--memory", "8GiB", "--quiet"]
    if cell.stop:
        return [*cell.command.split(), "--out", str(root / "out"), *kept, *given]
    packaged = cell.model in ("demo", "dual") and not (cell.graphs or cell.published)
    model = "demo" if packaged else str(root / "model")
    out = [] if cell.command == "cache rebuild" else ["--out", str(root / "out")]
    return [*cell.command.split(), str(CLIPS), "--model", model, *out, *kept, *given]


def _write_model(folder: Path, cell: Cell) -> None:
    """Write files that have the names of a checkpoint's, and graphs where the cell has them."""
    folder.mkdir()
    message = _profiles()[cell.model]
    stated = {"model_type": "qwen2_5_vl", FIELD: True} if cell.published else {}
    (folder / "config.json").write_text(json.dumps(stated))
    for part in ("vision", "language"):
        for shard in message[part]["shards"]:
            (folder / shard).write_text(f"weights of {cell.model}")
    if cell.graphs:
        _write_graphs(folder, message["vision"]["shards"])


def _write_data(path: Path) -> None:
    """Write captions of the clips, for a training."""
    rows = [{"media_path": str(clip), "caption": clip.stem} for clip in sorted(CLIPS.iterdir())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_graphs(folder: Path, shards: list[str]) -> None:
    from artifacts.keys import hash_file
    from stages.models.graphs import FOLDER

    graphs = folder / FOLDER
    graphs.mkdir()
    (graphs / "vision.onnx").write_text("a graph")
    tower = {"path": "tower", "class_name": "Tower", "parameters": 7, "packed": False}
    graph = {"file": "vision.onnx", "inputs": {"x": [0, 3]}, "fixed": {}, "output": {}}
    half = {
        "precision": "fp32",
        "weights": {name: hash_file(folder / name) for name in shards},
        "towers": [{**tower, "graphs": [{**graph, "names": ["y"], "quantized": 0}]}],
        "furthest": 0.0,
        "nearness": {},
    }
    files = {"vision.onnx": hash_file(graphs / "vision.onnx")}
    messages = {"format": 1, "files": files, "sizes": {"vision.onnx": 7}, "made_by": {}}
    (graphs / "graphs.json").write_text(json.dumps({**messages, "halves": {"vision": half}}))


@cache
def _profiles() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(PROFILES.read_text())
    sizes = [{**size, "tokens": 60 + size["edge"]} for size in found["demo"]["frame_sizes"]]
    bounded = {"context_tokens": 1200, "frame_tokens": 2000, "frame_sizes": sizes}
    bounded |= {"video_bounds": None, "pixels_per_video": 0, "fit_video": {"long_edges": []}}
    return {**found, "bounded": {**found["demo"], **bounded}}


def _plain(root: Path, value: Any) -> Any:
    """Return a value with the folders of this machine by name, and without what is empty: whether
    an argument is left out, or given as nothing, is one thing."""
    if isinstance(value, Mapping):
        messages = {_plain(root, k): _plain(root, v) for k, v in value.items() if k not in MACHINE}
        return {name: each for name, each in messages.items() if each not in ("", 0, None, [], {})}
    if isinstance(value, list | tuple):
        return [_plain(root, each) for each in value]
    if isinstance(value, str):
        folders = {root: "ROOT", CHECKPOINT: "DEMO", DUAL_CHECKPOINT: "DUAL", DATA: "DATA"}
        for folder, name in folders.items():
            value = value.replace(str(folder), name)
    return value


def _told(value: Any) -> Any:
    """Return an argument, of a long one only what tells it apart."""
    length = len(json.dumps(value)) if isinstance(value, dict | list) else 0
    return {"digest": digest_of(value), "length": len(value)} if length > LONG else value


def beside(found: Any, base: Any) -> Any:
    """Return what of a cell is otherwise than in the base; `-` names what only the base has."""
    if not isinstance(found, dict) or not isinstance(base, dict):
        return found
    other = {
        name: beside(value, base.get(name))
        for name, value in found.items()
        if name not in base or value != base[name]
    }
    gone = sorted(base.keys() - found.keys())
    return {**other, "-": gone} if gone else other


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each kind of records, with the keys of each namespace of it."""
    store = FolderStore(folder)
    for kind in KINDS:
        sets = {name: RecordSet(store, kind, name) for name in stored_namespaces(store, kind)}
        if sets:
            yield kind, {n: [len(of), digest_of(sorted(of.keys()))] for n, of in sets.items()}


def _noted(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each namespace that the store has a note of, with the note."""
    notes = RecordSet(FolderStore(folder), "namespaces", digest_of(["namespaces", 1]))
    for namespace in sorted(notes.keys()):
        yield namespace, notes.meta(namespace)


def _run(out: Path) -> dict[str, Any]:
    if not (out / "run.json").exists():
        return {}
    plan = json.loads((out / "run.json").read_text())["plan"]
    return {name: value for name, value in plan.items() if name not in UNRECORDED}


def _shortened(text: str) -> str:
    return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1", text)


def _write(path: Path, values: dict[str, dict[str, Any]]) -> None:
    """Write a recorded file, with a line a cell."""
    parts = []
    for name, part in sorted(values.items()):
        lines = [f"{json.dumps(n)}: {json.dumps(v, sort_keys=True)}" for n, v in part.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


# The seam


def run(stages: MadeUpStages, words: list[str], folder: Path) -> int:
    """Return the exit code of a command whose stages are made up."""
    from flows.cli.main import main as run_command
    from flows.machine.launch import DirectLauncher

    kept = {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / "cache")}
    with (
        mock.patch.object(DirectLauncher, "start", lambda _, call: stages.start(call)),
        mock.patch.object(os, "fsync"),
        mock.patch.dict(os.environ, kept),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return run_command(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the recorded file anew")
    parser.add_argument("--write-jobs", action="store_true", help="that of trainings and exports")
    parser.add_argument("cells", nargs="*", help="print these cells")
    given = parser.parse_args()
    if given.write:
        base = record(BASE)
        cells = {name: beside(record(name), base) for name in CELLS if name != BASE}
        _write(RECORDED, {"base": base, "cells": cells, **surface(), "forms": forms()})
    if given.write_jobs:
        _write(RECORDED_JOBS, {"jobs": {name: record(name) for name in JOBS}})
    for name in given.cells:
        json.dump(record(name), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
