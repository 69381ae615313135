"""The score stage: computes how sure a model is of given texts, with one pass over stored features
and without the vision half.

The score comes from a language half's logits at each token of a given caption (teacher forcing).
The caption is appended to the prompt, and `generate` is called for one more token. So the half
reads everything in one pass, by whatever split strategy its features use. Hooks make it compute the
logits at the caption's positions and collect them.

A half with bidirectional attention over its prompt would see the caption. A test run detects that,
and such a half is then evaluated step by step.
"""

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from artifacts.captions import CONFIDENCE
from artifacts.errors import UsageError
from artifacts.packs import DamagedRecord, Record, RecordUnion, record_sets_of
from artifacts.store import open_store
from artifacts.tensors import RecordGone
from stages.decode.confidence import Confidence, offset_in, token_scores
from stages.decode.generate_kwargs import make_greedy, relative_difference, tolerance
from stages.decode.generation import SamplingParams, ScoreItem, ScoreJob
from stages.decode.prompts import append_ids, context_left, end_ids_of, prompts_for, start_ids
from stages.decode.protocol import read_features, with_heard
from stages.memory.oom_retry import ItemFault, ItemFaults, OomRetry, split_batch
from stages.models.finite import not_finite
from stages.models.halves.features import Features
from stages.models.halves.offload import generate
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.processors.prepare import answer_ids, reasoning_end
from stages.models.streaming.load import run_calls
from stages.process.events import EventReporter
from stages.process.job import parse_job

KEEP = "logits_to_keep"
"""Name of the argument that limits the computed logits, in most model classes."""
_collector: ContextVar[list[torch.Tensor] | None] = ContextVar("_taker", default=None)
"""List that the current call's hooks append to. Calls in layer lockstep take turns, each in a
context of its own, and the hooks of all calls are installed at once."""


class ForcedCaption(NamedTuple):
    """A caption whose logits are requested."""

    row: FeatureRecord
    prompt: str
    ids: torch.Tensor
    """Its tokens [1, tokens], without a forced beginning."""
    params: SamplingParams = SamplingParams()
    """Holds the system prompt and the forced beginning."""

    def inputs(self, half: Any, processor: Any) -> dict[str, Any]:
        """Return the inputs of `generate` before these tokens."""
        return prompts_for(half, processor, [self.row], [self.prompt], self.params)


def caption_of(
    processor: Any,
    row: FeatureRecord,
    prompt: str,
    text: str,
    params: SamplingParams | None = None,
) -> ForcedCaption:
    """Return a caption with its tokens; `text` follows the forced beginning, if there is one."""
    params = params or SamplingParams()
    rest = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = rest if params.start_with else answer_ids(processor, text)
    return ForcedCaption(row, prompt, torch.tensor([ids], dtype=torch.long), params)


def forced_logits(half: Any, processor: Any, caption: ForcedCaption) -> torch.Tensor:
    """Return the logits of each token of a caption and of the token after it, in fp32 on the host,
    of shape [tokens + 1, vocabulary]. Raises UsageError for a half that does not return logits."""
    row, ids = caption.row, caption.ids
    inputs = append_ids(half, caption.inputs(half, processor), ids)
    features = Features.of([row])
    count = ids.shape[1] + 1
    with last_logits(half, count) as collected:
        generate(half, inputs, features, max_new_tokens=1)
    if not collected or collected[-1].shape[1] < count:
        raise UsageError(
            f"{type(half).__name__} does not return logits for each token of a caption",
            hint="Its quantized checkpoint cannot be compared; use --accept to export it anyway",
        )
    return collected[-1][0, -count:].float().cpu()


def forced_logits_stepwise(half: Any, processor: Any, caption: ForcedCaption) -> torch.Tensor:
    """Return the same logits, computed with one pass per token. A half with bidirectional attention
    over its prompt would otherwise see the caption."""
    row, ids, inputs = caption.row, caption.ids, caption.inputs(half, processor)
    features = Features.of([row])
    options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    options["logits_processor"] = [_Dictated(ids[0].tolist())]
    made: Any = generate(half, inputs, features, max_new_tokens=ids.shape[1] + 1, **options)
    return torch.stack(made.logits, dim=1)[0].float().cpu()


def is_bidirectional(half: Any, processor: Any, caption: ForcedCaption) -> bool:
    """Return whether the first logits depend on the caption that follows."""
    if caption.ids.shape[1] < 2:
        return False
    short = caption._replace(ids=caption.ids[:, :1])
    first, second = (forced_logits(half, processor, c)[:1] for c in (short, caption))
    return relative_difference([first], [second]) > tolerance(half.dtype)


