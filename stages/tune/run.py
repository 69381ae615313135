"""The tune stage: trains an adapter on feature records and captions, in one process."""

import json
import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from artifacts.disk.files import sweep, write_json
from artifacts.disk.json_records import json_of
from artifacts.disk.json_shapes import Json
from artifacts.records.packs import RecordSet, RecordUnion
from artifacts.records.store import open_store
from stages.decode.engines.transformers import generate_rows
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import read_features
from stages.models.adapter_modules import ADAPTER_WEIGHTS
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm_model
from stages.models.protocols import Half, Processor
from stages.process.deferred_imports import import_asking_cuda
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job
from stages.process.memory import anonymous_bytes
from stages.tune import EACH, RECORD, SCORE, TuneItem, TuneJob
from stages.tune.adapter import add_adapter, load_adapter_weights, write_adapter
from stages.tune.layout import layout_in
from stages.tune.progress import TrainingProgress, resume, save_checkpoint
from stages.tune.record import TrainingRecord, TrainingScore
from stages.tune.training import (
    Trainer,
    TrainingExample,
    check_trainable,
    end_token_of,
    group_batches,
    keep_differentiable,
    learning_rate_at,
    loss_of,
    make_example,
    optimizer_of,
    refuse_not_finite,
    with_end_token,
    without_gradients,
)

SHOWN = 8
"""Captions that are recorded for the report."""


def losses_of(
    half: Half, processor: Processor, examples: Sequence[TrainingExample], rows: int
) -> float:
    """Return the mean loss per token of these examples."""
    tokens = sum(len(example.ids) for example in examples)
    return sum(losses_by_example(half, processor, examples, rows)) / max(1, tokens)


def losses_by_example(
    half: Half, processor: Processor, examples: Sequence[TrainingExample], rows: int
) -> list[float]:
    """Return the summed loss of each of these examples, in order."""
    by_id: dict[int, float] = {}
    with torch.no_grad():
        for some in group_batches(examples, rows):
            losses = loss_of(half, processor, some, per_caption=True).tolist()
            refuse_not_finite(sum(losses), "the loss of captions that are not trained")
            by_id |= {id(example): loss for example, loss in zip(some, losses, strict=True)}
    return [by_id[id(example)] for example in examples]


def captions_of(
    half: Half,
    processor: Processor,
    examples: Sequence[TrainingExample],
    rows: int,
    max_new_tokens: int,
) -> list[str]:
    """Return the generated captions of these examples, in order."""
    make_greedy(half, processor)
    by_id: dict[int, str] = {}
    for some in group_batches(examples, rows):
        shown = [example.row for example in some]
        captions = generate_rows(
            half, processor, shown, [example.prompt for example in some], max_new_tokens
        )
        by_id |= {id(example): one.caption for example, one in zip(some, captions, strict=True)}
    return [by_id[id(example)] for example in examples]


def score(
    half: Half,
    processor: Processor,
    examples: Sequence[TrainingExample],
    rows: int,
    max_new_tokens: int,
) -> dict[str, Json]:
    """Return the scores of the half on these captions: loss per token, share of exact captions,
    share of common words, samples, and the loss, tokens and exactness of each caption."""
    captions = captions_of(half, processor, examples, rows, max_new_tokens)
    losses = losses_by_example(half, processor, examples, rows)
    by_caption = [
        {"loss": loss, "tokens": len(example.ids), "exact": one == example.caption}
        for loss, one, example in zip(losses, captions, examples, strict=True)
    ]
    pairs = [(one, example.caption) for one, example in zip(captions, examples, strict=True)]
    return {
        "loss": sum(losses) / max(1, sum(len(example.ids) for example in examples)),
        "exact": sum(one == other for one, other in pairs) / max(1, len(pairs)),
        "words": sum(alike(one, other) for one, other in pairs) / max(1, len(pairs)),
        "samples": [{"said": one, "right": other} for one, other in pairs[:SHOWN]],
        EACH: by_caption,
    }


def alike(one: str, other: str) -> float:
    """Return the F1 of the words of two texts, as in SQuAD (Rajpurkar et al. 2016)."""
    first, second = one.lower().split(), other.lower().split()
    left = list(second)
    common = 0
    for word in first:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / max(1, len(first) + len(second))


