"""Checks a data set for one trainer: what it would not see of captions and media."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from artifacts.disk.json_shapes import BYTES
from artifacts.disk.regular_files import read_text
from artifacts.errors import PenstockError, UsageError
from artifacts.texts.trainer_limits import limits_of
from artifacts.texts.trainer_models import TrainerModel, form_of, models_named
from artifacts.texts.trainers import TrainerEntry, toml_text
from artifacts.wording import counted
from flows.outputs.marker import read_marker
from flows.outputs.record.run_read import load_record
from flows.outputs.seen.media import look_at
from flows.outputs.seen.media_rules import note_media
from flows.outputs.seen.sets import Fault, TrainedSample, samples_of
from flows.outputs.seen.tokens import note_tokens
from flows.outputs.seen.words import WordRules, note_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """The outcome for one trainer."""

    model: TrainerModel
    samples: list[TrainedSample]
    notes: list[str]

    @property
    def rules(self) -> Counter[str]:
        """Return rule → number of samples that break it."""
        return Counter(rule for s in self.samples for rule in {f.rule for f in s.faults})

    @property
    def summary(self) -> str:
        """Return how many samples lose something, and by which rules."""
        faulty = sum(bool(sample.faults) for sample in self.samples)
        rules = ", ".join(f"{count:,} {rule}" for rule, count in self.rules.most_common())
        return f"{faulty:,} of {counted(len(self.samples), 'sample')} lose something: {rules}"

    @property
    def values(self) -> dict[str, object]:
        """Return it for `--json`."""
        faulty = [sample for sample in self.samples if sample.faults]
        return {
            "trainer": self.model.label,
            "samples": len(self.samples),
            "rules": dict(self.rules),
            "notes": self.notes,
            "faults": [
                {"path": str(s.path), "kind": s.kind, **_fields(fault)}
                for s in faulty
                for fault in s.faults
            ],
        }


def _fields(fault: Fault) -> dict[str, object]:
    optional = {"crop": None} if fault.rule == "tokens" else {"crop": None, "words": ""}
    return {name: v for name, v in asdict(fault).items() if v != optional.get(name, ...)}


def check(
    out: Path,
    model: TrainerModel,
    rules: WordRules,
    tokenizers: Path | None = None,
    known: Mapping[Path, TrainerEntry] | None = None,
) -> Checked:
    """Return what a trainer would not see of a run. No medium is opened if their sizes, rates and
    frames are `known`. Raises UsageError, EnvironmentFault."""
    samples = samples_of(out, model)
    notes = check_samples(samples, model, rules, tokenizers, known)
    folder = out.absolute() / form_of(model.trainer)
    if is_copied(folder):
        notes.append(
            f"{folder / CONFIG} names files of another folder: if {out} was copied or moved, run "
            f"the same `penstock caption` command again with --out {out}"
        )
    return Checked(model=model, samples=samples, notes=notes)


def check_samples(
    samples: Sequence[TrainedSample],
    model: TrainerModel,
    rules: WordRules,
    tokenizers: Path | None = None,
    known: Mapping[Path, TrainerEntry] | None = None,
) -> list[str]:
    """Add the faults of samples, as `check` does, and return notes. Raises EnvironmentFault."""
    note_words(samples, rules)
    if known is None:
        look_at(samples)
    for sample in samples:
        if known is not None and (entry := known.get(sample.path)) is not None:
            sample.size, sample.rate, sample.frames = entry.size, entry.rate, entry.frames or 1
    note_media(samples, model)
    limits = limits_of(model.trainer, model.name)
    notes = [*note_tokens(samples, limits, tokenizers)]
    if not limits:
        notes.append(f"it is not known how much of a caption {model.label} reads")
    return notes


NAME_IT = "Name it: --trainer TRAINER:MODEL, such as kohya:sdxl"


def models_of(out: Path, named: Sequence[str], hint: str = NAME_IT) -> list[TrainerModel]:
    """Return the models that are named, or else those that a run was written for. Raises
    UsageError, with the hint, if there are none."""
    marker = read_marker(out)
    names = named or (() if marker is None else marker.trainers)
    if not names:
        raise UsageError(f"{out} does not say what is trained on it", hint=hint)
    return [*models_named(names).values()]


CONFIG = "dataset.toml"


def is_copied(folder: Path) -> bool:
    """Return whether the settings of a data set do not name its folder, as those of a copy."""
    with contextlib.suppress(OSError, ValueError):
        text, names = read_text(folder / CONFIG, BYTES), {str(folder), os.path.realpath(folder)}
        begins = [toml_text(name)[:-1] for name in names]
        return not any(begin + end in text for begin in begins for end in '/"')
    return False


def lines_on_written(
    out: Path, model: TrainerModel, trigger: str, known: Mapping[Path, TrainerEntry]
) -> Iterator[str]:
    """Yield a line on what a trainer would not see of a data set that was just written, if it would
    not see all. No medium is opened."""
    try:
        rules = WordRules(trainer=model.trainer, trigger=trigger)
        checked = check(out, model, rules, known=known)
    except PenstockError as error:
        yield f"{model.label}: not checked: {error}"
        return
    if checked.rules:
        yield f"{model.label}: {checked.summary} (penstock check {out} names them)"


def lines_on(out: Path, form: str = "") -> list[str]:
    """Return what trainers would not see of the captions of a run, a line for each that its folder
    states; with `form`, the one of this format alone. No medium is opened."""
    with contextlib.suppress(PenstockError):  # of another person, a folder may state anything
        marker, words = read_marker(out), load_record(out).plan.words
        models = models_named(() if marker is None else marker.trainers).values()
        of_form = [model for model in models if form in ("", form_of(model.trainer))]
        return [
            line for model in of_form for line in lines_on_written(out, model, words.trigger, {})
        ]
    return []
