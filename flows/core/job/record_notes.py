"""What a run record keeps of a job: its settings and its cache namespaces."""

from collections.abc import Iterator, Sequence
from typing import Any

from artifacts.digests import digest_of
from artifacts.records.packs import Record
from artifacts.schema import Part
from flows.core.checkpoint.precision import PartSettings
from flows.core.job.prepare import Job
from flows.core.ledger.namespaces import Variant, one_shot_namespace
from flows.core.ledger.namespaces import notes as namespace_notes
from flows.core.pipelines import encoder_of, parts_of
from stages.process.stage_spec import StageSpec


def settings_of(job: Job) -> dict[str, Any]:
    """Return the settings that determine a job's features, as text and digests."""
    model = job.model
    if model.served is not None:
        computed: dict[str, Any] = {
            "weights": digest_of(model.served.key_fields),
            "precision": "",
            "computing": [],
        }
    else:
        best = model.best("vision")
        computed = {
            "weights": model.digests["vision"],
            "precision": best.precision,
            "computing": best.key_fields,
        }
    return {
        "model": model.name,
        "revision": job.config.revision,
        "commit": model.checkpoint.commit,
        **computed,
        "sampling": job.sampling.settings,
        "sizes": digest_of({kind: model.fit(kind).long_edges for kind in ("video", "image")}),
        "output_versions": [
            stage.output_version for stage in (job.pipeline[0], encoder_of(job.pipeline))
        ],
    }


def note_namespaces(job: Job) -> None:
    """Store, once, the model and settings of each namespace of a job."""
    seen = settings_of(job)
    metas: dict[str, dict[str, Any]] = {}
    for variant in job.ledger.variants:
        first, *later = (stage for stage in job.pipeline if stage.writes in variant.of)
        metas[variant[first.writes]] = meta = seen
        for at, stage in enumerate(later):
            if stage.part:
                meta = {**meta, **_settings_in(job, variant, later[: at + 1])}
            versions = [spec.output_version for spec in (first, *later[: at + 1])]
            metas[variant[stage.writes]] = {**meta, "output_versions": versions}
    for namespace, part, settings in _one_shot_stages(job):
        meta = {"precision": settings.label, "computing": settings.key_fields}
        about = {
            "weights": job.model.digests[part],
            "output_versions": [s.output_version for s in job.one_shot_stages],
        }
        metas[namespace] = {**seen, **meta, **about}
    namespace_notes(job.store).publish([Record(key=key, meta=meta) for key, meta in metas.items()])


def one_shot_namespaces(job: Job) -> list[str]:
    """Return the namespaces of the stages that a job runs once, in all settings."""
    return [namespace for namespace, _, _ in _one_shot_stages(job)]


def _one_shot_stages(job: Job) -> Iterator[tuple[str, Part, PartSettings]]:
    for stage in job.one_shot_stages:
        if stage.part and stage.writes:
            for settings in job.model.settings[stage.part]:
                yield one_shot_namespace(stage, job.model, settings), stage.part, settings


def _settings_in(job: Job, variant: Variant, stages: Sequence[StageSpec]) -> dict[str, Any]:
    """Return the precision of these stages' parts, and how the first of them computes."""
    parts = parts_of(stages)
    labels = dict.fromkeys(variant.precision[part] for part in parts)
    settings = job.model.settings[parts[0]]
    computing = next(s.key_fields for s in settings if s.label == variant.precision[parts[0]])
    return {"precision": "+".join(labels), "computing": computing}
