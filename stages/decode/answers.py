"""The answers to the items of one job: captions and failures, by the engine that makes them.

An item has a key for each engine that may answer it, in that engine's cache namespace. An answer by
any of them counts. The engine that runs is known once it is loaded; it makes the new ones.
"""

from collections.abc import Mapping, Sequence

from artifacts.packs import Record, RecordSet, RecordUnion, record_sets_of
from artifacts.store import Store
from stages.decode.generation import FALLBACK, OWN, DecodeItem, DecodeJob


class Answers:
    """The answers of one job. `records` holds, for each engine that may make them, its captions and
    its failures."""

    def __init__(self, records: Mapping[str, RecordUnion]) -> None:
        self._records = records
        self.made_by = OWN
        """The engine that makes the new ones."""

    @property
    def record_sets(self) -> list[RecordSet]:
        """Return all record sets, the captions of the engine that runs first."""
        first = self._records[self.made_by]
        others = (each for each in self._records.values() if each is not first)
        return [record_set for union in (first, *others) for record_set in union.record_sets]

    def key(self, item: DecodeItem) -> str:
        """Return the key of the answer that is made."""
        return item.keys[self.made_by]

    def missing(self, batch: Sequence[DecodeItem]) -> list[str]:
        """Return the keys, as of `key`, of items that have neither a caption nor a failure of any
        engine."""
        return [self.key(item) for item in batch if not self._has(item)]

    def publish(self, captions: Sequence[Record]) -> list[str]:
        """Store captions, and return their keys."""
        return self._records[self.made_by].publish(captions)

    def fail(self, item: DecodeItem, meta: dict[str, str]) -> None:
        """Store that no engine can answer an item."""
        for engine, key in item.keys.items():
            if engine in self._records:
                _, failures = self._records[engine].record_sets
                failures.publish([Record(key=key, meta=meta)])

    def _has(self, item: DecodeItem) -> bool:
        return any(key in self._records.get(engine, ()) for engine, key in item.keys.items())


def open_records(job: DecodeJob, store: Store) -> tuple[RecordSet, RecordUnion, Answers]:
    """Return the features, those of sound, and the answers of a job. All are looked up together."""
    namespaces = {OWN: job.namespace, FALLBACK: job.fallback_namespace}
    engines = [engine for engine, namespace in namespaces.items() if namespace]
    places = [(kind, namespaces[e]) for e in engines for kind in ("captions", "failures")]
    heard = [("heard", job.heard_namespace)] if job.heard_namespace else []
    features, *found = record_sets_of(store, ("features", job.features_namespace), *heard, *places)
    heard_sets = [found.pop(0) for _ in heard]
    pairs = (found[at : at + 2] for at in range(0, len(found), 2))
    answers = Answers(dict(zip(engines, map(RecordUnion, pairs), strict=True)))
    return features, RecordUnion(heard_sets), answers
