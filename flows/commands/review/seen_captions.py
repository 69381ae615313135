"""Finds captions of a review by what a trainer does not see of them, and says what that is."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import one_line
from artifacts.texts.edits import REJECTED, UNTOUCHED, Edit
from artifacts.texts.trainer_limits import limits_of
from artifacts.texts.trainer_models import TrainerModel
from artifacts.wording import counted
from flows.commands.review.folder_captions import FolderCaptions
from flows.outputs.record.run_read import load_record
from flows.outputs.seen.check import Checked, check_samples, models_of
from flows.outputs.seen.sets import TrainedSample, samples_of, samples_with_texts
from flows.outputs.seen.tokens import main_limit, missing_note
from flows.outputs.seen.words import WordRules

if TYPE_CHECKING:
    from pyarrow import RecordBatch

FIELD = "Trainer filter"
"""Label of the page's field."""
MEASURES = ("tokens", "cropped", "enlarged", "unseen seconds", "duplicate")
"""Rules with a number that a filter may compare."""
RULES = (
    *MEASURES,
    *("empty", "trigger", "lines", "mark", "small", "one colour", "unreadable"),
    *("one frame", "never trained", "wrong rate"),
)
"""Rules that a filter may name."""
OF_SETTINGS = (
    *("cropped", "enlarged", "unseen seconds", "small"),
    *("one frame", "never trained", "wrong rate"),
)
"""Those that follow from the settings in a data set."""
ANY, ALL = "any", "all"
"""Filters: captions that lose anything, and all captions."""
NO_TRAINER = "Write files with a trainer, such as kohya:sdxl, or start the review with --trainer"
COMPARED = r"(?!\s*(?:[=<>!]|in\b|is\b|not\b))"
NAMED = re.compile(rf"\b({'|'.join((*RULES, ANY))})\b{COMPARED}")
"""The name of a rule that is compared with nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What is trained on the captions of a review."""

    trainers: tuple[str, ...] = ()
    """As `--trainer` names them; none: those that the run was written for."""
    tokenizers: Path | None = None


@dataclass(kw_only=True, slots=True)
class LostParts:
    """What trainers do not see of a caption and its medium."""

    texts: list[str] = field(default_factory=list)
    """Each fault in a line."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of what is trained of a picture, in pixels; None: all of it."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the picture in pixels, with `crop`."""

    def add(self, sample: TrainedSample, label: str) -> None:
        """Add what is lost of a sample of the caption. `label`: the model, if there are several."""
        texts = [" ".join(filter(None, (label, f"{f.rule}: {f.text}"))) for f in sample.faults]
        self.texts += dict.fromkeys(texts)
        if self.crop is None and sample.crop not in (None, (0, 0, *sample.size)):
            self.crop, self.size = sample.crop, sample.size

    def to_json(self) -> dict[str, Json]:
        texts: dict[str, Json] = {"texts": [*self.texts]} if self.texts else {}
        crop = {} if self.crop is None else {"crop": [*self.crop], "size": [*self.size]}
        return texts | crop


def seen_in(
    out: Path, folder: FolderCaptions, edits: Mapping[str, Edit], trained: Trained, wanted: str
) -> dict[str, Json]:
    """Return the keys of the captions that a filter finds, what trainers would not see of each
    caption, and a line on each trainer. Raises PenstockError."""
    lines, notes, keys = list[Json](), list[str](), dict[str, None]()
    lost = defaultdict[str, LostParts](LostParts)
    models = models_of(out, trained.trainers, NO_TRAINER)
    for model in models:
        pairs, more = _checked(out, folder, edits, model, trained.tokenizers)
        notes += more
        checked = Checked(model=model, samples=[sample for _, sample in pairs], notes=more)
        count = counted(len(checked.samples), "sample")
        nothing_lost = f"{count}, and nothing is lost"
        lines.append(f"{model.label}: {checked.summary if checked.rules else nothing_lost}")
        are_meant, unknown = _meant(checked.samples, wanted)
        if "tokens" in unknown and (limit := main_limit(limits_of(model.trainer, model.name))):
            notes.append(f"tokens cannot be counted: {missing_note(limit.tokenizer)}")
        has_settings = any(sample.settings is not None for sample in checked.samples)
        if not has_settings and any(rule in wanted.lower() for rule in OF_SETTINGS):
            notes.append(
                f"nothing is found by {', '.join(OF_SETTINGS)} for {model.label}: no data set of "
                "this folder states its settings"
            )
        for (key, sample), is_meant in zip(pairs, are_meant, strict=True):
            keys |= {key: None} if is_meant else {}
            lost[key].add(sample, model.label if len(models) > 1 else "")
    shown: dict[str, Json] = {key: json for key, parts in lost.items() if (json := parts.to_json())}
    return {"keys": [*keys], "lost": shown, "lines": lines, "notes": [*dict.fromkeys(notes)]}


