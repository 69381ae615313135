"""Finds stored captions by their cache keys and the requested settings."""

from collections.abc import Sequence
from dataclasses import asdict

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.store import Store
from flows.serving.record_cache import RecordCacheFlusher
from stages.process.events import CaptionProgress


class KeptCaptions:
    """The stored captions of one model, the preferred variant first."""

    def __init__(
        self, store: Store, kind: str, namespaces: Sequence[str], keeper: RecordCacheFlusher
    ) -> None:
        self._kept = [keeper.of(store, kind, namespace) for namespace in namespaces]

    async def read(self, keys: Sequence[str]) -> CaptionProgress | None:
        """Return a caption by its key in each variant, or None."""
        for kept, key in zip(self._kept, keys, strict=True):
            if key in kept and (record := await kept.read(key)) is not None:
                return _output_of(record)
        return None

    def remember(self, output: CaptionProgress) -> None:
        """Keep a caption in memory. The stage has stored it."""
        meta = {name: value for name, value in asdict(output).items() if name != "key"}
        self._kept[0].remember(Record(key=output.key, meta=meta))


def key_of(key: str, settings: str) -> str:
    """Return the cache key of a caption with these request settings."""
    return digest_of([key, settings]) if settings else key


def _output_of(record: Record) -> CaptionProgress:
    """Return a stored caption. Captions of runs have no prompt token count."""
    meta = record.meta
    return CaptionProgress(
        key=record.key,
        caption=meta["caption"],
        tokens=meta["tokens"],
        ended=meta.get("ended") or "stop",
        prompt_tokens=meta.get("prompt_tokens", 0),
        stopped=meta.get("stopped", False),
    )
