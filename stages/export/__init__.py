"""Writes quantized checkpoints and checkpoints with ONNX graphs, and compares them with their
originals.

This module has the job descriptions of all exports. It imports no library.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from artifacts.records.model_files import ModelFiles
from artifacts.schema import HalfName, Part, Route
from stages.models.half_job import HalfJob
from stages.models.shards import SHARD_BYTES
from stages.process.stage_spec import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesJob:
    """Records of the same chunks from two checkpoints."""

    store: str
    kind: str
    """Record kind: `features`, or `embeddings` of a dual encoder."""
    namespace: str
    """Cache namespace of the original."""
    other: str
    """Cache namespace of the compared checkpoint."""
    pairs: list[list[str]]
    """The two cache keys of each chunk."""


GRAPHS = {"onnx": "fp32", "onnx-fp16": "fp16", "onnx-int8": "int8"}
"""Kinds of graphs → their precision."""

PACKAGES = ("onnx", "onnxscript")
"""Packages that make graphs; running graphs does not need them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointJob:
    """The checkpoint to write, and its source."""

    model: str
    """Folder of the source checkpoint."""
    recipe: dict[str, Any]
    """Everything that decides the written bytes."""
    folder: str
    """Folder to write to."""
    as_published: bool = False
    """Whether the checkpoint is run as published."""
    trust_remote_code: bool = False
    files: ModelFiles = field(default_factory=ModelFiles)
    """Files of the model, and of its adapter, when the job was planned; empty: not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphJob(CheckpointJob):
    """The checkpoint to write, and the halves that get graphs."""

    kind: str
    """One of GRAPHS."""
    weights: dict[HalfName, dict[str, str]]
    """Half that gets graphs → name of each of its weight files → SHA-256 of the content."""
    frames_per_video: int = 0
    """Required frames per video; 0: any number."""
    extra_modules: dict[HalfName, list[str]]
    """Half → paths of extra modules of the other half that it needs."""
    route: Route = "protocol"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingJob:
    """A half whose time in torch is compared with that of its graphs."""

    half: HalfJob
    graphs: str
    """Backend that runs the graphs."""
    frames_per_video: int = 0
    """Required frames per video; 0: any number."""


BITSANDBYTES = ("nf4", "int8")
"""Kinds that transformers and Penstock load."""
PACKED = {"w4a16": 4, "w8a16": 8}
"""Kinds that vLLM and SGLang load → bits per number."""
KINDS = (*GRAPHS, *BITSANDBYTES, *PACKED)
GROUPS = (32, 64, 128)
"""Columns per scale of a packed kind, as vLLM's Marlin kernel supports them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob(CheckpointJob):
    """The quantized checkpoint to write."""

    kind: str
    """One of BITSANDBYTES or PACKED."""
    parts: tuple[Part, ...]
    """Model parts whose linear layers are quantized."""
    group: int = 0
    """Columns per scale of a packed kind."""
    calibrated: str = ""
    """Folder of calibrated weights; empty: weights are rounded to nearest."""
    shard_bytes: int = SHARD_BYTES


class CaptionedItem(NamedTuple):
    """A chunk with a caption: the original model's own, or a user's edit."""

    key: str
    features: str
    """Cache key of the features."""
    prompt: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeJob:
    """Captions, and the half whose logits for them are compared."""

    half: HalfJob
    store: str
    features_namespace: str
    members: list[CaptionedItem]
    folder: str
    """Folder of the original's logits: written, or compared with."""
    compared: bool = False
    """Whether this half is compared with the logits there."""
    rounded: str = ""
    """Packed checkpoint whose weights replace the half's; empty: none are replaced."""
    parts: tuple[Part, ...] = ()
    """Model parts whose weights it holds."""
    bits: int = 0
    group: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateJob:
    """Captions used as calibration samples, and the weights to quantize."""

    half: HalfJob
    store: str
    features_namespace: str
    members: list[CaptionedItem]
    folder: str
    """Folder of the quantized weights, one file each; existing ones are not made again."""
    parts: tuple[Part, ...]
    bits: int
    group: int
    hessian_bytes: int
    """Most bytes of the Hessians of one layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob(CheckpointJob):
    """The checkpoint with a merged adapter to write."""

    adapter: str
    """Folder of the adapter."""
    shard_bytes: int = SHARD_BYTES


_stage = partial(StageSpec, of_media=False, output_version=1, counts="")
STAGE = _stage(
    name="export",
    needs_weights=True,
    job=ExportJob,
    entry="stages.export.run:run",
    verb="exporting",
)
TRACE = _stage(
    name="trace",
    needs_weights=True,
    job=GraphJob,
    entry="stages.export.graphs.run:run",
    verb="making graphs",
)
COMPARE = _stage(
    name="compare",
    reads=("features",),
    job=FeaturesJob,
    entry="stages.export.compare:run",
    verb="comparing features",
)
CALIBRATE = _stage(
    name="calibrate",
    reads=("captions",),
    part="language",
    job=CalibrateJob,
    entry="stages.export.calibrate:run",
    verb="calibrating",
)
JUDGE = _stage(
    name="judge",
    reads=("captions",),
    part="language",
    job=JudgeJob,
    entry="stages.export.logit_agreement:run",
    verb="judging",
)