def _checked(
    out: Path,
    folder: FolderCaptions,
    edits: Mapping[str, Edit],
    model: TrainerModel,
    tokenizers: Path | None,
) -> tuple[list[tuple[str, TrainedSample]], list[str]]:
    """Return the key of each caption that a trainer gets with its sample and the faults of that,
    and notes. Edits count that the data set does not have yet. Raises PenstockError."""
    pairs = list[tuple[str, TrainedSample]]()
    samples = [*samples_with_texts(out)] if folder.has_texts else samples_of(out, model)
    for key, sample in _with_keys(folder, samples):
        edit = edits.get(key, UNTOUCHED)
        text = folder.as_written(key, edit.caption or folder.rows[key]["said"])
        if not folder.captions[key].by_hand and text != one_line(folder.captions[key].written):
            sample.captions = (text,)
        if edit.review != REJECTED:
            pairs.append((key, sample))
    rules = WordRules(trainer=model.trainer, trigger=load_record(out).plan.words.trigger)
    notes = check_samples([sample for _, sample in pairs], model, rules, tokenizers)
    has = {key for key, _ in pairs}
    not_rejected = (k for k in folder.rows if edits.get(k, UNTOUCHED).review != REJECTED)
    if away := sum(key not in has for key in not_rejected):
        notes.append(f"{counted(away, 'caption')} not in the data set of {model.label}")
    return pairs, notes


def _with_keys(
    folder: FolderCaptions, samples: Sequence[TrainedSample]
) -> Iterator[tuple[str, TrainedSample]]:
    """Yield each caption of the samples as a sample with the key of that caption: of those of its
    medium, else, of a clip, the next one of the same words."""
    places = {os.path.realpath(place): at for at, place in enumerate(folder.places) if place}
    alike = dict[str, list[str]]()
    for key in (key for keys in folder.keys_at for key in keys):
        alike.setdefault(one_line(folder.captions[key].written), []).append(key)
    for sample in samples:
        number = places.get(os.path.realpath(sample.path))
        own = [] if number is None else folder.keys_at[number]
        for at, text in enumerate(sample.captions or ("",)):
            words = one_line(text)
            same = [key for key in own if one_line(folder.captions[key].written) == words] or own[
                at:
            ]
            if not own:
                same, alike[words] = alike.get(words, [])[:1], alike.get(words, [])[1:]
            if same:
                own_text = (text,) if sample.captions else ()
                faults = [*sample.faults]
                yield same[0], replace(sample, captions=own_text, faults=faults, measures={})


def _meant(samples: Sequence[TrainedSample], wanted: str) -> tuple[list[bool], list[str]]:
    """Return which samples a filter finds, and the measures that it names and none has. Raises
    UsageError for another filter."""
    import pyarrow as pa

    from artifacts.index.where import Condition, Table

    text = " ".join(wanted.lower().split())
    if text == ALL:
        return [True] * len(samples), []
    columns = {rule.replace(" ", "_"): rule for rule in MEASURES}
    if "'" not in text:
        text = NAMED.sub(lambda match: f"rules like '%|{match[1].replace(ANY, '')}%'", text)
        text = re.sub(r"(?<=\d) ?%", "", text).replace("unseen seconds", "unseen_seconds")
    example = "tokens > 75 or cropped > 20 %"
    table = Table(columns=(*columns, "rules"), texts=("rules",), option=FIELD, example=example)
    condition = Condition(text, table)
    measures = {name: [s.measures.get(rule) for s in samples] for name, rule in columns.items()}
    rules = ["".join(f"|{fault.rule}|" for fault in sample.faults) for sample in samples]
    numbers = {name: pa.array(measures[name], pa.float64()) for name in columns}
    rows = {**numbers, "rules": pa.array(rules, pa.string())}
    batch: RecordBatch = pa.RecordBatch.from_pydict(rows)
    named = condition.columns & columns.keys()
    unknown = [columns[name] for name in named if {*measures[name]} == {None}]
    return condition.of(batch).tolist(), unknown
