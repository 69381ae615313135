"""Typed questions about a chunk or an image, and their answers from log probabilities.

A question has a name, a text, and one of four types, which its fields decide:

    [watermark]                                      yes-no: no field
    text = "Is there a watermark in this picture?"

    [shot]                                           labels: one of them is the answer
    text = "How is this shot framed?"
    labels = ["close-up", "medium shot", "wide shot"]

    [quality]                                        score: a number from 1 to this
    text = "How sharp is this picture?"
    score = 5

    [things]                                         tags: each is a question of yes or no
    text = "Is there {} in this picture?"
    tags = ["a car", "a dog"]

How an answer is made:

1. A question becomes probes: a prompt and the labels that may follow it. Each tag is one probe, any
   other question is one. A record of the store belongs to one probe about one chunk, so a new tag
   is one new probe, and a new name is none.
2. The record holds the log probability of each label. Everything else is computed from these.
3. The probabilities of a question's labels are normalized among themselves. `mass` is what they had
   together before: how much the model wanted to answer with any of them.
4. A server may state no log probability for a label. The record then holds an upper bound of it. A
   probe that has only upper bounds gets no answer, and its tag gets no probability.
"""

import json
import math
import re
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from artifacts.digests import digest_of
from artifacts.disk.files import encoded
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.schema import values_of
from artifacts.texts.calibration import RAW, Calibration

Type = Literal["yes-no", "labels", "score", "tags"]
YES_NO = ("Yes", "No")
LETTERS = string.ascii_uppercase
"""What a server answers in place of labels of several tokens."""
BY_LETTER = "Answer with the letter of one of these only."
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""The form of a question's name: it is a column of tables and conditions."""
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but line feeds and tabs, and what is no Unicode."""
FIELDS = frozenset({"text", "labels", "score", "tags", "instruction", "threshold"})
MAX_LABELS = 1000
"""Largest number of labels or tags of a question."""
MAX_SCORE = 10
DIGITS = 24
"""Hex digits of a probe's identity."""
THRESHOLD = 0.5
"""Probability from which on a tag counts, unless its question says another."""
LEAST_MASS = 0.05
"""Share of the probability below which the labels of an answer are hardly what the model wants to
say, so that their probabilities among themselves mean little."""
BEFORE_LABELS, BETWEEN_LABELS = "\x1e", "\x1f"
"""Separators of a probe that is written as one text. Questions hold no control characters."""
EXAMPLE = 'Write a table for each question: [watermark] and text = "Is there a watermark?"'


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionProbe:
    """A prompt, and the labels whose probability is measured after it."""

    prompt: str
    labels: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the probe as one text, which is part of the key of its record."""
        return f"{self.prompt}{BEFORE_LABELS}{BETWEEN_LABELS.join(self.labels)}"

    @property
    def digest(self) -> str:
        """Return the identity of the probe in decisions."""
        return digest_of(self.text)[:DIGITS]

    @classmethod
    def of(cls, text: str) -> "QuestionProbe":
        """Return the probe that was written as this text."""
        prompt, _, labels = text.rpartition(BEFORE_LABELS)
        return cls(prompt=prompt, labels=tuple(labels.split(BETWEEN_LABELS)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of a user."""

    name: str
    text: str
    type: Type
    labels: tuple[str, ...] = YES_NO
    """The possible answers; of `tags`, the tags."""
    instruction: str | None = None
    """The sentence after the text that says how to answer; None: that of the type."""
    threshold: float = THRESHOLD
    """Probability from which on a tag counts."""

    @property
    def probes(self) -> tuple[QuestionProbe, ...]:
        """Return the probes of the question, for tags in their order."""
        if self.type == "tags":
            texts = (self.text.replace("{}", tag) for tag in self.labels)
            return tuple(QuestionProbe(prompt=self._prompt(text), labels=YES_NO) for text in texts)
        return (QuestionProbe(prompt=self._prompt(self.text), labels=self.labels),)

    @property
    def one_token_probes(self) -> tuple[QuestionProbe, ...]:
        """Return the probes whose labels are one token each: those of the question, or letters in
        place of labels that are no single words. Raises UsageError."""
        if self.type != "labels" or all(map(str.isalnum, self.labels)):
            return self.probes
        if len(self.labels) > len(LETTERS):
            raise UsageError(
                f"{self.name}: a server answers these labels by letters, and {len(self.labels):,} "
                f"labels are more than {len(LETTERS)}",
                hint="Give fewer labels, or make them tags",
            )
        letters = LETTERS[: len(self.labels)]
        choices = (f"{of}) {label}" for of, label in zip(letters, self.labels, strict=True))
        prompt = "\n".join(filter(None, (self.text, self.instruction, *choices, BY_LETTER)))
        return (QuestionProbe(prompt=prompt, labels=tuple(letters)),)

    def _prompt(self, text: str) -> str:
        instruction = self._default if self.instruction is None else self.instruction
        return f"{text}\n{instruction}" if instruction else text

    @property
    def _default(self) -> str:
        if self.type == "labels":
            return f"Answer with one of these only: {', '.join(self.labels)}."
        if self.type == "score":
            return f"Answer with a number from 1 (least) to {len(self.labels)} (most) only."
        return "Answer Yes or No only."

    def to_json(self) -> dict[str, Json]:
        """Return the fields of the question as a file has them."""
        of_type: dict[Type, Json] = {
            "labels": [*self.labels],
            "tags": [*self.labels],
            "score": len(self.labels),
        }
        fields: dict[str, Json] = {"text": self.text}
        fields |= {self.type: of_type[self.type]} if self.type in of_type else {}
        fields |= {} if self.instruction is None else {"instruction": self.instruction}
        return fields | ({"threshold": self.threshold} if self.type == "tags" else {})


