"""The model profile: everything that is known of a model before its weights are read.

The module imports no library.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, get_args

from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.frame_fit import FrameFit
from artifacts.schema import MediaKind, Modality, Part, Route
from stages.models.cache_memory import RowMemory
from stages.models.footprint import BatchCost
from stages.models.pixel_bounds import PixelBounds

OUTPUT_VERSION = 40
"""Output version of a profile, part of its cache key: raised when the content changes."""


BITSANDBYTES = ("int8", "nf4", "fp4")
"""Quantizations that bitsandbytes saves."""


class AdaptableLayer(NamedTuple):
    """A linear layer that an adapter can change."""

    path: str
    """Path in the model."""
    stored: str
    """Path in the checkpoint's files; empty if they store the layer in another form."""
    rows: int
    columns: int


TURN = "\x1e"
"""Separates the turns of a conversation in a prompt: a question, an answer, a question, …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartProfile:
    """One part of a checkpoint, counted from the headers of its files."""

    shards: tuple[str, ...]
    """Sorted names of the files that hold its tensors."""
    tensors: tuple[str, ...]
    """Sorted names of its tensors in the checkpoint."""
    parameters: int
    """Number of its parameters."""
    stored_bytes: int
    """Their size in bytes in the checkpoint."""
    stored_as: str = ""
    """`int8`, `nf4` or `fp4` if it was saved quantized by bitsandbytes; `awq`, `w4a16`, `mixed` or
    the like by another program; else empty."""
    packed_parameters: int = 0
    """Number of parameters in the layers of another program that can stay packed in memory."""
    packed_bytes: int = 0
    """Bytes of those layers in memory while they are packed."""
    largest_packed: int = 0
    """Number of parameters in the largest of those layers."""
    linear_modules: int = 0
    """Number of layers that int8 and nf4 can quantize."""
    linear_parameters: int = 0
    """Number of parameters in those layers."""
    linear_rows: int = 0
    """Number of weight rows in those layers."""
    largest_linear: int = 0
    """Number of parameters in the largest of those layers."""
    widest_linear: int = 0
    """Number of weight rows in the widest of those layers."""
    adaptable: tuple[AdaptableLayer, ...] = ()
    """The linear layers that only this part uses."""
    layers: int = 0
    """Number of layers in its largest stack."""
    layer_parameters: int = 0
    """Number of parameters in the largest of those layers."""
    stack_parameters: int = 0
    """Number of parameters in all of those layers; 0: all layers have the same number."""
    attention: str = "sdpa"
    """Default attention implementation; several are joined by `+`."""
    flash: bool = False
    """Whether its classes support FlashAttention."""
    extra_modules: tuple[str, ...] = ()
    """Paths of modules of the other half that are loaded, and counted, with this one too."""
    as_published: str = ""
    """How its computation differs from the published code; empty: no known difference."""
    batch_costs: tuple[BatchCost, ...] = ()
    """Computing costs at a few sizes; empty if unknown."""
    row_memory: RowMemory | None = None
    """Cache memory per row of a decoder; None if unknown."""

    @property
    def packed_form(self) -> str:
        """Return how its packed layers are held, as text."""
        bits = 4 if 8 * self.packed_bytes < 6 * self.packed_parameters else 8
        stored = "4 and 8" if self.stored_as == "mixed" else f"{bits}"
        return f"{stored} bit as stored, unpacked layer by layer"

    @property
    def loader_unpacks(self) -> bool:
        """Return whether it was quantized by bitsandbytes, whose layers stay as they were saved."""
        return self.stored_as in BITSANDBYTES

    @property
    def outside_parameters(self) -> int:
        """Number of parameters outside of those layers."""
        stack = self.stack_parameters or self.layers * self.layer_parameters
        return max(0, self.parameters - stack)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingProfile:
    """The frame sampling that the checkpoint's processor requests; None where it does not say."""

    fps: float | None = None
    """Frames per second."""
    frames: int | None = None
    """Frames per video."""
    min_frames: int | None = None
    max_frames: int | None = None
    seconds: float | None = None
    """Longest chunk in seconds that it can see completely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HearingProfile:
    """How a checkpoint's processor takes sound."""

    rate: int
    """Samples per second."""
    tokens_per_second: float
    """Placeholders per second of sound; 0: every sound has the same number."""
    tokens_per_sound: int
    """Placeholders in addition to those."""
    max_seconds: float
    """Longest sound in seconds that it passes on; 0: any."""
    interleaved: bool
    """Whether a video's placeholders and those of its sound alternate by time."""

    def tokens(self, seconds: float) -> int:
        """Return the placeholders of a sound of this length; the processor may round otherwise."""
        return math.ceil(self.tokens_per_sound + self.tokens_per_second * seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenSize:
    """The tokens and bytes that a processor makes of a square frame."""

    edge: int
    """Side length in pixels."""
    tokens: int
    """Placeholders per frame."""
    pixel_bytes: int
    """Bytes of encoder input for the frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """One checkpoint that generates captions, or makes vectors of images and of texts."""

    folder: str
    """Folder of its files."""
    class_name: str
    model_type: str
    modalities: tuple[Modality, ...]
    """Media that its encoder takes. Without `video`, video frames are passed as images."""
    images_per_prompt: int = 0
    """Maximum images per prompt; 0: no limit. With 1 and without `video`, a chunk of video is shown
    as its middle frame."""
    frames_per_video: int = 0
    """Frames that a video must have, and copies of an image that are shown; 0: any number."""
    continues_prompt: bool = False
    """Whether a caption continues the prompt, as with captioners without chat template. Their
    default prompt is empty."""
    dtype: str
    """The checkpoint's own precision, such as bfloat16."""
    route: Route = "protocol"
    """Split strategy of the halves. `joint`: the model has no boundary, and the vision half is
    empty."""
    why: str = ""
    """Reason for the split strategy, in one sentence."""
    lacks_template: bool = False
    """Whether prompts have no chat template, although the tokenizer has marks of turns."""
    prompted: bool = False
    """Whether features depend on the prompt, so that another prompt needs new features."""
    parts: Mapping[Part, PartProfile]
    """The parts that stages load: for a captioner, its vision half and its language half, and its
    audio half if it hears."""
    sampling: SamplingProfile
    hearing: HearingProfile | None = None
    """How it takes sound; None: it hears nothing."""
    fit_video: FrameFit
    """The frame size at which it is worth storing a video's frames."""
    fit_image: FrameFit
    """The size at which an image is seen; the image is stored at its own size."""
    opens_reasoning: bool = False
    """Whether its prompts end inside of a tag that the model's reasoning closes."""
    takes_system: bool = True
    """Whether its prompts can contain a system text."""
    placeholders: tuple[str, ...] = ()
    """Strings that a prompt must not contain: the model reads them as image placeholders."""
    control_tokens: tuple[str, ...] = ()
    """The tokenizer's special tokens, which are removed from every caption."""
    answer_blank: str = ""
    """Blank between generation prompt and answer that changes the answer's tokens."""
    feature_width: int
    """Width of a placeholder's feature, or of an image vector."""
    stored_widths: dict[MediaKind, float] = field(default_factory=dict)
    """Kind of media → numbers that are stored for each placeholder: all levels of its features.
    Unknown: as many as its width."""
    image_tokens: int
    """Placeholders, or vectors, of a square image of 1280 pixels; 0 if unknown."""
    frame_tokens: int
    """Placeholders per frame for two square frames of 1280 pixels; 0 if unknown."""
    image_pixel_bytes: int = 0
    """Bytes of encoder input for a square image of 1280 pixels; 0 if unknown."""
    frame_pixel_bytes: int = 0
    """The same per frame for two square frames."""
    image_sizes: tuple[SeenSize, ...] = ()
    """The same for smaller images, smallest first."""
    frame_sizes: tuple[SeenSize, ...] = ()
    """The same per frame for two smaller frames."""
    pixels_per_video: int = 0
    """Maximum pixels of all frames of a video together; 0: no limit."""
    least_pixels: int = 0
    """Lowest pixel count to which `--max-pixels` can limit an image; 0: the processor has no such
    limit."""
    max_pixels: int = 0
    """Requested maximum pixels per image or frame; 0: the processor's own limit."""
    max_video_pixels: int = 0
    """Requested maximum pixels of all frames of a video; 0: the processor's own limit."""
    video_bounds: PixelBounds | None = None
    """How the processor bounds the pixels of a video; None: it resizes frames in another way."""
    tokens_per_prompt: int = 0
    """Tokens that the processor adds to a prompt besides images and the user's text; 0 if
    unknown."""
    tokens_per_frame: int = 0
    """Tokens that the processor adds per large video frame, such as its time and the ends of its
    rows."""
    as_published: bool = False
    """Whether the model runs as its authors published it, where a part states a difference."""
    context_tokens: int = 0
    """Maximum tokens of prompt and answer together; 0: not stated."""
    is_encoder_decoder: bool = False
    """Whether prompt and images go to an encoder. Then they use none of the context in which the
    decoder writes."""
    needs_pictures: str = ""
    """Why the language half cannot generate from text alone; empty: it can."""
    batch_costs_unknown: str = ""
    """Why the computing costs are unknown; empty if they are known."""

    @property
    def vision(self) -> PartProfile:
        return self.parts["vision"]

    @property
    def language(self) -> PartProfile:
        return self.parts["language"]

    @property
    def one_frame(self) -> bool:
        """Return whether the model can see only one frame of a chunk of video."""
        return self.images_per_prompt == 1 and "video" not in self.modalities

    def to_json(self) -> dict[str, Json]:
        """Return the profile as JSON values, each part under its own name."""
        fields = asdict(self)
        return {**fields, **fields.pop("parts")}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> "ModelProfile":
        """Return the profile of these JSON values. Raises TypeError."""
        parts = {part: value[part] for part in get_args(Part) if part in value}
        rest = {name: one for name, one in value.items() if name not in parts}
        return read_record(cls, {**rest, "parts": parts})
