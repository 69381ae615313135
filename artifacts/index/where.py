"""Selects the rows of a table, such as that of an index, that meet a condition.

The reader of a condition evaluates nothing but this grammar:

    condition   one or one … ; one and one … ; not one ; (condition)
    one         column  =  !=  <>  <  <=  >  >=  value
                column [not] like 'pattern'      % is any text, _ any letter
                column [not] in (value, …)
                column is [not] null
    value       12.5   'text', with '' for a quote in it
"""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias
from unicodedata import normalize

import numpy as np

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.index.shard import COLUMNS, TEXTS
from artifacts.index.snapshot import Kept, Snapshot
from artifacts.texts.tables import stored_text, table_of
from artifacts.wording import meant

if TYPE_CHECKING:
    from pyarrow import Array, BooleanArray, RecordBatch

WORDS = frozenset(("and", "or", "not", "like", "in", "is", "null"))
TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')"
    r"|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)
COMPARISONS = {
    "=": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
"""Sign → name of the function in pyarrow.compute."""
DEEPEST = 50
"""Brackets within brackets."""
LONGEST = 10_000
"""Characters of a condition."""
Mask: TypeAlias = "BooleanArray"
"""A pyarrow array of yes, no and unknown."""
Test = Callable[["RecordBatch"], Mask]
"""Takes a batch of rows, and says which meet it."""
Literal = str | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What a condition is about."""

    columns: Sequence[str] = COLUMNS
    texts: Sequence[str] = TEXTS
    """The columns that hold text; the others hold numbers."""
    option: str = "--where"
    example: str = "\"path like '%.mp4' and time < 60\""


INDEX = Table()


class Condition:
    """A parsed condition on the rows of a table."""

    def __init__(self, text: str, table: Table = INDEX) -> None:
        """Read a condition. Raises UsageError."""
        self._table = table
        self._tokens = _tokens(text, table)
        self._joins: dict[str, list[tuple[str, Test]]] = {}
        """Word → what it joins outside of brackets."""
        self._at = 0
        self.columns: set[str] = set()
        """The columns that it looks at."""
        self._test = self._either(0)
        if self._at < len(self._tokens):
            self._refuse("and, or, or its end")

    def of(self, batch: "RecordBatch") -> Kept:
        """Return which rows of a pyarrow batch meet it. A null meets no comparison."""
        return _array(self._test(batch))

    def parts(self, batch: "RecordBatch") -> list[tuple[str, Kept, Kept]]:
        """Return the text of each condition that `and` joins, which rows meet it, and for
        which rows the result is unknown, because a value is null."""
        of_all = self._joins["or" if len(self._joins["or"]) > 1 else "and"]
        if of_all is self._joins["or"]:
            of_all = [(" or ".join(text for text, _ in of_all), self._test)]
        masks = [(text, test(batch)) for text, test in of_all]
        return [(text, _array(mask), _array(mask.is_null())) for text, mask in masks]

    def _either(self, depth: int) -> Test:
        return self._joined("or", "or_kleene", self._both, depth)

    def _both(self, depth: int) -> Test:
        return self._joined("and", "and_kleene", self._one, depth)

    def _joined(self, word: str, function: str, part: Callable[[int], Test], depth: int) -> Test:
        tests: list[Test] = []
        texts: list[str] = []
        while not tests or self._takes(word):
            start = self._at
            tests.append(part(depth))
            texts.append(" ".join(token for _, token in self._tokens[start : self._at]))
        if not depth:
            self._joins[word] = list(zip(texts, tests, strict=True))

        def joined(batch: "RecordBatch") -> Mask:
            mask = tests[0](batch)
            for test in tests[1:]:
                mask = _call(function, mask, test(batch))
            return mask

        return joined

    def _one(self, depth: int) -> Test:
        if depth > DEEPEST:
            raise UsageError(
                f"{self._table.option} has more than {DEEPEST} brackets or nots in one another",
                hint="Give a simpler condition",
            )
        if self._takes("not"):
            return _inverted(self._one(depth + 1))
        if self._takes("("):
            inner = self._either(depth + 1)
            self._must(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        kind, column = self._next("a column")
        if kind != "word" or column not in self._table.columns:
            self._at -= 1
            hint = meant(column, self._table.columns)
            self._refuse(f"a column ({', '.join(self._table.columns)})", hint)
        self.columns.add(column)
        if self._takes("is"):
            other = self._takes("not")
            self._must("null")
            return _test("is_valid" if other else "is_null", column)
        if self._takes("not"):
            return _inverted(self._set_or_like(column))
        sign = next((sign for sign in COMPARISONS if self._takes(sign)), None)
        if sign is not None:
            return _test(COMPARISONS[sign], column, self._value(column))
        return self._set_or_like(column)

    def _set_or_like(self, column: str) -> Test:
        if self._takes("like"):
            if column not in self._table.texts:
                self._refuse(f"a comparison: {column} is a number")
            return _test("match_like", column, str(self._value(column)))
        if self._takes("in"):
            self._must("(")
            values = [self._value(column)]
            while self._takes(","):
                values.append(self._value(column))
            self._must(")")
            return _is_in(column, values)
        self._refuse("=, <, like, in or is")

    def _value(self, column: str) -> Literal:
        wanted = "text" if column in self._table.texts else "number"
        kind, token = self._next(f"a {wanted}")
        if kind != wanted:
            self._at -= 1
            self._refuse("text in single quotes" if wanted == "text" else "a number")
        text = normalize("NFD", token[1:-1].replace("''", "'"))
        return stored_text(text) if kind == "text" else float(token)

    def _takes(self, word: str) -> bool:
        """Go on if this is the next word."""
        token = ("word" if word in WORDS else "sign", word)
        is_next = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += is_next
        return is_next

    def _must(self, word: str) -> None:
        if not self._takes(word):
            self._refuse(word)

    def _next(self, wanted: str) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            self._refuse(wanted)
        self._at += 1
        return self._tokens[self._at - 1]

    def _refuse(self, wanted: str, near: str = "") -> NoReturn:
        rest = self._tokens[self._at :]
        where = f"at {rest[0][1]!r}" if rest else "at its end"
        raise UsageError(
            f"{self._table.option} cannot be read {where}{near}: {wanted} should stand there",
            hint=f"Such as: {self._table.option} {self._table.example}",
        )


def batch_of(rows: Sequence[Mapping[str, Json]], texts: Container[str]) -> "RecordBatch":
    """Return rows as a pyarrow batch for conditions. Columns that are not among the `texts` are
    numbers of one type, since a condition may compare a count with 0.5."""
    kinds = {name: "text" if name in texts else "number" for name in rows[0]}
    stored = [{name: stored_text(cell) for name, cell in row.items()} for row in rows]
    (batch,) = table_of(stored, kinds).combine_chunks().to_batches()
    return batch


def values_shown(row: Mapping[str, Json], columns: Container[str]) -> str:
    """Return the values of a row in these columns: `motion 0.003`."""
    named = (name for name in row if name in columns)
    return ", ".join(f"{name} {'null' if row[name] is None else row[name]}" for name in named)


def matching(snapshot: Snapshot, condition: Condition) -> Kept:
    """Return which rows meet a condition, removed ones among them. Raises EnvironmentFault for a
    damaged file."""
    is_match = np.zeros(snapshot.rows, np.bool_)
    for start, batch in snapshot.batches(sorted(condition.columns)):
        is_match[start : start + len(batch)] = condition.of(batch)
    return is_match


def _tokens(text: str, table: Table) -> list[tuple[str, str]]:
    if len(text) > LONGEST:
        raise UsageError(
            f"{table.option} has {len(text):,} characters of at most {LONGEST:,}",
            hint="Give a simpler condition",
        )
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise UsageError(
                f"{table.option} cannot be read at {text[at : at + 20].strip()!r}",
                hint=f"Such as: {table.option} {table.example}",
            )
        kind, at = str(match.lastgroup), match.end()
        token = match[kind]
        small = token.lower()
        tokens.append((kind, small if kind == "word" and small in WORDS else token))
    return tokens


def _array(mask: Mask) -> Kept:
    array: Kept = mask.fill_null(False).to_numpy(zero_copy_only=False)
    return array


def _call(function: str, *given: "Array | Literal | None") -> "Array":
    import pyarrow.compute as pc

    return getattr(pc, function)(*given)


def _test(function: str, column: str, *given: Literal) -> Test:
    return lambda batch: _call(function, _values(batch, column, *given), *given)


def _values(batch: "RecordBatch", column: str, *given: Literal) -> "Array":
    """Return a column to be compared with these: in NFD, as names of a Mac are, if they have other
    letters than ASCII. That takes a second for a million paths. pyarrow 18 has no right NFC."""
    values = batch.column(column)
    is_other = any(isinstance(literal, str) and not literal.isascii() for literal in given)
    return _call("utf8_normalize", values, "NFD") if is_other else values


def _inverted(test: Test) -> Test:
    return lambda batch: _call("invert", test(batch))


def _is_in(column: str, values: list[Literal]) -> Test:
    def test(batch: "RecordBatch") -> Mask:
        import pyarrow as pa

        cells = _values(batch, column, *values)
        mask = _call("is_in", cells, pa.array(values, cells.type))
        return _call("if_else", cells.is_valid(), mask, None)

    return test