Questions = tuple[Question, ...]
Probes = dict[str, tuple[QuestionProbe, ...]]
"""Name of a question → its probes."""


def probes_of(questions: Questions, *, one_token: bool) -> Probes:
    """Return the probes of questions, with labels of one token each for a server. Raises
    UsageError."""
    return {one.name: one.one_token_probes if one_token else one.probes for one in questions}


def canonical(questions: Questions) -> str:
    """Return questions as one JSON text, which `read_questions` reads."""
    return encoded({one.name: one.to_json() for one in questions})


def refuse_same(labels: Iterable[str], tokens: Iterable[Sequence[int]], about: str = "") -> None:
    """Raise UsageError for two labels with the same tokens; `about` begins its message."""
    label_of: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, tokens, strict=True):
        if (first := label_of.setdefault(tuple(ids), label)) != label:
            raise UsageError(
                f"{about}the model reads the labels {first!r} and {label!r} as the same tokens",
                hint="Write one of them in other words",
            )


def read_questions(text: str, source: str) -> Questions:
    """Read questions from TOML or JSON. `source` names them in errors. Raises UsageError, which
    names the first question that is wrong."""
    try:
        is_json = text.lstrip().startswith("{")
        tables = json.loads(text, object_pairs_hook=_once) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is neither TOML nor JSON: {error}", hint=EXAMPLE) from error
    if not isinstance(tables, Mapping) or not tables:
        raise UsageError(f"{source} holds no question", hint=EXAMPLE)
    return tuple(_question(str(name), table, source) for name, table in tables.items())


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Return an object of JSON. Raises ValueError for a name that is there twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return table


