"""The job of rounding weights by what they do to real inputs; imports no library."""

from dataclasses import dataclass

from artifacts.schema import Part
from stages.export.judge_job import CaptionedItem
from stages.models.half_job import HalfJob


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateJob:
    """Captions that a half reads, and the weights of it that are rounded meanwhile."""

    half: HalfJob
    store: str
    features_namespace: str
    members: list[CaptionedItem]
    folder: str
    """Folder of the rounded weights, a file each; those that are there are not made again."""
    parts: tuple[Part, ...]
    bits: int
    group: int
    hessian_bytes: int
    """Most bytes of what is summed up for the weights of one layer."""
