"""Compares features with those of the original model: by centred cosine and by nearest neighbours.

The plain cosine of features is 0.99 for almost any pair, because they share a large mean. Centring
removes that mean. The nearest neighbours show what a search, or attention, would find.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, normalize

from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from artifacts.records.tensors import unpack_tree
from artifacts.records.vectors import vectors_in
from stages.export import FeaturesJob
from stages.export.parity import of_each
from stages.memory.meta_device import tensors
from stages.models.halves.records import MAIN_FIELDS, FeatureRecord
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

ROWS_PER_CHUNK = 256
"""Evenly chosen rows per chunk that are compared; a video chunk has thousands."""
NEIGHBOURS, SEARCHED = 10, 600
"""Compared nearest rows, and rows among which they are searched."""


def run(fields: JobFields, report: EventReporter) -> None:
    """Compare the records of a FeaturesJob; a note holds the figures. Raises PenstockError."""
    job = parse_job(FeaturesJob, fields)
    store = open_store(job.store)
    sets = [RecordSet(store, job.kind, namespace) for namespace in (job.namespace, job.other)]
    report.total(len(job.pairs))
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    counts: list[tuple[str, int]] = []
    for pair in job.pairs:
        first, second = (_rows(job.kind, s, key) for s, key in zip(sets, pair, strict=True))
        chosen = torch.linspace(0, len(first) - 1, min(len(first), ROWS_PER_CHUNK)).long()
        rows[0].append(first[chosen])
        rows[1].append(second[chosen])
        counts.append((pair[0], len(chosen)))
        report.answered(pair[1])
    report.note(features=nearness(torch.cat(rows[0]), torch.cat(rows[1]), counts))


def nearness(
    reference: torch.Tensor, compared: torch.Tensor, counts: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Compare rows [rows, width] with reference rows; `counts` are the keys and row counts of the
    chunks, in order."""
    first, second = reference.double(), compared.double()
    mean = first.mean(0)
    plain = cosine_similarity(first, second, dim=-1)
    first, second = first - mean, second - mean
    centred = cosine_similarity(first, second, dim=-1)
    sample = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))[:SEARCHED]
    near = [_nearest(rows[sample]) for rows in (first, second)]
    shared = [len({*one} & {*other}) for one, other in zip(*near, strict=True)]
    count = sum(len(one) for one in near[0])
    of_chunks = centred.split([rows for _, rows in counts])
    by_chunk = {key: float(of.mean()) for (key, _), of in zip(counts, of_chunks, strict=True)}
    return {
        "rows": len(first),
        "cosine": float(plain.mean()),
        "centred_mean": float(centred.mean()),
        "centred_least": float(centred.min()),
        "neighbours": sum(shared) / count if count else 1.0,
        "chunks": len(counts),
        "by_chunk": of_each(by_chunk),
    }


def _nearest(rows: torch.Tensor) -> list[list[int]]:
    """Return the numbers of the nearest rows of each row."""
    unit = normalize(rows, dim=-1)
    likeness = (unit @ unit.T).fill_diagonal_(-2)
    return likeness.topk(min(NEIGHBOURS, len(rows) - 1)).indices.tolist()


def _rows(kind: str, records: RecordSet, key: str) -> torch.Tensor:
    """Return a chunk's features, one row per placeholder, or its vectors."""
    record = records.read(key)
    if kind == "embeddings":
        return torch.from_numpy(vectors_in(record).copy())
    tree = FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))
    parts = [part for fields in tree.features.values() for part in _main(fields)]
    return torch.cat([part.reshape(-1, part.shape[-1]).float() for part in parts])


def _main(fields: Any) -> Iterator[torch.Tensor]:
    """Return the tensors of a record's main field; without one, all its tensors."""
    named = (fields[name] for name in MAIN_FIELDS if fields.get(name) is not None)
    return tensors(next(named, list(fields.values())))
