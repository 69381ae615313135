"""Implements `penstock check`: says what a trainer would not see of a data set that a run wrote.

Nothing is downloaded, and no model runs, but the language half with `--fix`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, closing
from dataclasses import replace
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.texts.trainer_models import TrainerModel, parse_trainers
from artifacts.wording import counted
from flows.core.console.display import Display
from flows.core.console.lines import print_lines
from flows.core.options.text import TRUST_FOLDER_HELP
from flows.outputs.record.run_read import load_record
from flows.outputs.seen.check import Checked, check, models_of
from flows.outputs.seen.sets import samples_of
from flows.outputs.seen.words import WordRules

SHOWN = 10
"""Most samples of a rule that are printed."""


def check_command(given: argparse.Namespace) -> int:
    """Check the data sets of a run; return 1 if a trainer would not see all. Raises UsageError,
    EnvironmentFault."""
    lines, checked = check_run(
        Path(required_path(given.out)),
        parse_trainers(given.trainer or []),
        forbid=[word.strip() for word in (given.forbid or "").split(",") if word.strip()],
        tokenizers=given.tokenizers,
        fix=given.fix,
        trust=given.trust_folder,
    )
    print_lines(*lines, to=sys.stderr if given.json else None)
    if given.json:
        print(json.dumps([one.values for one in checked], indent=1))
    else:
        print_lines(*(line for one in checked for line in lines_of(one)))
    return int(any(one.rules or not one.samples for one in checked))


def check_run(
    out: Path,
    trainers: Sequence[str],
    *,
    forbid: Sequence[str] = (),
    tokenizers: str | Path | None = None,
    fix: bool = False,
    trust: bool = False,
) -> tuple[list[str], list[Checked]]:
    """Return what trainers would not see of a run: those that are named, or else those that it was
    written for. With `fix`, captions that are too long are made shorter before, and a line on each
    trainer is returned, too. Raises PenstockError."""
    words, models = load_record(out).plan.words, models_of(out, trainers)
    folder = tokenizers_in(tokenizers)
    absolute = None if folder is None else folder.absolute()
    lines = [*_fixed(out.absolute(), models, absolute, trust)] if fix else []
    return lines, [
        check(
            out,
            model,
            WordRules(trainer=model.trainer, trigger=words.trigger, forbidden=tuple(forbid)),
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


def tokenizers_in(given: str | Path | None) -> Path | None:
    """Return the folder of `--tokenizers`, if it is given. Raises UsageError."""
    folder = Path(required_path(str(given))) if given else None
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="Name a folder of tokenizers, or none")
    return folder


def add_trained(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained."""
    parser.add_argument(
        "--trainer",
        action="append",
        metavar="TRAINER:MODEL",
        help="what is trained [what the run was written for]",
    )
    parser.add_argument(
        "--tokenizers", metavar="DIR", help="folder of tokenizers, or a trainer's cache of them"
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    add_trained(parser)
    parser.add_argument("--forbid", metavar="W,W", help="words that no caption may have")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="make captions shorter that are too long, but a person's",
    )
    parser.add_argument("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)
    parser.add_argument("--json", action="store_true", help="print all as JSON")
