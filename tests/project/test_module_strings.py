"""Modules that the product names in strings exist, with the name behind the colon: nothing else
would notice before the string is used."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.core.commands import COMMANDS
from stages.models import _HOMES as HALVES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "stages", "artifacts", "penstock", "penstock_demo")
DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?::\w+)?")
METADATA = {"penstock.inputs", "penstock.weight_bits"}
"""Keys in graphs, which look like modules."""


def file_of(module: str) -> Path | None:
    """The file of a module, None where there is none."""
    place = ROOT.joinpath(*module.split("."))
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()]
    return found[0] if found else None


def names_of(path: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def in_strings() -> Iterator[tuple[str, str]]:
    """Each string of the product that is a dotted path and no more, with the file that has it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and DOTTED.fullmatch(text) and text not in METADATA:
                    yield text, path.relative_to(ROOT).as_posix()


NAMED = sorted(
    {
        *in_strings(),
        *(
            (f"{package}.{name}_command:{function}", "flows/commands/shared/parser.py")
            for name, (_, package) in COMMANDS.items()
            for function in (f"add_{name}", f"{name}_command")
        ),
        *((f"stages.models.{home}:{name}", "stages/models") for name, home in HALVES.items()),
    }
)


def test_many_modules_are_named_in_strings() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize(("named", "place"), NAMED)
def test_a_module_named_in_a_string_exists(named: str, place: str) -> None:
    module, _, name = named.partition(":")
    path = file_of(module)
    if path is None and not name:  # a name of the module above, or a file that is no Python
        above, _, name = module.rpartition(".")
        path = file_of(above)
    assert path is not None, f"{place} names {named}"
    assert not name or name in names_of(path), f"{place} names {named}"
