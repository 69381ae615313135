"""Decides from cosines which labels an image gets, and builds the JSON lines of labels.

The cosines come from the store; the module runs no model.

The score is the quantity that the model was trained on. For a model with a bias it is the sigmoid
of the logit, compared with 0.5. For other models it is the cosine, for which no fixed threshold
works. If no threshold is given, the largest gap in the image's own ranking is the threshold. On 400
images of one to three things it reached 94 % of the best threshold chosen with known answers.
Thresholds learned from unlabelled images failed.

Softmax shares are compared only within a group that gives each image exactly one label: shares
cannot express "both" or "none". A label with a parent is assigned only if the parent is assigned,
too, and a parent scores as high as its best child.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.records.probabilities import probabilities_in
from artifacts.records.vectors import Vectors, vectors_in
from artifacts.schema import MediaIndex
from artifacts.texts.labels import Labelled, Scored, TextVectors
from artifacts.texts.tables import read_csv
from flows.commands.label.label_set import LabelSet
from flows.core.console.lines import quoted
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Task
from flows.core.media.media_file import MediaFile
from flows.outputs.vectors import FileTask, index_of, shown_boxes, vector_tasks
from stages.tag import STAGE

Scores = NDArray[np.float32]
"""Shape (images, labels)."""
Passed = NDArray[np.bool_]
"""Shape (images, labels): whether an image gets a label."""
Rule = Literal["given", "examples", "bias", "gap", "group"]
MAX_GAP_LABELS = 6
"""Maximum labels that the largest gap gives an image."""
HALF_PROBABILITY = 0.5
"""Threshold of models with a bias: a label is more likely than not."""


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """The rule of each label, for one model and one command."""

    rules: tuple[Rule, ...]
    thresholds: tuple[float, ...]
    """Minimum score of each label; NaN for labels without a threshold."""
    groups: tuple[tuple[int, ...], ...]
    """Label indices of each group."""
    order: tuple[tuple[int, int], ...]
    """Pairs of a label index and its parent's, deepest first."""
    scale: float
    bias: float

    def scores(self, cosines: Scores) -> Scores:
        """Return the score of each label; for labels in a group, the softmax share."""
        logits = self.scale * cosines + self.bias
        with np.errstate(over="ignore"):
            scores = 1 / (1 + np.exp(-logits)) if self.bias else cosines.copy()
        for members in map(list, self.groups):
            powers = np.exp(logits[:, members] - logits[:, members].max(axis=1, keepdims=True))
            scores[:, members] = powers / powers.sum(axis=1, keepdims=True)
        for child, parent in self.order:
            scores[:, parent] = np.maximum(scores[:, parent], scores[:, child])
        return scores.astype(np.float32)

    @cached_property
    def _least(self) -> NDArray[np.float32]:
        return np.asarray(self.thresholds, np.float32)

    @cached_property
    def _by_gap(self) -> list[int]:
        return [at for at, rule in enumerate(self.rules) if rule == "gap"]

    def passed(self, scores: Scores) -> Passed:
        """Return which labels each image gets for these scores."""
        with np.errstate(invalid="ignore"):
            passed: Passed = scores >= self._least
        for members in map(list, self.groups):
            first = scores[:, members].argmax(axis=1)
            cut = passed[:, members] | np.isnan(self._least[members])
            passed[:, members] = cut & (np.arange(len(members)) == first[:, None])
        if self._by_gap:
            passed[:, self._by_gap] = above_gap(scores[:, self._by_gap])
        for child, parent in reversed(self.order):
            passed[:, child] &= passed[:, parent]
        return passed

    def why(self, at: int) -> str:
        """Return the rule by which a label is assigned, as text for the output."""
        return {
            "given": f"at least {self.thresholds[at]:g}",
            "examples": f"at least {self.thresholds[at]:.4g}, learned from examples",
            "bias": f"more likely than not ({self.thresholds[at]:g})",
            "gap": "above the largest gap of its image",
            "group": "the first of its group",
        }[self.rules[at]]


