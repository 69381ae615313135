"""Tells how a run ended that leaves files and failures, for its last line, programs and Prefect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.captions import Failure
from artifacts.words import counted


@dataclass(kw_only=True, slots=True)
class RunEnd:
    """The end of a run."""

    out: Path
    files: int
    """Number of files and sources that were asked for."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 0 when all is done, 1 when some items failed."""
        return 1 if self.failures else 0

    def outcome(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outcome for programs, with what was made; each failure is told by itself."""
        ended = {"failed": len(self.failures), "exit_code": self.exit_code}
        return {"out": str(self.out), "files": self.files, **made, **ended}

    def failed(self) -> str:
        """Return the end of a line that says how many files failed; empty for none."""
        if not self.failures:
            return ""
        return f", {len(self.failures)} of {counted(self.files, 'file')} failed"
