"""Builds rows of caption tables: one row per chunk for any number of prompts. Runs no model."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from artifacts.captions import CONFIDENCE, Caption, values_of
from artifacts.tables import KINDS
from flows.job.prepare import Job
from flows.results.captions import unrejected
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import columns_of

OF_PROMPT = ("prompt", "tokens", "ended", *CONFIDENCE)
"""Fields per prompt, each in a column `NAME_field`. The caption's column is `NAME`, or
`caption_NAME` where a column of the chunk has that name."""
CHUNK_COLUMNS = {*KINDS} - {"caption", *OF_PROMPT}
OF_CHUNK = attrgetter("media_path", "source", "start", "features")
"""Fields that the captions of one chunk share."""
Properties = Mapping[tuple[str, str], str]
"""Prompt name and schema property → column."""


def kinds_of(job: Job) -> dict[str, str]:
    """Return column → kind: the fields of a caption or of each named prompt, then the properties of
    the schema."""
    names = _names(job)
    kinds: dict[str, str] = {}
    for column, kind in KINDS.items():
        of_each = any(names) and (column == "caption" or column in OF_PROMPT)
        kinds |= {_column(name, column): kind for name in names} if of_each else {column: kind}
    properties = properties_of(job)
    of_schema = columns_of(SamplingParams.of(job.config).schema) if properties else {}
    return kinds | {column: of_schema[each] for (_, each), column in properties.items()}


def properties_of(job: Job) -> dict[tuple[str, str], str]:
    """Return the columns of schema properties. A name that is taken gets the prefix `field_`."""
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
    """Yield one row per chunk with these columns; columns of unused prompts are None."""
    captions = unrejected(captions)
    if {*kinds} - {*properties.values()} == {*KINDS}:  # no named prompt
        yield from (_row([each], kinds, properties) if properties else each for each in captions)
        return
    chunk: list[Caption] = []
    for each in captions:
        # Neighbours may be copies with one name and source, such as in a list.
        if chunk and (OF_CHUNK(each) != OF_CHUNK(chunk[0]) or each.name in {c.name for c in chunk}):
            yield _row(chunk, kinds, properties)
            chunk = []
        chunk.append(each)
    if chunk:
        yield _row(chunk, kinds, properties)


def _row(
    captions_of_chunk: Sequence[Caption], kinds: Mapping[str, str], properties: Properties
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(kinds)
    for caption in captions_of_chunk:
        values = values_of(caption)
        row |= {name: values[name] for name in CHUNK_COLUMNS}
        row |= {_column(caption.name, name): values[name] for name in ("caption", *OF_PROMPT)}
        for (name, each), column in properties.items():
            if name == caption.name:
                row[column] = _value((caption.fields or {}).get(each), kinds[column])
    row["warnings"] = list(
        dict.fromkeys(text for each in captions_of_chunk for text in each.warnings)
    )
    return row


def _value(value: Any, kind: str) -> Any:
    """Convert the value of a property to the kind of its column."""
    if value is None:
        return None
    if kind == "number":
        return float(value)
    if kind == "text" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _names(job: Job) -> list[str]:
    return [*dict.fromkeys(each.file.name for each in job.files)]


def _column(name: str, field: str) -> str:
    """Return the column of a field of the named prompt."""
    if not name:
        return field
    if field != "caption":
        return f"{name}_{field}"
    return f"caption_{name}" if name in CHUNK_COLUMNS else name
