"""One server request's sampling, token limit, stop strings and schema. Imports no model library,
because cache keys are made from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from artifacts.records import read_record
from stages.decode.generation import SamplingParams

STOP_VERSION = 2
"""Raised when a stop string cuts captions elsewhere, so that older ones are not reused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSettings:
    """The settings of one request."""

    max_new_tokens: int
    generation: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    """Stop strings; a caption ends before the first one."""

    @property
    def text(self) -> str:
        """Return the settings as canonical JSON, for an item and for a cache key."""
        fields = {
            "generation": self.generation.non_defaults,
            "max_new_tokens": self.max_new_tokens,
            "stop": sorted(set(self.stop)),
            **({"stop_version": STOP_VERSION} if self.stop else {}),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "RequestSettings":
        fields = json.loads(text)
        fields.pop("stop_version", None)
        return read_record(cls, fields)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first stop string that occurs in it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    tails = range(min(longest, len(text)), 0, -1)
    return next((n for n in tails if any(each.startswith(text[-n:]) for each in stop)), 0)
