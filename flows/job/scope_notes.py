"""Notes in a store that say which model and settings each scope is of."""

from dataclasses import asdict
from typing import Any

from artifacts.keys import digest_of
from artifacts.packs import Record, Shelf
from artifacts.store import Store
from flows.job.prepare import Job
from flows.pipelines import DECODE, ENCODE, FRAMES

NOTES = digest_of(["scopes", 1])
"""The scope of the notes themselves."""


def settings_of(job: Job) -> dict[str, Any]:
    """All that decides the features of a job, in words and digests that can be compared."""
    model = job.model
    return {
        "model": model.name,
        "revision": job.config.revision,
        "commit": model.checkpoint.commit,
        "weights": model.vision_digest,
        "precision": model.vision.precision,
        "computing": model.vision.decides,
        "sampling": asdict(job.sampling),
        "sizes": digest_of({kind: model.fit(kind).long_edges for kind in ("video", "image")}),
        "recipes": [FRAMES.recipe, ENCODE.recipe],
    }


def note_scopes(job: Job) -> None:
    """Write down, once, which model and settings the scopes of a job are of."""
    model, seen = job.model, settings_of(job)
    computing = {half.label: half.decides for half in model.settings("vision")}
    metas: dict[str, dict[str, Any]] = {}
    for way in job.ledger.ways:
        looked = {**seen, "precision": way.vision, "computing": computing[way.vision]}
        both = "+".join(dict.fromkeys(way.precision.values()))
        said = {**looked, "precision": both, "recipes": [*seen["recipes"], DECODE.recipe]}
        metas |= {way.frames: seen, way.features: looked, way.captions: said}
    notes(job.store).publish([Record(key=key, meta=meta) for key, meta in metas.items()])


def notes(store: Store) -> Shelf:
    """Scope → what it is of."""
    return Shelf(store, "scopes", NOTES)
