"""Ranks captions by what their correction would teach a model.

How it works:

1. The doubt of a caption is the share of the runner-up where the model hesitated most: of the two
   likeliest tokens at its least margin, the probability of the second, from 0 to 0.5.
2. The features of a caption are pooled to one vector: the mean over its tokens, projected to few
   dimensions, centred and of length 1.
3. The next caption is that with the largest product of doubt and distance. Distance is from the
   nearest vector among the captions that the user decided already and those chosen before.
4. Only the most doubtful captions take part, and few are chosen so. The others follow by doubt.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import PenstockError
from artifacts.packs import Record, RecordSet, stored_namespaces
from artifacts.plurals import counted
from artifacts.store import check_format, local_folder, open_store
from artifacts.tensors import float_tensors

if TYPE_CHECKING:
    from flows.reviewing.captions import ReviewedCaptions

log = logging.getLogger(__name__)

WIDTH = 128
"""Largest number of dimensions of a pooled vector."""
CANDIDATES = 2000
"""Undecided captions that are compared by their features: the most doubtful ones."""
CHOSEN = 500
"""Captions that are ranked by distance; the rest follow by doubt. A user reloads long before."""
DECIDED = 1000
"""Captions decided last, from which distances count."""
READ_SECONDS = 5.0
"""Longest time that one ranking reads features, once their store is listed. The next reads on."""
Vectors = NDArray[np.float32]


def share_of_second(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the doubt of captions by their least margins: the probability of the second of two
    tokens."""
    return 1.0 / (1.0 + np.exp(np.clip(margin, -30.0, 30.0)))


def unit(vectors: Vectors) -> Vectors:
    """Return vectors of length 1."""
    found: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def choose(
    doubts: NDArray[np.float64], vectors: Vectors, decided: Vectors, count: int
) -> list[int]:
    """Return the indexes of `count` captions, greedily by doubt times distance. Vectors have length
    1; distance is 1 minus their cosine, and 1 where nothing was decided."""
    remote = np.ones(len(doubts))
    for start in range(0, len(decided), 256):
        remote = np.minimum(remote, 1.0 - (vectors @ decided[start : start + 256].T).max(axis=1))
    left, found = doubts.astype(float), list[int]()
    for _ in range(min(count, len(doubts))):
        best = int(np.argmax(left * np.maximum(remote, 0.0)))
        if left[best] <= 0.0:  # what is left equals what was chosen: the least doubtful first
            break
        found.append(best)
        remote = np.minimum(remote, 1.0 - vectors @ vectors[best])
        left[best] = 0.0
    return found


def pooled(record: Record) -> NDArray[np.float32] | None:
    """Return the mean over the tokens of a feature record, of its widest tensors; None if it has no
    such tensor. Raises RecordGone."""
    features = dict(record.meta["tree"]["v"])["features"]
    every = [one for one in float_tensors(features, record.payload) if one.ndim > 1 and one.numel()]
    if not every:
        return None
    width = max(every, key=lambda one: one.numel()).shape[-1]
    total, rows = np.zeros(width), 0
    for one in every:
        if one.shape[-1] == width:
            values = one.float().numpy().reshape(-1, width)
            total += values.sum(axis=0, dtype=np.float64)
            rows += len(values)
    return projected((total / rows).astype(np.float32))


