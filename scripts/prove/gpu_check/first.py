"""The check for a card that is there for ten minutes: what is known least, in parts with limits.

Each part has processes of its own, because an error of CUDA spoils its process. What it finds is
printed as a line of JSON as soon as it is known.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from scripts.prove.gpu_check.child import NO_TIME, made, named
from scripts.prove.gpu_check.rows import SAMPLES, Row, Setting, failed, pictures


class Part(NamedTuple):
    """Checks that share a limit."""

    name: str
    seconds: float
    """After so many it is given up."""
    checks: tuple[str, ...]


LIMIT_SECONDS = 540.0
"""What all parts may take together."""
PARTS = (
    Part("build", 45, ("card", "model")),
    Part("steps bf16", 60, ("recorded steps, bf16",)),
    Part("windows", 45, ("windows",)),
    Part("recorded tower", 40, ("recorded tower",)),
    Part("steps fp16", 50, ("recorded steps, fp16",)),
    Part("steps nf4", 60, ("recorded steps, nf4",)),
    Part("captions", 85, ("captions, recorded",)),
    Part("decode beside encode", 50, ("decode beside encode",)),
    Part("streamed", 40, ("model, streamed", "streamed encoder", "layer by layer")),
    Part("LoRA nf4", 65, ("model, LoRA, nf4",)),
)
LACKS_ROW, CARD_ROW = "lacks", "card"
FILE = "first.jsonl"
"""Copy of the lines, in the folder that is named with `--out`."""


def first_rows(
    setting: Setting,
    tell: Callable[[dict[str, Any]], None],
    parts: Sequence[Part] = PARTS,
    *,
    seconds: float = LIMIT_SECONDS,
) -> Iterator[Row]:
    """Yield what the parts find, and tell of each row, and of the end of each part. Without a card
    that computes there is only the first row. `seconds`: what all may take; the limits of the parts
    are in proportion."""
    lacking: set[str] = set()
    for each in parts:
        part = each._replace(seconds=each.seconds * seconds / LIMIT_SECONDS)
        began = time.monotonic()
        for found in _rows_of_part(part, setting, lacking):
            if found.name == LACKS_ROW:
                lacking |= set(found.found.split(","))
                continue
            tell(line_of(part, found))
            yield found
            if found.name == CARD_ROW and found.verdict != "ok":
                return
        if "av" in lacking and setting.samples == SAMPLES:
            setting = replace(setting, samples=pictures(setting.folder / "pictures"))
        tell({"part": part.name, "seconds": round(time.monotonic() - began, 1)})


def _rows_of_part(part: Part, setting: Setting, lacking: set[str]) -> Iterator[Row]:
    checks, deadline = [named(name) for name in part.checks], time.monotonic() + part.seconds
    for found in made(checks, setting, lacking, deadline):
        late = found.found == NO_TIME
        yield failed(found.name, f"no end after {part.seconds:.0f} s") if late else found


def line_of(part: Part, found: Row) -> dict[str, Any]:
    """Return what is printed of a row."""
    if found.verdict == "skipped":
        return {"part": part.name, "name": found.name, "skipped": found.found}
    told = {"name": found.name, "verdict": found.verdict, "expected": found.expected}
    return {"part": part.name, **told, "found": found.found, "figures": dict(found.figures)}
