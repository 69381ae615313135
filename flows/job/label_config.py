"""Holds what a run that gives labels is asked to do. It knows nothing of how it is done."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from artifacts.errors import UsageError
from flows.job.command_config import EmbedConfig
from flows.job.formats import COCO

LABEL_FORMATS = ("jsonl", "csv", "parquet", COCO, "txt", "vtt", "srt")
"""The values of `--format` of labels; jsonl is always written."""
TOP = 5
"""Labels of a picture that are told where the user does not say."""


def check_label_formats(formats: Iterable[str]) -> None:
    """Raise UsageError for a format that labels have none of."""
    if unknown := sorted(set(formats) - set(LABEL_FORMATS)):
        raise UsageError(
            f"--format {','.join(unknown)} is not known for labels",
            hint=f"Choose from {', '.join(LABEL_FORMATS[1:])}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig(EmbedConfig):
    """One run that gives labels. Set fields are only those of `penstock label`."""

    command: ClassVar[str] = "label"
    labels: str
    """File with a label a line, or YAML or JSON; or `a,b,c`."""
    templates: str = ""
    """File of texts with {} for a label, a line each; empty: `a photo of {}`."""
    threshold: float | None = None
    """Least score of a label that has none of its own; None: by the rule of the model."""
    examples: str = ""
    """File of labels that people gave some of the pictures, by which thresholds are learned."""
    top: int = TOP
    """Labels told of each picture."""

    def __post_init__(self) -> None:
        EmbedConfig.__post_init__(self)
        check_label_formats(self.format)