def projected(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a vector of at most WIDTH dimensions. Random directions keep distances (Johnson and
    Lindenstrauss 1984)."""
    if len(vector) <= WIDTH:
        return vector
    found: NDArray[np.float32] = vector @ _directions(len(vector))
    return found


@cache
def _directions(width: int) -> Vectors:
    draw = np.random.default_rng(width).standard_normal((width, WIDTH), dtype=np.float32)
    return draw / np.float32(math.sqrt(WIDTH))


class TeachRanking(NamedTuple):
    """The captions in the order in which they teach most."""

    keys: list[str]
    note: str
    """Why features were not compared, or not all of them; empty: they were."""


class PooledFeatures:
    """The pooled features of a run's captions, read from its store when first needed."""

    def __init__(self) -> None:
        self._sets: list[RecordSet] | None = None
        self._vectors: dict[str, NDArray[np.float32] | None] = {}

    def of(
        self, url: str, keys: Sequence[str], every: Iterable[str] = ()
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        """Return feature key → vector, of those that can be read in time, and a note about the
        others. `every` are all keys of the run. Raises PenstockError."""
        if self._sets is None:
            self._sets = _opened(url, {*keys, *every})
        until, left = time.monotonic() + READ_SECONDS, 0
        for key in keys:
            if key not in self._vectors and time.monotonic() <= until:
                self._vectors[key] = self._read(key)
            left += key not in self._vectors
        found = {key: one for key in keys if (one := self._vectors.get(key)) is not None}
        if left:
            return found, f"{counted(left, 'caption')} not compared yet: reading their features"
        if missing := len(set(keys)) - len(found):
            why = "their features are no longer in the store, or cannot be read"
            return found, f"{counted(missing, 'caption')} by doubt alone: {why}"
        return found, ""

    def _read(self, key: str) -> NDArray[np.float32] | None:
        for one in self._sets or ():
            if key in one:
                try:
                    return pooled(one.read(key))
                except (PenstockError, KeyError, RuntimeError) as error:  # also of torch
                    log.info("features %s are not compared: %s", key[:12], error)
        return None


def _opened(url: str, keys: set[str]) -> list[RecordSet]:
    """Return the record sets of a store on this machine that hold these features."""
    if "://" in url.removeprefix("file://") or not url or local_folder(url) is None:
        return []
    store, found = open_store(url), list[RecordSet]()
    check_format(store)
    for namespace in sorted(stored_namespaces(store, "features")):
        one = RecordSet(store, "features", namespace)
        if held := keys & one.keys():
            found.append(one)
            keys = keys - held
        if not keys:
            break
    return found


def teach_ranking(captions: "ReviewedCaptions", features: PooledFeatures) -> TeachRanking:
    """Rank the undecided captions of a run by what their correction would teach; those that the
    user decided come last. Raises PenstockError."""
    edits = captions.edits()
    decided = [key for key, edit in edits.items() if key in captions.rows and edit.is_decided]
    left = [key for key in captions.rows if key not in set(decided)]
    margins = [captions.rows[key].get("margin") for key in left]
    known = np.array([math.inf if one is None else float(one) for one in margins])
    by_doubt = [left[at] for at in np.argsort(known, kind="stable")]
    if not np.isfinite(known).any():
        note = "the captions have no doubt: no margins were recorded with them"
        return TeachRanking([*left, *decided], note)
    some, taught = by_doubt[:CANDIDATES], decided[-DECIDED:]
    feature_of = {key: captions.chunks[key][0] for key in (*some, *taught)}
    url = captions.belief.store
    every = (chunk[0] for chunk in captions.chunks.values())
    vectors, note = features.of(url, list(dict.fromkeys(feature_of.values())), every)
    some = [key for key in some if feature_of[key] in vectors]
    taught = [key for key in taught if feature_of[key] in vectors]
    first = _first(captions, some, taught, {key: vectors[feature_of[key]] for key in some + taught})
    chosen = set(first)
    return TeachRanking([*first, *(key for key in by_doubt if key not in chosen), *decided], note)


def _first(
    captions: "ReviewedCaptions",
    some: Sequence[str],
    taught: Sequence[str],
    vectors: Mapping[str, NDArray[np.float32]],
) -> list[str]:
    """Return the captions that teach most, out of some doubtful ones."""
    if not some:
        return []
    every = np.stack([vectors[key] for key in (*some, *taught)])
    every = unit(every - every.mean(axis=0))
    margins = [captions.rows[key].get("margin") for key in some]
    doubts = share_of_second(np.array([30.0 if m is None else m for m in margins], dtype=float))
    return [some[at] for at in choose(doubts, every[: len(some)], every[len(some) :], CHOSEN)]
