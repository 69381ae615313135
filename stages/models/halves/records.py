"""Splits a batch's features into one record per row, and joins rows again in any batch.

The rule by which each part was split is stored with it, so that joining is exact:
`cat` tensors, along their first dimension; `join` sequences with one part per image;
`each` the members of a sequence, one by one; `same` values that all rows share;
`whole` a part of unknown structure, which is never joined with another row's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from artifacts.records.tensors import Tree, make_record

Rule = Any
"""`"cat" | "join" | "same" | "whole" | {"each": [Rule]} | {"fields": {name: Rule}}`; JSON holds
it."""
SOUND = "audio"
"""Channel of the record of a sound."""
OUTLINE = "outline"
"""Key in a row's side inputs: sizes and times of the frames, from which the processor writes its
prompt."""
MAIN_FIELDS = ("pooler_output", "last_hidden_state")
"""Fields whose sequences have one part per image; those of other fields have one part per layer."""


class CannotSplit(Exception):
    """A part of a batch's features cannot be assigned to rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCount:
    """The part of a batch that belongs to one row."""

    tokens: int
    """Placeholders in the row's prompt."""
    media: int
    """Pictures or videos in the row's prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureRecord:
    """Everything that decoding needs of one row besides its prompt."""

    features: dict[str, Any]
    """Modality → the encoder's output record, of this row alone."""
    rules: dict[str, Rule]
    """Modality → how its output record is joined with those of other rows."""
    needs: tuple[str, ...]
    """Inputs besides pixels that encoding had; decoding without one is refused."""
    channel: str
    """`images` or `videos`: how the processor took the frames; `audio`: it is of a sound."""
    side: dict[str, Any]
    """Outputs of the processor besides pixels: grids, sizes, seconds per step."""
    replacements: tuple[str, ...]
    """Text that the processor writes in place of each placeholder in the prompt."""
    count: RowCount
    blank: dict[str, list[int]] = field(default_factory=dict)
    """Name of a pixel input → its shape, for models that require pixels in any case."""
    heard: "FeatureRecord | None" = None
    """The record of the row's sound, which is stored as a record of its own."""

    def to_tree(self) -> dict[str, Tree]:
        return {
            "features": self.features,
            "rules": json.dumps(self.rules),
            "needs": self.needs,
            "channel": self.channel,
            "side": self.side,
            "replacements": self.replacements,
            "tokens": self.count.tokens,
            "media": self.count.media,
            "blank": self.blank,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "FeatureRecord":
        rest = {name: value for name, value in tree.items() if name not in ("tokens", "media")}
        count = RowCount(tokens=tree["tokens"], media=tree["media"])
        return cls(**{**rest, "rules": json.loads(tree["rules"]), "count": count})

    def joins_with(self, number: int) -> str:
        """Return a text that is equal for records that can be decoded in one batch. `number`: this
        record's own among those compared, by which one that joins no other differs from them."""
        shapes = {m: _shapes(self.features[m], rule, number) for m, rule in self.rules.items()}
        # A processor pads sounds to the longest.
        is_sound = self.channel == SOUND
        blank = {n: len(s) if is_sound else s[1:] for n, s in self.blank.items()}
        side = {name: _shape(value) for name, value in self.side.items()}
        names = [self.channel, side, sorted(self.needs), blank]
        heard: list[Any] = [] if self.heard is None else [self.heard.joins_with(number)]
        if heard and OUTLINE in self.side:  # its processor may take rows one by one
            heard.append(number)
        return json.dumps([*names, self.rules, shapes, *heard], sort_keys=True)


def _shape(value: Any) -> list[int]:
    """Return the dimensions of a tensor that must equal those of other rows."""
    return list(value.shape[1:]) if isinstance(value, torch.Tensor) else []


def split(record: Any, rows: Sequence[RowCount]) -> tuple[list[Any], Rule]:
    """Return one output record per row, and the rule that joins them. Raises CannotSplit.

    A single row always succeeds; parts that fit no rule are then kept `whole`.
    """
    parts, rules = [dict[str, Any]() for _ in rows], dict[str, Rule]()
    for name, value in record.items():
        pieces, rules[name] = _split(value, rows, top=True, main=name in MAIN_FIELDS)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return [make_record(type(record), part) for part in parts], {"fields": rules}


def merge(records: Sequence[Any], rule: Rule) -> Any:
    """Join rows into one output record, as if they had been encoded in one batch."""
    first = records[0]
    if len(records) == 1:
        return first
    if rule == "cat":
        return torch.cat(list(records))
    if rule == "join":
        return type(first)(part for record in records for part in record)
    if rule == "same":
        return first
    if rule == "whole":
        raise CannotSplit("rows with parts of unknown structure cannot be joined")
    if "fields" in rule:
        names = rule["fields"]
        joined = {n: merge([r[n] for r in records], names[n]) for n in names}
        return make_record(type(first), joined)
    parts = zip(*records, strict=True)
    return type(first)(merge(p, r) for p, r in zip(parts, rule["each"], strict=True))


def merge_rows(rows: Sequence[FeatureRecord]) -> dict[str, Tree]:
    """Return modality → output record of several rows with equal `joins_with`."""
    rules = rows[0].rules
    return {m: merge([row.features[m] for row in rows], rule) for m, rule in rules.items()}


def merge_blank(rows: Sequence[FeatureRecord]) -> dict[str, list[int]]:
    """Return the shapes of pixels or sound of several rows with equal `joins_with`."""
    shapes = {name: [row.blank[name] for row in rows] for name in rows[0].blank}
    return {
        name: [sum(lengths), *map(max, rest)]
        for name, (lengths, *rest) in ((n, zip(*s, strict=True)) for n, s in shapes.items())
    }


def rule_of_input(value: Any) -> Rule:
    """Return the rule that joins an input of a model with those of other rows."""
    if isinstance(value, torch.Tensor):
        return "cat"
    return "join" if isinstance(value, list | tuple) else "same"


def _split(
    value: Any, rows: Sequence[RowCount], *, top: bool, main: bool
) -> tuple[list[Any], Rule]:
    if isinstance(value, torch.Tensor):
        sizes = _sizes(value, rows)
        if sizes is not None:
            return list(torch.split_with_sizes(value, sizes)), "cat"
    elif isinstance(value, list | tuple):
        # A one-tensor sequence with all tokens may be one image or one layer.
        one_layer = top and not main and len(value) == 1
        groups = None if one_layer else _groups(value, rows)
        if groups is not None:
            return [type(value)(group) for group in groups], "join"
        return _split_each(value, rows, main=main)
    elif value is None or isinstance(value, bool | int | float | str):
        return [value] * len(rows), "same"
    if len(rows) == 1:
        return [value], "whole"
    raise CannotSplit(f"a {type(value).__name__} among the features belongs to no row")


def _split_each(
    value: list[Any] | tuple[Any, ...], rows: Sequence[RowCount], *, main: bool
) -> tuple[list[Any], Rule]:
    pieces = [_split(part, rows, top=False, main=main) for part in value]
    by_row = zip(*(parts for parts, _ in pieces), strict=True)
    rows_of_each = [type(value)(row) for row in by_row] if pieces else [value for _ in rows]
    return rows_of_each, {"each": [rule for _, rule in pieces]}


def _sizes(tensor: torch.Tensor, rows: Sequence[RowCount]) -> list[int] | None:
    """Return how much of the first dimension belongs to each row; None if unknown."""
    if tensor.ndim == 0:
        return None
    length, tokens = tensor.shape[0], [row.tokens for row in rows]
    if length == sum(tokens):
        return tokens
    if tensor.ndim > 2 and length and _tokens(tensor) == sum(tokens):
        per_element = sum(tokens) // length
        if all(count % per_element == 0 for count in tokens):
            return [count // per_element for count in tokens]
    media = [row.media for row in rows]
    return media if length == sum(media) else None


def _groups(
    parts: list[Any] | tuple[Any, ...], rows: Sequence[RowCount]
) -> list[list[torch.Tensor]] | None:
    """Cut a sequence with one part per image where the rows end; None for another sequence."""
    if not all(isinstance(part, torch.Tensor) and part.ndim > 1 for part in parts):
        return None
    groups: list[list[torch.Tensor]] = []
    parts_left = list(parts)
    for row in rows:
        group: list[torch.Tensor] = []
        while parts_left and sum(map(_tokens, group)) < row.tokens:
            group.append(parts_left.pop(0))
        if sum(map(_tokens, group)) != row.tokens:
            return None
        groups.append(group)
    return None if parts_left else groups


def _tokens(tensor: torch.Tensor) -> int:
    return tensor.numel() // tensor.shape[-1] if tensor.shape[-1] else 0


def _shapes(value: Any, rule: Rule, number: int) -> Any:
    """Return everything besides the rule itself that must be equal for it to join two rows.
    `number` is equal to no other row's."""
    if rule == "cat":
        return [str(value.dtype), *value.shape[1:]]
    if rule == "join":
        return [type(value).__name__]
    if rule == "same":
        return repr(value)
    if rule == "whole":
        return number
    if "fields" in rule:
        return {name: _shapes(value[name], part, number) for name, part in rule["fields"].items()}
    return [_shapes(v, part, number) for v, part in zip(value, rule["each"], strict=True)]
