"""Jobs and items of stages, made from plain values, and the inputs of whole models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from stages.models.half_job import HalfJob
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_layout import layout_of
from stages.models.processors.prepare import channel_of
from stages.models.processors.processor_calls import run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def made_job(**fields: Any) -> "DataclassInstance":
    """A job of these fields."""
    made: DataclassInstance = make_dataclass("MadeJob", fields)(**fields)
    return made


def own_of(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of such settings the job of a stage has, and its half."""
    names, of_half = ({field.name for field in fields(each)} for each in (kind, HalfJob))
    half = {name: value for name, value in settings.items() if name in of_half}
    return {**{n: value for n, value in settings.items() if n in names}, "half": half}


def items_of_own(
    kind: Callable[..., Any], batches: Sequence[Sequence[Mapping[str, Any]]]
) -> list[list[Any]]:
    """Items of a class from what these say and a stage reads."""
    names = signature(kind).parameters
    return [
        [kind(**{n: each[n] for n in names if n in each}) for each in batch] for batch in batches
    ]


def whole(processor: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Any]:
    """All that the processor gives for these media and prompts at once, pixels included: what a
    model takes that is not cut in two."""
    layout = layout_of(processor, channel_of(processor, clips[0].kind))
    seen = [clip.middle() if layout.alone else clip for clip in clips]
    return run(processor, layout, seen, prompts)