@contextmanager
def tensorboard(folder: str, done: int) -> Iterator[Callable[[str, float, int], object]]:
    """Yield a function that logs a value of a step into a folder; empty: it logs nothing. Points
    after the step `done`, of an earlier process, are overwritten."""
    if not folder:
        yield lambda name, value, step: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=done + 1) as writer:
        yield writer.add_scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutEvaluation:
    """The held-out examples of one training."""

    half: Half
    processor: Processor
    examples: Sequence[TrainingExample]
    job: TuneJob

    def evaluate(
        self, progress: TrainingProgress, trained: Sequence[nn.Parameter], report: EventReporter
    ) -> None:
        """Record the held-out loss, and the trained weights if it is the lowest so far."""
        if not self.examples:
            return
        compute = partial(losses_of, self.half, self.processor, self.examples, self.job.rows)
        loss = without_gradients(self.half, compute)
        progress.held_out.append((progress.step, loss))
        if progress.best_step == progress.step:
            progress.best = [value.detach().cpu().clone() for value in trained]
        report.note(held_out_loss=loss, step=progress.step, loss=progress.losses[-1])

    def score(self, progress: TrainingProgress, report: EventReporter) -> None:
        """Record the scores of the adapter on the held-out examples."""
        if not self.examples:
            return
        limits = (self.job.rows, self.job.max_new_tokens)
        compute = partial(score, self.half, self.processor, self.examples, *limits)
        scores = without_gradients(self.half, compute)
        del scores[EACH]
        at = progress.best_step or progress.step
        progress.scores.append({"step": at if progress.step else 0, **scores})
        report.note(score=scores["exact"])


WINDOW = 16
"""Batches per window; similar examples are grouped within a window."""


class EpochBatchOrder:
    """The order of the examples, with similar ones grouped into batches."""

    def __init__(self, alike: Sequence[Hashable], batch: int, seed: int) -> None:
        self._alike = tuple(alike)
        self._batch = batch
        self._seed = seed
        self.epoch_steps = math.ceil(len(alike) / batch)
        """Steps per epoch; the last may have fewer examples."""
        self._batches = lru_cache(maxsize=1)(self._batches_of)

    def batch_at(self, step: int) -> list[int]:
        """Return the indexes of the examples of a step; steps count from 0."""
        epoch, at = divmod(step, self.epoch_steps)
        return self._batches(epoch)[at]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self._seed} {epoch}")
        order = list(range(len(self._alike)))
        draw.shuffle(order)
        first = {kind: at for at, kind in reversed(list(enumerate(self._alike)))}
        batches, window = list[list[int]](), WINDOW * self._batch
        for start in range(0, len(order), window):
            some = sorted(order[start : start + window], key=lambda at: first[self._alike[at]])
            batches += [some[at : at + self._batch] for at in range(0, len(some), self._batch)]
        draw.shuffle(batches)
        return batches


SEEDS = 1 << 20
"""Distance of the seeds of two trainings, in steps."""


def warm(fields: JobFields) -> None:
    """Import what training needs before memory is counted."""
    import_asking_cuda("peft")
    warm_model(fields)


def run(fields: JobFields, report: EventReporter) -> None:
    """Train the adapter of a TuneJob, or resume its training, and write it. Without training
    examples, score the half."""
    job = parse_job(TuneJob, fields)
    if job.examples:
        sweep(Path(job.folder))
        if is_written(job):
            return
    source = ModelJob.of(job.half)
    processor, held = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(held.model))
    report.total(job.steps)
    held.call(partial(_tune if job.examples else _score, job, processor, report, held.confirm))


def _score(
    job: TuneJob,
    processor: Processor,
    report: EventReporter,
    confirm: Callable[[], None],
    half: Half,
) -> None:
    """Score the half on the held-out examples, without training."""
    examples = _examples(job, processor, half, job.held_out)
    end = end_token_of(half, processor, examples)
    examples = [with_end_token(example, end) for example in examples]
    arguments = (half, processor, examples, job.rows, job.max_new_tokens)
    scores = without_gradients(half, lambda: score(*arguments))
    confirm()
    write_json(Path(job.folder) / SCORE, {"captions": len(examples), "end_token": end, **scores})
    report.answered("score")


def _trained_and_held_out(
    job: TuneJob, processor: Processor, half: Half
) -> tuple[list[TrainingExample], list[TrainingExample], int]:
    """Return the examples that are trained on, those that are held out, and the token that is
    added to their ends."""
    examples = _examples(job, processor, half, job.examples)
    held_out = _examples(job, processor, half, job.held_out)
    check_trainable(half, processor, examples[0])
    end = end_token_of(half, processor, examples)
    trained = [with_end_token(example, end) for example in examples]
    return trained, [with_end_token(example, end) for example in held_out], end


