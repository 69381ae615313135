"""The caption parameters of one request besides the prompt, and the joined text of several
chunks.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from flows.serving.refusals import unsupported
from stages.decode.generation import SamplingParams
from stages.decode.request_settings import RequestSettings, cut_at, held_back
from stages.process.events import CaptionProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionParams:
    """Sampling parameters, length limit, stop strings and schema of one request. Defaults are those
    of the server."""

    generation: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """Largest number of tokens of the whole answer; None: the server's limit for each chunk."""
    stop: tuple[str, ...] = ()
    """Strings at whose first occurrence the whole answer ends."""
    counts_prompt: bool = False
    """Whether the response reports the prompt's token count."""

    @property
    def to_context(self) -> bool:
        """Return whether an answer may be cut at the end of the context. A schema forbids that."""
        return self.max_tokens is None and not self.generation.schema

    @property
    def text(self) -> str:
        """Return the settings that distinguish two requests for the same medium and prompt."""
        fields = {
            "generation": self.generation.non_defaults,
            "max_tokens": self.max_tokens,
            "stop": sorted(set(self.stop)),
            "counts_prompt": self.counts_prompt,
        }
        return json.dumps(fields, sort_keys=True)

    def settings(self, limit: int, server_limit: int) -> str:
        """Return the serialized settings of one caption with this token limit. They are empty if
        they are the server's own, whose limit is `server_limit`."""
        if (limit, self.stop, self.generation) == (server_limit, (), SamplingParams()):
            return ""
        return RequestSettings(
            generation=self.generation, max_new_tokens=limit, stop=self.stop
        ).text

    def is_of_chunks(self, count: int, limit: int) -> bool:
        """Return whether so many chunks can be captioned concurrently, each with its own limit. A
        limit or stop string of the whole answer makes them sequential."""
        enough = self.max_tokens is None or self.max_tokens >= count * limit
        return count == 1 or (enough and not self.stop)

    def ends(self, captions: Sequence[str]) -> bool:
        """Return whether the captions so far contain a stop string."""
        joined = "\n".join(captions) + "\n"
        return cut_at(joined, self.stop) != joined


async def in_order(
    count: int,
    params: CaptionParams,
    limit: int,
    caption: Callable[[int, str], Awaitable[CaptionProgress | None]],
) -> list[CaptionProgress | None]:
    """Caption the chunks and return their captions up to the end of the answer. They run
    concurrently unless a caption decides whether the next one is made.

    `caption` gets the chunk's position and settings. It may return None, which ends the answer.
    Raises HttpRefusal."""
    if params.generation.schema and count > 1:
        raise unsupported(
            "response_format", f"the clip has {count} chunks, and each gets its own answer"
        )
    if params.is_of_chunks(count, limit):
        settings = params.settings(min(params.max_tokens or limit, limit), limit)
        return [*await asyncio.gather(*(caption(at, settings) for at in range(count)))]
    left = params.max_tokens or count * limit
    found: list[CaptionProgress | None] = []
    captions: list[str] = []
    while len(found) < count and left > 0:
        output = await caption(len(found), params.settings(min(left, limit), limit))
        found.append(output)
        if output is None or output.stopped or params.ends([*captions, output.caption]):
            return found
        captions.append(output.caption)
        left -= output.tokens
    if len(found) < count and found[-1] is not None:
        found[-1] = replace(found[-1], ended="length")
    return found


def joined_text(captions: Iterable[str], stop: Sequence[str]) -> str:
    """Return the captions of all chunks, one per line, up to the first stop string."""
    return cut_at("\n".join(captions), stop)


class StreamedText:
    """The text of a streamed response, possibly of several chunks that are generated at once."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._captions: dict[int, str] = {}
        self._ended: set[int] = set()
        self._sent = 0

    def add(self, chunk: int, text: str, *, ended: bool) -> str:
        """Add new text of a chunk's caption. Return what can be sent now: chunks in order, and no
        text that a stop string may still remove."""
        self._captions[chunk] = self._captions.get(chunk, "") + text
        if ended:
            self._ended.add(chunk)
        known: list[str] = []
        while (at := len(known)) in self._captions:
            known.append(self._captions[at])
            if at not in self._ended:
                break
        found = "\n".join(known)
        cut = joined_text(known, self._stop)
        kept = held_back(found, self._stop) if cut == found else 0
        return self._new(cut[: len(cut) - kept])

    def rest(self, captions: Iterable[str]) -> str:
        """Return the unsent text of the finished captions."""
        return self._new(joined_text(captions, self._stop))

    def _new(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new
