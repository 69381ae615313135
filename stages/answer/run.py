"""The answer stage: turns feature records and probes into log probabilities of labels, in one
process for a whole wave.

How it works:

1. The probes of a chunk are claimed together. Their features are read while others are computed.
2. Each probe is computed by itself. One whose prompt has no room in the context, or on which the
   model raises, fails alone.
3. A record holds the log probability and the number of tokens of each label. What a question makes
   of them is no part of it.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite

from artifacts.errors import UsageError
from artifacts.records.claims import WorkClaims, claims_at
from artifacts.records.packs import Record, RecordUnion, record_sets_of
from artifacts.records.store import open_store
from stages.answer import AnswerItem, AnswerJob
from stages.answer.label_scores import LabelScores, ProbeInput
from stages.decode.chunked_prefill import PrefillOptions
from stages.decode.generate_kwargs import make_greedy
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import read_features, with_heard
from stages.memory.oom_retry import ItemFault, ItemFaults, OomRetry
from stages.models.finite import not_finite
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.prefetch import Prefetched, write_behind
from stages.models.protocols import Half
from stages.process.events import TOO_LONG, EventReporter
from stages.process.job import JobFields, parse_job

STAGE = "answer"


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish the log probabilities, or a failure, of each probe that has neither."""
    AnswerRun(parse_job(AnswerJob, job_fields), report).run()


class AnswerRun:
    """Answers the probes of one job."""

    def __init__(self, job: AnswerJob, report: EventReporter) -> None:
        self._job = job
        self._report = report
        self._store = open_store(job.store)
        heard = [("heard", job.heard_namespace)] if job.heard_namespace else []
        self._features, *others = record_sets_of(
            self._store,
            ("features", job.features_namespace),
            *heard,
            ("answers", job.namespace),
            ("failures", job.namespace),
        )
        *heard_sets, self._answers, self._failures = others
        self._heard = RecordUnion(heard_sets)
        self._known = RecordUnion([self._answers, self._failures])

    def run(self) -> None:
        """Publish what is missing. Raises PenstockError."""
        batches = [left for batch in self._job.batches if (left := self._missing(batch))]
        self._report.total(sum(map(len, batches)))
        if not batches:
            return
        source = ModelJob.of(self._job.half)
        half, processor = source.load_reloadable("language"), source.processor()
        self._report.note(ready=True, **facts(half.model))
        scores = LabelScores(processor, PrefillOptions(self._job.prefill, "", source.device))

        def compute(some: Sequence[ProbeInput]) -> list[Record | UsageError]:
            def answer(loaded: Half) -> list[Record | UsageError]:
                make_greedy(loaded, processor)
                shown = (probe.shown(processor) for probe in some)
                return [self._record(loaded, scores, probe) for probe in shown]

            return half.call(answer)

        faults = ItemFaults(STAGE, self._fail, len(batches[0]))
        retry = OomRetry(self._report, lambda: compute(self._read(batches[-1][-1:])), faults)
        with (
            claims_at(self._store, self._answers, self._failures, share=self._job.share) as claims,
            Prefetched(claims.claimed_batches(batches, self._keys_missing), self._read) as ready,
            write_behind(partial(self._publish, claims), on_error=ready.close) as publish,
        ):
            for batch in ready:
                for some, outputs in retry.run_batch(batch, lambda probe: probe.key, compute):
                    publish([*zip(some, outputs, strict=True)])
            faults.close()
        self._report.note(answered_from=scores.way)

    def _missing(self, batch: Sequence[AnswerItem]) -> list[AnswerItem]:
        return [one for one in batch if one.key not in self._known]

    def _keys_missing(self, batch: Sequence[AnswerItem]) -> list[str]:
        return [one.key for one in self._missing(batch)]

    def _read(self, batch: Sequence[AnswerItem]) -> list[ProbeInput]:
        """Return the probes of a chunk with its features. Raises DamagedRecord."""
        rows: dict[str, list[FeatureRecord]] = {}
        probes: list[ProbeInput] = []
        for one in batch:
            chunk = f"{one.features}{one.heard}{one.window or ''}"
            if chunk not in rows:
                others = one.window.chunks[1:] if one.window else ()
                row = read_features(self._features, one.features)
                rows[chunk] = [with_heard(row, self._heard, one.heard)]
                rows[chunk] += (read_features(self._features, other.features) for other in others)
            row, *rest = rows[chunk]
            probe = ProbeInput(one.key, chunk, row, one.prompt, one.labels, one.window, rest)
            probes.append(probe)
        return probes

    def _record(self, half: Half, scores: LabelScores, probe: ProbeInput) -> Record | UsageError:
        """Return the record of a probe, or why its prompt is refused. Raises NotFinite."""
        try:
            values, labels = scores.of(half, probe)
        except ContextExceeded as error:
            return error
        if not all(map(isfinite, values)):
            raise not_finite(self._job.half)
        meta = {"scores": values, "tokens": [len(ids) for ids in labels.ids]}
        return Record(key=probe.key, meta={**meta, "ended": labels.is_ended, **self._job.made_by})

    def _publish(
        self, claims: WorkClaims, made: Sequence[Sequence[tuple[ProbeInput, Record | UsageError]]]
    ) -> None:
        """Store answers, report them, and release their claims."""
        records = [out for some in made for _, out in some if isinstance(out, Record)]
        self._report.answered(*self._answers.publish(records))
        for probe, why in (pair for some in made for pair in some):
            if isinstance(why, UsageError):
                self._store_failure(
                    probe, {"kind": TOO_LONG, "message": why.message, "hint": why.hint}
                )
        claims.done([probe.key for some in made for probe, _ in some])

    def _fail(self, probe: ProbeInput, fault: ItemFault) -> None:
        self._store_failure(probe, fault.meta(STAGE))

    def _store_failure(self, probe: ProbeInput, meta: dict[str, str]) -> None:
        self._failures.publish([Record(key=probe.key, meta=meta)])
        self._report.failure(probe.key, **meta)
