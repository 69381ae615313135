"""Declares an option once, in the annotation of its field. The command line, its checks, Prefect's
form and the keywords of the Python functions are all derived from that declaration.

    limit: Annotated[int | None, Option("maximum number of files", FILES, "N", above=0)] = None

The type and the default are the field's own, and the docstring below the field is what Prefect
shows. A class of options is a frozen dataclass that inherits `OptionGroup`; the configuration of a
command inherits the groups that it uses.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from artifacts.errors import UsageError
from artifacts.option_texts import GIVE_VALUE, NUMBER_NAMES, NUMBERS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAME_BYTES, PATH_BYTES = 255, 4000
"""Longest name of a file or folder, and longest path."""


@dataclass(frozen=True, slots=True)
class Option:
    """The `--help` text of a field, and the values that it accepts."""

    help: str
    heading: str = ""
    """Heading in `--help`; empty: the command's own arguments."""
    metavar: str = ""
    values: tuple[str | float, ...] = ()
    """Accepted values, of the option or of each member of a list; empty: any of its type."""
    above: float | None = None
    """Numbers must be finite and greater than this."""
    least: float | None = None
    """Numbers must not be less than this."""
    most: float | None = None
    """Numbers must not be greater than this."""
    not_empty: str = ""
    """Hint of the error for an empty value, for which GIVE_VALUE does not serve."""
    text: str = ""
    """Pattern of the text in a Prefect form."""
    excludes: str = ""
    """Options with the same name here are mutually exclusive on the command line."""
    parse: Callable[[str], Any] | None = None
    """Parses the text of the command line; None: the type does."""
    path: bool = False
    """Whether its texts name files or folders: Python also takes a Path, and the bytes of a name
    need not be UTF-8."""
    or_text: bool = False
    """Whether such a text may instead be the content itself."""
    repeated: bool = False
    """Whether the option is given once per member."""
    positional: bool = False
    """Whether it is an argument without `--`."""
    nargs: str = ""
    """argparse's `nargs`; empty: one word."""
    flag: str = ""
    """Name on the command line, if not that of the field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A configuration field that is an option."""

    field: Field[Any]
    type: Any
    option: Option

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def flag(self) -> str:
        """Return the option's name on the command line: `--max-frames`."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def is_required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def kind(self) -> Any:
        """Return its type without None; of a list or a dict, only the container: `int`, `tuple`."""
        kinds = [member for member in get_args(self.type) if member is not NoneType]
        single = kinds[0] if NoneType in get_args(self.type) else self.type
        return get_origin(single) or single

    def words(self, value: Any) -> list[str]:
        """Return the words of a command line that give an option with `--` this value."""
        if self.kind is bool:
            return [self.flag] if value != self.field.default else []
        if isinstance(value, dict):
            return [f"{self.flag}={name}={text}" for name, text in value.items()]
        return [f"{self.flag}={','.join(value) if isinstance(value, tuple) else value}"]


def declared(config: type["DataclassInstance"]) -> tuple[Declared, ...]:
    """Return the options of a configuration, in the order of its fields."""
    return _declared(config)


@cache
def _declared(config: type["DataclassInstance"]) -> tuple[Declared, ...]:
    hints = get_type_hints(config, include_extras=True)
    specs = []
    for field in fields(config):
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, Option):
                specs.append(Declared(field=field, type=hints[field.name].__origin__, option=mark))
    return tuple(specs)


def check_number(spec: Declared, value: Any) -> None:
    """Raise UsageError for a value of an option with a number that is none, or not finite."""
    if spec.kind not in NUMBERS:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_real = spec.kind is float and isinstance(value, float) and math.isfinite(value)
    if not (is_whole or is_real):
        shown = value if isinstance(value, float) else repr(value)
        raise UsageError(f"invalid {spec.flag} {shown}", hint=f"Give {NUMBER_NAMES[spec.kind]}")


def check(config: "DataclassInstance") -> None:
    """Raise UsageError for a value that its option does not accept."""
    for spec in declared(type(config)):
        value, option = getattr(config, spec.name), spec.option
        if value is None:
            continue
        shown = option.metavar or spec.name if option.positional else spec.flag
        check_number(spec, value)
        check_text(option, value, shown)
        written = str(value).removesuffix(".0")  # which the caller may have written
        if option.above is not None and not option.above < value < float("inf"):
            raise UsageError(
                f"invalid {spec.flag} {written}", hint=f"Give a number above {option.above:g}"
            )
        low, high = option.least, option.most
        if not (low is None or low <= value < float("inf")) or not (high is None or value <= high):
            raise UsageError(f"invalid {spec.flag} {written}", hint=f"Give {_range(option)}")
        choices = value if isinstance(value, tuple) else (value,)
        if unknown := [str(one) for one in choices if option.values and one not in option.values]:
            names = ", ".join(str(one) for one in option.values if one != "")
            shown = ",".join(unknown)
            message = f"unknown {spec.flag} {shown}" if shown else f"{spec.flag} is empty"
            raise UsageError(message, hint=f"Choose from {names}")
        if "" in texts_of(value) and (option.not_empty or spec.field.default != ""):
            raise UsageError(f"{shown} is empty", hint=option.not_empty or GIVE_VALUE)


def texts_of(value: Any) -> Iterable[Any]:
    """Return a value, or what is in a list or a dict."""
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, list | tuple) else (value,)


def check_text(option: Option, value: Any, shown: str) -> None:
    """Raise UsageError for a text, also in a list or dict, that cannot be written: of a path as the
    bytes of a name, of others as UTF-8. It is named as `shown`."""
    for text in texts_of(value):
        try:
            written = text.encode(errors="surrogateescape" if option.path else "strict")
        except AttributeError:  # no text
            continue
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{shown}: not valid UTF-8",
                hint="Set the terminal to UTF-8 (LANG=C.UTF-8), or save the script in UTF-8",
            ) from error
        if option.path and not option.or_text and "://" not in text:
            parts = written.split(b"/")
            if max(map(len, parts)) > NAME_BYTES or len(written) > PATH_BYTES:
                raise UsageError(f"{shown}: the path is too long", hint="Check the path")


def _range(option: Option) -> str:
    if option.most is None:
        return f"{option.least:g} or more"
    if option.least is None:
        return f"a number above {option.above or 0:g}, at most {option.most:g}"
    return f"a number from {option.least:.10g} to {option.most:.10g}"


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Related options. A group checks its values on construction and calls
    `super().__post_init__()`, so that a configuration checks all of its groups."""

    def __post_init__(self) -> None:
        check(self)
