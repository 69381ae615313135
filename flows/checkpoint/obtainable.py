"""Says in which precisions a half can be had; imports no model library."""

from artifacts.errors import UsageError
from stages.models.profile import ModelProfile, PartProfile

QUANTIZED = ("int8", "nf4")
"""Precisions to which layers are quantized while they are loaded."""


def check_obtainable(name: str, half: PartProfile, profile: ModelProfile, asked: str) -> None:
    """Refuse a precision in which a half cannot be had. A half saved in 4 or 8 bit is as it is; one
    that lies beside it can be cast but not quantized. Raises UsageError."""
    hint = f"Give --{name}-precision native, or the checkpoint it was made from"
    if half.stored_as and asked not in ("native", half.stored_as):
        raise UsageError(
            f"the {name} half of {profile.folder} was saved in {half.stored_as}, "
            f"which cannot be turned into {asked}",
            hint=hint,
        )
    stored = profile.vision.stored_as or profile.language.stored_as
    if stored and not half.stored_as and asked in QUANTIZED:
        raise UsageError(
            f"the {name} half of {profile.folder} was saved unquantized beside one in {stored}, "
            f"and cannot be had in {asked}",
            hint=hint,
        )
    if asked in QUANTIZED and not half.linear_modules:
        raise UsageError(
            f"no layer of the {name} half of {profile.folder} can be told to be one that {asked} "
            "takes",
            hint=f"Give --{name}-precision bf16",
        )
