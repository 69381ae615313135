"""The model profile: everything that is known of a model before its weights are read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

from artifacts.schema import FrameFit, Modality, Part, Route
from stages.models.footprint import BatchCost
from stages.models.pixel_bounds import PixelBounds
from stages.models.row_memory import LayerMemory, RowMemory

LISTS = ("modalities", "placeholders", "control_tokens", "rewritten")
"""Names of the lists of words in a profile."""
OUTPUT_VERSION = 31
"""Output version of a profile: raised when what one says changes, and part of its key."""


class AdaptableLayer(NamedTuple):
    """A linear layer to whose output an adapter may add."""

    path: str
    """Path in the model."""
    stored: str
    """The same as the checkpoint's files call it; empty where they keep it otherwise."""
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartProfile:
    """One part of a checkpoint, counted from the headers of its files."""

    shards: tuple[str, ...]
    """Names of the files that hold its tensors, sorted."""
    tensors: tuple[str, ...]
    """Names of its tensors as the checkpoint has them, sorted."""
    parameters: int
    """Count of the numbers they hold."""
    stored_bytes: int
    """Bytes they take in the checkpoint."""
    stored_as: str = ""
    """`int8`, `nf4` or `fp4` when it was saved quantized; else empty."""
    linear_modules: int = 0
    """Count of the layers that int8 and nf4 take."""
    linear_parameters: int = 0
    """Count of the numbers those hold."""
    linear_rows: int = 0
    """Count of the rows those numbers stand in."""
    largest_linear: int = 0
    """Count of the numbers that the largest of those layers holds."""
    widest_linear: int = 0
    """Count of the rows that the widest of those layers has."""
    adaptable: tuple[AdaptableLayer, ...] = ()
    """The linear layers that this part alone computes with."""
    layers: int = 0
    """Count of the layers that lie one behind another in its largest stack."""
    layer_parameters: int = 0
    """Count of the numbers that the largest of those holds."""
    attention: str = "sdpa"
    """The attention implementation that it takes by default; several are joined by `+`."""
    flash: bool = False
    """Whether its classes take FlashAttention."""
    pieces: tuple[str, ...] = ()
    """Paths of what belongs to the other half and is loaded, and counted, with this one too."""
    as_published: str = ""
    """What of it is known to be otherwise as its authors published it; empty: nothing."""
    batch_costs: tuple[BatchCost, ...] = ()
    """Costs of computing, at a few sizes; empty when they could not be found out."""
    row_memory: RowMemory | None = None
    """What it remembers of a row, of a decoder of which that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingProfile:
    """The frame sampling that the checkpoint's processor requests; None where it does not say."""

    fps: float | None = None
    """Frames a second."""
    frames: int | None = None
    """Frames a video."""
    min_frames: int | None = None
    max_frames: int | None = None
    seconds: float | None = None
    """Longest chunk of which it sees all that it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenSize:
    """The tokens and bytes that a processor makes of a square frame."""

    edge: int
    """Pixels of a side."""
    tokens: int
    """Placeholders a frame."""
    pixel_bytes: int
    """Bytes that the encoder is given of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelProfile:
    """One checkpoint that generates captions, or makes vectors of images and of texts."""

    folder: str
    """Folder of its files."""
    class_name: str
    model_type: str
    modalities: tuple[Modality, ...]
    """Media that its encoder takes; without `video`, the frames of a video go in as images."""
    images_a_prompt: int = 0
    """Most pictures that one prompt takes; 0: as many as there are. With 1, and without `video`, a
    video's chunk goes in as its middle frame."""
    frames_a_video: int = 0
    """Frames that a video must have, and times that an image is shown; 0: any number."""
    goes_on: bool = False
    """Whether a caption is what follows the prompt, as with captioners that have no chat template:
    by default nothing is asked of them."""
    dtype: str
    """The checkpoint's own precision, such as bfloat16."""
    route: Route = "protocol"
    """Route by which the halves are run; `joint` for a model that cannot be cut: the vision half is
    then empty."""
    why: str = ""
    """Reason for that in the model, in one sentence."""
    by_dimensions: bool = False
    """Whether there is no class for it here, and all this was told from its dimensions."""
    prompted: bool = False
    """Whether features are made of the prompt too, so that another prompt needs others."""
    parts: Mapping[Part, PartProfile]
    """Parts that stages load of it: of one that captions its vision half and its language half."""
    sampling: SamplingProfile
    fit_video: FrameFit
    """The size at which a video's frames are worth storing."""
    fit_image: FrameFit
    """The size at which an image is seen; it is stored as it is."""
    takes_system: bool = True
    """Whether a system text has a place in its prompts."""
    rewritten: tuple[str, ...] = ()
    """Parts of a turn, `question` and `system`, that earlier versions did not write to the
    letter."""
    placeholders: tuple[str, ...] = ()
    """Words that a prompt must not hold: the model reads them as the place of a picture."""
    control_tokens: tuple[str, ...] = ()
    """The tokenizer's special tokens, which are left out of every caption."""
    feature_width: int
    """Numbers a placeholder's feature has, or the vector of a picture."""
    image_tokens: int
    """Placeholders, or vectors, of a square image of 1280 pixels; 0 when it could not be found
    out."""
    frame_tokens: int
    """Placeholders a frame of two square ones of 1280 pixels; 0 when it could not be found out."""
    image_pixel_bytes: int = 0
    """Bytes that the processor makes of a square image of 1280 pixels; 0 when it could not be found
    out."""
    frame_pixel_bytes: int = 0
    """The same a frame of two square ones."""
    image_sizes: tuple[SeenSize, ...] = ()
    """The same of smaller images, smallest first."""
    frame_sizes: tuple[SeenSize, ...] = ()
    """The same a frame of two smaller ones."""
    pixels_a_video: int = 0
    """Most pixels in which all frames of a video are seen, together; 0: no limit."""
    least_pixels: int = 0
    """Fewest pixels that `--max-pixels` can keep a picture to; 0: its processor has no such
    limit."""
    max_pixels: int = 0
    """Most pixels of a picture or a frame that were asked for; 0: what its processor has."""
    max_video_pixels: int = 0
    """Most pixels of all frames of a video that were asked for; 0: what its processor has."""
    video_bounds: PixelBounds | None = None
    """How it bounds the pixels of a video; None: it resizes frames otherwise."""
    words_a_prompt: int = 0
    """Tokens that its processor writes into a prompt, besides pictures and what is asked; 0 when it
    could not be found out."""
    words_a_frame: int = 0
    """Tokens that it writes about each frame of a video, such as its time."""
    as_published: bool = False
    """Whether it is run as its authors published it, where a part says that this is otherwise."""
    context_tokens: int = 0
    """Most tokens that its language half reads and says, together; 0: it does not say."""
    is_encoder_decoder: bool = False
    """Whether prompt and pictures go to an encoder, so that they take nothing of the context that
    its decoder writes in."""
    needs_pictures: str = ""
    """Reason why its language half cannot be asked about a text alone; empty: it can."""
    batch_costs_unknown: str = ""
    """Reason why it could not be found out what computing takes; empty when it could."""

    @property
    def vision(self) -> PartProfile:
        return self.parts["vision"]

    @property
    def language(self) -> PartProfile:
        return self.parts["language"]

    @property
    def one_frame(self) -> bool:
        """Return whether only one frame of a video's chunk can be shown to it."""
        return self.images_a_prompt == 1 and "video" not in self.modalities

    def turn_words(self, *, system: bool) -> list[str]:
        """Return what belongs into the keys of captions, with a `system` text or without, where
        earlier versions wrote turns otherwise."""
        parts = [part for part in self.rewritten if part != "system" or system]
        return [f"{part} to the letter" for part in parts]

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON takes it, each part under its own name."""
        fields = asdict(self)
        return {**fields, **fields.pop("parts")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ModelProfile":
        value = dict(value)
        made: dict[str, Any] = {name: tuple(value[name]) for name in LISTS}
        parts = {}
        for part in (part for part in get_args(Part) if part in value):
            fields = value.pop(part)
            lists: dict[str, Any] = {
                key: tuple(fields[key]) for key in ("shards", "tensors", "pieces")
            }
            batch_costs = tuple(BatchCost(**work) for work in fields["batch_costs"])
            lists["adaptable"] = tuple(AdaptableLayer(*each) for each in fields["adaptable"])
            lists |= {"batch_costs": batch_costs, "row_memory": _row_memory(fields["row_memory"])}
            parts[part] = PartProfile(**{**fields, **lists})
        made["parts"] = parts
        if bounds := value.get("video_bounds"):
            made["video_bounds"] = PixelBounds(**bounds)
        made["sampling"] = SamplingProfile(**value["sampling"])
        for name in ("image_sizes", "frame_sizes"):
            made[name] = tuple(SeenSize(**size) for size in value[name])
        for name in ("fit_video", "fit_image"):
            edges = value[name]["long_edges"]
            made[name] = FrameFit(long_edges=tuple((a, e) for a, e in edges))
        return cls(**{**value, **made})


def _row_memory(fields: dict[str, Any] | None) -> RowMemory | None:
    if fields is None:
        return None
    return RowMemory(
        kept=tuple(LayerMemory(**kind) for kind in fields["kept"]), words=fields["words"]
    )
