"""Decides which tags of a declared tagger pictures and chunks of videos get."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from artifacts.errors import UsageError
from artifacts.texts.labels import Span, TextVectors
from flows.commands.label.label_set import Label, LabelSet
from flows.commands.label.rows import LabelContext, LabelledChunk, LabelRules, Rule, TagsOfGraph
from flows.core.checkpoint.tagger import BEST, OWN, Tagger
from stages.tag import FLOOR

NO_TEXTS = TextVectors(
    vectors=np.zeros((0, 0), np.float32), scale=1.0, bias=0.0, cut=(), precision=""
)
"""What stands for labels of a tagger, which compares no vectors."""


def tagger_context(tagger: Tagger, threshold: float | None, top: int) -> LabelContext:
    """Return the tags that have a threshold, and their rules. `threshold`: that of the command, in
    place of the numbers that are declared. Raises UsageError."""
    if threshold is not None and threshold < FLOOR:
        raise UsageError(
            f"--threshold {threshold:g} is too low for a tagger",
            hint=f"Give {FLOOR} or more: lower probabilities are not stored",
        )
    declared = tagger.declared.thresholds
    places = [at for at, category in enumerate(tagger.categories) if category in declared]
    categories = [tagger.categories[at] for at in places]
    rules: list[Rule] = []
    thresholds: list[float] = []
    groups: dict[str, list[int]] = {}
    for at, (place, category) in enumerate(zip(places, categories, strict=True)):
        own = declared[category]
        if own == BEST:
            groups.setdefault(category, []).append(at)
            own = math.nan
        elif threshold is not None:
            own = threshold
        rules.append("group" if category in groups else "given")
        thresholds.append(tagger.own[place] if own == OWN else float(own))
    labels = tuple(
        Label(
            name=tagger.tags[place],
            prompts=(),
            group=category if math.isnan(cut) else "",
            threshold=None if math.isnan(cut) else cut,
        )
        for place, category, cut in zip(places, categories, thresholds, strict=True)
    )
    return LabelContext(
        labels=LabelSet(labels=labels, templates=()),
        texts=NO_TEXTS,
        rules=LabelRules(
            rules=tuple(rules),
            thresholds=tuple(thresholds),
            groups=tuple(map(tuple, groups.values())),
            order=(),
            scale=1.0,
            bias=0.0,
        ),
        top=top,
        tags=TagsOfGraph(places=np.asarray(places, np.intp), categories=tuple(categories)),
    )


def tag_spans(context: LabelContext, chunks: Sequence[LabelledChunk]) -> Iterator[Span]:
    """Yield a span for each chunk with tags: those whose mean over its frames is high enough, most
    probable first. Tags of single frames come and go."""
    for chunk in chunks:
        mean = chunk.scores.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
        passed = np.flatnonzero(context.rules.passed(mean)[0])
        ranked = passed[np.argsort(-mean[0, passed], kind="stable")]
        tags = tuple(dict.fromkeys(context.described[at][0] for at in ranked.tolist()))
        if tags:
            yield Span(start=chunk.task.chunk.start, end=chunk.task.chunk.end, labels=tags)
