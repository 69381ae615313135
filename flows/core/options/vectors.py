"""Options of the commands that compute or use vectors: `embed`, `index build`, `label` and others.

The others are `search`, `sift`, and `caption --sift`.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.option_texts import number
from artifacts.options import Option, OptionGroup
from flows.core.options.commands import RunOptions
from flows.core.options.formats import COCO, GIVE_CONDITION, LABELS, MEMORY, MODEL, OUTPUTS, VECTORS
from flows.core.options.media import VectorSamplingOptions
from flows.core.options.model import MODEL_OPTION, TRUST_HELP, GpuOptions, TaggerOptions
from flows.core.options.outputs import OutputOptions
from flows.core.options.precision import PRECISION_OPTION
from flows.core.options.store import STORE_OPTION, MemoryOptions, StoreOptions, StoreSizeOptions
from flows.core.options.text import FOLDER_OPTION, OwnerOptions

PARENT = "penstock-out"
"""Default folder of captions; those of labels, vectors and marks are below it."""
INDEX = "penstock-index"
"""Default folder of an index."""
IMAGES_PER_BATCH = 32
"""Default batch size of `embed` in images, if they fit."""
LABEL_FORMATS = ("jsonl", "csv", "parquet", COCO, "txt", "vtt", "srt")
"""The values of `--format` for labels; jsonl is always written."""
TOP = 5
"""Default number of labels per image."""
LABELS_OPTION = Option(
    "label file: one per line, YAML, JSON; or a,b", LABELS, "F", path=True, or_text=True
)
GIVE_LABELS = "Give --labels a,b,c or a file with one label per line"
GIVE_MODEL = "Give --model, a dual encoder such as CLIP"
NOT_FOR_TAGGERS = (
    *("labels", "model", "templates", "examples", "tiles", "precision", "vision_backend"),
    *("revision", "trust_remote_code", "gpus"),
)
"""Options that have no effect on a tagger."""
TEMPLATES_OPTION = Option(
    'file of prompt templates, {} is the label ["a photo of {}"]', LABELS, "F", path=True
)
VECTOR_MODEL_OPTION = replace(MODEL_OPTION, help="dual encoder (CLIP): hub id, folder, or `demo`")


def own_folder(name: str) -> Option:
    """Return the option of an output folder that is by default below that of captions."""
    hint = f"Give a folder, or leave it out: {PARENT}/{name}"
    return replace(FOLDER_OPTION, not_empty=hint)


def parse_threshold(text: str) -> float | None:
    """Parse `--threshold`; None: set by the model's rule. Raises UsageError."""
    if text == "auto":
        return None
    try:
        return float(number(text, float))
    except ValueError as error:
        raise UsageError(
            f"invalid --threshold {text!r}: not a number", hint="Give auto, or 0.25"
        ) from error


@dataclass(frozen=True, kw_only=True)
class VectorConfig(VectorSamplingOptions, RunOptions):
    """Options of every run that computes vectors."""

    model: Annotated[str, VECTOR_MODEL_OPTION]
    """Hub id or folder of a dual encoder such as CLIP."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, VECTORS)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""
    store: Annotated[str, replace(STORE_OPTION, heading=VECTORS)] = ""
    """Folder or bucket of the store; empty: `$PENSTOCK_STORE` or the user's cache."""
    precision: Annotated[str, replace(PRECISION_OPTION, heading=MODEL)] = "native"
    """Precision of both halves. `native` is the checkpoint's own; `auto` is native if it fits, or
    fp16 on a GPU if a trial shows that it gives the same vectors as fp32."""
    batch_size: Annotated[int, Option("images per batch [%(default)s]", MEMORY, "N", above=0)] = (
        IMAGES_PER_BATCH
    )
    """Images per batch."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(OwnerOptions, StoreSizeOptions, GpuOptions, VectorConfig):
    """One run that writes vectors."""

    out: Annotated[str, own_folder("vectors")] = f"{PARENT}/vectors"
    """Output folder."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig(StoreSizeOptions, GpuOptions, VectorConfig):
    """One run that builds an index."""

    out: Annotated[str, FOLDER_OPTION] = INDEX
    """Folder of the index."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TaggerOptions):
    """The labels, and the score thresholds."""

    labels: Annotated[str, LABELS_OPTION] = ""
    """File with one label per line, or YAML or JSON; or `a,b,c`. Empty: a tagger has its own."""
    templates: Annotated[str, TEMPLATES_OPTION] = ""
    """File of prompt templates with {} for a label, one per line; empty: `a photo of {}`."""
    threshold: Annotated[
        float | None,
        Option(
            "minimum score of a label [auto]",
            LABELS,
            "T",
            text=r"^(auto|-?[0-9]*\.?[0-9]+)$",
            parse=parse_threshold,
            least=-1,
            most=1,
        ),
    ] = None
    """Minimum score of labels without their own; None: set by the model's rule."""
    examples: Annotated[
        str, Option("CSV of media_path,label, to learn thresholds", LABELS, "F", path=True)
    ] = ""
    """CSV of images with their correct labels, from which thresholds are learned."""
    top: Annotated[int, Option("labels per image [5]", LABELS, "K", least=1)] = TOP
    """Labels per image."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig(
    OwnerOptions, OutputOptions, LabelOptions, StoreSizeOptions, GpuOptions, VectorConfig
):
    """One run that labels media."""

    model: Annotated[str, replace(VECTOR_MODEL_OPTION, not_empty="")] = ""
    """Hub id or folder of a dual encoder such as CLIP; empty: a tagger takes its place."""
    out: Annotated[str, own_folder("labels")] = f"{PARENT}/labels"
    """Output folder."""

    format: Annotated[
        tuple[str, ...],
        Option(
            "formats besides jsonl: csv, parquet, coco, txt, vtt, srt",
            OUTPUTS,
            "F,F",
            values=LABEL_FORMATS,
        ),
    ] = ()
    """Formats besides jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tagger:
            given = [n for n in NOT_FOR_TAGGERS if getattr(self, n) != getattr(type(self), n)]
            if given:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise UsageError(
                    f"{flags}: not possible with --tagger, whose file says what it computes",
                    hint=f"Leave out {flags}, or --tagger",
                )
            return
        for name, hint in (("labels", GIVE_LABELS), ("model", GIVE_MODEL)):
            if not getattr(self, name).strip():
                raise UsageError(
                    f"--{name} is missing", hint=f"{hint}; or give --tagger FILE (docs/taggers.md)"
                )


