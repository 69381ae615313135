"""The interface between the decode stage and its engines.

The stage passes a stream of batches, because some engines admit the next request as soon as a
sequence ends. It accepts captions in any order. The engine decides how rows are grouped and what
happens when memory runs out, and reports that to `OomRetry`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from artifacts.captions import Ended
from artifacts.errors import UsageError
from stages.decode.job import DecodeItem, DecodeJob
from stages.memory.oom_retry import OomRetry
from stages.models.halves.records import FeatureRecord
from stages.process.live import PipedRequest


class DecodeRequest(NamedTuple):
    """A request to caption one chunk."""

    item: DecodeItem
    features: FeatureRecord
    work: PipedRequest[DecodeItem] | None = None
    """The work that it is of a stage that stays."""

    @property
    def is_withdrawn(self) -> bool:
        """Whether nobody wants its words any more."""
        return self.work is not None and self.work.is_withdrawn


class CaptionOutput(NamedTuple):
    """The model's output for one chunk."""

    caption: str
    tokens: int
    finish_reason: Ended
    closed_early: bool = False
    """Whether an answer of a given form was closed early, because its tokens ran out."""
    prompt_tokens: int = 0
    """Tokens of the prompt, those of pictures among them."""
    stopped: bool = False
    """Whether a stop string ended it."""
    fault: UsageError | None = None
    """Why an item has no caption: it cannot be asked so, or its prompt is too long."""

    @property
    def meta(self) -> dict[str, Any]:
        """Return the fields of its record."""
        meta = {"caption": self.caption, "tokens": self.tokens, "ended": self.finish_reason}
        return meta | ({"shortened": True} if self.closed_early else {})


OnPartial = Callable[[DecodeRequest, str, int], None]
"""Hears of a chunk the words so far, and how many tokens they are."""


class DecodeEngine(Protocol):
    """An engine at work on one job."""

    def __init__(self, job: DecodeJob) -> None:
        """Load what it needs."""

    def load_info(self) -> dict[str, Any]:
        """Return what is worth recording of what was loaded."""

    def resolve_engine(self, request: DecodeRequest) -> str:
        """Return the name of the engine that will speak, tried on this chunk where it has to be.
        Raises UsageError where none can."""

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        """Yield what is said of each chunk, a few at a time. Those that do not fit even alone are
        left out. Of those that are withdrawn meanwhile something may be yielded, which is no
        caption.

        To take the next batch claims it, and may wait for another process to end one: who has begun
        with rows takes it in a thread beside them, or two processes wait for each other.
        """

    def generate_batch(self, request: Sequence[DecodeRequest]) -> Sequence[CaptionOutput]:
        """Return what is said of these, all at once. Raises what an allocator raises."""

    def set_on_partial(self, on_partial: OnPartial) -> None:
        """Have `listen` told what a row has said so far, while it is said, where that can be."""

    def run_stats(self) -> dict[str, Any]:
        """Return what is worth recording at the end."""


@runtime_checkable
class PromptChecker(Protocol):
    """An engine that can tell before prefill whether a prompt fits the model."""

    def refusal(self, request: DecodeRequest) -> UsageError | None:
        """Return why a chunk's prompt is too long for the model; None where it is not."""
