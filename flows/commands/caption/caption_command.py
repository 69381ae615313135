"""Implements `penstock caption`, with or without Prefect, and prints the result."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.paths import folder_named
from artifacts.errors import EnvironmentFault
from artifacts.records.store import open_store
from artifacts.texts.edits import REJECTED
from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_caption_options, add_quiet_options, add_ray_option
from flows.core.console.display import READING, Display
from flows.core.console.lines import escaped, print_lines, shortened, terminal_width
from flows.core.media.output_rows import CaptionRow
from flows.core.options.commands import CaptionConfig

SHOWN = 3
"""Maximum number of media for which the command prints a new caption."""
SEARCHED = 100
"""Lines of `captions.jsonl` that are searched for them."""


def first_rows(out: Path) -> list[CaptionRow]:
    """Return the first rows of `captions.jsonl`; none if it cannot be read."""
    try:
        return read_jsonl_file(CaptionRow, out / "captions.jsonl", "", max_lines=SEARCHED)
    except EnvironmentFault:
        return []


def first_captions(out: Path, earlier: Iterable[CaptionRow] = ()) -> list[str]:
    """Return one line for each of the first media with captions that are not `earlier` ones: its
    name and its first caption that was not rejected, cut at the terminal's width."""
    seen = {(row.media_path, row.prompt, row.caption) for row in earlier}
    captions: dict[str, str] = {}
    for row in first_rows(out):
        is_new = (row.media_path, row.prompt, row.caption) not in seen
        if is_new and row.review != REJECTED and len(captions) < SHOWN:
            captions.setdefault(row.media_path, row.caption)
    width = terminal_width(sys.stdout)
    return [_line(path, caption, width) for path, caption in captions.items()]


def _line(path: str, caption: str, width: int) -> str:
    name = shortened(escaped(PurePath(path).name), width // 3)
    return shortened(f"  {name}: {escaped(' '.join(caption.split()))}", width)


if TYPE_CHECKING:
    from flows.outputs.run_result import RunResult


def caption_command(given: argparse.Namespace) -> int:
    config = config_of(given, CaptionConfig)
    display = Display(quiet=given.quiet, as_json=given.json)
    if given.dry_run:
        return show(config, as_json=given.json, dry_run="caption")
    from flows.outputs.folder.trust import CORRECTIONS, OUTPUTS, is_trusted
    from flows.outputs.record.record_writer import remember
    from flows.outputs.record.recorded_command import with_values

    out, uses = folder_named(config.out, "out"), (CORRECTIONS, OUTPUTS)
    # The run itself notes what it leaves out.
    trust = config.trust_folder or is_trusted(out, config.store, uses, notes=False)
    config = replace(config, trust_folder=trust)
    earlier = first_rows(out)
    result: RunResult
    with closing(display):
        if given.ray:
            # Tasks get the address of the store as an option.
            url = open_store(config.store_url).url
            words = given.words if config.store else with_values(given.words, {"--store": url})
            begun = partial(remember, words)
            result = given.elsewhere.on_cluster(
                "caption", config, display, given.ray, on_begin=begun
            )
        elif given.prefect or os.environ.get("PREFECT_API_URL", "").strip():
            display.doing("starting Prefect")
            result = given.elsewhere.with_prefect(config, display)
        else:
            display.doing(READING)
            from flows.commands.caption.run import caption

            result = caption(config, display, on_begin=partial(remember, given.words))
    if print_result(given, result, display):
        print_lines(*(f"note: {warning}" for warning in result.warnings), to=sys.stderr)
        print_lines(*first_captions(result.out, earlier))
        report = f"; view them with `penstock report {shlex.quote(str(result.out))}`"
        print_lines(f"{result.line()}{report if result.captions else ''}")
    return result.exit_code


def add_caption(parser: argparse.ArgumentParser) -> None:
    add_caption_options(parser)
    engine = add_quiet_options(parser).add_mutually_exclusive_group()
    engine.add_argument("--prefect", action="store_true", help="run as a Prefect flow")
    add_ray_option(engine)
