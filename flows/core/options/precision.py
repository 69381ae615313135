"""Options of the precision of weights and of the backend of the vision half."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.options import Option, OptionGroup
from artifacts.schema import Part
from flows.core.options.formats import MEMORY
from stages.models.graphs.sessions import BACKENDS

PRECISIONS = ("native", "auto", "fp32", "bf16", "fp16", "int8", "nf4")
"""The values of `--precision`. `auto` is native, or less if native does not fit. int8 and nf4
quantize the vision half only if requested by its own option."""
TORCH = "torch"
VISION_BACKENDS = (TORCH, *BACKENDS, "auto")
"""The values of `--vision-backend`."""
PRECISION_OPTION = Option(f"{'|'.join(PRECISIONS)} [%(default)s]", MEMORY, "P", values=PRECISIONS)
BACKEND_OPTION = Option(
    f"backend of the vision half: {'|'.join(VISION_BACKENDS)} [%(default)s]",
    MEMORY,
    "B",
    values=VISION_BACKENDS,
)


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(OptionGroup):
    """The precision of a model, and the backend of its vision half."""

    precision: Annotated[str, PRECISION_OPTION] = "native"
    """Precision of both halves. `native` is the checkpoint's own; `auto` is native if it fits.
    `int8` and `nf4` apply to the language half only."""
    vision_backend: Annotated[str, BACKEND_OPTION] = TORCH
    """Backend of the vision half: `torch`, or graphs of the checkpoint for `onnx` or `tensorrt`.
    `auto` uses graphs if they passed their check and are faster on this machine."""

    def own_precision(self, part: Part) -> str | None:
        """Return the precision that an option sets for this part alone; None: there is none."""
        return None

    def precision_of(self, part: Part) -> str:
        """Return the precision of a part: its own option, else `--precision`. An audio half has its
        own precision always: it is small."""
        if part == "audio":
            return "native"
        return self.own_precision(part) or self.precision

    def precision_field(self, part: Part | None) -> str | None:
        """Return the field that sets the precision of a part; None without a part, and for an audio
        half."""
        if part is None or part == "audio":
            return None
        return "precision"

    def may_fall_back(self, part: Part) -> bool:
        """Return whether a part may run in a lower precision that fits."""
        return self.precision_of(part) == "auto"


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionOptions(PrecisionOptions):
    """Precision options per half of a model."""

    vision_precision: Annotated[
        str | None,
        Option("for the vision half [--precision, unquantized]", MEMORY, "P", values=PRECISIONS),
    ] = None
    """Precision of the vision half; None: `precision`."""
    language_precision: Annotated[
        str | None, Option("for the language half [--precision]", MEMORY, "P", values=PRECISIONS)
    ] = None
    """Precision of the language half; None: `precision`."""

    def own_precision(self, part: Part) -> str | None:
        return {"vision": self.vision_precision, "language": self.language_precision}.get(part)

    def precision_field(self, part: Part | None) -> str | None:
        return f"{part}_precision" if super().precision_field(part) else None
