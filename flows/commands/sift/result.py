"""What `penstock sift` returns and prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.json_shapes import Json
from artifacts.wording import counted
from flows.outputs.folder.foreign_files import KEPT_FILE
from flows.outputs.run_result import RunEnd


@dataclass(kw_only=True, slots=True)
class Sifted(RunEnd):
    """The result of a run that marked media."""

    marked: int = 0
    """Files with marks."""
    kept: int = 0
    """Files of these that are kept."""
    duplicates: int = 0
    """Files that are a copy of a better one."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Part of the condition → the files that it leaves out, each counted once."""
    nulls: Mapping[str, int] = field(default_factory=dict)
    """Mark → the files that are left out because they have none, each counted once."""
    unmarked: frozenset[str] = frozenset()
    """Places of the files that exist and could not be marked."""

    @property
    def made(self) -> int:
        """Return the number of files with marks."""
        return self.marked

    @property
    def kept_list(self) -> Path:
        """Return the path of the list of what is kept, which every command takes as a source."""
        return self.out / KEPT_FILE

    @property
    def of_nulls(self) -> str:
        """Return how many files are left out because a mark is null, as the end of a line."""
        parts = (
            f"; {n:,} as {mark} is null (`or {mark} is null` keeps such)"
            for mark, n in self.nulls.items()
        )
        return "".join(parts)

    def to_json(self) -> dict[str, Json]:
        counts = {"marked": self.marked, "kept": self.kept, "duplicates": self.duplicates}
        return self.outcome({**counts, "list": str(self.kept_list)})

    def row(self) -> dict[str, Json]:
        return {"files": self.files, "kept": self.kept, "folder": str(self.out)}

    def line(self) -> str:
        line = f"{self.kept:,} of {counted(self.marked, 'file')} kept in {self.kept_list}"
        if self.left_out:
            parts = ", ".join(f"{count:,} not {text}" for text, count in self.left_out.items())
            line += f", {sum(self.left_out.values()):,} left out: {parts}{self.of_nulls}"
        elif self.duplicates:
            line += f", {counted(self.duplicates, 'duplicate')}"
        return f"{line}{self.failed_suffix()}"

    __repr__ = line
