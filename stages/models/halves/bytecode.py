"""Reads from a function's bytecode which attributes it names and which methods it calls. Runs
nothing."""

import dis
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any


def names_in(function: Any) -> set[str]:
    """Return the names of attributes and globals that a function's code refers to."""
    return {name for code in _codes(function) for name in code.co_names}


def called_in(function: Any) -> set[str]:
    """Return the names of attributes that a function's code calls."""
    instructions = [i for code in _codes(function) for i in dis.get_instructions(code)]
    return {
        str(i.argval)
        for i in instructions
        # From Python 3.12 on, the lowest bit says that the loaded attribute is called.
        if i.opname == "LOAD_METHOD" or (i.opname == "LOAD_ATTR" and _calls(i.arg))
    }


def reached(
    cls: type[Any],
    start: Iterable[str],
    read: Callable[[Any], set[str]],
    beyond: Iterable[str] = (),
) -> set[str]:
    """Return everything that `read` finds in the methods `start` of a class, and in the methods of
    the class itself that they refer to, except `beyond`."""
    todo, seen, found = set(start), set(beyond), set[str]()
    while todo := {name for name in todo - seen if inspect.isfunction(getattr(cls, name, None))}:
        seen |= todo
        names = set[str]().union(*(read(getattr(cls, name)) for name in todo))
        found |= names
        todo = {name for name in names if name in vars(cls)}
    return found


def _calls(argument: int | None) -> bool:
    return sys.version_info >= (3, 12) and bool(argument and argument & 1)


def _codes(function: Any) -> Iterator[CodeType]:
    codes = [inspect.unwrap(function).__code__]
    while codes:
        code = codes.pop()
        yield code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
