"""Finds stored captions by their cache keys and the requested settings."""

from collections.abc import Sequence
from dataclasses import asdict

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.store import Store
from flows.serving.keeping import RecordCacheFlusher
from stages.process.events import CaptionProgress


class KeptCaptions:
    """The stored captions of one model, the preferred variant first."""

    def __init__(
        self, store: Store, kind: str, namespaces: Sequence[str], keeper: RecordCacheFlusher
    ) -> None:
        self._kept = [keeper.of(store, kind, namespace) for namespace in namespaces]

    async def read(self, keys: Sequence[str]) -> CaptionProgress | None:
        """Return a caption, by its key in each variant; None where there is none."""
        for kept, key in zip(self._kept, keys, strict=True):
            if key in kept and (record := await kept.read(key)) is not None:
                return _words(record)
        return None

    def remember(self, words: CaptionProgress) -> None:
        """Keep in memory what was made; the stage has stored it."""
        meta = {name: value for name, value in asdict(words).items() if name != "key"}
        self._kept[0].remember(Record(key=words.key, meta=meta))


def key_of(key: str, settings: str) -> str:
    """Return the key of a caption that was asked for with these settings."""
    return digest_of([key, settings]) if settings else key


def _words(record: Record) -> CaptionProgress:
    """Return a caption that was stored by this server, or by a run, which counts no prompts."""
    meta = record.meta
    return CaptionProgress(
        key=record.key,
        caption=meta["caption"],
        tokens=meta["tokens"],
        ended=meta.get("ended") or "stop",
        prompt_tokens=meta.get("prompt_tokens", 0),
        stopped=meta.get("stopped", False),
    )
