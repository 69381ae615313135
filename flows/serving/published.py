"""Reads records that a half has published, on the thread that receives its events. The event loop
reads no file.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.serving.half_plan import HalfWorkerSpec
from flows.serving.refusals import HttpRefusal, unavailable
from stages.process.events import Event, Published

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedAnswers:
    """Results of a half, ready to be returned to clients."""

    answers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LostAnswers:
    """Results of a half that could not be read."""

    keys: Sequence[str]
    why: HttpRefusal


def read_published(plan: HalfWorkerSpec, event: Event) -> Event | PublishedAnswers | LostAnswers:
    """Return what there is to answer of an event, or else the event."""
    if not isinstance(event, Published):
        return event
    plan.ladder.note_success(plan.name)
    try:
        return PublishedAnswers(answers=plan.answers(event.keys))
    except Exception as error:  # a store may fail in many ways, and its thread goes on
        log.warning("%s: what was made cannot be read: %s", plan.name, error)
        why = unavailable("what was made cannot be read", "Ask again")
        return LostAnswers(keys=event.keys, why=why)
