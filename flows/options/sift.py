"""Options of `penstock sift`, and of `caption --sift`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.headings import OUTPUTS, VECTORS
from flows.options.text import OwnerOptions
from flows.options.vectors import PARENT, VECTOR_MODEL_OPTION, VectorConfig, own_folder

TABLE_FORMATS = ("jsonl", "csv", "parquet")
"""The values of `--format` for marks; jsonl is always written."""
PLACE = "sift"
"""Folder of the marks in the output folder of the run whose media they are of."""
KEEP = '"sharpness > 0.3 and duplicate = 0"'


def parse_heads(given: Sequence[str]) -> dict[str, str]:
    """Parse `--head NAME=FILE` into files by name. Raises UsageError."""
    found: dict[str, str] = {}
    for option in given:
        name, _, path = option.partition("=")
        if not (name.isidentifier() and name.islower() and path) or name in found:
            raise UsageError(
                f"--head {option!r}: not a new name in small letters with a file",
                hint="Write NAME=FILE: aesthetic=aesthetic.safetensors",
            )
        found[name] = path
    return found


@dataclass(frozen=True, kw_only=True)
class SiftOptions(OptionGroup):
    """Which media are kept, and what counts as a copy."""

    keep: Annotated[str, Option(f"what is kept: {KEEP}", metavar="EXPR")] = ""
    """Condition on the marks that media must meet to be kept; empty: all are."""
    mirrored: Annotated[bool, Option("mirrored pictures are copies, too")] = False
    """Whether mirrored pictures and videos count as copies."""
    head: Annotated[
        dict[str, str],
        Option(
            "score vectors of --model by this head; repeatable",
            metavar="NAME=FILE",
            parse=parse_heads,
            repeated=True,
        ),
    ] = field(default_factory=dict)
    """Name → safetensors file of a head on the vectors of the model; the name becomes a mark."""
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
        for option, value in (("--head", self.head), ("--similar", self.similar)):
            if value and not getattr(self, "model", ""):
                raise UsageError(f"{option} needs the vectors of a model", hint="Give --model")


@dataclass(frozen=True, kw_only=True)
class SiftConfig(OwnerOptions, SiftOptions, VectorConfig):
    """One run that marks media."""

    model: Annotated[str, replace(VECTOR_MODEL_OPTION, not_empty="")] = ""
    """Hub id or folder of a dual encoder such as CLIP; empty: no vectors."""
    out: Annotated[str, own_folder(PLACE)] = f"{PARENT}/{PLACE}"
    """Output folder. That of the captions is another, so that each has its own record."""
