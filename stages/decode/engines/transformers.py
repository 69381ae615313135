"""The `transformers` engine: calls `generate` once per batch.

A batch runs until all of its rows have ended. The checkpoint's own sampling settings are ignored
unless the user requests them, so the same features and prompt give the same caption. A batch is
always computed whole, because rounding depends on its members.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from artifacts.captions import Ended
from artifacts.errors import UsageError
from stages.decode.generate_kwargs import GenerateKwargs, Members
from stages.decode.generation import SamplingParams
from stages.decode.job import DecodeJob
from stages.decode.prefill_options import PrefillOptions
from stages.decode.prompts import ContextExceeded, prompts_for
from stages.decode.protocol import CaptionOutput, DecodeRequest, Listen
from stages.decode.request_settings import RequestSettings
from stages.memory.oom_retry import OomRetry
from stages.models.halves.delivery import generate, new_tokens, prompt_in
from stages.models.halves.features import Features
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.loading import ModelJob, facts


class TransformersEngine:
    """A language half, with the settings of its prefill and its KV cache."""

    name = "transformers"

    def __init__(self, job: DecodeJob) -> None:
        source = ModelJob.of(job.half)
        self.choosing = GenerateKwargs(job.generation, job.max_new_tokens)
        self.reading = PrefillOptions(job.prefill, job.kv, source.device)
        self._beyond_context = job.beyond_context
        self.processor = source.processor()
        self.held = source.hold("language")
        """The half; who decodes it otherwise reads prompts by these three, too."""

    def facts(self) -> dict[str, Any]:
        return facts(self.held.model)

    def settle(self, asked: DecodeRequest) -> str:
        return self.name

    def refusal(self, asked: DecodeRequest) -> UsageError | None:
        choosing, prompts = self.choosing.of(asked.member), [asked.member.prompt]

        def check(half: Any) -> UsageError | None:
            inputs = prompts_for(half, self.processor, [asked.row], prompts, choosing.generation)
            try:
                self.bounded(half, inputs, choosing, [asked.member], whole=False)
            except ContextExceeded as error:
                return error
            return None

        return self.held.use(check)

    def bounded(
        self, half: Any, inputs: Any, choosing: GenerateKwargs, members: Members, *, whole: bool
    ) -> GenerateKwargs:
        """Return how words are chosen, as `GenerateKwargs.bounded` does; unchanged where prompts
        of any length are read."""
        if self._beyond_context:
            return choosing
        return choosing.bounded(half, inputs, members, whole=whole)

    def findings(self) -> dict[str, Any]:
        return {"prefill_way": self.reading.way}

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], shrinking: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], list[CaptionOutput]]]:
        """Yield each batch in pieces that fit, with what is said of them."""
        for batch in batches:
            wanted = [one for one in batch if not one.is_withdrawn]
            if wanted:
                yield from shrinking.run_batch(wanted, lambda one: one.member.key, self.say)

    def overhear(self, listen: Listen) -> None:
        """Tell nothing: `generate` gives a batch when all of it has ended."""

    def say(self, asked: Sequence[DecodeRequest]) -> list[CaptionOutput]:
        """Return what is said of each, in order."""
        return self.held.use(partial(self._said, asked))

    def _said(self, asked: Sequence[DecodeRequest], half: Any) -> list[CaptionOutput]:
        found: dict[int, CaptionOutput] = {}
        for indexes in _groups(asked):
            together = [asked[index] for index in indexes]
            try:
                said = self._said_alike(together, half)
            except UsageError as error:
                if isinstance(error, ContextExceeded) and len(together) > 1:
                    said = [one for alone in together for one in self._said([alone], half)]
                elif together[0].member.settings or isinstance(error, ContextExceeded):
                    said = [CaptionOutput("", 0, "stop", fault=error) for _ in together]
                else:
                    raise
            found.update(zip(indexes, said, strict=True))
        return [found[index] for index in range(len(asked))]

    def _said_alike(self, asked: Sequence[DecodeRequest], half: Any) -> list[CaptionOutput]:
        """Return what is said of rows with the same settings, in one call of `generate`."""
        members, rows = [one.member for one in asked], [one.row for one in asked]
        choosing = self.choosing.of(members[0])
        options = self.reading.options(half, self.processor, rows[0])
        options |= choosing.options(half, self.processor, members)
        endings: list[Any] = [EndsAtStopString(choosing, self.processor)] if choosing.stop else []
        endings += [EndsWhenWithdrawn(asked)] if asked[0].work is not None else []
        if endings:
            options["stopping_criteria"] = StoppingCriteriaList(endings)
        inputs = prompts_for(
            half, self.processor, rows, [m.prompt for m in members], choosing.generation
        )
        told = asked[0].work is not None
        choosing = self.bounded(half, inputs, choosing, members, whole=told)
        features = Features(merge_rows(rows), rows[0].needs, merge_blank(rows))
        return [*said_by(half, self.processor, inputs, features, choosing, **options)]


class EndsAtStopString(StoppingCriteria):
    """Ends each row of a batch at the first stop string."""

    def __init__(self, choosing: GenerateKwargs, processor: Any) -> None:
        self._choosing, self._processor = choosing, processor
        self._begun: int | None = None
        """Tokens before the first new one, which the first call comes after."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **told: Any
    ) -> torch.BoolTensor:
        """Return which rows end here, of shape [rows]."""
        if self._begun is None:
            self._begun = input_ids.shape[1] - 1
        rows = input_ids[:, self._begun :].tolist()
        ended = [self._choosing.stopped(self._processor, row) for row in rows]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


