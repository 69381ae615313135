"""One training: on stored features by the language half alone, or on pixels by the whole model with
its tower frozen.

Both have the same adapter, examples, order and learning rate, and the same code but for what makes
the logits. Training on pixels reads each clip from its file when its turn comes, as trainers do,
and reports the seconds that reading takes.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from artifacts.packs import RecordSet
from artifacts.schema import FrameFit, Sampling
from artifacts.store import open_store
from benchmarks._common import Peak, unheard
from stages.decode.prompts import append_ids
from stages.decode.stored import read_features
from stages.decode.teacher_forcing import last_logits
from stages.frames.video import Video
from stages.models import load_half
from stages.models.halves.features import is_pixels
from stages.models.processors.clip import Clip
from stages.models.processors.prepare import drop_end_token, load_processor, prepare, rebuild
from stages.tune import training
from stages.tune.adapter import add_adapter
from stages.tune.examples import TrainingExample, make_example, with_end_token
from stages.tune.run import EpochBatchOrder
from stages.tune.training import Trainer, learning_rate_at, optimizer_of


def train(told: dict[str, Any], joint: bool) -> dict[str, Any]:
    """Return losses, seconds and the peak of memory."""
    torch.set_num_threads(int(told["threads"]))
    import peft  # noqa: F401

    folder = Path(told["model"])
    processor = load_processor(folder)
    peak = Peak()
    if joint:
        from transformers import AutoModelForImageTextToText

        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    else:
        model = load_half(folder, "language", dtype=torch.float32)
    lessons = lessons_of(told, processor, model)
    clips = Clips(told)
    trained = add_adapter(model, told["rank"], 0)
    optimizer = optimizer_of("adamw", trained, told["rate"])
    model.train()
    frozen_tower(model)
    order = EpochBatchOrder([lesson.joins_with for lesson in lessons], told["batch"], 0)
    trainer = Trainer(model, processor, trained, optimizer, unheard(), told["batch"])
    seen = {id(lesson.ids): member for lesson, member in zip(lessons, told["members"], strict=True)}
    losses: list[float] = []
    shown = patch.object(training, "loss_of", partial(clips.loss, seen))
    with shown if joint else nullcontext():
        began = time.perf_counter()
        for step in range(told["steps"]):
            some = [lessons[at] for at in order.batch_at(step)]
            losses.append(trainer.step(some, learning_rate_at(step, told["steps"], told["rate"])))
        seconds = time.perf_counter() - began
    found = {"losses": losses, "seconds": seconds, "peak_bytes": peak.bytes()}
    return {**found, "reading": clips.seconds}


def frozen_tower(model: Any) -> None:
    """Have what is not trained compute as it does when it encodes."""
    for name, module in model.named_modules():
        if "vision" in name or "visual" in name:
            module.eval()


def lessons_of(told: dict[str, Any], processor: Any, model: Any) -> list[TrainingExample]:
    features = RecordSet(open_store(told["store"]), "features", told["features"])
    end = model.generation_config.eos_token_id
    end = end if isinstance(end, int) else end[0]
    return [
        with_end_token(
            make_example(
                model,
                processor,
                partial(read_features, features, member["features"]),
                told["prompt"],
                member["caption"],
            ),
            end,
        )
        for member in told["members"]
    ]


class Clips:
    """The clips of the examples, which a whole model is shown at each step."""

    def __init__(self, told: dict[str, Any]) -> None:
        edges = tuple((float(a), int(e)) for a, e in told["fit"])
        self._fit, self._sampling = FrameFit(long_edges=edges), Sampling(**told["sampling"])
        self.seconds = 0.0
        """Spent in reading them."""

    def rows(self, processor: Any, members: Sequence[dict[str, str]]) -> list[Any]:
        """Return what the processor makes of these clips."""
        began = time.perf_counter()
        rows = [prepare(processor, self._read(member)) for member in members]
        self.seconds += time.perf_counter() - began
        return rows

    def _read(self, member: dict[str, str]) -> Clip:
        with Video(Path(member["path"]), threads=torch.get_num_threads()) as video:
            chunk = next(video.chunks(video.plan(self._sampling)[:1], self._fit))
        index = chunk.index
        return Clip(
            frames=chunk.pixels,
            times=tuple(max(0.0, at - index.start) for at in index.times),
            seconds=index.end - index.start,
            kind="video",
        )

    def loss(
        self,
        members: dict[int, dict[str, str]],
        model: Any,
        processor: Any,
        lessons: Sequence[TrainingExample],
    ) -> torch.Tensor:
        """Return what `loss_of` does, with logits that the whole model makes of pixels."""
        from stages.tune import examples as taught

        def logits_of(
            half: Any,
            processor: Any,
            some: Sequence[TrainingExample],
            said: torch.Tensor,
            count: int,
        ) -> torch.Tensor:
            rows = self.rows(processor, [members[id(each.ids)] for each in some])
            inputs = rebuild(processor, rows, [each.prompt for each in some])
            inputs = append_ids(half, drop_end_token(half, inputs), said)
            with last_logits(half, count) as taken:
                half(**inputs, **_pixels(rows), use_cache=False)
            return taken[-1][:, -count:]

        with patch.object(taught, "logits_of", logits_of):
            return taught.loss_of(model, processor, lessons)


def _pixels(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return the pixels of all rows, one after the other."""
    names = [name for name in rows[0].inputs if is_pixels(name)]
    return {name: torch.cat([row.inputs[name] for row in rows]) for name in names}
