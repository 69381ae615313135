"""Options of the commands that compute vectors: `embed`, `index build` and `label`."""

from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.commands import RunOptions
from flows.options.formats import COCO
from flows.options.headings import LABELS, MEMORY, MODEL, OUTPUTS, VECTORS
from flows.options.media import VectorSamplingOptions
from flows.options.model import (
    MODEL_OPTION,
    PRECISION_OPTION,
    STORE_HELP,
    TRUST_HELP,
)
from flows.options.text import FOLDER_OPTION, OutputOptions

INDEX = "penstock-index"
"""Folder of an index where none is named."""
PICTURES_A_BATCH = 32
"""Pictures that `embed` gives the encoder at once, where they fit."""
LABEL_FORMATS = ("jsonl", "csv", "parquet", COCO, "txt", "vtt", "srt")
"""The values of `--format` of labels; jsonl is always written."""
TOP = 5
"""Default number of labels per picture."""
LABELS_OPTION = Option("file with a label a line, YAML, JSON; or a,b", LABELS, "F", text=r"\S")
TEMPLATES_OPTION = Option('texts with {} for a label ["a photo of {}"]', LABELS, "F")
VECTOR_MODEL_OPTION = replace(MODEL_OPTION, help="CLIP kind: hub id, folder, or `demo`")
VECTOR_FOLDER_OPTION = replace(FOLDER_OPTION, help="for vectors [%(default)s]")


def parse_threshold(text: str) -> float | None:
    """Return the number of `--threshold`; None: by the rule of the model. Raises UsageError."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--threshold {text} is no number", hint="Give auto, or 0.25") from error


@dataclass(frozen=True, kw_only=True)
class VectorConfig(VectorSamplingOptions, RunOptions):
    """Options of every run that computes vectors."""

    model: Annotated[str, VECTOR_MODEL_OPTION]
    """Hub id or folder of a model of the CLIP kind."""
    as_published: bool | None = None
    """What a deployment recorded of it; the commands have no option for it."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, VECTORS)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""
    store: Annotated[str, Option(STORE_HELP, VECTORS, "DIR")] = ""
    """Folder or bucket of the store; empty: `$PENSTOCK_STORE` or the user's cache."""
    precision: Annotated[str, replace(PRECISION_OPTION, heading=MODEL)] = "native"
    """Precision of both halves; `native` is the checkpoint's own, `auto` the same as long as it
    fits. `int8` and `nf4` mean the language half alone."""
    batch_size: Annotated[int, Option("pictures a batch [%(default)s]", MEMORY, "N", above=0)] = (
        PICTURES_A_BATCH
    )
    """Pictures a batch."""
    out: Annotated[str, VECTOR_FOLDER_OPTION] = "penstock-out"
    """Folder of the vectors."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(VectorConfig):
    """One run that writes vectors."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig(VectorConfig):
    """One run that fills an index."""

    out: Annotated[str, VECTOR_FOLDER_OPTION] = INDEX
    """Folder of the index."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(OptionGroup):
    """The labels, and the score thresholds."""

    labels: Annotated[str, LABELS_OPTION]
    """File with a label a line, or YAML or JSON; or `a,b,c`."""
    templates: Annotated[str, TEMPLATES_OPTION] = ""
    """File of texts with {} for a label, a line each; empty: `a photo of {}`."""
    threshold: Annotated[
        float | None,
        Option(
            "least score of a label [auto]", LABELS, "T", parse=parse_threshold, least=-1, most=1
        ),
    ] = None
    """Least score of a label that has none of its own; None: by the rule of the model."""
    examples: Annotated[str, Option("CSV of media_path,label to learn thresholds", LABELS, "F")] = (
        ""
    )
    """File of labels that people gave some of the pictures, by which thresholds are learned."""
    top: Annotated[int, Option("labels told of each picture [5]", LABELS, "K", least=1)] = TOP
    """Labels told of each picture."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig(OutputOptions, LabelOptions, VectorConfig):
    """One run that labels media."""

    format: Annotated[
        tuple[str, ...],
        Option(
            "beside jsonl: csv, parquet, coco, txt, vtt, srt", OUTPUTS, "F,F", values=LABEL_FORMATS
        ),
    ] = ()
    """Formats beside jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.format) - set(LABEL_FORMATS)):
            raise UsageError(
                f"--format {','.join(unknown)} is not known for labels",
                hint=f"Choose from {', '.join(LABEL_FORMATS[1:])}",
            )
