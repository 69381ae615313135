"""The engine that is `generate` of transformers; knows no store.

It takes a batch at a time, each until all of its rows have ended. Nothing of the checkpoint's own
settings chooses words unless somebody asks, so that the same features and prompt give the same. A
batch is
always computed whole, because rounding depends on its members.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from artifacts.captions import Ended
from stages.decode.choosing import Choosing, texts_of
from stages.decode.generation import Generation
from stages.decode.job import DEFAULT_ENGINE, DecodeJob
from stages.decode.prompts import prompts_for
from stages.decode.protocol import Asked, Listen, Said
from stages.decode.reading import Reading
from stages.memory.shrinking import Shrinking
from stages.models.halves.delivery import generate, new_tokens, prompt_in
from stages.models.halves.features import Features
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.loading import ModelJob, facts
from stages.process.job import told_of


class Transformers:
    """A language half, and how `generate` is told to read and to keep what it read."""

    def __init__(self, job: DecodeJob) -> None:
        source = ModelJob.of(told_of(job))
        self._limit = job.max_new_tokens
        self.choosing = Choosing(Generation.of(job.generation), self._limit)
        self.reading = Reading(job.prefill, job.kv, source.device)
        self.processor = source.processor()
        self.held = source.hold("language")
        """The half; who decodes it otherwise reads prompts by these three, too."""

    def facts(self) -> dict[str, Any]:
        return facts(self.held.model)

    def settle(self, asked: Asked) -> str:
        return DEFAULT_ENGINE

    def findings(self) -> dict[str, Any]:
        return {"prefill_way": self.reading.way}

    def run(
        self, batches: Iterable[Sequence[Asked]], shrinking: Shrinking
    ) -> Iterator[tuple[Sequence[Asked], list[Said]]]:
        """Yield each batch in pieces that fit, with what is said of them."""
        for batch in batches:
            yield from shrinking.through(batch, lambda one: one.member["key"], self.say)

    def overhear(self, listen: Listen) -> None:
        """Tell nothing: `generate` gives a batch when all of it has ended."""

    def say(self, asked: Sequence[Asked]) -> list[Said]:
        """Return what is said of each, in order."""
        return self.held.use(partial(self._said, asked))

    def _said(self, asked: Sequence[Asked], half: Any) -> list[Said]:
        found: dict[int, Said] = {}
        for indexes in _groups(asked):
            members = [asked[index].member for index in indexes]
            rows = [asked[index].row for index in indexes]
            said = say_together(
                half,
                self.processor,
                rows,
                [member["prompt"] for member in members],
                self._limit,
                self.choosing.generation,
                **self.reading.options(half, self.processor, rows[0]),
                **self.choosing.options(half, self.processor, members),
            )
            found.update(zip(indexes, said, strict=True))
        return [found[index] for index in range(len(asked))]


def say_together(
    half: Any,
    processor: Any,
    rows: Sequence[FeatureRecord],
    prompts: Sequence[str],
    most: int,
    asked: Generation | None = None,
    **options: Any,
) -> Iterator[Said]:
    """Yield what is said of rows that `generate` takes as one, in at most so many tokens each, as
    it is `asked` (None: nothing besides the prompts)."""
    asked = asked or Generation()
    inputs = prompts_for(half, processor, rows, prompts, asked)
    features = Features(merge_rows(rows), rows[0].needs, merge_blank(rows))
    yield from said_of(half, processor, inputs, features, most, asked, **options)


def said_of(
    half: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    features: Mapping[str, Any],
    most: int,
    asked: Generation,
    **options: Any,
) -> Iterator[Said]:
    """Yield what is said of these inputs, as `generate` takes them, in at most so many tokens."""
    made = generate(half, inputs, features, max_new_tokens=most, **options)
    new = new_tokens(made, prompt_in(half, inputs)).cpu()
    texts = texts_of(processor, new.tolist(), asked, most)
    for (text, shortened), (tokens, ended) in zip(texts, _lengths(half, new), strict=True):
        yield Said(text, tokens, ended, shortened)


def _groups(asked: Sequence[Asked]) -> Iterator[list[int]]:
    """Yield indexes of the rows that can be decoded together: images and videos, say, cannot."""
    found: dict[str, list[int]] = {}
    for index, one in enumerate(asked):
        found.setdefault(one.row.joins_with(), []).append(index)
    yield from found.values()


def _lengths(half: Any, new: torch.Tensor) -> list[tuple[int, Ended]]:
    """Return the tokens of each row, up to the one that ends it and with it, and how it ended."""
    ends = half.generation_config.eos_token_id
    known = torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), dtype=new.dtype)
    lengths: list[tuple[int, Ended]] = []
    for row in new:
        stops = torch.isin(row, known).nonzero()
        lengths.append((int(stops[0]) + 1, "stop") if len(stops) else (len(row), "length"))
    return lengths