def _question(name: str, given: Json, source: str) -> Question:
    table: Json = {"text": given} if isinstance(given, str) else given
    where = f"{source}: {name}"
    if not NAME.fullmatch(name):
        hint = "Use a-z, 0-9 and _, up to 40 of them, a letter first: shot_size"
        raise UsageError(f"{where}: invalid name of a question", hint=hint)
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: it is no table", hint=EXAMPLE)
    if control := next(filter(None, map(CONTROL.search, _texts_in(table))), None):
        hint = "Write it as you would read it aloud"
        raise UsageError(f"{where}: it holds the control character {control[0]!r}", hint=hint)
    if not _is_text(text := table.get("text")):
        raise UsageError(f"{where}: it has no text", hint=EXAMPLE)
    if others := sorted(table.keys() - FIELDS):
        raise UsageError(
            f"{where}: unknown field {others[0]}", hint=f"Known are {', '.join(sorted(FIELDS))}"
        )
    types: list[Type] = [t for t in ("labels", "score", "tags") if t in table]
    if len(types) > 1:
        raise UsageError(f"{where}: {' and '.join(types)} exclude each other", hint="Keep one")
    kind: Type = types[0] if types else "yes-no"
    labels = YES_NO if kind == "yes-no" else _labels(kind, table[kind], where)
    if (kind == "tags") != ("{}" in str(text)):
        fault = "its text has no {}" if kind == "tags" else "its text has {}, and there are no tags"
        hint = 'Tags stand in its place: text = "Is there {}?" and tags = ["a car", "a dog"]'
        raise UsageError(f"{where}: {fault}", hint=hint)
    instruction, threshold = table.get("instruction"), table.get("threshold", THRESHOLD)
    if instruction is not None and not (instruction == "" or _is_text(instruction)):
        raise UsageError(f"{where}: instruction is no text", hint='Write a sentence, or ""')
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise UsageError(f"{where}: threshold is no number", hint="Give 0.5, or another share")
    if not 0 <= threshold <= 1 or ("threshold" in table and kind != "tags"):
        hint = "It is the share from 0 to 1 from which on a tag counts; only tags have one"
        raise UsageError(f"{where}: invalid threshold {threshold:g}", hint=hint)
    return Question(
        name=name,
        text=str(text),
        type=kind,
        labels=labels,
        instruction=None if instruction is None else str(instruction),
        threshold=float(threshold),
    )