def label_rules(
    labels: LabelSet,
    texts: TextVectors,
    threshold: float | None,
    learned: Mapping[str, float] | None = None,
) -> LabelRules:
    """Return the rules for these labels. A label's own threshold comes first, then `threshold`,
    then `learned`. Raises UsageError if a label cannot have a rule."""
    learned = learned or {}
    names = {name: at for at, name in enumerate(labels.names)}
    groups: dict[str, list[int]] = {}
    rules: list[Rule] = []
    thresholds: list[float] = []
    for at, label in enumerate(labels.labels):
        own = threshold if label.threshold is None else label.threshold
        if label.group:
            groups.setdefault(label.group, []).append(at)
            rules.append("group")
            own = label.threshold
        elif own is None and label.name in learned:
            rules.append("examples")
            own = learned[label.name]
        else:
            rules.append("given" if own is not None else "bias" if texts.bias else "gap")
            own = HALF_PROBABILITY if own is None and texts.bias else own
        thresholds.append(np.nan if own is None else own)
    if rules.count("gap") == 1:
        single = quoted(labels.names[rules.index("gap")])
        raise UsageError(
            f"no rule for the single label {single}: this model's scores have no fixed threshold",
            hint="Give --threshold (a cosine, such as 0.25), or another label",
        )
    parents = [(names[label.name], names.get(label.parent)) for label in labels.labels]
    return LabelRules(
        rules=tuple(rules),
        thresholds=tuple(thresholds),
        groups=tuple(map(tuple, groups.values())),
        order=_deepest_first([(a, b) for a, b in parents if b is not None]),
        scale=texts.scale,
        bias=texts.bias,
    )


