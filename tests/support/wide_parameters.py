"""Finds parameters that take a whole command.

A class is wide if more than MOST of its fields, inherited ones included, are options of one
command. A parameter counts if its annotation names a wide class: itself, in a union, as an argument
of another type, or behind an alias or a TypeVar. Only the parser's module is imported.
"""

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from flows.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
MOST = 20


@cache
def modules() -> dict[str, ast.Module]:
    """Return every product module by its name."""
    files = [path.relative_to(ROOT) for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    return {name: ast.parse((ROOT / path).read_text("utf-8")) for path, name in names.items()}


@cache
def meanings(module: str) -> dict[str, Any]:
    """Return what each name of a module is: a class, the value of an alias, or where it is from."""
    found: dict[str, Any] = {}
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.ImportFrom):
            found |= {each.asname or each.name: (node.module, each.name) for each in node.names}
    for node in modules()[module].body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
    return found


def named(
    module: str, node: ast.AST, seen: frozenset[Any] = frozenset()
) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the product's classes that an expression of a module names, each with its module."""
    for each in ast.walk(node):
        name = each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "")
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            name = each.value  # an annotation in quotes
        place, what = module, meanings(module).get(name)
        while isinstance(what, tuple):
            place, name = what
            what = meanings(place).get(name) if place in modules() else None
        if isinstance(what, ast.ClassDef):
            yield place, what
        elif isinstance(what, ast.AST) and what not in seen:
            yield from named(place, what, seen | {what})


def fields_of(module: str, kind: ast.ClassDef) -> set[str]:
    """Return the names of a class's fields, inherited ones included, and a Protocol's methods."""
    protocol = "Protocol" in map(ast.unparse, kind.bases)
    found = {
        each.name if isinstance(each, ast.FunctionDef) else ast.unparse(each.target)
        for each in kind.body
        if (isinstance(each, ast.FunctionDef) and protocol)
        or (isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation))
    }
    bases = [place for base in kind.bases for place in named(module, base)]
    return found.union(*(fields_of(*place) for place in bases))


@cache
def options(name: str = "", found: Any = None) -> dict[str, set[str]]:
    """Return where the options of each command are parsed to."""
    actions = (found or parser())._actions
    below = {name: {action.dest for action in actions}}
    for action in (each for each in actions if isinstance(each, argparse._SubParsersAction)):
        for word, inner in action.choices.items():
            below |= options(f"{name} {word}".strip(), inner)
    return below


@cache
def is_wide(module: str, kind: ast.ClassDef) -> bool:
    """Return whether more than MOST of a class's fields are options of one command."""
    return any(len(each & fields_of(module, kind)) > MOST for each in options().values())


def wide_parameters() -> list[tuple[str, str, str]]:
    """Return module, name and wide classes of each parameter that takes a whole command."""
    counted = []
    for module, tree in modules().items():
        for given in (node for node in ast.walk(tree) if isinstance(node, ast.arg)):
            found = dict.fromkeys(named(module, given.annotation) if given.annotation else ())
            if names := [of[1].name for of in found if is_wide(*of)]:
                counted.append((module, given.arg, "|".join(sorted(names))))
    return counted
