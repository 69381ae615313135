"""Implements `penstock watch`: runs a command again when files of its folders come to rest."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from artifacts.errors import UsageError, redacted
from artifacts.option_texts import parse_duration
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parse
from flows.core.console.lines import duration, print_lines
from flows.core.options.commands import CaptionConfig, RunOptions
from flows.core.options.questions import AskConfig
from flows.core.options.vectors import EmbedConfig, IndexConfig, LabelConfig

CONFIGS: dict[str, type[RunOptions]] = {
    "caption": CaptionConfig,
    "label": LabelConfig,
    "embed": EmbedConfig,
    "ask": AskConfig,
    "index build": IndexConfig,
}
"""Command that may be watched → its options."""
EXAMPLE = "penstock watch -- caption VIDEOS/ --model MODEL --out OUT"


def add_watch(parser: argparse.ArgumentParser) -> None:
    times = {
        "--every": (60.0, "look for files this often [60s]"),
        "--min-age": (120.0, "take files that nobody has written for this long [2m]"),
    }
    for flag, (default, text) in times.items():
        kind = partial(parse_duration, option=flag)
        parser.add_argument(flag, metavar="TIME", type=kind, default=default, help=text)
    parser.add_argument(
        "run",
        metavar="-- COMMAND",
        nargs=argparse.REMAINDER,
        help=f"{', '.join(CONFIGS)}, with its options",
    )


def watch_command(given: argparse.Namespace) -> NoReturn:
    """Run the command whenever there is something new, until a signal ends the watch. Raises
    UsageError, Interrupted."""
    words = given.run[1:] if given.run[:1] == ["--"] else given.run
    name, config = watched(words)
    if not given.every:
        raise UsageError("--every 0s", hint="Give a time above 0, such as 60s")
    if config.min_age is None:
        at = len(name.split())
        words = [*words[:at], f"--min-age={given.min_age:g}", *words[at:]]
        config = config_of(parse(words), CONFIGS[name])
    from flows.commands.watch.watch import Watch
    from flows.execution.run import stopped_in_order

    command = redacted(shlex.join(["penstock", *words]))
    print_lines(f"watching every {duration(given.every)}: {command}", to=sys.stderr)
    watch = Watch(words=words, config=config, every=given.every)
    with stopped_in_order():
        while True:
            time.sleep(watch.look())


def watched(words: Sequence[str]) -> tuple[str, RunOptions]:
    """Return the name of a command that may be watched, and its configuration. Raises
    UsageError."""
    name = next((n for n in CONFIGS if n.split() == [*words[: len(n.split())]]), "")
    if not name:
        command = f"`{' '.join(words[:2])}`" if words else "no command"
        hint = f"Write one of {', '.join(CONFIGS)} after --: {EXAMPLE}"
        raise UsageError(f"watch cannot run {command}", hint=hint)
    inner = parse(words)
    if inner.dry_run:
        raise UsageError("watch cannot run a command with --dry-run", hint="Leave it out")
    return name, config_of(inner, CONFIGS[name])
