"""Maps each stored tensor of a checkpoint to its module and its export format. Reads headers, no
weights.

Tensor names in the files differ from module names, because the loader renames tensors. The mapping
comes from the loader itself. So does the type in which a tensor is loaded, and the export stores
that type.

Compares features with those of the original model: by centred cosine and by nearest neighbours.

The plain cosine of features is 0.99 for almost any pair, because they share a large mean. Centring
removes that mean. The nearest neighbours show what a search, or attention, would find.

The quality thresholds that a quantized checkpoint must pass against its original, and their
check.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from collections.abc import Iterator, Sequence
from typing import Any
import torch
from torch.nn.functional import cosine_similarity, normalize
from artifacts.packs import RecordSet
from artifacts.store import open_store
from artifacts.tensors import unpack_tree
from artifacts.vectors import vectors_in
from stages.export.jobs import FeaturesJob
from stages.models.halves.records import MAIN_FIELDS, FeatureRecord
from stages.process.job import parse_job
from stages.process.events import EventReporter
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from artifacts.errors import UsageError
from artifacts.plurals import counted
from artifacts.schema import Part
from stages.models.halves.routes import config_and_class, skeleton_of
from stages.models.halves.load import refuse_pickle
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header, read_headers
from stages.models.precision.quantize import linears_of, quantizable, stored_settings
from stages.models.precision.weights import model_names
from stages.models.shards.layout import DTYPES

PARITY = "parity.json"
"""File beside a checkpoint that Penstock exported: the result of its comparison."""
FRAMES = 64
"""Fewest frames for a verdict."""
KEPT, DIGITS = 200, 6
"""Most captions or chunks with a figure of their own, and its digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityThreshold:
    """One measured figure and its threshold."""

    group: str
    name: str
    bound: float
    is_minimum: bool
    label: str

    def passes(self, value: float) -> bool:
        return value >= self.bound if self.is_minimum else value <= self.bound

    def describe(self, value: float) -> str:
        """Return the figure with its label and threshold."""
        return f"{self.label} {value:.5g} ({'≥' if self.is_minimum else '≤'} {self.bound:g})"


def _of_vectors(group: str) -> tuple[ParityThreshold, ...]:
    """Return the thresholds of features that are compared by direction."""
    figures = {
        "centred_mean": (0.99, f"centred cosine of {group}"),
        "centred_least": (0.95, f"lowest centred cosine of {group}"),
        "neighbours": (0.95, f"share of the same 10 neighbours of {group}"),
    }
    return tuple(
        ParityThreshold(group=group, name=name, bound=bound, is_minimum=True, label=label)
        for name, (bound, label) in figures.items()
    )


GATES = (
    *_of_vectors("features"),
    *_of_vectors("texts"),
    ParityThreshold(
        group="text",
        name="token_agreement",
        bound=0.995,
        is_minimum=True,
        label="share of the same tokens",
    ),
    ParityThreshold(
        group="text",
        name="divergence",
        bound=0.005,
        is_minimum=False,
        label="Kullback-Leibler divergence in nats per token",
    ),
)
"""Figures that decide. The share of captions equal to the original's is reported, but decides
nothing, because a different word may be as good."""


