"""Writes the tables of marks, the list of what is kept, and the list of what is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.files import write_text
from artifacts.plurals import counted
from artifacts.tables import TABLES
from flows.media.generated_files import GeneratedFiles
from flows.results.run_result import RunEnd
from flows.results.sifted.marks import columns_of, kinds_of
from flows.results.sifted.names import CHUNKS_FILE, KEPT_FILE, LEFT_OUT_FILE, MARKS_FILE
from flows.results.sifted.table import MarkedFiles, list_lines

LISTED = ("media_path", "source", "path")
"""Columns of the list of what is kept, and of the list of what is left out."""


@dataclass(kw_only=True, slots=True)
class Sifted(RunEnd):
    """The result of a run that marked media."""

    marked: int = 0
    """Files with marks."""
    kept: int = 0
    """Files of these that are kept."""
    duplicates: int = 0
    """Files that are a copy of a better one."""

    @property
    def made(self) -> int:
        """Return the number of files with marks."""
        return self.marked

    @property
    def kept_list(self) -> Path:
        """Return the path of the list of what is kept, which every command takes as a source."""
        return self.out / KEPT_FILE

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        counts = {"marked": self.marked, "kept": self.kept, "duplicates": self.duplicates}
        return self.outcome({**counts, "list": str(self.kept_list)})

    def row(self) -> dict[str, Any]:
        """Return what was made, as a row of a table."""
        return {"files": self.files, "kept": self.kept, "folder": str(self.out)}

    def line(self) -> str:
        """Return the outcome in one line."""
        copies = f", {counted(self.duplicates, 'duplicate')}" if self.duplicates else ""
        line = f"{self.kept:,} of {counted(self.marked, 'file')} kept in {self.kept_list}{copies}"
        return f"{line}{self.failed_suffix()}"


def write_tables(
    own: GeneratedFiles,
    out: Path,
    found: MarkedFiles,
    formats: Sequence[str],
    kept: Sequence[int],
    why: Mapping[int, str],
) -> None:
    """Write all files, each as a whole. Raises EnvironmentFault."""
    left = [
        {n: found.rows[at][n] for n in LISTED}
        | {"path": found.files[at].file.place, "why": why[at]}
        for at in why
    ]
    listed = dict.fromkeys(LISTED, "text")
    for name, rows, kinds in (
        (MARKS_FILE, found.rows, kinds_of(columns_of(found.heads))),
        (CHUNKS_FILE, found.chunks, kinds_of(found.chunks[0] if found.chunks else LISTED[:2])),
        (LEFT_OUT_FILE, left, {**listed, "why": "text"}),
        (KEPT_FILE, list(list_lines(found, kept)), listed),
    ):
        for form, write in TABLES.items():
            if form in formats:
                path = (out / name).with_suffix(f".{form}")
                own.renew(path, partial(write, rows=rows, kinds=kinds))
        lines = (json.dumps(row) + "\n" for row in rows)
        own.renew(out / name, partial(write_text, pieces=lines))
