"""Writes stored features and captions as a data set of a folder, shard by shard. No pixel is read
and no weight of a model.

1. The captions of a chunk and its features, once, are in the same shard.
2. The index names the captions of whole shards only; it is replaced after each shard, with the
   layouts that its rows name in `features.json`. A killed export goes on behind its last shard.
3. The data-set card and the loader, a program that needs no Penstock, come last.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from artifacts.digests import digest_of
from artifacts.disk.files import encoded, write_json, write_text
from artifacts.records.keys import hash_file
from artifacts.records.tensors import name_tensors
from stages.models.processors.loading import load_processor
from stages.models.shards.layout import (
    TensorSpec,
    WeightShard,
    check_free,
    claimed,
    grouped,
    keeping_files,
    tensor_chunks,
    write_shard,
)
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job
from stages.tune import ABOUT, CARD, INDEX, LOADER, FeatureExportJob
from stages.tune.collator import FeatureBatches

HEADER_BYTES = 256
"""Most bytes of a tensor's entry in the header of a shard."""
MORE_ROOM = "Free some space, or give a folder on a larger disk"


class ExportedChunk(NamedTuple):
    """The features of a chunk, and its captions."""

    tensors: list[TensorSpec]
    inputs: dict[str, torch.Tensor]
    """Those of these tensors that are not features: tokens, sizes and times."""
    rows: list[dict[str, Any]]
    """Rows of the index, without the name of the shard."""

    @property
    def size(self) -> int:
        """Return about the size in bytes, with the header of its shard, and not less."""
        return sum(tensor.size + HEADER_BYTES for tensor in self.tensors)


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Write the missing shards of a data set, and report each. A first note has the expected
    number of `shards`, and of those that are `there`; a last one the number of `files`. Raises
    PenstockError."""
    job = parse_job(FeatureExportJob, job_fields)
    folder = Path(job.folder)
    # Which weight files have a known digest may change until the export is resumed.
    about = {name: fact for name, fact in job.about.items() if name != "weights"}
    made_of = {"captions": digest_of([job.rows, about, job.card])}
    with claimed(folder, made_of), keeping_files():
        DataSetWriter(job, report).write()
        write_text(folder / CARD, [job.card])
        write_text(folder / LOADER, [Path(__file__).with_name(LOADER).read_text("utf-8")])


class DataSetWriter:
    """Writes the shards of a folder that this process has locked, and their index."""

    def __init__(self, job: FeatureExportJob, report: EventReporter) -> None:
        self._job, self._report, self._folder = job, report, Path(job.folder)
        processor = load_processor(
            Path(job.model),
            job.trust_remote_code,
            max_pixels=job.max_pixels,
            max_video_pixels=job.max_video_pixels,
            as_published=job.as_published,
        )
        self._batches = FeatureBatches(job.store, job.model, processor, form=job.form)
        self._about = {**job.about, "pad": processor.tokenizer.pad_token_id or 0}
        self._rows, layouts, self._digests = _written(self._folder)
        self._layouts = {json.dumps(layout): at for at, layout in enumerate(layouts)}
        self._stored = lru_cache(maxsize=1)(self._features)

    def write(self) -> None:
        """Write what is missing. Raises EnvironmentFault, DamagedRecord."""
        names = {row["file"] for row in self._rows}
        there = sum((self._folder / name).stat().st_size for name in names)
        left = max(0, self._job.bytes - there)
        check_free(self._folder, left, MORE_ROOM)
        more = -(-left // self._job.shard_bytes)
        self._report.note(shards=len(names) + more, there=len(names))
        free = (f"features-{number:05d}.safetensors" for number in count())
        for chunks in grouped(self._chunks(), lambda chunk: chunk.size, self._job.shard_bytes):
            name = next(name for name in free if name not in names)
            self._write_shard(name, chunks)
            self._report.answered(name, label=name)
            names.add(name)
        self._report.note(files=len(names))

    def _chunks(self) -> Iterator[ExportedChunk]:
        """Yield the chunks that are in no shard yet, in the order of their first captions."""
        done = {row["features"] for row in self._rows}
        chunks: dict[str, list[int]] = {}
        for number, row in enumerate(self._job.rows):
            if row.features not in done:
                chunks.setdefault(row.features, []).append(number)
        for key, numbers in chunks.items():
            yield self._chunk(key, numbers)

    def _chunk(self, key: str, numbers: list[int]) -> ExportedChunk:
        record = self._batches.read(key)
        outputs, features = name_tensors(record.features)
        inputs, rows = dict[str, torch.Tensor](), []
        for number in numbers:
            row = self._job.rows[number]._asdict()
            node, named = name_tensors(self._batches.inputs(record, row))
            layout = json.dumps({"inputs": node, "outputs": outputs, "rules": record.rules})
            at, identity = self._layouts.setdefault(layout, len(self._layouts)), f"{number:07d}"
            inputs |= {f"{identity}.{name}": tensor for name, tensor in named.items()}
            rows.append({"row": identity, **row, "layout": at})
        named = {**inputs, **{f"{key}.{name}": tensor for name, tensor in features.items()}}
        specs = [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in named.items()]
        return ExportedChunk(specs, inputs, rows)

    def _write_shard(self, name: str, chunks: list[ExportedChunk]) -> None:
        inputs = {name: tensor for chunk in chunks for name, tensor in chunk.inputs.items()}

        def contents(spec: TensorSpec) -> Iterable[torch.Tensor]:
            key, _, within = spec.name.partition(".")
            tensor = inputs.get(spec.name)
            return tensor_chunks(self._stored(key)[within] if tensor is None else tensor)

        tensors = sorted((t for c in chunks for t in c.tensors), key=lambda t: -t.dtype.itemsize)
        write_shard(self._folder, WeightShard(name=name, tensors=tuple(tensors)), contents)
        self._digests[name] = hash_file(self._folder / name)
        self._rows += [{**row, "file": name} for chunk in chunks for row in chunk.rows]
        self._rows.sort(key=lambda row: str(row["row"]))
        self._write_index()

    def _features(self, key: str) -> Mapping[str, torch.Tensor]:
        return name_tensors(self._batches.read(key).features)[1]

    def _write_index(self) -> None:
        layouts = [json.loads(layout) for layout in self._layouts]
        about = {**self._about, "sha256": self._digests, "layouts": layouts}
        write_json(self._folder / ABOUT, about)
        write_text(self._folder / INDEX, (f"{encoded(row)}\n" for row in self._rows))


def _written(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Return the rows of an unfinished export whose shards are whole, the layouts of rows, and the
    digests of shards."""
    try:
        with (folder / INDEX).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        about = json.loads((folder / ABOUT).read_text("utf-8"))
    except FileNotFoundError:
        return [], [], {}
    whole = {name: _is_whole(folder / name) for name in {row["file"] for row in rows}}
    return [row for row in rows if whole[row["file"]]], about["layouts"], about["sha256"]


def _is_whole(shard: Path) -> bool:
    try:
        with safe_open(shard, "pt"):
            return True
    except (OSError, SafetensorError):
        return False