def verdict_in(folder: Path) -> dict[str, Any]:
    """Return the verdict of a checkpoint; empty if there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / PARITY).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def of_each(values: Mapping[str, float]) -> dict[str, float]:
    """Return the figure of each caption or chunk, the smallest first. Of more than KEPT, return an
    even selection with the first and the last."""
    ranked = sorted(values, key=lambda name: (values[name], name))
    if len(ranked) > KEPT:
        ranked = [ranked[at * (len(ranked) - 1) // (KEPT - 1)] for at in range(KEPT)]
    return {name: float(f"{values[name]:.{DIGITS}g}") for name in ranked}


def evaluate_parity(figures: Mapping[str, Mapping[str, Any]], frames: int) -> dict[str, Any]:
    """Return the verdict for `parity.json`; `figures` holds those of each measured group."""
    gates = [gate for gate in GATES if gate.group in figures]
    missed = [
        gate.describe(figures[gate.group][gate.name])
        for gate in gates
        if not gate.passes(figures[gate.group][gate.name])
    ]
    if frames < FRAMES:
        missed.append(f"{frames} frames (≥ {FRAMES})")
    return {
        **figures,
        "frames": frames,
        "gates": {f"{gate.group}.{gate.name}": gate.bound for gate in gates},
        "passed": not missed,
        "missed": missed,
    }


ROWS_A_CHUNK = 256
"""Evenly chosen rows per chunk that are compared; a video chunk has thousands."""
NEIGHBOURS, SEARCHED = 10, 600
"""Compared nearest rows, and rows among which they are searched."""


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Compare the records of a FeaturesJob; a note holds the figures. Raises PenstockError."""
    job = parse_job(FeaturesJob, fields)
    store = open_store(job.store)
    sets = [RecordSet(store, job.kind, namespace) for namespace in (job.namespace, job.other)]
    report.total(len(job.pairs))
    rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    counts: list[tuple[str, int]] = []
    for pair in job.pairs:
        first, second = (_rows(job.kind, s, key) for s, key in zip(sets, pair, strict=True))
        chosen = torch.linspace(0, len(first) - 1, min(len(first), ROWS_A_CHUNK)).long()
        rows[0].append(first[chosen])
        rows[1].append(second[chosen])
        counts.append((pair[0], len(chosen)))
        report.item(pair[1])
    report.note(features=nearness(torch.cat(rows[0]), torch.cat(rows[1]), counts))


def nearness(
    reference: torch.Tensor, found: torch.Tensor, counts: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Compare rows [rows, width] with reference rows; `counts` are the keys and row counts of the
    chunks, in order."""
    first, second = reference.double(), found.double()
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
    found: list[list[int]] = likeness.topk(min(NEIGHBOURS, len(rows) - 1)).indices.tolist()
    return found


def _rows(kind: str, records: RecordSet, key: str) -> torch.Tensor:
    """Return a chunk's features, one row per placeholder, or its vectors."""
    record = records.read(key)
    if kind == "embeddings":
        return torch.from_numpy(vectors_in(record).copy())
    tree = FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))
    found = [part for fields in tree.features.values() for part in _main(fields)]
    return torch.cat([part.reshape(-1, part.shape[-1]).float() for part in found])


