"""Builds rows of caption tables: one row per chunk for any number of prompts. Runs no model."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from artifacts.captions import Caption, values_of
from artifacts.tables import KINDS
from flows.job.prepare import Job
from flows.results.captions import unrejected
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import columns_of

OF_PROMPT = ("prompt", "tokens", "ended")
"""Fields that a chunk has once a prompt, each in a column `NAME_field`; its caption is `NAME`."""
OF_CHUNK = attrgetter("media_path", "source", "start", "features")
"""Fields that the captions of one chunk have in common."""
Properties = Mapping[tuple[str, str], str]
"""Name of a prompt, and property of the schema that its captions follow → column."""


def kinds_of(job: Job) -> dict[str, str]:
    """Return column → what it holds: the fields of a caption, or those of each named prompt, and
    then the properties of the schema."""
    names = _names(job)
    kinds: dict[str, str] = {}
    for column, kind in KINDS.items():
        of_each = any(names) and (column == "caption" or column in OF_PROMPT)
        kinds |= {_column(name, column): kind for name in names} if of_each else {column: kind}
    properties = properties_of(job)
    of_schema = columns_of(SamplingParams.of(job.config).schema) if properties else {}
    return kinds | {column: of_schema[each] for (_, each), column in properties.items()}


def properties_of(job: Job) -> dict[tuple[str, str], str]:
    """Return the columns of properties, each with a prefix where one of ours has its name."""
    params = SamplingParams.of(job.config)
    names, ours = _names(job), ("caption", *OF_PROMPT)
    taken = {*KINDS, *(_column(name, each) for name in names for each in ours)}
    found: dict[tuple[str, str], str] = {}
    for name in names if params.schema else ():
        before = f"{name}_" if name else ""
        for each in columns_of(params.schema):
            column = each
            while before + column in taken:
                column = f"field_{column}"
            taken.add(before + column)
            found[name, each] = before + column
    return found


def table_rows(
    captions: Iterable[Caption], kinds: Mapping[str, str], properties: Properties
) -> Iterator[Caption | dict[str, Any]]:
    """Yield a row a chunk, with these columns; where it was not asked something, it has nothing."""
    captions = unrejected(captions)
    if {*kinds} - {*properties.values()} == {*KINDS}:  # nobody asked by a name
        yield from (_row([each], kinds, properties) if properties else each for each in captions)
        return
    for _, asked in groupby(captions, OF_CHUNK):
        yield _row([*asked], kinds, properties)


def _row(
    asked: Sequence[Caption], kinds: Mapping[str, str], properties: Properties
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(kinds)
    for caption in asked:
        values = values_of(caption)
        row |= {name: value for name, value in values.items() if name in KINDS and name in kinds}
        row |= {_column(caption.name, name): values[name] for name in ("caption", *OF_PROMPT)}
        for (name, each), column in properties.items():
            if name == caption.name:
                row[column] = _value((caption.fields or {}).get(each), kinds[column])
    row["warnings"] = list(dict.fromkeys(text for each in asked for text in each.warnings))
    return row


def _value(value: Any, kind: str) -> Any:
    """Return the value of a property as its column holds it."""
    if value is None:
        return None
    if kind == "number":
        return float(value)
    if kind == "text" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _names(job: Job) -> list[str]:
    return [*dict.fromkeys(file.name for file in job.files)]


def _column(name: str, field: str) -> str:
    """Return the column of a field of the prompt of that name."""
    if not name:
        return field
    return name if field == "caption" else f"{name}_{field}"
