"""Writes a checkpoint with graphs: the graphs, the unchanged weights, and all other files of the
model."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from artifacts.disk.faults import fault_of
from artifacts.disk.files import whole_file, write_json
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import sync_folder
from artifacts.disk.regular_files import open_regular
from artifacts.packages import require_extra
from artifacts.records.keys import hash_file
from artifacts.schema import HalfName
from stages.embed_texts import TEXTS_PER_BATCH
from stages.embed_texts.run import TextReader
from stages.export import GRAPHS, PACKAGES, GraphJob
from stages.export.compare import nearness
from stages.export.graphs.make import Encoders, make_graphs, texts_of, trials
from stages.models.graphs import FOLDER
from stages.models.graphs.manifest import FILE, GraphManifest, HalfGraphs, read_manifest
from stages.models.halves.features import text_vectors
from stages.models.halves.load import load_half
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.hub.checkpoint import CONFIG, INDEX, small_files
from stages.models.processors.loading import load_processor
from stages.models.protocols import Half, Processor
from stages.models.published import stating_as_published
from stages.models.shards.layout import claimed, keeping_files, write_rest
from stages.process.deferred_imports import import_transformers
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

MAKING = "making"
"""Temporary folder of graphs until all are made."""


def warm(fields: JobFields) -> None:
    """Import what making graphs needs before memory is counted."""
    import_transformers()
    require_extra("export", "making graphs")


def run(fields: JobFields, report: EventReporter) -> None:
    """Write the checkpoint of a GraphJob, and report each of its halves as an item. A note holds,
    for each half, the number of `graphs` and their difference from the encoders. Raises
    PenstockError."""
    job = parse_job(GraphJob, fields)
    source, folder = Path(job.model), Path(job.folder)
    require_extra("export", "making graphs")
    report.total(len(job.weights))
    with claimed(folder, job.recipe):
        if read_manifest(folder) is None:
            _write_graphs(job, source, folder, report)
        report.note(**_summary_note(folder))
        if (folder / CONFIG).exists():
            return
        with keeping_files():
            small = small_files(source)
            small[CONFIG] = stating_as_published(small[CONFIG], job.as_published)
            job.files.check()  # before linking, which changes the stamp of the linked file
            for path in sorted({*source.glob("*.safetensors"), *source.glob(INDEX)}):
                _link_or_copy(path, folder / path.name)
            write_rest(folder, (), small)


def _write_graphs(job: GraphJob, source: Path, folder: Path, report: EventReporter) -> None:
    """Make all graphs in a temporary folder, then rename it. Raises PenstockError."""
    making = folder / MAKING
    shutil.rmtree(making, ignore_errors=True)  # left by a killed process
    try:
        making.mkdir()
        halves = {}
        for part, weights in job.weights.items():
            halves[part] = _half(job, source, part, weights, making)
            report.answered(f"{part} half", label=f"{part} half")
        files = sorted(path for path in making.iterdir())
        manifest = GraphManifest(
            files={path.name: hash_file(path) for path in files},
            sizes={path.name: path.stat().st_size for path in files},
            halves=halves,
            made_by={name: version(name) for name in ("torch", "transformers", *PACKAGES)},
        )
        write_json(making / FILE, manifest.to_json())
        for path in making.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(making)
        job.files.check()
        making.rename(folder / FOLDER)
    except OSError as error:
        raise fault_of(error, folder) from error
    finally:  # also frees a full disk
        shutil.rmtree(making, ignore_errors=True)


def _half(
    job: GraphJob, source: Path, part: HalfName, weights: Mapping[str, str], folder: Path
) -> HalfGraphs:
    precision, dual = GRAPHS[job.kind], job.route == "dual"
    processor = load_processor(source, job.trust_remote_code, generates=not dual)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    load = partial(load_half, source, part, dtype=dtype, trust_remote_code=job.trust_remote_code)
    extra_modules = job.extra_modules.get(part, ())
    held = ReloadableHalf(
        part, lambda extra_modules: load(extra_modules=extra_modules), extra_modules, job.files
    )

    def make(half: Half) -> tuple[Encoders, float]:
        with torch.inference_mode(False), torch.no_grad():
            frames = job.frames_per_video
            tried = list(trials(half, part, processor, dual=dual, frames_per_video=frames))
            return make_graphs(half, part, tried, folder, precision)

    texts = _vectors(held, processor) if part == "language" else None
    encoders, furthest = held.call(make)
    near: dict[str, Json] = {}
    if texts is not None:
        near = nearness(texts, _vectors(held, processor), [("texts", len(texts))])
    return HalfGraphs(
        precision=precision,
        weights=dict(weights),
        towers=tuple(encoders.values()),
        furthest=furthest,
        nearness=near,
    )


def _vectors(held: ReloadableHalf, processor: Processor) -> torch.Tensor:
    """Return the vectors of the texts on which a text half is tested."""
    texts = texts_of(processor)

    def vectors(half: Half) -> torch.Tensor:
        reader = TextReader(processor, half)
        batches = (texts[at : at + TEXTS_PER_BATCH] for at in range(0, len(texts), TEXTS_PER_BATCH))
        return torch.cat([text_vectors(half, reader.inputs(b)).float() for b in batches])

    return held.call(vectors)


def _summary_note(folder: Path) -> dict[str, Json]:
    """Return the note about the graphs of a checkpoint: counts, sizes, differences, and the figures
    of its text half."""
    manifest = read_manifest(folder)
    assert manifest is not None
    text_half = manifest.halves.get("language")
    figures = {"texts": text_half.nearness} if text_half else {}
    graphs_of: dict[str, Json] = {
        half: {
            "towers": [tower.path for tower in graphs.towers],
            "graphs": sum(len(tower.graphs) for tower in graphs.towers),
            "quantized": sum(g.quantized for tower in graphs.towers for g in tower.graphs),
            "furthest": graphs.furthest,
            "bytes": sum(manifest.sizes[name] for name in manifest.files_of(half)),
        }
        for half, graphs in manifest.halves.items()
    }
    return {"graphs": graphs_of, "figures": figures}


def _link_or_copy(path: Path, out: Path) -> None:
    """Hard-link a file into another folder, or copy it if that fails. Raises EnvironmentFault."""
    if out.exists():
        return
    with contextlib.suppress(OSError):
        os.link(path.resolve(), out)
        return
    with whole_file(out) as file, open_regular(path) as source:
        shutil.copyfileobj(source, file)
