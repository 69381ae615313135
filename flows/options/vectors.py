"""Options of the commands that compute vectors: `embed`, `index build` and `label`."""

from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.commands import RunOptions
from flows.options.formats import COCO
from flows.options.headings import LABELS, MEMORY, MODEL, OUTPUTS, VECTORS
from flows.options.media import VectorSamplingOptions
from flows.options.model import MODEL_OPTION, PRECISION_OPTION, STORE_OPTION, TRUST_HELP
from flows.options.text import FOLDER_OPTION, OutputOptions, OwnerOptions

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
    "label file: one per line, YAML, JSON; or a,b", LABELS, "F", text=r"\S", path=True, or_text=True
)
TEMPLATES_OPTION = Option(
    'file of prompt templates, {} is the label ["a photo of {}"]', LABELS, "F", path=True
)
VECTOR_MODEL_OPTION = replace(MODEL_OPTION, help="dual encoder (CLIP): hub id, folder, or `demo`")
VECTOR_FOLDER_OPTION = replace(FOLDER_OPTION, help="output folder [%(default)s]")


def own_folder(name: str) -> Option:
    """Return the option of an output folder that is by default below that of captions."""
    hint = f"Give a folder, or leave it out: {PARENT}/{name}"
    return replace(VECTOR_FOLDER_OPTION, not_empty=hint)


def parse_threshold(text: str) -> float | None:
    """Parse `--threshold`; None: set by the model's rule. Raises UsageError."""
    if text == "auto":
        return None
    try:
        return float(text)
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
class EmbedConfig(OwnerOptions, VectorConfig):
    """One run that writes vectors."""

    out: Annotated[str, own_folder("vectors")] = f"{PARENT}/vectors"
    """Output folder."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig(VectorConfig):
    """One run that builds an index."""

    out: Annotated[str, VECTOR_FOLDER_OPTION] = INDEX
    """Folder of the index."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(OptionGroup):
    """The labels, and the score thresholds."""

    labels: Annotated[str, LABELS_OPTION]
    """File with one label per line, or YAML or JSON; or `a,b,c`."""
    templates: Annotated[str, TEMPLATES_OPTION] = ""
    """File of prompt templates with {} for a label, one per line; empty: `a photo of {}`."""
    threshold: Annotated[
        float | None,
        Option(
            "minimum score of a label [auto]",
            LABELS,
            "T",
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
class LabelConfig(OwnerOptions, OutputOptions, LabelOptions, VectorConfig):
    """One run that labels media."""

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
