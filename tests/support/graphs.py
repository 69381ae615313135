"""Models with graphs, as `penstock export --to onnx` writes them, without what judges them."""

import json
from pathlib import Path
from typing import Any

from artifacts.keys import hash_file
from stages.export.graphs.run import run
from stages.export.jobs import GraphJob
from stages.export.parity import PARITY
from stages.process.job import job_fields


class Told:
    """What a stage reports."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.items: list[str] = []

    def total(self, items: int) -> None:
        self.items.clear()

    def note(self, **values: Any) -> None:
        self.notes |= values

    def item(self, key: str, *, label: str = "") -> None:
        self.items.append(key)


def graph_job(model: Path, folder: Path, *parts: str, kind: str = "onnx", **more: Any) -> GraphJob:
    weights = {path.name: hash_file(path) for path in model.glob("*.safetensors")}
    told: dict[str, Any] = {
        "model": str(model),
        "folder": str(folder),
        "recipe": {"kind": kind},
        "kind": kind,
        "weights": {part: weights for part in parts},
        "pieces": {},
        **more,
    }
    return GraphJob(**told)


def with_graphs(job: GraphJob, *, passed: bool = True) -> Told:
    """Write the checkpoint of a job, with a verdict, and return what was told."""
    told = Told()
    run(job_fields(job), told)  # type: ignore[arg-type]
    (Path(job.folder) / PARITY).write_text(json.dumps({"passed": passed}))
    return told
