"""The summarize stage: turns the captions of each medium into chapters and a summary, in one
process.

A language half that gets text only combines many texts into one, level by level. Each generated
text is a summary node. It covers consecutive texts of the level below, and each of those belongs to
exactly one node. Prompt, texts and answer together never exceed the context. Each node is generated
alone, not in a batch, so its bytes depend only on its own texts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.texts.captions import Ended, answer_of
from stages.decode.engines.transformers import run_generate
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeItem
from stages.memory.oom_retry import ItemFault, ItemFaults, try_items
from stages.models.finite import not_finite
from stages.models.halves.features import Features
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.processors.input_layout import layout_of
from stages.models.processors.placeholders import placeholder_tokens
from stages.models.processors.prepare import channel_of, opens_reasoning, text_inputs
from stages.models.processors.processor_calls import text_ids
from stages.models.protocols import Half, Processor, Tree
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job
from stages.summarize import (
    ANSWERS,
    CHAPTER,
    MAX_TEXTS,
    STEP,
    SummaryItem,
    SummaryJob,
    TimedText,
    pack_groups,
)

MIN_TOKENS = 16
"""Minimum number of tokens of a text, and of an answer."""


class SummaryNode(NamedTuple):
    """One generated text; the fields are those of its record."""

    text: str
    tokens: int
    """Number of generated tokens."""
    read: int
    """Number of prompt tokens."""
    ended: Ended
    reasoning: Mapping[str, Any] = MappingProxyType({})
    """Fields that say where the answer begins, as in the record of a caption."""


GetNode = Callable[[str, Callable[[], SummaryNode]], SummaryNode]
"""Function that returns the stored node of a key, or makes and stores it."""


class Summary(NamedTuple):
    """The summary of one medium; the fields are those of its record."""

    summary: str
    chapters: list[list[Any]]
    """Start, end and text of each chapter."""
    levels: list[list[int]]
    """For each level, the number of lower texts per node."""
    tokens: int
    """Number of generated tokens of all nodes."""
    context: int
    """Maximum number of tokens of prompt and answer."""
    cut: int
    """Number of texts that were truncated."""
    ended: Ended
    """Finish reason of the summary."""
    reasons: bool = False
    """Whether a node is all reasoning, which is left out."""


class Summarizer:
    """A language half with its prompts for texts."""

    def __init__(self, job: SummaryJob, processor: Processor, half: Half) -> None:
        self._job = job
        self._processor = processor
        self._half = half
        self._generation = job.generation
        layout = layout_of(processor, channel_of(processor, "image"))
        system = self._generation.system
        self._opened = bool(opens_reasoning(processor, layout, CHAPTER, system, media=0))
        self._places = sorted(placeholder_tokens(processor), key=len, reverse=True)
        self._longest = max((CHAPTER, job.asked), key=lambda text: self._read(f"{text}\n\n"))
        prompt_tokens = self._read(f"{self._longest}\n\n")
        room = job.context - prompt_tokens
        self._answer = min(job.max_new_tokens, room // ANSWERS)
        self._generate_kwargs = GenerateKwargs(self._generation, self._answer)
        self._room = room - self._answer
        if self._answer < min(MIN_TOKENS, job.max_new_tokens):
            raise UsageError(
                f"the context is too small: of {job.context:,} tokens, the prompt takes "
                f"{prompt_tokens:,}, and there is no room for captions",
                hint="Use a shorter --summary-prompt, or more --memory",
            )

    def summarize(self, texts: Sequence[TimedText], get_node: GetNode) -> Summary:
        timed, chapters = list(texts), list[TimedText]()
        levels, tokens, cut, unfinished = list[list[int]](), 0, 0, False
        while True:
            timed, shortened = self._fit_texts(timed)
            cut += shortened
            groups = self._group(timed)
            last = len(groups) == 1
            summaries, nodes = [], []
            for group in groups:
                group_texts = timed[group.start : group.stop]
                node = get_node(*self._node_of(group_texts, last=last))
                nodes.append(node)
                text = self._text_of(node)
                unfinished = unfinished or text is None
                summaries.append(TimedText(group_texts[0].start, group_texts[-1].end, text or ""))
            tokens += sum(node.tokens for node in nodes)
            levels.append([len(group) for group in groups])
            chapters, timed = chapters or summaries, summaries
            if last:
                break
        return Summary(
            summary=timed[0].text,
            chapters=[list(chapter) for chapter in chapters],
            levels=levels,
            tokens=tokens,
            context=self._job.context,
            cut=cut,
            ended=nodes[0].ended,
            reasons=unfinished,
        )

    def _text_of(self, node: SummaryNode) -> str | None:
        """Return a node's text as it is shown; None if it is all reasoning."""
        if not self._job.strip_think:
            return node.text
        return answer_of({"caption": node.text, **node.reasoning}, opened=self._opened)

    def _node_of(
        self, group_texts: Sequence[TimedText], *, last: bool
    ) -> tuple[str, Callable[[], SummaryNode]]:
        """Return the key of the node of these texts, and the function that generates it."""
        prompt = self._prompt(group_texts, self._job.asked if last else CHAPTER)
        key = digest_of([prompt, self._answer, *self._generation.key_fields])

        def make() -> SummaryNode:
            read = self._read(prompt)
            assert read + self._answer <= self._job.context
            inputs = self._inputs(prompt, self._padded_length(read))
            item = DecodeItem(key=key, features=key, prompt=prompt)
            options = self._generate_kwargs.options(self._half, self._processor, [item])
            (output,) = run_generate(
                self._half, self._processor, inputs, Features({}), self._generate_kwargs, **options
            )
            if not output.is_finite:
                raise not_finite(self._job.half, seen=output.is_finite is False)
            fields = {n: v for n, v in output.fields.items() if n in ("answer_at", "opened")}
            return SummaryNode(output.caption, output.tokens, read, output.finish_reason, fields)

        return key, make

    def _prompt(self, group_texts: Sequence[TimedText], question: str) -> str:
        return "\n".join([question, "", *(text.line for text in group_texts)])

    def _inputs(self, prompt: str, length: int = 0) -> dict[str, Tree]:
        system = self._generation.system
        return text_inputs(self._processor, self._half, prompt, system, length=length)

    def _padded_length(self, tokens: int) -> int:
        """Return the length to which a prompt is padded. On a CPU there are few lengths, because
        oneDNN compiles kernels for each and keeps them. llama.cpp reads no padding."""
        if self._job.half.gguf or self._job.half.device != "cpu":
            return 0
        return min(-(-tokens // STEP) * STEP, self._job.context - self._answer)

    def _read(self, prompt: str) -> int:
        return int(text_ids(self._inputs(prompt)).shape[1])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _fit_texts(self, timed: Sequence[TimedText]) -> tuple[list[TimedText], int]:
        """Return the texts without image placeholders, each truncated so that two fit, and the
        number of truncated texts."""
        fitted, cut = [], 0
        for timed_text in timed:
            text = timed_text.text
            for word in self._places:
                text = text.replace(word, "")
            short = timed_text._replace(text=text)
            while (over := len(self._ids(f"{short.line}\n")) - self._room // 2) > 0 and short.text:
                ids = self._ids(short.text)[: -over or None]
                short = short._replace(text=self._decoded(ids, short.text))
            cut += short.text != text
            fitted.append(short)
        return fitted, cut

    def _decoded(self, ids: Sequence[int], whole: str) -> str:
        """Return the text of the first tokens of `whole`, shorter than `whole` in any case."""
        text = str(self._processor.tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\ufffd")
        return text[: len(whole) - 1]

    def _group(self, timed: Sequence[TimedText]) -> list[range]:
        """Return the ranges of texts that form a node and leave room for its answer. Raises
        UsageError if the texts are too long."""
        counts = [len(self._ids(f"{text.line}\n")) for text in timed]
        room = self._room
        while True:
            groups = pack_groups(counts, room, MAX_TEXTS)
            texts = (timed[group.start : group.stop] for group in groups)
            longest = max(self._read(self._prompt(node, self._longest)) for node in texts)
            over = longest + self._answer - self._job.context
            if over <= 0 and (len(groups) < len(timed) or len(timed) == 1):
                return groups
            # Adjacent lines may have a few more tokens than each line alone.
            room -= max(over, 1)
            if room < MIN_TOKENS or over <= 0:
                raise UsageError(
                    f"{len(timed)} texts of up to {max(counts)} tokens are too long for a context "
                    f"of {self._job.context:,}",
                    hint="Use a shorter --summary-prompt, or more --memory",
                )


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish the missing summaries. Each summary node is published as soon as it is generated."""
    job = parse_job(SummaryJob, job_fields)
    store = open_store(job.store)
    records, failures = (
        RecordSet(store, kind, job.namespace) for kind in ("summaries", "failures")
    )
    media = [medium for medium in job.media if medium.key not in records]
    if not media:
        return
    source = ModelJob.of(job.half)
    processor, half = source.processor(), source.load_reloadable("language")
    report.note(ready=True, **facts(half.model))

    def fail(medium: SummaryItem, fault: ItemFault) -> None:
        meta = fault.meta("summarize")
        failures.publish([Record(key=medium.key, meta=meta)])
        report.failure(medium.digest, **meta)

    faults = ItemFaults("summarize", fail, len(media) if len(media) == len(job.media) else 0)
    for medium in media:
        make = partial(_summarize, job, processor, records, report, half.confirm, medium.texts)
        results, message, fault = try_items(partial(half.call, make))
        if message is not None:
            raise MemoryError(message)
        if fault is None:
            faults.note_success()
            records.publish([Record(key=medium.key, meta=_meta(results.pop()))])
        else:
            faults.add(medium, fault)
    faults.close()


def _meta(made: Summary | SummaryNode) -> dict[str, Json]:
    """Return the fields of a record; those about reasoning only where there is some."""
    reasoning = ("reasoning", "reasons")
    return {n: value for n, value in made._asdict().items() if value or n not in reasoning}


def _summarize(
    job: SummaryJob,
    processor: Processor,
    records: RecordSet,
    report: EventReporter,
    confirm: Callable[[], None],
    texts: list[TimedText],
    half: Half,
) -> Summary:
    def get_node(node_key: str, make: Callable[[], SummaryNode]) -> SummaryNode:
        place = digest_of([job.namespace, node_key])
        if place in records:
            return SummaryNode(**records.meta(place))
        node = make()
        confirm()
        records.publish([Record(key=place, meta=_meta(node))])
        report.answered(place, tokens=node.tokens)
        return node

    return Summarizer(job, processor, half).summarize(texts, get_node)
