"""Corrects captions in place of a person: `python -m scripts.pages.shown.corrected OUT` puts
the next 40 undecided captions of a run into another style, of each file as many."""

import sys
from contextlib import closing
from pathlib import Path

from artifacts.texts.edits import WORDS
from flows.commands.review.captions import ReviewedCaptions

COUNT = 40


def main(out: Path) -> None:
    """Decide on the captions of a run's folder."""
    with closing(ReviewedCaptions(out)) as captions:
        edits = captions.edits()
        undecided = [row for key, row in captions.folder.rows.items() if key not in edits]
        rows = sorted(undecided, key=lambda row: float(row["start"]))[:COUNT]
        changes = [
            {"of": row["key"], "caption": f"clip: {row[WORDS].lower()}", "review": "accepted"}
            for row in rows
        ]
        if changes:
            captions.apply({"id": changes[0]["of"], "does": "correct", "changes": changes})
    print(f"{len(changes)} captions corrected in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