class EndsWhenWithdrawn(StoppingCriteria):
    """Ends a batch once all of its rows have been withdrawn."""

    def __init__(self, asked: Sequence[DecodeRequest]) -> None:
        self._asked = asked

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **told: Any
    ) -> torch.BoolTensor:
        """Return whether the rows end here, of shape [rows]."""
        ends = all(one.is_withdrawn for one in self._asked)
        found = torch.full(input_ids.shape[:1], ends, device=input_ids.device)
        return found  # type: ignore[return-value]


def generate_rows(
    half: Any,
    processor: Any,
    rows: Sequence[FeatureRecord],
    prompts: Sequence[str],
    most: int,
    asked: SamplingParams | None = None,
    **options: Any,
) -> Iterator[CaptionOutput]:
    """Yield what is said of rows that `generate` takes as one, in at most so many tokens each, as
    it is `asked` (None: nothing besides the prompts)."""
    asked = asked or SamplingParams()
    inputs = prompts_for(half, processor, rows, prompts, asked)
    features = Features(merge_rows(rows), rows[0].needs, merge_blank(rows))
    yield from said_of(half, processor, inputs, features, most, asked, **options)


def said_of(
    half: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    features: Mapping[str, Any],
    most: int,
    asked: SamplingParams,
    **options: Any,
) -> Iterator[CaptionOutput]:
    """Yield what is said of these inputs, as `generate` takes them, in at most so many tokens."""
    choosing = GenerateKwargs(asked, most)
    yield from said_by(half, processor, inputs, features, choosing, **options)


def said_by(
    half: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    features: Mapping[str, Any],
    choosing: GenerateKwargs,
    **options: Any,
) -> Iterator[CaptionOutput]:
    """Yield the same within the limit and the stop strings of `choosing`."""
    made = generate(half, inputs, features, max_new_tokens=choosing.limit, **options)
    new = new_tokens(made, prompt_in(half, inputs)).cpu()
    rows = new.tolist()
    mask = inputs.get("attention_mask")
    read = (torch.ones_like(inputs["input_ids"]) if mask is None else mask).sum(-1).tolist()
    lengths, stopped = _lengths(half, new), [False] * len(rows)
    for at, (tokens, _) in enumerate(lengths):
        if choosing.stopped(processor, rows[at][:tokens]):
            counts = range(1, tokens + 1)
            tokens = next(n for n in counts if choosing.stopped(processor, rows[at][:n]))
            lengths[at], rows[at], stopped[at] = (tokens, "stop"), rows[at][:tokens], True
    texts = choosing.texts_of(processor, rows)
    every = zip(texts, lengths, read, stopped, strict=True)
    for (text, shortened), (tokens, ended), count, was_stopped in every:
        yield CaptionOutput(text, tokens, ended, shortened, int(count), was_stopped)


def _groups(asked: Sequence[DecodeRequest]) -> Iterator[list[int]]:
    """Yield indexes of the rows that can be decoded together: images and videos, say, cannot, nor
    can rows of other settings."""
    found: dict[tuple[str, ...], list[int]] = {}
    for index, one in enumerate(asked):
        found.setdefault((one.row.joins_with(), *_settings(one)), []).append(index)
    yield from found.values()


def _settings(one: DecodeRequest) -> tuple[str, ...]:
    """Return what rows of one call of `generate` have alike of their own settings. Rows of chance
    or of a schema go alone: rounding must not hang on others, nor may one fault end several."""
    text = one.member.settings
    if not text:
        return ()
    generation = RequestSettings.from_text(text).generation
    lone = generation.is_sampled or generation.schema
    return (text, one.member.key) if lone else (text,)


def _lengths(half: Any, new: torch.Tensor) -> list[tuple[int, Ended]]:
    """Return the tokens of each row, up to the one that ends it and with it, and how it ended."""
    ends = half.generation_config.eos_token_id
    known = torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), dtype=new.dtype)
    lengths: list[tuple[int, Ended]] = []
    for row in new:
        stops = torch.isin(row, known).nonzero()
        lengths.append((int(stops[0]) + 1, "stop") if len(stops) else (len(row), "length"))
    return lengths