def _deepest_first(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    parent = dict(pairs)

    def depth(at: int) -> int:
        return 1 + depth(parent[at]) if at in parent else 0

    return tuple(sorted(pairs, key=lambda pair: -depth(pair[0])))


def above_gap(scores: Scores) -> Passed:
    """Return which of each image's scores lie above the largest gap among its highest scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)[:, : MAX_GAP_LABELS + 1]
    count = (ranked[:, :-1] - ranked[:, 1:]).argmax(axis=1) + 1
    above = np.zeros(scores.shape, np.bool_)
    given = np.arange(scores.shape[1]) < count[:, None]
    np.put_along_axis(above, order, given, axis=1)
    return above


def cosines_of(images: Vectors, texts: TextVectors) -> Scores:
    """Return the cosine of each image with each label."""
    length = np.linalg.norm(images, axis=1, keepdims=True)
    cosines: Scores = (images / np.maximum(length, np.finfo(np.float32).tiny)) @ texts.vectors.T
    return cosines


MAX_EXAMPLES_BYTES = 1 << 26
STEPS, RIDGE = 100, 1e-9
EXAMPLES_HINT = (
    "Give a CSV file with the columns media_path and label, one row per label of an image"
)
Examples = Mapping[str, frozenset[str]]
"""Path of an image, as `labels.jsonl` has it → its labels."""


def read_examples(path_text: str, labels: Sequence[str]) -> Examples:
    """Read the `--examples` file: the labels of some images. Empty path: none. An image without
    labels has a row with an empty label. Raises UsageError."""
    if not path_text:
        return {}
    path = Path(path_text).expanduser()
    text = text_named(path, "examples", MAX_EXAMPLES_BYTES, EXAMPLES_HINT)
    columns, rows = read_csv(text, f"--examples {path}")
    if not {"media_path", "label"} <= {*columns}:
        raise UsageError(
            f"--examples {path} has no columns media_path and label", hint=EXAMPLES_HINT
        )
    labels_of: dict[str, set[str]] = {}
    for _, row in rows:
        name = row["label"].strip()
        if name and name not in labels:
            raise UsageError(
                f"--examples {path} has the label {quoted(name)}, which is not among --labels",
                hint=EXAMPLES_HINT,
            )
        labels_of.setdefault(row["media_path"], set()).update({name} - {""})
    return {image: frozenset(names) for image, names in labels_of.items()}


def learned_threshold(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> float | None:
    """Return the score above which a label is more likely than not (Platt scaling).

    Return None if the examples do not suffice: none has the label, all have it, or those with it
    score no higher.
    """
    with_it, without = int(has.sum()), int((~has).sum())
    if not with_it or not without or scores[has].mean() <= scores[~has].mean():
        return None
    spread, centre = float(scores.std()), float(scores.mean())
    x = (scores - centre) / spread
    targets = np.where(has, (with_it + 1) / (with_it + 2), 1 / (without + 2))
    slope, offset = 1.0, math.log((with_it + 1) / (without + 1))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(slope * x + offset)))
        weight, error = p * (1 - p), p - targets
        hessian = np.array(
            [
                [(weight * x * x).sum() + RIDGE, (weight * x).sum()],
                [(weight * x).sum(), weight.sum() + RIDGE],
            ]
        )
        step = np.linalg.solve(hessian, np.array([(error * x).sum(), error.sum()]))
        slope, offset = slope - step[0], offset - step[1]
        if np.abs(step).max() < 1e-9:
            break
    return float(centre - spread * offset / slope) if slope > 0 else None


MIN_LABELS = 4
"""With fewer labels, levels are compared by their highest score, not by deviation."""
MIN_SPREAD = 1e-6
"""Lower bound of the standard deviation of cosines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """The cosines of images or frames."""

    best: Scores
    """Highest cosine of any part, for each label."""
    whole: Scores
    """Cosines of the whole image."""
    at: NDArray[np.intp]
    """Shape (images, labels): index of the part in `best`; 0 is the whole image."""


def pooled(cosines: Scores, levels: Sequence[int]) -> Pooled:
    """Return the cosines of one image from those of its parts. `levels`: tile level of each part;
    the first part is the whole image."""
    places = [np.flatnonzero(np.asarray(levels) == level) for level in sorted(set(levels))]
    members = max(places, key=lambda some: _standing_out(cosines[some]))
    at = members[cosines[members].argmax(axis=0)]
    best = cosines[at, np.arange(cosines.shape[1])]
    return Pooled(best=best[None], whole=cosines[:1], at=at[None])


def _standing_out(cosines: Scores) -> float:
    """Return the distance of the best label of a level from the median, in deviations."""
    best = cosines.max(axis=0)
    if len(best) < MIN_LABELS:
        return float(best.max())
    return float((best.max() - np.median(best)) / max(float(best.std()), MIN_SPREAD))


@dataclass(frozen=True, kw_only=True, slots=True)
class TagsOfGraph:
    """Which numbers of a tagger's graph are labels."""

    places: NDArray[np.intp]
    """Place of each label among them."""
    categories: tuple[str, ...]
    """Category of each label."""


TASKS_PER_BLOCK = 256
"""Number of chunks whose scores are in memory at once."""
DIGITS = 6
"""Decimal digits written per score; 16-bit vectors have only three."""


@dataclass(frozen=True, kw_only=True)
class LabelContext:
    """Everything needed to label the images of a run."""

    labels: LabelSet
    texts: TextVectors
    rules: LabelRules
    top: int
    """Number of labels written per image, even if it does not get them."""
    tags: TagsOfGraph | None = None
    """Which numbers of a tagger's graph the scores are; None: scores are of vectors."""

    @cached_property
    def described(self) -> list[tuple[str, float | None, str]]:
        """Return the name, threshold and rule of each label, for the output rows."""
        pairs = enumerate(zip(self.labels.names, self.rules.thresholds, strict=True))
        of = (
            [f"{one}: " for one in self.tags.categories]
            if self.tags
            else [""] * len(self.labels.labels)
        )
        return [
            (name, None if math.isnan(threshold) else threshold, of[at] + self.rules.why(at))
            for at, (name, threshold) in pairs
        ]

    @cached_property
    def labels_digest(self) -> str:
        return self.labels.digest

    @property
    def precision(self) -> dict[str, str]:
        """Return the precision of the half that made the vectors of the labels, if one did."""
        return {} if self.tags else {"language": self.texts.precision}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledChunk:
    """The labels of one chunk's frames."""

    file: MediaFile
    task: Task
    rows: list[Labelled]
    scores: Scores
    passed: Passed


def label_chunks(
    job: Job, context: LabelContext, made: Iterable[FileTask] | None = None
) -> Iterator[LabelledChunk]:
    """Yield the labels of these chunks, in order. None: all chunks with stored vectors."""
    left = iter(vector_tasks(job) if made is None else made)
    if context.tags is not None:
        yield from _tagged_chunks(job, context, context.tags, left)
        return
    kept = job.ledger["embeddings"]
    while block := list(islice(left, TASKS_PER_BLOCK)):
        records = kept.read_several([task["embeddings"] for _, task in block])
        vectors = [vectors_in(record) for record in records]
        indexes = [index_of(job, task) for _, task in block]
        yield from label_vectors(job.model.name, context, block, vectors, indexes)


def _tagged_chunks(
    job: Job, context: LabelContext, tags: TagsOfGraph, chunks: Iterator[FileTask]
) -> Iterator[LabelledChunk]:
    """Yield the tags of chunks, one by one: a chunk may have a million probabilities."""
    records = job.ledger[STAGE.writes]
    for file, task in chunks:
        scores = probabilities_in(records.read(task[STAGE.writes]))[:, tags.places]
        passed, zeros = context.rules.passed(scores), np.zeros(scores.shape, np.intp)
        part = Pooled(best=scores, whole=scores, at=zeros)
        index = index_of(job, task)
        rows = _rows(job.model.name, context, (file, task), index, part, scores, passed)
        yield LabelledChunk(file=file, task=task, rows=rows, scores=scores, passed=passed)


def label_vectors(
    model: str,
    context: LabelContext,
    block: Sequence[FileTask],
    vectors: Sequence[Vectors],
    indexes: Sequence[MediaIndex],
) -> Iterator[LabelledChunk]:
    """Yield the labels of chunks. `vectors`: those of each chunk by this model. `indexes`: the
    index of each chunk's medium."""
    cosines = cosines_of(np.concatenate(vectors), context.texts)
    ends = np.cumsum([len(of_chunk) for of_chunk in vectors])[:-1]
    parts = [
        pooled(some, task.levels)
        if task.is_cut
        else Pooled(best=some, whole=some, at=np.zeros(some.shape, np.intp))
        for (_, task), some in zip(block, np.split(cosines, ends), strict=True)
    ]
    scores = context.rules.scores(np.concatenate([part.best for part in parts]))
    passed = context.rules.passed(scores)
    ends = np.cumsum([len(part.best) for part in parts])[:-1]
    split = zip(np.split(scores, ends), np.split(passed, ends), strict=True)
    for chunk, index, part, (some, given) in zip(block, indexes, parts, split, strict=True):
        rows = _rows(model, context, chunk, index, part, some, given)
        yield LabelledChunk(file=chunk[0], task=chunk[1], rows=rows, scores=some, passed=given)


def _rows(
    model: str,
    context: LabelContext,
    chunk: FileTask,
    index: MediaIndex,
    part: Pooled,
    scores: Scores,
    passed: Passed,
) -> list[Labelled]:
    file, task = chunk
    whole = context.rules.scores(part.whole).tolist() if task.is_cut else None
    boxes = shown_boxes(task, index.width) if task.is_cut else []
    values, given, best = scores.tolist(), passed.tolist(), part.at.tolist()

    def scored(at: int, label: int) -> Scored:
        name, threshold, why = context.described[label]
        rounded = round(values[at][label], DIGITS)
        return Scored(
            label=name,
            score=rounded,
            passed=given[at][label],
            whole=rounded if whole is None else round(whole[at][label], DIGITS),
            box=boxes[best[at][label]] if boxes else None,
            threshold=threshold,
            why=why,
        )

    def row(at: int) -> Labelled:
        ranked = np.argsort(-scores[at], kind="stable").tolist()
        described = {*ranked[: context.top], *np.flatnonzero(passed[at]).tolist()}
        return Labelled(
            media_path=file.media_path,
            source=file.source,
            time=None if task.medium.kind == "image" else task.chunk.times[at],
            labels=tuple(
                scored(at, label)
                for label in sorted(described, key=lambda label: (-values[at][label], label))
            ),
            top=context.described[ranked[0]][0],
            model=model,
            precision={**task.variant.precision, **context.precision},
            features=task["embeddings" if context.tags is None else STAGE.writes],
            labels_digest=context.labels_digest,
            tiles=task.variant.tiles,
            warnings=(*index.warnings, *task.chunk.warnings),
        )

    return [row(at) for at in range(len(scores))]
