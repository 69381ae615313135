"""Finds the decisions of a review that the files of a run do not have yet."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.json_records import read_jsonl_file
from artifacts.texts.edits import how_to_write, keys_of, lacks_decisions, read_edits
from flows.core.media.output_rows import CaptionRow
from flows.core.options.formats import CAPTIONS
from flows.outputs.folder.trust import belief_in
from flows.outputs.record.run_read import load_record

CORRECTED = "corrected"


class Decided(NamedTuple):
    """A caption as a person left it."""

    text: str
    review: str
    """What the person did: corrected, accepted or rejected; empty: nothing."""
    is_written: bool
    """Whether captions.jsonl says the same."""


def decisions_on(out: Path) -> Callable[[CaptionRow], Decided]:
    """Return a function that returns what was decided on a line of captions, those decisions
    included that were made since the files were written. Raises UsageError, EnvironmentFault."""
    fixed = load_record(out).plan.words.text
    edits = read_edits(out, belief_in(out).proof()).now

    def decided(row: CaptionRow) -> Decided:
        text = row.caption
        before = row.review or (CORRECTED if row.original else "")
        around = fixed.about(row.answers)
        _, own_text, _ = around.parts(row.original or text)
        keys = keys_of(row.features, row.name, row.prompt, own_text)
        edit = next((edits[key] for key in keys if key in edits), None)
        if edit is None:
            return Decided(text, before, True)
        words = own_text if edit.caption is None else edit.caption
        review = edit.review or (CORRECTED if words != own_text else "")
        if (words, review) == (around.parts(text)[1], before):
            return Decided(text, before, True)
        return Decided(words, review, False)

    return decided


def count_unwritten(out: Path) -> int:
    """Return how many captions of a run's folder have a decision that its files do not have. Raises
    UsageError, EnvironmentFault."""
    if not lacks_decisions(out / CAPTIONS):
        return 0
    decided, hint = decisions_on(out), how_to_write(out)
    rows = read_jsonl_file(CaptionRow, out / CAPTIONS, hint)
    return sum(not decided(row).is_written for row in rows)


def unwritten_line(out: Path, count: int) -> str:
    """Return a line on decisions that are not in the files, and what writes them."""
    are = "decision is" if count == 1 else "decisions are"
    return f"{count:,} {are} not in the files yet. {how_to_write(out)}"
