"""Builds the keyword arguments of `generate`: how it picks tokens, prefills and caches.

Decoding is greedy, or samples as the user requested. `generate` and in-flight slots batch rows
differently, so a shared random generator would give different captions. Each row therefore has its
own generator, seeded by its chunk and its prompt. The last logits processor samples one token and
masks all others. A greedy argmax then picks the sampled token, in every batch and every slot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from artifacts.digests import digest_of
from stages.decode.confidence import offset_in
from stages.decode.generation import (
    CHECKPOINT,
    SAMPLING_FIELDS,
    DecodeItem,
    RequestSettings,
    SamplingParams,
    cut_at,
)
from stages.decode.prompts import check_context, context_left, end_ids_of, retry_params, start_ids
from stages.models.processors.known import known
from stages.models.processors.loading import tag_ids
from stages.models.protocols import Half, Processor, Tree


class PresencePenalty(LogitsProcessor):
    """Subtracts a number from the logit of every token that was generated since the first call."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one, known from the first call."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalized scores [rows, vocabulary]; `ids` are [rows, tokens]."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
        return self.lowered(ids[:, self._prompt_length :].to(scores.device), scores)

    def lowered(self, new: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores after these generated tokens, of shape [rows, tokens]. Numbers that are
        no tokens of the vocabulary are skipped."""
        width = scores.shape[1]
        seen = scores.new_zeros(len(scores), width + 1, dtype=torch.bool)
        seen.scatter_(1, new.clamp(max=width), value=True)
        return torch.where(seen[:, :width], scores - self.penalty, scores)


CHECKPOINT_FIELDS = ("do_sample", *SAMPLING_FIELDS, "min_p")
"""Settings that `--sampling checkpoint` takes from the checkpoint."""
STOP_STRINGS = "stop_strings"
"""Setting that ends captions as `stop` of a request does, in slots, too. `generate` would need a
tokenizer for it."""
DECIDING = frozenset((
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "sequence_bias", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "length_penalty",
    "early_stopping", "exponential_decay_length_penalty", "remove_invalid_values",
    "renormalize_logits", "guidance_scale", "watermarking_config",
))  # fmt: skip
"""Settings of a checkpoint that decide the words of greedy decoding. All others
say how `generate` runs, such as `use_cache`, and what it returns, or need sampling."""
Items = Sequence[DecodeItem]
"""Items of one call of `generate`."""
TOP_K = 50
"""Top-k by default, the default of transformers."""
SEED_DIGITS = 15
"""Hex digits of a row's seed: the largest number that a generator accepts."""


class CheckpointSettings:
    """The checkpoint's sampling settings and stop strings, read before the half is made greedy."""

    def __init__(self) -> None:
        self._half: Half | None = None
        self._settings: Mapping[str, Any] = {}

    def of(self, half: Half) -> Mapping[str, Any]:
        """Return the settings of a half, read once per loaded half."""
        if half is not self._half:
            self._half = half
            names = (*CHECKPOINT_FIELDS, STOP_STRINGS)
            self._settings = {n: getattr(half.generation_config, n, None) for n in names}
        return self._settings

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the stop strings of the half whose settings were read."""
        strings = self._settings.get(STOP_STRINGS) or ()
        return (strings,) if isinstance(strings, str) else tuple(strings)


class GenerateKwargs:
    """The token selection of one job or one request."""

    def __init__(
        self,
        generation: SamplingParams,
        limit: int,
        stop: Sequence[str] = (),
        settings: CheckpointSettings | None = None,
        request: RequestSettings | None = None,
    ) -> None:
        """Limit captions to `limit` tokens, and to the text before a stop string."""
        self.request = request
        """The request's own settings; None: it has none."""
        self.generation = generation
        self.limit = limit
        self._stop = stop
        self._settings = settings or CheckpointSettings()

    @property
    def stop(self) -> tuple[str, ...]:
        """Return the strings before which captions end; those of the checkpoint are known after
        `options`, and do not end an answer that follows a schema."""
        return (*self._stop, *(() if self.generation.schema else self._settings.stop))

    def of(self, item: DecodeItem) -> "GenerateKwargs":
        """Return the kwargs for an item: those of its own settings, if it has any."""
        if not (text := item.settings):
            return self
        own = RequestSettings.from_text(text)
        return GenerateKwargs(own.generation, own.max_new_tokens, own.stop, self._settings, own)

    def bounded(
        self, half: Half, inputs: Mapping[str, Tree], items: Items, *, whole: bool
    ) -> "GenerateKwargs":
        """Return the kwargs with a limit that fits the context. Only a single item without a limit
        of its own gets a lower limit. Raises ContextExceeded if a `whole` caption has to fit and
        does not, or if there is no room for a first token."""
        free = len(items) == 1 and items[0].to_context and not self.generation.schema
        check_context(half, inputs, self.limit, whole=whole and not free)
        room = context_left(half, inputs) if free else None
        if room is None or room >= self.limit:
            return self
        return GenerateKwargs(self.generation, room, self._stop, self._settings, self.request)

    def options(self, half: Half, processor: Processor, items: Items) -> dict[str, Any]:
        """Return the keyword arguments of `generate` for these items, in order."""
        settings = self._settings.of(half)
        make_greedy(half, processor)
        params = self.generation
        if any(item.again for item in items):
            params = retry_params(params)
        options: dict[str, Any] = {}
        if params.repetition_penalty is not None:
            options["repetition_penalty"] = params.repetition_penalty
        if params.no_repeat_ngram:
            options["no_repeat_ngram_size"] = params.no_repeat_ngram
        processors = self._avoiding(processor)
        if params.presence_penalty:
            processors.append(PresencePenalty(params.presence_penalty))
        processors += self._schema_processors(half, processor)
        warpers = self._warpers(settings)
        if warpers is not None:
            seeds = [seed_of(params.seed, item) for item in items]
            processors += [*warpers, SeededSampler(seeds)]
        if processors:
            options["logits_processor"] = LogitsProcessorList(processors)
        return options

    def _avoiding(self, processor: Processor) -> list[LogitsProcessor]:
        """Return the logits processor that refuses phrases; empty without any."""
        if not (phrases := self.generation.avoid):
            return []
        from stages.decode.constraint import AvoidedLogitsProcessor, avoided

        start = self.generation.start_with
        return [AvoidedLogitsProcessor(avoided(processor.tokenizer, phrases), start)]

    def _schema_processors(self, half: Half, processor: Processor) -> list[LogitsProcessor]:
        """Return the logits processor that enforces the schema; empty without a schema."""
        if not self.generation.schema:
            return []
        from stages.decode.constraint import SchemaLogitsProcessor, eos_ids_of, vocabulary_of

        vocabulary, eos_ids = vocabulary_of(processor.tokenizer), eos_ids_of(half, processor)
        return [SchemaLogitsProcessor(vocabulary, self.generation.schema, eos_ids)]

    def stopped(self, processor: Processor, token_ids: Sequence[int]) -> bool:
        """Return whether the text of these new tokens contains a stop string."""
        text = _decoded(processor, [token_ids], self.generation)[0] if self.stop else ""
        return any(string in text for string in self.stop)

    def texts_of(self, processor: Processor, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the captions of these new tokens, the forced beginning included, up to a stop
        string."""
        return [self._until_stop(text) for text in _decoded(processor, rows, self.generation)]

    def _until_stop(self, text: str) -> str:
        """Return a text up to a stop string, with the blanks before that; another is stripped."""
        # Cut first: a stop string may begin or end with blanks.
        cut = cut_at(text, self.stop)
        return text.strip() if cut == text else cut.lstrip()

    def offset_of(
        self, processor: Processor, row: Sequence[int], text: str, index: int
    ) -> int | None:
        """Return where in the caption `text` of these new tokens the token at `index` begins."""
        before, whole = _decoded(processor, [row[:index], row], self.generation)
        return offset_in(text, before, whole)

    def reasoning(self, processor: Processor, row: Sequence[int], text: str) -> dict[str, int]:
        """Return the fields of a record for tags of reasoning among these new tokens that their
        `text` does not show: where the answer begins, or that it never does."""
        opening, closing = known(processor, "ids of tags", lambda: tag_ids(processor))
        if end := max((at for at, token in enumerate(row, 1) if token in closing), default=0):
            answer = processor.decode(row[end:], skip_special_tokens=True).strip()
            return {"answer_at": len(text) - len(answer)}
        return {"opened": True} if opening.intersection(row) else {}

    def _warpers(self, settings: Mapping[str, Any]) -> list[LogitsProcessor] | None:
        """Return the logits warpers of transformers, in its order; None for greedy decoding."""
        params = self.generation
        settings = settings if params.sampling == CHECKPOINT else {}
        named = [getattr(params, name) is not None for name in SAMPLING_FIELDS]
        if not params.is_sampled or not (settings.get("do_sample") or any(named)):
            return None
        temperature, top_p, top_k = (
            settings.get(name) if getattr(params, name) is None else getattr(params, name)
            for name in SAMPLING_FIELDS
        )
        warpers: list[LogitsProcessor] = []
        if temperature is not None and temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k := TOP_K if top_k is None else top_k:
            warpers.append(TopKLogitsWarper(top_k))
        if top_p is not None and top_p < 1.0:
            warpers.append(TopPLogitsWarper(float(top_p)))
        if (min_p := settings.get("min_p")) is not None:
            warpers.append(MinPLogitsWarper(min_p))
        return warpers


class SeededSampler(LogitsProcessor):
    """The last logits processor: keeps only the token that was sampled for each row."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._generators: list[torch.Generator] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, vocabulary] in which only the sampled token of a row is possible."""
        return sampled_only(scores, dict(enumerate(self.generators(scores.device))))

    def generators(self, device: torch.device) -> Sequence[torch.Generator]:
        if not self._generators:
            generators_of_rows = (torch.Generator(device=device) for _ in self._seeds)
            self._generators = [
                g.manual_seed(s) for g, s in zip(generators_of_rows, self._seeds, strict=True)
            ]
        return self._generators


def sampled_only(scores: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """Return scores of shape [rows, vocabulary] in which only the sampled token of each row is
    possible. `generators` are those of the rows that matter."""
    likely = torch.softmax(scores, dim=-1)
    # These are the numbers of torch.multinomial, which would wait for the device twice a row.
    noise = torch.ones_like(likely)
    for row, generator in generators.items():
        noise[row : row + 1].exponential_(1, generator=generator)
    chosen = (likely / noise).argmax(-1, keepdim=True)
    return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _decoded(
    processor: Processor, rows: Sequence[Sequence[int]], params: SamplingParams
) -> list[str]:
    """Return the unstripped texts of these new tokens, the forced beginning included."""
    if params.schema:
        from stages.decode.constraint import answer_text, vocabulary_of

        vocabulary = vocabulary_of(processor.tokenizer)
        return [answer_text(vocabulary, row) for row in rows]
    start = start_ids(processor, params)[0].tolist()
    texts: list[str] = processor.batch_decode(
        [[*start, *row] for row in rows], skip_special_tokens=True
    )
    return texts


def seed_of(seed: int, item: DecodeItem) -> int:
    """Return the seed of one row. It depends only on the chunk and the prompt, not on the batch."""
    return int(digest_of([seed, item.features, item.prompt])[:SEED_DIGITS], 16)


def make_greedy(half: Half, processor: Processor) -> None:
    """Make the half decode greedily by default, with those settings of the checkpoint alone that
    decide words. End and padding tokens come from the checkpoint, else from the tokenizer."""
    settings = half.generation_config
    if not end_ids_of(half):
        # Without an end token every batch would run to its token limit.
        settings.eos_token_id = processor.tokenizer.eos_token_id
    for name, value in vars(GenerationConfig()).items():
        if name not in DECIDING and not name.startswith("_") and hasattr(settings, name):
            setattr(settings, name, value)
    settings.do_sample, settings.num_beams = False, 1
    if settings.pad_token_id is None:
        settings.pad_token_id = processor.tokenizer.pad_token_id