def _tune(
    job: TuneJob,
    processor: Processor,
    report: EventReporter,
    confirm: Callable[[], None],
    half: Half,
) -> None:
    folder = Path(job.folder)
    keep_differentiable(half)
    examples, held_out, end = _trained_and_held_out(job, processor, half)
    layout = layout_in(folder, job.rank) if job.resume else None
    trained = add_adapter(half, job.rank, job.seed, layout)
    optimizer = optimizer_of(job.optimizer, trained, job.rate)
    progress = resume(folder, job.recipe, trained, optimizer)
    begins = progress is None
    progress = progress or TrainingProgress()
    if job.resume and begins:
        load_adapter_weights(half, folder)
    half.train()
    if job.recompute:
        half.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = Trainer(half, processor, trained, optimizer, report, job.rows)
    evaluation = HeldOutEvaluation(half=half, processor=processor, examples=held_out, job=job)
    order = EpochBatchOrder([example.joins_with for example in examples], job.batch, job.seed)
    store = partial(save_checkpoint, folder, job.recipe, progress, trained, optimizer)
    record = partial(_record, job, progress, half, end)
    if job.resume and begins:  # otherwise a killed run would start from its own output
        store()
    if not progress.scores:
        evaluation.score(progress, report)
    with tensorboard(job.tensorboard, progress.step) as log:
        while progress.step < job.steps:
            places = order.batch_at(progress.step)
            rate = learning_rate_at(progress.step, job.steps, job.rate)
            torch.manual_seed(SEEDS * job.seed + progress.step)  # some families have dropout
            some = [examples[at] for at in places]
            progress.losses.append(trainer.step(some, rate, progress.step + 1))
            progress.memory.append(anonymous_bytes())
            progress.step += 1
            log("loss/trained", progress.losses[-1], progress.step)
            log("memory/bytes", progress.memory[-1], progress.step)
            report.answered(f"step {progress.step}")
            last = progress.step == job.steps
            if progress.step % order.epoch_steps == 0 or last:
                evaluation.evaluate(progress, trained, report)
                if held_out:
                    log("loss/held out", progress.held_out[-1][1], progress.step)
            if progress.step % job.checkpoint_steps == 0 or last:
                confirm()
                store()
                write_json(folder / RECORD, json_of(record(finished=False)))
    for parameter, value in zip(trained, progress.best, strict=False):
        parameter.data.copy_(value)
    evaluation.score(progress, report)
    confirm()
    write_adapter(half, folder, job.half.model, job.half.as_published, job.base)
    write_json(folder / RECORD, json_of(record(finished=True)))


def is_written(job: TuneJob) -> bool:
    folder = Path(job.folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = (
        isinstance(record, dict) and record.get("recipe") == job.recipe and record.get("finished")
    )
    return bool(same) and (folder / ADAPTER_WEIGHTS).is_file()


def _record(
    job: TuneJob, progress: TrainingProgress, half: Half, end: int, *, finished: bool
) -> TrainingRecord:
    held = [parameter for parameter in half.parameters() if parameter.device.type != "meta"]
    trained = sum(parameter.numel() for parameter in held if parameter.requires_grad)
    return TrainingRecord(
        recipe=job.recipe,
        finished=finished,
        steps=progress.step,
        examples=len(job.examples),
        held_out=len(job.held_out),
        precision=job.half.precision,
        optimizer=job.optimizer,
        trained_parameters=trained,
        frozen_parameters=sum(parameter.numel() for parameter in held) - trained,
        end_token=end,
        losses=progress.losses,
        memory_bytes=progress.memory,
        held_out_losses=progress.held_out,
        best_step=progress.best_step or progress.step,
        scores=[TrainingScore(**score) for score in progress.scores],
        sound=job.sound,
    )


def _examples(
    job: TuneJob, processor: Processor, half: Half, items: list[TuneItem]
) -> list[TrainingExample]:
    store, namespaces = open_store(job.store), [job.features_namespace, *job.other_features]
    features = RecordUnion([RecordSet(store, "features", namespace) for namespace in namespaces])
    return [
        make_example(
            half,
            processor,
            partial(read_features, features, example.features),
            example.prompt,
            example.caption,
            example.is_cut,
            number=number,
        )
        for number, example in enumerate(items)
    ]
