"""Turns frames into probabilities of tags, by an ONNX graph of the user. Loads no torch model.

This module has what a declaration says of the graph, and the job. It imports no model library.
"""

from dataclasses import dataclass
from typing import Literal

from artifacts.records.model_files import ModelFiles
from stages.models.encoding import EncodeItem
from stages.process.stage_spec import StageSpec

FLOOR = 0.01
"""Lowest probability that is stored, and lowest threshold; of 10,000 tags, a picture has some
hundred above it."""
Colour = tuple[int, int, int]
Numbers = tuple[float, float, float]
"""Red, green and blue, in whatever order the graph takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureInput:
    """What a graph takes of a picture."""

    layout: Literal["NCHW", "NHWC"]
    order: Literal["RGB", "BGR"]
    """Order of the colours."""
    size: int
    """Height and width in pixels."""
    scale: Literal["0..255", "0..1", "-1..1"]
    """Range of the numbers, before `mean` and `std`."""
    padding: Literal["none", "before", "after"]
    """Whether a picture is made square before it is resized, or after it; `none` stretches it."""
    resampling: Literal["bilinear", "bicubic", "lanczos", "box"]
    """Pillow's filter that resizes it."""
    pad_colour: Colour = (255, 255, 255)
    """Red, green and blue of the padding, from 0 to 255."""
    mean: Numbers = (0.0, 0.0, 0.0)
    """Subtracted from red, green and blue after scaling."""
    std: Numbers = (1.0, 1.0, 1.0)
    """Divides them then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TagOutput:
    """What a graph gives."""

    activation: Literal["none", "sigmoid"]
    """What makes probabilities of its numbers; `none`: they are probabilities."""
    index: int = 0
    """Which of its outputs; 0 is the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TagJob:
    """Chunks whose frames are tagged."""

    store: str
    frames_namespace: str
    namespace: str
    """Cache namespace of the probabilities."""
    batches: list[list[EncodeItem]]
    declaration: str
    """File of the declaration, for messages."""
    graph: str
    """File of the graph."""
    files: ModelFiles
    """That file and those of its weights, as the job was planned with."""
    picture: PictureInput
    taken: TagOutput
    """The output that is taken."""
    tags: int
    """Number of tags."""
    rows: int
    """Pictures per pass. It is always the same: the bytes of a row may depend on it."""
    device: str
    """`cpu` or `cuda:N`."""
    device_bytes: int = 0
    """Maximum GPU memory in bytes."""


OUTPUT_VERSION = 1
"""Raised when this stage's output changes for the same inputs; part of its cache namespace."""
STAGE = StageSpec(
    name="tag",
    reads=("frames",),
    writes="tags",
    part="vision",
    job=TagJob,
    vectors=True,
    mixes_image_sizes=True,
    can_reject_items=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.tag.run:run",
    verb="tagging",
)
