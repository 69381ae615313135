"""Looks how an adapter does on what is held out, and remembers it at its best; trains nothing."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from stages.process.report import Report
from stages.tune.checkpoint import TrainingProgress
from stages.tune.job import TuneJob
from stages.tune.lessons import Lesson
from stages.tune.scoring import losses_of, score
from stages.tune.training import without_gradients


class Exam:
    """What is held out of one training."""

    def __init__(
        self,
        half: Any,
        processor: Any,
        lessons: Sequence[Lesson],
        job: TuneJob,
    ) -> None:
        self._half = half
        self._processor = processor
        self._lessons = lessons
        self._job = job

    def look(
        self, progress: TrainingProgress, trained: Sequence[nn.Parameter], report: Report
    ) -> None:
        """Note the loss of what is held out, and the numbers if it is the least so far."""
        if not self._lessons:
            return
        asked = (self._half, self._processor, self._lessons, self._job.rows)
        loss = without_gradients(self._half, lambda: losses_of(*asked))
        progress.held_out.append((progress.step, loss))
        if progress.best_step == progress.step:
            progress.best = [value.detach().cpu().clone() for value in trained]
        report.note(held_out_loss=loss, step=progress.step, loss=progress.losses[-1])

    def score(self, progress: TrainingProgress, report: Report) -> None:
        """Note how near the adapter comes to what is held out."""
        if not self._lessons:
            return
        asked = (self._half, self._processor, self._lessons, self._job.rows)
        most = self._job.max_new_tokens
        found = without_gradients(self._half, lambda: score(*asked, most))
        at = progress.best_step or progress.step
        progress.scores.append({"step": at if progress.step else 0, **found})
        report.note(score=found["exact"])
