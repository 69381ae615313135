"""Models with graphs, as `penstock export --to onnx` writes them, without what judges them."""

import json
from pathlib import Path
from typing import Any

from artifacts.records.keys import hash_file
from stages.export import GraphJob
from stages.export.graphs.run import run
from stages.export.parity import FRAMES, PARITY, Figures, evaluate_parity
from stages.process.job import job_fields
from tests.support.waves import events


def graph_job(model: Path, folder: Path, *parts: str, **more: Any) -> GraphJob:
    weights = {path.name: hash_file(path) for path in model.glob("*.safetensors")}
    messages: dict[str, Any] = {
        "model": str(model),
        "folder": str(folder),
        "recipe": {"kind": "onnx"},
        "kind": "onnx",
        "weights": {part: weights for part in parts},
        "extra_modules": {},
        **more,
    }
    return GraphJob(**messages)


def with_graphs(job: GraphJob) -> None:
    """Write the checkpoint of a job, with the verdict that it passed."""
    with events() as (report, _):
        run(job_fields(job), report)
    verdict = evaluate_parity(Figures(), FRAMES, job.recipe)
    (Path(job.folder) / PARITY).write_text(json.dumps(verdict.to_json()))
