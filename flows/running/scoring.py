"""Scores texts about chunks: how sure the model is of them. No caption is generated."""

from collections.abc import Sequence
from functools import partial

from flows.job.prepare import Job
from flows.ledger.text_scores import TextScores
from flows.machine.launch import StageCall, with_restarts
from flows.planning.rungs import Rung
from flows.results.captions import texts_to_score
from flows.results.run_record import RunRecord
from flows.running.stage_calls import StageCallBuilder, settings_on
from flows.running.stage_runner import OneShotStage
from stages.decode import SCORE
from stages.decode.score_job import ScoreItem, ScoreJob

TEXTS_AT_ONCE = 1 << 15
"""Largest number of texts in one process."""


class ScoresStep:
    """Scores texts with the language half of one job, whose pipeline has the score stage."""

    def __init__(self, job: Job, record: RunRecord, one_shot: OneShotStage) -> None:
        self._job = job
        self._record = record
        self._one_shot = one_shot

    def score_captions(self) -> int:
        """Score the job's corrected captions, and those without scores. Return how many texts have
        none after that. Raises PenstockError."""
        assert self._job.scores is not None
        return self.make(self._job.scores, list(texts_to_score(self._job)))

    def make(self, scores: TextScores, items: Sequence[ScoreItem]) -> int:
        """Score the texts that have no scores in the store yet. Return how many have none after
        that: their features are gone, or they do not fit. Raises PenstockError."""
        missing = with_restarts(partial(self._score, scores, items))
        self._record.expect(SCORE.name, len(items), len(items) - missing)
        return missing

    def _score(self, scores: TextScores, items: Sequence[ScoreItem]) -> int:
        """Score what can be scored, and return how many texts have no scores."""
        features, before = self._job.ledger["features"], len(items) + 1
        while True:
            scores.refresh()
            missing = [item for item in items if scores.find(item) is None]
            left = list({item.key: item for item in missing if item.features in features}.values())
            if not left or len(left) >= before:
                return len(missing)
            before = len(left)
            call = partial(self._call, scores, left[:TEXTS_AT_ONCE])
            self._one_shot.run(SCORE, call, total=before)

    def _call(self, scores: TextScores, items: list[ScoreItem], rung: Rung) -> StageCall:
        job = self._job
        settings = settings_on(job.model, rung)
        assert settings is not None
        make = partial(
            ScoreJob,
            store=job.store.url,
            features_namespaces=sorted({variant["features"] for variant in job.ledger.variants}),
            namespace=scores.namespace(settings),
            items=items,
            generation=scores.params,
        )
        return StageCallBuilder(job).one_shot_call(SCORE, make, rung)
