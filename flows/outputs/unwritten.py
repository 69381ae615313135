"""Finds the decisions of a review that the files of a run do not have yet."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.disk.json_shapes import OptionalField, read_jsonl, text
from artifacts.texts.edits import how_to_write, keys_of, lacks_decisions, read_edits
from flows.core.options.formats import CAPTIONS
from flows.outputs.folder.trust import belief_in
from flows.outputs.record.run_read import load_record

LINE = {
    **dict.fromkeys(("caption", "features"), text),
    **dict.fromkeys(("name", "prompt", "review", "original"), OptionalField(text)),
}
"""Shape of a line of captions.jsonl, as far as it tells of a decision."""
CORRECTED = "corrected"


class Decided(NamedTuple):
    """A caption as a person left it."""

    text: str
    review: str
    """What the person did: corrected, accepted or rejected; empty: nothing."""
    is_written: bool
    """Whether captions.jsonl says the same."""


def decisions_on(out: Path) -> Callable[[Mapping[str, Any]], Decided]:
    """Return a function that returns what was decided on a line of captions, those decisions
    included that were made since the files were written. Raises UsageError, EnvironmentFault."""
    fixed = load_record(out).plan.words.text
    edits = read_edits(out, belief_in(out).proof()).now

    def decided(row: Mapping[str, Any]) -> Decided:
        text, original = row["caption"], row.get("original")
        before = row.get("review", "") or (CORRECTED if original else "")
        _, own_text, _ = fixed.parts(original or text)
        keys = keys_of(row["features"], row.get("name", ""), row.get("prompt", ""), own_text)
        edit = next((edits[key] for key in keys if key in edits), None)
        if edit is None:
            return Decided(text, before, True)
        words = own_text if edit.caption is None else edit.caption
        review = edit.review or (CORRECTED if words != own_text else "")
        if (words, review) == (fixed.parts(text)[1], before):
            return Decided(text, before, True)
        return Decided(words, review, False)

    return decided


def count_unwritten(out: Path) -> int:
    """Return how many captions of a run's folder have a decision that its files do not have. Raises
    UsageError, EnvironmentFault."""
    if not lacks_decisions(out / CAPTIONS):
        return 0
    decided, rows = decisions_on(out), read_jsonl(out / CAPTIONS, LINE, how_to_write(out))
    return sum(not decided(row).is_written for row in rows)


def unwritten_line(out: Path, count: int) -> str:
    """Return a line on decisions that are not in the files, and what writes them."""
    are = "decision is" if count == 1 else "decisions are"
    return f"{count:,} {are} not in the files yet. {how_to_write(out)}"
