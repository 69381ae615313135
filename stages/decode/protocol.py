"""The interface between the decode stage and its engines, with the batches and features they
receive.

The stage groups the missing captions of a job into batches, and reads the feature record that the
encode stage stored for each chunk. It passes a stream of batches, because some engines admit the
next request as soon as a sequence ends. It accepts captions in any order. The engine decides how
rows are grouped and what happens when memory runs out, and reports that to `OomRetry`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from artifacts.disk.json_shapes import Json
from artifacts.errors import NotFinite, UsageError
from artifacts.records.packs import RecordSet, RecordUnion, read_made
from artifacts.records.tensors import unpack_tree
from artifacts.texts.captions import Ended
from stages.decode.generation import DecodeItem, DecodeJob
from stages.memory.oom_retry import OomRetry, split_batch
from stages.models.halves.records import FeatureRecord
from stages.process.requests import Request


class DecodeRequest(NamedTuple):
    """A request to caption one chunk."""

    item: DecodeItem
    features: FeatureRecord
    work: Request[DecodeItem] | None = None
    """The request as it was sent; None for an item of the job itself."""

    @property
    def is_withdrawn(self) -> bool:
        """Whether the client no longer waits for the caption."""
        return self.work is not None and self.work.is_withdrawn


class CaptionOutput(NamedTuple):
    """The model's output for one chunk."""

    caption: str
    tokens: int
    finish_reason: Ended
    prompt_tokens: int = 0
    """Number of prompt tokens, image tokens included."""
    stopped: bool = False
    """Whether the caption ended at a stop string."""
    fault: UsageError | NotFinite | None = None
    """Error in place of a caption: the settings cannot be applied, the prompt is too long, or the
    model computes no numbers."""
    is_finite: bool | None = True
    """Whether the numbers behind it are finite; None: they were not seen, and nothing was written
    up to the limit."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Further fields of the record: how sure the model was, where its answer begins."""

    @property
    def meta(self) -> dict[str, Json]:
        meta = {"caption": self.caption, "tokens": self.tokens, "ended": self.finish_reason}
        return {**meta, **self.fields}


OnPartial = Callable[[DecodeRequest, str, int], None]
"""Callback with a request, its partial caption, and the number of tokens so far."""


class DecodeEngine(Protocol):
    """A decode engine that runs one job."""

    def __init__(self, job: DecodeJob) -> None:
        """Load the language half and the processor."""

    def load_info(self) -> dict[str, Json]:
        """Return notes about what was loaded."""

    def resolve_engine(self, request: DecodeRequest) -> str:
        """Return the name of the engine that will run, after checking it with this request if
        needed. Raises UsageError if no engine can run."""

    def refusal(self, request: DecodeRequest) -> UsageError | None:
        """Return the error of a prompt that is too long for the model, or None."""

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        """Yield requests with their captions, a few at a time, in any order.

        Requests that run out of memory even alone are left out. For a request that is withdrawn
        meanwhile, an incomplete caption may be yielded.

        `next()` on `batches` claims a batch, and may wait for another process to finish one. An
        engine with running sequences calls it on a thread. Otherwise two processes could wait for
        each other.
        """

    def generate_batch(self, requests: Sequence[DecodeRequest]) -> Sequence[CaptionOutput]:
        """Return the captions of these requests, generated at once. Raises out-of-memory errors."""

    def set_on_partial(self, on_partial: OnPartial) -> None:
        """Set the callback that gets partial captions. An engine without streaming ignores it."""

    def caption_fields(self) -> dict[str, int]:
        """Return what each caption's record says about the computation, known after the check."""

    def run_stats(self) -> dict[str, Any]:
        """Return notes about the finished run."""


Batch = list[DecodeItem]


def rebatch(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Split the batches to a maximum size (0: unchanged)."""
    return [[*piece] for batch in batches for piece in split_batch(batch, size or len(batch))]


def by_chunk(batches: Sequence[Batch]) -> list[Batch]:
    """Return batches of the same size in which requests about the same chunk are adjacent."""
    by_features: dict[str, Batch] = {}
    for item in (item for batch in batches for item in batch):
        by_features.setdefault(item.features, []).append(item)
    ordered = [item for items in by_features.values() for item in items]
    return rebatch([ordered], max(map(len, batches), default=0))


def longest_first(batches: Sequence[Batch], previous_lengths: Mapping[str, int]) -> list[Batch]:
    """Return batches of the same size, sorted by previous caption length, longest first. Items of
    unknown length count as longest. So the last sequences are short, and few slots stay empty at
    the end."""
    items = [item for batch in batches for item in batch]
    if not any(item.key in previous_lengths for item in items):
        return [*batches]
    longest = max(previous_lengths.values())
    items.sort(key=lambda item: -previous_lengths.get(item.key, longest))
    return rebatch([items], max(map(len, batches)))


def read_features(record_set: RecordSet | RecordUnion, key: str) -> FeatureRecord:
    """Read the features of one chunk or sound. Raises DamagedRecord if they are gone, and
    RecordGone if this version of transformers cannot load them."""
    missing = "the features {} are no longer in the store"
    record = read_made(record_set, key, missing, "Run the same command again to encode them")
    return FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))


def with_heard(row: FeatureRecord, record_set: RecordSet | RecordUnion, key: str) -> FeatureRecord:
    """Return a row with the features of its sound, whose key is empty if it has none. Raises as
    `read_features` does."""
    return replace(row, heard=read_features(record_set, key)) if key else row