def _main(fields: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a record's main field; without one, all its tensors."""
    named = [fields[name] for name in MAIN_FIELDS if fields.get(name) is not None][:1]
    left = named or list(fields.values())
    while left:
        part = left.pop(0)
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, list | tuple):
            left = [*part, *left]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of the source checkpoint."""

    name: str
    """Name in the file."""
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Type in which it is loaded."""
    module: str
    """Path of the linear layer whose weight it is, if that is quantized; else empty."""
    turned: bool
    """Whether the module stores its weight transposed."""

    @property
    def size(self) -> int:
        """Return its bytes after loading."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """The plan of a quantized checkpoint."""

    tensors: tuple[StoredTensor, ...]
    """Tensors in file order."""
    dtype: torch.dtype
    """Type in which its quantized layers compute."""
    unquantized: tuple[str, ...]
    """Paths of the linear layers that are not quantized."""

    @property
    def modules(self) -> list[str]:
        """Return the paths of the quantized modules."""
        return [tensor.module for tensor in self.tensors if tensor.module]

    def unquantized_matrices(self) -> list[str]:
        """Return the stored names of all other tensors that may be linear layers."""
        matrices = (t for t in self.tensors if len(t.shape) == 2 and not t.module)
        ending = ".weight"
        return [t.name.removesuffix(ending) for t in matrices if t.name.endswith(ending)]


def plan_export(
    folder: Path,
    parts: Collection[Part],
    trusted: bool,
    takes: Callable[[torch.nn.Module], str] = lambda module: "",
) -> ExportPlan:
    """Plan the quantization of the linear layers of these parts of a checkpoint. `takes` returns
    why a layer cannot be quantized, or an empty text. Raises UsageError for a checkpoint that
    cannot be exported, EnvironmentFault for an incomplete one."""
    refuse_pickle(folder, trusted=False)
    config, cls = config_and_class(folder, trusted)
    headers = read_headers(Checkpoint(name=str(folder), folder=folder))
    refuse_unwritable(folder, config, headers)
    dtype = _dtype_of(config, headers)
    for name in config.sub_configs:  # each submodel uses its own type
        if (part := getattr(config, name, None)) is not None:
            part.dtype = dtype
    with _default_dtype(dtype):
        skeleton = skeleton_of(config, cls)
    linears = {path: m for part in parts for path, m in quantizable(skeleton, part).items()}
    quantized_paths = [path for path, module in linears.items() if not takes(module)]
    if not quantized_paths:
        first = next(iter(linears), "")
        reason = f": {first} has {takes(linears[first])}" if first else ""
        raise UsageError(
            f"{folder} has no linear layer in its {' or '.join(parts)} part that can be "
            f"quantized this way{reason}",
            hint="Choose another --half, or another --group",
        )
    paths = model_names(skeleton, [header.name for header in headers])
    tensors = tuple(
        _tensor(folder, header, path, skeleton, dtype, quantized_paths)
        for header, path in zip(headers, paths, strict=True)
    )
    found = ExportPlan(
        tensors=tensors,
        dtype=dtype,
        unquantized=tuple(path for path in linears_of(skeleton) if path not in quantized_paths),
    )
    if missing := sorted(set(quantized_paths) - set(found.modules)):
        raise UsageError(
            f"{folder} stores {counted(len(missing), 'linear layer')} in another form than the "
            f"model uses, such as {missing[0]}",
            hint="Quantize such a model when it is loaded: --language-precision nf4",
        )
    return found


def _tensor(
    folder: Path,
    header: Header,
    path: str | None,
    skeleton: Any,
    dtype: torch.dtype,
    quantized_paths: Collection[str],
) -> StoredTensor:
    place = skeleton.get_parameter_or_buffer(path) if path else None
    owner = (path or "").removesuffix(".weight")
    # The loader splits or joins tensors of another shape.
    quantized = (
        owner in quantized_paths and place is not None and tuple(place.shape) == header.shape
    )
    linear = skeleton.get_submodule(owner) if quantized else None
    return StoredTensor(
        name=header.name,
        file=folder / header.shard,
        shape=header.shape,
        dtype=_loaded_as(header, path, place, skeleton, dtype),
        module=owner if quantized else "",
        turned=quantized and type(linear) is not torch.nn.Linear,
    )


def _loaded_as(
    header: Header, path: str | None, place: Any, skeleton: Any, dtype: torch.dtype
) -> torch.dtype:
    """Return the type in which the loader loads a tensor. A tensor without a place in the model
    keeps its type."""
    stored = DTYPES[header.dtype]
    if path is None or not stored.is_floating_point:
        return stored
    for pattern, kept in skeleton._get_dtype_plan(dtype).items():
        if re.search(pattern.replace("*", ".*"), path):
            return kept if isinstance(kept, torch.dtype) else stored
    found: torch.dtype = place.dtype
    return found if found.is_floating_point else stored


def _dtype_of(config: Any, headers: Collection[Header]) -> torch.dtype:
    """Return the default type of the loader."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    types = (DTYPES[header.dtype] for header in headers)
    return next((found for found in types if found.is_floating_point), torch.float32)


def refuse_unwritable(folder: Path, config: Any, headers: Collection[Header]) -> None:
    """Raise UsageError for a quantized checkpoint, or one with unknown types."""
    settings = stored_settings(config)
    if settings is not None:
        method = settings.get("quant_method", "another method")
        raise UsageError(
            f"{folder} is already quantized (by {method})",
            hint="Give the checkpoint that it was made from",
        )
    odd = next((header for header in headers if header.dtype not in DTYPES), None)
    if odd is not None:
        raise UsageError(
            f"tensor {odd.name} of {folder} is stored as {odd.dtype}, which cannot be read",
            hint="Give a checkpoint in 16 or 32 bit",
        )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build models in this type within the block; tensors with an explicit type keep theirs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