CAPTIONS_OPTION = Option(
    "folder of a run whose captions are searched, too", metavar="OUT", path=True
)
WITHIN = Option(
    "captions, vectors, both [both, where both are given]",
    metavar="WHAT",
    values=("", "captions", "vectors", "both"),
    flag="--in",
)
EACH_FRAME = Option("one hit per frame of a video, not per moment", flag="--each-frame")
WHERE = Option(
    "filter condition: \"path like '%%.mp4' and time < 60\"", "", "EXPR", not_empty=GIVE_CONDITION
)


@dataclass(frozen=True, kw_only=True)
class SearchQuery(OptionGroup):
    """The query of a search."""

    what: Annotated[str, Option("text, or an image file", metavar="TEXT|IMAGE", positional=True)]
    """A text, or an image file."""
    top: Annotated[int, Option("number of hits [%(default)s]", metavar="K", least=1)] = 10
    """Maximum number of hits."""
    without: Annotated[
        tuple[str, ...],
        Option(
            "exclude hits closer to this; repeatable", metavar="TEXT", repeated=True, flag="--not"
        ),
    ] = ()
    """Texts or image files. Hits that are closer to one of them are excluded."""
    where: Annotated[str | None, WHERE] = None
    """Filter condition on the rows; None: all rows."""
    moments: Annotated[bool, EACH_FRAME] = True
    """Whether adjacent matching frames of a video become one hit."""
    within: Annotated[str, WITHIN] = ""
    """Search `captions`, `vectors` or `both`; empty: both where both are given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.what, *self.without):
            if not text.strip():
                raise UsageError("the search text is empty", hint="Give words or an image file")


@dataclass(frozen=True, kw_only=True)
class SearchPlace(MemoryOptions, StoreOptions):
    """Captions, model and store locations, and the memory limits of a half."""

    captions: Annotated[str, CAPTIONS_OPTION] = ""
    """Folder of a run whose captions, summaries, answers and labels are searched; empty: none."""
    model: Annotated[str, Option("hub id or folder [the index's model]", MODEL, "M", path=True)] = (
        ""
    )
    """Hub id or folder; empty: the model of the index."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, MODEL)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""


TABLE_FORMATS = ("jsonl", "csv", "parquet")
"""The values of `--format` for marks; jsonl is always written."""
PLACE = "sift"
"""Folder of the marks in the output folder of the run whose media they are of."""
KEEP = '"sharpness > 0.3 and duplicate = 0"'
KEEP_OPTION = Option(f"what is kept: {KEEP}", "", "EXPR", not_empty=GIVE_CONDITION)


@dataclass(frozen=True, kw_only=True)
class SiftOptions(OptionGroup):
    """Which media are kept, and what counts as a copy."""

    keep: Annotated[str | None, KEEP_OPTION] = None
    """Condition on the marks that media must meet to be kept; None: all are."""
    mirrored: Annotated[bool, Option("mirrored pictures are copies, too")] = False
    """Whether mirrored pictures and videos count as copies."""
    similar: Annotated[
        float | None,
        Option("with --model: cosine from which media are alike", metavar="COS", above=0, most=1),
    ] = None
    """Cosine of vectors from which media are near duplicates; None: vectors group nothing."""
    chunk: Annotated[
        float,
        Option("seconds per chunk that is marked [%(default)s]", VECTORS, "SECONDS", least=0.1),
    ] = 30.0
    """Seconds per chunk of a video that has a line of marks of its own."""
    format: Annotated[
        tuple[str, ...],
        Option("tables besides jsonl: csv, parquet", OUTPUTS, "F,F", values=TABLE_FORMATS),
    ] = ()
    """Tables besides jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.similar and not getattr(self, "model", ""):
            raise UsageError("--similar needs the vectors of a model", hint="Give --model")


@dataclass(frozen=True, kw_only=True)
class SiftConfig(OwnerOptions, SiftOptions, VectorConfig):
    """One run that marks media."""

    model: Annotated[str, replace(VECTOR_MODEL_OPTION, not_empty="")] = ""
    """Hub id or folder of a dual encoder such as CLIP; empty: no vectors."""
    out: Annotated[str, own_folder(PLACE)] = f"{PARENT}/{PLACE}"
    """Output folder. That of the captions is another, so that each has its own record."""
