"""The job descriptions of all exports. Imports no library."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from artifacts.errors import EnvironmentFault
from artifacts.model_files import ModelFiles
from artifacts.schema import Half, Part, Route
from stages.models.half_job import HalfJob
from stages.models.shards import SHARD_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesJob:
    """Records that two checkpoints made of the same chunks."""

    store: str
    kind: str
    """The kind of records: `features`, or `embeddings` of a dual encoder."""
    namespace: str
    """Namespace of those of the original."""
    other: str
    """Namespace of those that are compared with them."""
    pairs: list[list[str]]
    """The two keys of each chunk."""


GRAPHS = {"onnx": "fp32", "onnx-fp16": "fp16", "onnx-int8": "int8"}
"""Kinds of graphs → what they compute in."""

PACKAGES = ("onnx", "onnxscript")
"""Packages that graphs are made with, and that running them does without."""


def check_packages() -> None:
    """Raise EnvironmentFault where what graphs are made with is not installed."""
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise EnvironmentFault(
                f"graphs are made with {' and '.join(PACKAGES)}, and {name} is not installed",
                hint="Install them: pip install 'onnx>=1.23' 'onnxscript>=0.7.2'",
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphJob:
    """The checkpoint to write, and the halves that get graphs."""

    model: str
    """Folder of the checkpoint that it is made of."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    kind: str
    """One of GRAPHS."""
    weights: dict[Half, dict[str, str]]
    """Half that gets graphs → name of each file of its weights → SHA-256 of its content."""
    frames_a_video: int = 0
    """Frames that a video must have; 0: any number."""
    pieces: dict[Half, list[str]]
    """Half → paths of the other half's pieces that it is known to need."""
    route: Route = "protocol"
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those that it was planned with; none: they are not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingJob:
    """A half whose time in torch is compared with that of its graphs."""

    half: HalfJob
    graphs: str
    """What computes the graphs."""
    frames_a_video: int = 0
    """Frames that a video must have; 0: any number."""


BITSANDBYTES = ("nf4", "int8")
"""Kinds that transformers and Penstock load."""
PACKED = {"w4a16": 4, "w8a16": 8}
"""Kinds that vLLM and SGLang load → bits of a number."""
KINDS = (*GRAPHS, *BITSANDBYTES, *PACKED)
GROUPS = (32, 64, 128)
"""Columns that may share a scale, in a packed kind: what vLLM's Marlin kernel takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """The checkpoint to write, and its source."""

    model: str
    """Folder of the checkpoint that it is made of."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    kind: str
    """One of BITSANDBYTES or PACKED."""
    parts: tuple[Part, ...]
    """Parts whose linear layers are quantized."""
    group: int = 0
    """Columns that share a scale, in a packed kind."""
    calibrated: str = ""
    """Folder of weights that were rounded with what they are multiplied by in mind; empty: each
    number is rounded by itself."""
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those that it was planned with; none: they are not compared."""


class CaptionedItem(NamedTuple):
    """A chunk with a caption: the original model's own, or a user's edit."""

    key: str
    features: str
    """Key of the features."""
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
    """Folder where what the original expects is kept: it is written there, or compared with."""
    compared: bool = False
    """Whether this half is compared with what is there."""
    rounded: str = ""
    """Packed checkpoint whose weights take the place of the half's, as its loader would have them;
    empty: it is as it was loaded."""
    parts: tuple[Part, ...] = ()
    """Parts of which that has weights."""
    bits: int = 0
    group: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateJob:
    """Captions that a half reads as calibration samples, and the weights to quantize on them."""

    half: HalfJob
    store: str
    features_namespace: str
    members: list[CaptionedItem]
    folder: str
    """Folder of the rounded weights, a file each; those that are there are not made again."""
    parts: tuple[Part, ...]
    bits: int
    group: int
    hessian_bytes: int
    """Most bytes of what is summed up for the weights of one layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeJob:
    """The checkpoint to write, and its source."""

    model: str
    """Folder of the checkpoint that the adapter was trained on."""
    adapter: str
    """Folder of the adapter."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those of both, as they were planned with; none: they are not compared."""