def _texts_in(given: Json) -> Iterator[str]:
    """Yield all texts of a value."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping | list):
        for inner in given.values() if isinstance(given, Mapping) else given:
            yield from _texts_in(inner)


def _labels(kind: Type, given: Json, where: str) -> tuple[str, ...]:
    """Return the labels that a field gives. Raises UsageError."""
    if kind == "score":
        if isinstance(given, bool) or not isinstance(given, int) or not 2 <= given <= MAX_SCORE:
            hint = f"Give a whole number from 2 to {MAX_SCORE}: score = 5 asks for 1 to 5"
            raise UsageError(f"{where}: invalid score {given!r}", hint=hint)
        return tuple(str(level) for level in range(1, given + 1))
    least = 2 if kind == "labels" else 1
    if not isinstance(given, list) or not all(map(_is_text, given)):
        raise UsageError(
            f"{where}: {kind} is no list of texts", hint=f'{kind} = ["a car", "a dog"]'
        )
    labels = tuple(str(label).strip() for label in given)
    if again := next((label for at, label in enumerate(labels) if label in labels[:at]), ""):
        raise UsageError(f"{where}: {again!r} is twice among {kind}", hint="Leave one out")
    if not least <= len(labels) <= MAX_LABELS:
        hint = f"Give {least} to {MAX_LABELS:,} in one question"
        raise UsageError(f"{where}: {len(labels):,} {kind}", hint=hint)
    return labels


def _is_text(given: Json) -> bool:
    """Return whether a value is a text with something to read."""
    return isinstance(given, str) and bool(given.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionAnswer:
    """The answer to a question about a chunk. Fields that its type does not have are None."""

    type: Type
    answer: str | None = None
    """The most probable label: `Yes` or `No`, one of `labels`, or a number of `score`."""
    p: float | None = None
    """The probability of `Yes`, or of `answer` among the other labels."""
    raw: float | None = None
    """What `p` was before it was calibrated by decisions of people; None: it was not."""
    tags: tuple[str, ...] | None = None
    """The tags from the threshold on, in the order of the question."""
    score: float | None = None
    """The mean of the numbers by their probability."""
    deviation: float | None = None
    """The standard deviation of the numbers."""
    margin: float | None = None
    """By how much the probability of `answer` exceeds the next one."""
    probabilities: dict[str, float] | None = None
    """Label or tag → its probability."""
    raw_probabilities: dict[str, float] | None = None
    """Tag → its probability before it was calibrated."""
    mass: float
    """Share of the probability that the labels had together before they were normalized; of tags,
    the smallest."""
    bounded: bool | None = None
    """True: a server did not state the probability of every label, and a bound stands in its
    place: at most so probable."""

    @property
    def text(self) -> str:
        """Return the answer as a caption shows it: the label, the mean number of a score rounded,
        or the tags in their order; empty: no tag counts."""
        if self.score is not None:
            return f"{self.score:.0f}"
        return self.answer or ", ".join(self.tags or ())

    def short(self) -> "QuestionAnswer":
        """Return the answer without the probabilities of all labels."""
        return replace(self, probabilities=None, raw_probabilities=None)

    def to_json(self) -> dict[str, Json]:
        """Return the fields that its type has."""
        return {name: v for name, v in values_of(self).items() if v is not None}


def stated_scores(record: Mapping[str, Any]) -> Sequence[float]:
    """Return the log probability of each label of a probe from the fields of its record. Return
    none if every label has the same upper bound: such a record cannot rank the labels."""
    scores: Sequence[float] = record["scores"]
    return () if record.get("bounded") and len(set(scores)) == 1 else scores


def answer_of(
    question: Question,
    *chunks: Sequence[Sequence[float]],
    calibrations: Sequence[Calibration] = (),
    is_bounded: bool = False,
) -> QuestionAnswer:
    """Return the answer to a question from the log probabilities of the labels of each of its
    probes, in their order. Of several `chunks`, the mean of their probabilities counts, of each by
    its calibration. `is_bounded`: some of them are bounds. A tag whose probe has none is left out;
    some probe of each chunk has to have some."""
    masses = (sum(map(math.exp, own)) for scores in chunks for own in scores if own)
    mass = min(1.0, *masses)  # rounding, and bounds, may add up to more than 1
    mass = float(f"{mass:.3g}")  # three digits, however small: 1e-9 says more than 0
    raw = _answer(question, chunks, [RAW] * len(chunks), mass)
    raw = replace(raw, bounded=True) if is_bounded else raw
    if all(calibration == RAW for calibration in calibrations):
        return raw
    answer = replace(_answer(question, chunks, calibrations, mass), bounded=raw.bounded)
    if question.type == "tags":
        return replace(answer, raw_probabilities=raw.probabilities)
    return replace(answer, raw=(raw.probabilities or {}).get(answer.answer or "", raw.p))


def _answer(
    question: Question,
    chunks: Sequence[Sequence[Sequence[float]]],
    calibrations: Sequence[Calibration],
    mass: float,
) -> QuestionAnswer:
    """Return the same by these calibrations alone."""
    pairs = [*zip(chunks, calibrations, strict=True)]
    probes = [
        _mean([by.of(scores[at]) for scores, by in pairs if scores[at]])
        for at in range(len(chunks[0]))
    ]
    if question.type == "tags":
        tags = {tag: _rounded(p[0]) for tag, p in zip(question.labels, probes, strict=True) if p}
        passed = tuple(tag for tag, p in tags.items() if p >= question.threshold)
        return QuestionAnswer(type="tags", tags=passed, probabilities=tags, mass=mass)
    shares = dict(zip(question.labels, probes[0], strict=True))
    best = max(shares, key=lambda label: shares[label])
    if question.type == "yes-no":
        return QuestionAnswer(type="yes-no", answer=best, p=_rounded(shares[YES_NO[0]]), mass=mass)
    first, second = sorted(shares.values(), reverse=True)[:2]
    answer = QuestionAnswer(
        type=question.type,
        answer=best,
        p=_rounded(first),
        margin=_rounded(first - second),
        probabilities={label: _rounded(p) for label, p in shares.items()},
        mass=mass,
    )
    if question.type == "labels":
        return answer
    mean = sum(int(level) * p for level, p in shares.items())
    spread = sum(p * (int(level) - mean) ** 2 for level, p in shares.items())
    return replace(answer, score=_rounded(mean), deviation=_rounded(math.sqrt(spread)))


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each column; empty without rows."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _rounded(number: float) -> float:
    return round(number, 6) + 0.0
