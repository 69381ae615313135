"""Builds the table of marks of all files of a run, and says which files are kept."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import UsageError
from artifacts.index.where import WORDS, Condition, Table
from artifacts.tables import schema_of, stored_text, table_of, utf8
from flows.job.media_digests import JobFile
from flows.options.sift import KEEP
from flows.results.sifted.duplicates import Fingerprint, groups_of
from flows.results.sifted.marks import (
    TEXTS,
    Values,
    chunk_marks,
    columns_of,
    medium_marks,
)
from stages.sift.record import Marked


@dataclass(kw_only=True, slots=True)
class MarkedFiles:
    """The files of a run that have marks, in source order."""

    heads: tuple[str, ...] = ()
    """Marks of heads."""
    files: list[JobFile] = field(default_factory=list)
    rows: list[Values] = field(default_factory=list)
    """Marks of each file."""
    chunks: list[Values] = field(default_factory=list)
    """Marks of the chunks of all videos."""

    def places(self) -> list[int]:
        """Return the numbers of the files that come first with their content."""
        first: dict[str, int] = {}
        for at, each in enumerate(self.files):
            first.setdefault(each.medium.digest, at)
        return list(first.values())


def parse_keep(
    text: str, heads: Sequence[str], *, similar: bool = False, option: str = "--keep"
) -> Condition | None:
    """Return the condition of an option; None for an empty one. `similar` says whether there are
    marks by vectors. Raises UsageError, also for a head that has the name of a mark."""
    if taken := sorted({*columns_of(()), "start", "end", *WORDS}.intersection(heads)):
        raise UsageError(
            f"--head {taken[0]}: this name is a mark or a word of --keep already",
            hint="Give the head another name",
        )
    if not text:
        return None
    table = Table(columns=columns_of(heads), texts=TEXTS, option=option, example=KEEP)
    condition = Condition(text, table)
    if not similar and (unknown := sorted({"similar", "similar_group"} & condition.columns)):
        raise UsageError(
            f"{option} names {unknown[0]}, which no file has without --similar",
            hint="Give --model and --similar to `penstock sift`, or leave it out",
        )
    return condition


def add_file(found: MarkedFiles, each: JobFile, marked: Marked, chunk: float) -> None:
    """Add a file with the marks that depend on it alone."""
    file, medium = each.file, each.medium
    names = {"media_path": utf8(file.media_path), "source": utf8(file.source)}
    own = {"path": file.place, "kind": medium.kind, "digest": medium.digest}
    row: Values = dict.fromkeys(columns_of(found.heads))
    found.rows.append(row | names | own | medium_marks(marked))
    found.chunks += [{**names, **chunk_values} for chunk_values in chunk_marks(marked, chunk)]
    found.files.append(each)


def mark_copies(found: MarkedFiles, items: Sequence[Fingerprint], *, mirrored: bool) -> None:
    """Mark exact and near duplicates. `items` are those of `found.places()`."""
    mark_groups(found, groups_of(items, mirrored=mirrored), "group", "duplicate")
    firsts = set(found.places())
    for at, row in enumerate(found.rows):
        row["exact"] = int(at not in firsts)


def mark_groups(found: MarkedFiles, groups: NDArray[Any], number: str, flag: str) -> None:
    """Number the groups of several files, and flag all but the best of each. `groups` has a value
    per content of `found.places()`."""
    firsts = (found.files[at].medium.digest for at in found.places())
    of_content = dict(zip(firsts, groups, strict=True))
    members = defaultdict(list)
    for at, each in enumerate(found.files):
        members[int(of_content[each.medium.digest])].append(at)
        found.rows[at][flag] = 0
    for count, several in enumerate((each for each in members.values() if len(each) > 1), 1):
        best = max(several, key=lambda at: (*_quality(found.rows[at]), -at))
        for at in several:
            found.rows[at] |= {number: count, flag: int(at != best)}


def _quality(row: Mapping[str, Any]) -> tuple[bool, bool, float, float]:
    """Return by what the best of a group is chosen: no faults, more than black and white, then its
    resolution, then its sharpness."""
    good = not row["faults"], not row["bilevel"]
    return *good, row["width"] * row["height"], row["sharpness"] or 0.0


def kept_of(found: MarkedFiles, condition: Condition | None) -> tuple[list[int], dict[int, str]]:
    """Return the numbers of the files to keep, and of each other file why it is left out."""
    if condition is None or not found.rows:
        return list(range(len(found.rows))), {}
    # Numbers of one type, since a condition may compare a count with 0.5.
    kinds = {name: "text" if name in TEXTS else "number" for name in found.rows[0]}
    rows = [{n: stored_text(value) for n, value in row.items()} for row in found.rows]
    (batch,) = table_of(rows, schema_of(kinds)).combine_chunks().to_batches()
    kept = condition.of(batch, unknown=True)
    parts = condition.parts(batch)
    why = {
        int(at): "; ".join(
            f"not {text} ({_seen(found.rows[at], text)})" for text, met in parts if not met[at]
        )
        for at in np.flatnonzero(~kept)
    }
    return [int(at) for at in np.flatnonzero(kept)], why


def _seen(row: Mapping[str, Any], text: str) -> str:
    """Return the values of the marks that a condition names: `motion 0.003`."""
    named = [name for name in row if name in text.split()]
    return ", ".join(f"{name} {'null' if row[name] is None else row[name]}" for name in named)


def list_lines(found: MarkedFiles, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a list of sources, with the prompts that files had in theirs."""
    for at in kept:
        file = found.files[at].file
        line = {n: found.rows[at][n] for n in ("media_path", "source")} | {"path": file.place}
        if file.prompts:
            line["prompts"] = dict(file.prompts)
        elif file.prompt is not None:
            line["prompt"] = file.prompt
        yield line
