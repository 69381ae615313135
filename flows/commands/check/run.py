"""Says what trainers would not see of a data set that a run wrote."""

from collections.abc import Iterator, Sequence
from contextlib import chdir, closing
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.texts.trainer_models import TrainerModel
from artifacts.wording import counted
from flows.core.console.display import Display
from flows.outputs.record.run_read import load_record
from flows.outputs.seen.check import Checked, check, models_of
from flows.outputs.seen.sets import samples_of
from flows.outputs.seen.words import WordRules

SHOWN = 10
"""Most samples of a rule that are printed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRequest:
    """What is checked of a run."""

    trainers: tuple[str, ...] = ()
    """As `--trainer` names them; none: those that the run was written for."""
    forbid: tuple[str, ...] = ()
    """Words that no caption may have."""
    tokenizers: str | Path | None = None
    """Folder of tokenizers, or a trainer's cache of them."""
    fix: bool = False
    """Whether captions that are too long are made shorter before."""
    trust: bool = False
    """Whether the run's command counts though another person may have written it."""


def check_run(out: Path, request: CheckRequest) -> tuple[list[str], list[Checked]]:
    """Return what trainers would not see of a run. With `fix`, a line on each trainer is returned,
    too. Raises PenstockError."""
    words, models = load_record(out).plan.words, models_of(out, request.trainers)
    folder = tokenizers_in(request.tokenizers)
    absolute = None if folder is None else folder.absolute()
    lines = [*_fixed(out.absolute(), models, absolute, request.trust)] if request.fix else []
    return lines, [
        check(
            out,
            model,
            WordRules(trainer=model.trainer, trigger=words.trigger, forbidden=request.forbid),
            folder,
        )
        for model in models
    ]


def _fixed(
    out: Path, models: Sequence[TrainerModel], tokenizers: Path | None, trust: bool
) -> Iterator[str]:
    """Make captions that are too long shorter, and yield a line on each trainer. Raises
    PenstockError."""
    from flows.commands.check.fix import fits_in, shorten
    from flows.commands.shared.arguments import recorded_run
    from flows.outputs.folder.trust import SHOWN as USED
    from flows.outputs.folder.trust import command_in, is_trusted

    trust = trust or is_trusted(out, uses=USED)
    samples, readers = {model: samples_of(out, model) for model in models}, {}
    for model in models:
        try:
            readers[model] = fits_in(model, tokenizers)
        except UsageError as error:  # its tokenizer is not here
            if len(models) == 1:
                raise
            yield f"{model.label}: {error.message}"
    command = command_in(out, trust=trust)
    display = Display(quiet=True)
    with closing(display), chdir(command.folder):  # the paths of the command are relative to it
        run = recorded_run(command)
        run = replace(run, config=replace(run.config, out=str(out), trust_folder=trust))
        for model, fits in readers.items():
            fixed = shorten(run, model, samples[model], fits, display)
            yield f"{model.label}: {fixed.line}"


def lines_of(checked: Checked) -> Iterator[str]:
    """Yield the faults, the rules with most samples first, and a last line that counts them."""
    for rule, count in checked.rules.most_common():
        faulty = [s for s in checked.samples if any(f.rule == rule for f in s.faults)]
        for sample in faulty[:SHOWN]:
            texts = dict.fromkeys(fault.text for fault in sample.faults if fault.rule == rule)
            yield f"{sample.path.name}: {rule}: {'; '.join(texts)}"
        if count > SHOWN:
            yield f"… and {count - SHOWN:,} more with {rule}: --json names all"
    for note in checked.notes:
        yield f"note: {note}"
    label, total = checked.model.label, len(checked.samples)
    if not total:
        yield f"{label}: the data set is empty"
    elif not checked.rules:
        yield f"{label}: {counted(total, 'sample')}, and nothing is lost"
    else:
        yield f"{label}: {checked.summary}"


def tokenizers_in(place: str | Path | None) -> Path | None:
    """Return the folder of `--tokenizers`, if it is given. Raises UsageError."""
    folder = Path(required_path(str(place))) if place else None
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="Name a folder of tokenizers, or none")
    return folder
