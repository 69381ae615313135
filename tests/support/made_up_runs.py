"""Runs commands of the program with made-up stages, and tells what is in the store then."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from artifacts.digests import digest_of
from artifacts.records.packs import Record, RecordSet, stored_namespaces
from artifacts.records.store import FolderStore, open_store
from stages.models.published import FIELD, runs_as_published
from stages.process.events import StageOutcome
from stages.process.job import job_fields
from tests.support.stand_ins import Stages

DATA = Path(__file__).parent.parent / "data"
PROFILES = DATA / "made_up_profiles.json"
"""What `describe` told of tiny checkpoints: name → profile."""
CLIPS = DATA / "clips"
KINDS = ("media", "frames", "features", "captions", "embeddings", "texts", "summaries", "failures")
WIDTH = 4
"""Numbers of a made-up vector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One command over the clips, with the model that it runs."""

    command: str = "caption"
    model: str = "demo"
    """Name of a profile."""
    options: tuple[str, ...] = ()
    graphs: bool = False
    """Whether graphs of the vision half lie beside the checkpoint."""
    published: bool = False
    """Whether the config.json of a copy of the demo says that it is run as published."""


class MadeUpStages(Stages):
    """Makes records of every kind from their keys."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._profile = _profiles()[model]

    def _answer(self, call: Any, outcome: StageOutcome) -> StageOutcome:
        arguments = job_fields(call.job)
        if call.name == "describe":
            published = runs_as_published(Path(arguments["model"]), arguments["as_published"])
            limits = {name: arguments[name] for name in ("max_pixels", "max_video_pixels")}
            given = {"folder": arguments["model"], "as_published": published, **limits}
            outcome.notes["profile"] = {**self._profile, **given}
            return outcome
        return super()._answer(call, outcome)

    def _make(self, call: Any, outcome: StageOutcome) -> None:
        if call.name in MAKERS:
            MAKERS[call.name](_by_name(job_fields(call.job)), outcome)
        else:
            super()._make(call, outcome)


def _vectors(key: str, count: int) -> Record:
    import numpy as np

    from artifacts.records.vectors import vector_record

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
"""Name of a stage → function that publishes the records of its job."""


def _by_name(value: Any) -> Any:
    """Return the items in a value as mappings."""
    if hasattr(value, "_asdict"):
        return _by_name(value._asdict())
    if isinstance(value, Mapping):
        return {name: _by_name(each) for name, each in value.items()}
    return [_by_name(each) for each in value] if isinstance(value, list) else value


def keys_of(cell: Cell) -> dict[str, Any]:
    """Return the kinds of records that a cell's command leaves in an empty store: of each namespace
    the number of keys, and their digest. Raises AssertionError if the command fails."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        _write_model(root / "model", cell)
        assert run(MadeUpStages(cell.model), _words(root, cell), root) == 0
        return dict(_stored(root / "store"))


def _words(root: Path, cell: Cell) -> list[str]:
    """Return the command line of a cell."""
    kept = ["--store", str(root / "store"), "--memory", "8GiB", "--quiet"]
    packaged = cell.model in ("demo", "dual") and not (cell.graphs or cell.published)
    model = "demo" if packaged else str(root / "model")
    out = [] if cell.command == "cache rebuild" else ["--out", str(root / "out")]
    given = [each.replace("{data}", str(DATA)) for each in cell.options]
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
        write_graphs(folder, message["vision"]["shards"])


def write_graphs(folder: Path, shards: list[str]) -> None:
    """Put a made-up graph of the vision half beside a checkpoint's weights."""
    from artifacts.records.keys import hash_file
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
    return found


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each kind of records, with the keys of each namespace of it."""
    store = FolderStore(folder)
    for kind in KINDS:
        sets = {name: RecordSet(store, kind, name) for name in stored_namespaces(store, kind)}
        if sets:
            digests = {n: (len(of), digest_of(sorted(of.keys()))[:16]) for n, of in sets.items()}
            yield kind, {name[:16]: list(found) for name, found in digests.items()}


def run(stages: MadeUpStages, words: list[str], folder: Path) -> int:
    """Return the exit code of a command whose stages are made up."""
    from flows.core.machine.launch import DirectLauncher
    from flows.interfaces.cli.main import main as run_command

    kept = {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / "cache")}
    with (
        mock.patch.object(DirectLauncher, "start", lambda _, call: stages.start(call)),
        mock.patch.object(os, "fsync"),
        mock.patch.dict(os.environ, kept),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return run_command(words)
