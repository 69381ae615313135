"""Reads records that a half has published, on the thread that receives its events. The event loop
reads no file.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.serving.half_spec import HalfWorkerSpec
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


def read_published(spec: HalfWorkerSpec, event: Event) -> Event | PublishedAnswers | LostAnswers:
    """Return the results of published records. Return other events unchanged."""
    if not isinstance(event, Published):
        return event
    spec.ladder.note_success(spec.name)
    try:
        return PublishedAnswers(answers=spec.answers(event.keys))
    except Exception as error:  # a store can fail in many ways; the thread must go on
        log.warning("%s: results cannot be read: %s", spec.name, error)
        why = unavailable("the result cannot be read", "Ask again")
        return LostAnswers(keys=event.keys, why=why)