class _Dictated:
    """Forces `generate` to emit given tokens, one per step, and then leaves it free."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = next(self._tokens, None)
        if token is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


@contextmanager
def last_logits(half: Any, count: int) -> Iterator[list[torch.Tensor]]:
    """Compute the logits of the last `count` positions. Yields a list that collects them; its last
    entry comes from the outermost model."""
    collected: list[torch.Tensor] = []
    _collector.set(collected)

    def keep_logits(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, {**given, KEEP: count}) if _collector.get() is collected else None

    def last_positions(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # Contiguous: for a slice of several rows, a CPU's 16-bit matrix product unpacks all
        # weights.
        return (
            (args[0][:, -count:].contiguous(), *args[1:]) if _collector.get() is collected else None
        )

    def collect(_: Any, __: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if isinstance(logits, torch.Tensor) and _collector.get() is collected:
            collected.append(logits)

    with ExitStack() as hooks:
        for module in half.modules():
            if not isinstance(module, PreTrainedModel):
                continue
            hooks.callback(module.register_forward_hook(collect).remove)
            if KEEP in inspect.signature(module.forward).parameters:
                hook = module.register_forward_pre_hook(keep_logits, with_kwargs=True)
                hooks.callback(hook.remove)
        head = half.get_output_embeddings()
        if head is not None:
            hooks.callback(head.register_forward_pre_hook(last_positions, prepend=True).remove)
        yield collected


STAGE, KIND = "score", "scores"
TEXTS_PER_PASS = 8
"""Texts that are scored one after another; with streamed layers they pass each layer together."""
PUBLISH_SECONDS = 1.0
"""How long finished scores wait for others, because each publication is one pack file."""


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Publish the scores of each item without them. An item without features, one that is too
    large, and one on which the model raises are reported and left out."""
    job = parse_job(ScoreJob, fields)
    places = [("features", name) for name in job.features_namespaces]
    heard_places = [("heard", name) for name in job.heard_namespaces]
    scores, *found = record_sets_of(
        open_store(job.store), (KIND, job.namespace), *places, *heard_places
    )
    features, heard = RecordUnion(found[: len(places)]), RecordUnion(found[len(places) :])
    left = [item for item in job.items if item.key not in scores]
    report.total(len(left))
    if not left:
        return
    source = ModelJob.of(replace(job.half, lockstep=True))
    processor, half = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(half.model))
    scorer = Scorer(job, processor, features, heard, report)

    def compute(items: Sequence[ScoreItem]) -> list[Record]:
        made: list[Record] = half.call(partial(scorer.records, items))
        half.confirm()
        return made

    def fail(item: ScoreItem, fault: ItemFault) -> None:
        report.failure(item.key, **fault.meta(STAGE))

    def publish() -> None:
        scores.publish(ready)
        for record in ready:
            report.item(record.key, tokens=record.meta["tokens"])
        ready.clear()

    faults = ItemFaults(STAGE, fail, len(left))
    retry = OomRetry(report, lambda: compute(left[-1:]), faults)
    ready: list[Record] = []
    since = time.monotonic()
    for batch in split_batch(left, TEXTS_PER_PASS):
        for _, made in retry.run_batch(batch, lambda item: item.key, compute):
            ready += made
        if time.monotonic() - since >= PUBLISH_SECONDS:
            publish()
            since = time.monotonic()
    publish()
    faults.close()


class Scorer:
    """Scores texts with a half."""

    def __init__(
        self,
        job: ScoreJob,
        processor: Any,
        features: RecordUnion,
        heard: RecordUnion,
        report: EventReporter,
    ) -> None:
        self._job = job
        self._processor = processor
        self._features = features
        self._heard = heard
        self._report = report
        self._half: Any = None
        self._stepwise: bool | None = None
        """Whether the half would see later tokens in one pass; None: unknown."""

    def records(self, items: Sequence[ScoreItem], half: Any) -> list[Record]:
        if half is not self._half:
            make_greedy(half, self._processor)
            # llama.cpp returns the last logits alone.
            self._half, self._stepwise = half, True if self._job.half.gguf else None
        captions = list(self._captions(items))
        for _, caption in captions:
            if self._stepwise is None and caption.ids.shape[1] > 1:
                test = partial(is_bidirectional, half, self._processor, caption)
                (self._stepwise,) = run_calls(half, [test])
        return run_calls(half, [partial(self._record, half, *each) for each in captions])

    def _captions(self, items: Sequence[ScoreItem]) -> Iterator[tuple[ScoreItem, ForcedCaption]]:
        """Yield the items with their tokens. If features are gone, report a failure."""
        for item in items:
            try:
                row = read_features(self._features, item.features)
                row = with_heard(row, self._heard, item.heard)
            except (DamagedRecord, RecordGone) as error:
                message = getattr(error, "message", str(error))
                self._report.failure(item.key, "gone", message, "Encode the media again")
                continue
            start = self._job.generation.start_with
            start = start if item.text.startswith(start) else ""
            params = replace(self._job.generation, start_with=f"{self._before(item)}{start}")
            rest = item.text.removeprefix(start)
            yield item, caption_of(self._processor, row, item.prompt, rest, params)

    def _before(self, item: ScoreItem) -> str:
        """Return what ends the reasoning before a text."""
        return reasoning_end(self._processor, item.text) if item.behind_reasoning else ""

    def _record(self, half: Any, item: ScoreItem, caption: ForcedCaption) -> Record:
        ids = caption.ids[0].tolist()
        left = context_left(half, caption.inputs(half, self._processor))
        if left is not None and len(ids) >= left:
            return Record(key=item.key, meta={**dict.fromkeys(CONFIDENCE), "tokens": len(ids)})
        forced = forced_logits if self._stepwise is False else forced_logits_stepwise
        logits = forced(half, self._processor, caption)
        if item.ended and (ends := end_ids_of(half)):
            ids.append(max(ends, key=lambda end: float(logits[len(ids), end])))
        scores = token_scores(logits[: len(ids)], torch.tensor(ids)).tolist() if ids else []
        if not (confidence := Confidence.of(scores)).is_finite:
            raise not_finite(self._job.half)
        fields = confidence.fields(partial(self._place, item, caption))
        return Record(
            key=item.key, meta={**dict.fromkeys(CONFIDENCE), **fields, "tokens": len(ids)}
        )

    def _place(self, item: ScoreItem, caption: ForcedCaption, index: int) -> int | None:
        start = start_ids(self._processor, caption.params)[0].tolist()
        ids = [*start, *caption.ids[0].tolist()]
        rows = [ids[: len(start) + index], ids]
        before, whole = self._processor.batch_decode(rows, skip_special_tokens=True)
        ended = self._before(item).lstrip()
        at = offset_in(f"{ended}{item.text}", before, whole)
        return None if at is None or not item.text else max(0, at - len(ended))
