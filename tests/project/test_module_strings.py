"""Modules that the product names in strings exist, with the name behind the colon: nothing else
would notice before the string is used."""

import ast
import re
from collections.abc import Iterator

from flows.core.commands import COMMANDS
from stages.models import _HOMES as HALVES
from tests.support.sources import PRODUCT, Source, nodes, sources

DOTTED = re.compile(rf"(?:{'|'.join(PRODUCT)})(?:\.\w+)+(?::\w+)?")
METADATA = {"penstock.inputs", "penstock.weight_bits"}
"""Keys in graphs, which look like modules."""


def names_of(source: Source) -> Iterator[str]:
    """What a module defines or imports at its top level."""
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def in_strings() -> Iterator[tuple[str, str]]:
    """Each string of the product that is a dotted path and no more, with the file that has it."""
    for path, node in nodes(ast.Constant, *PRODUCT):
        text = node.value
        if isinstance(text, str) and DOTTED.fullmatch(text) and text not in METADATA:
            yield text, path


def source_of(module: str) -> Source | None:
    places = [f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
    return next((source for source in sources(*PRODUCT) if source.path in places), None)


def exists(named: str) -> bool:
    module, _, name = named.partition(":")
    source = source_of(module)
    if source is None and not name:  # a name of the module above, or a file that is no Python
        above, _, name = module.rpartition(".")
        source = source_of(above)
    return source is not None and (not name or name in names_of(source))


def test_each_module_named_in_a_string_exists() -> None:
    named = {
        *in_strings(),
        *(
            (f"{package}.{name}_command:{function}", "flows/commands/shared/parser.py")
            for name, (_, package) in COMMANDS.items()
            for function in (f"add_{name}", f"{name}_command")
        ),
        *((f"stages.models.{home}:{name}", "stages/models") for name, home in HALVES.items()),
    }
    assert len(named) > 50
    assert [(name, place) for name, place in sorted(named) if not exists(name)] == []
