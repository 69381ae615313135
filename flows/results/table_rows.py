"""Makes rows of tables of captions: one a chunk, whatever number of prompts it was asked. Runs no
model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

from artifacts.captions import Caption, values_of
from artifacts.tables import KINDS
from flows.job.prepare import Job

OF_PROMPT = ("prompt", "tokens", "ended")
"""Fields that a chunk has once a prompt, each in a column `NAME_field`; its caption is `NAME`."""
OF_CHUNK = attrgetter("media_path", "source", "start", "features")
"""Fields that the captions of one chunk have in common."""


def kinds_of(job: Job) -> dict[str, str]:
    """Return column → what it holds: the fields of a caption, or those of each named prompt."""
    names = dict.fromkeys(file.name for file in job.files)
    if not any(names):
        return dict(KINDS)
    kinds: dict[str, str] = {}
    for column, kind in KINDS.items():
        of_each = column == "caption" or column in OF_PROMPT
        kinds |= {_column(name, column): kind for name in names} if of_each else {column: kind}
    return kinds


def table_rows(
    captions: Iterable[Caption], kinds: Mapping[str, str]
) -> Iterator[Caption | dict[str, Any]]:
    """Yield a row a chunk, with these columns; where it was not asked something, it has nothing."""
    if "caption" in kinds and len(kinds) == len(KINDS):
        yield from captions
        return
    for _, asked in groupby(captions, OF_CHUNK):
        yield _row([*asked], kinds)


def _row(asked: list[Caption], kinds: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(kinds)
    for caption in asked:
        values = values_of(caption)
        row |= {name: value for name, value in values.items() if name in kinds}
        row |= {_column(caption.name, name): values[name] for name in ("caption", *OF_PROMPT)}
    row["warnings"] = list(dict.fromkeys(text for each in asked for text in each.warnings))
    return row


def _column(name: str, field: str) -> str:
    """Return the column of a field of the prompt of that name."""
    if not name:
        return field
    return name if field == "caption" else f"{name}_{field}"
