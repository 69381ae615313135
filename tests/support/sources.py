"""Python files of this repository, each parsed once for all checks that read them."""

import ast
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
"""The packages that users get."""
Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    path: str
    """Below ROOT."""
    text: str
    tree: ast.Module
    nodes: list[ast.AST]
    """All of the tree, in the order of `ast.walk`."""


@cache
def _parsed(top: str) -> list[Source]:
    gc.disable()  # it would take most of the time
    found = []
    for path in sorted((ROOT / top).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree, name = ast.parse(text), path.relative_to(ROOT).as_posix()
        found.append(Source(path=name, text=text, tree=tree, nodes=[*ast.walk(tree)]))
    gc.freeze()
    gc.enable()
    return found


def sources(*tops: str) -> list[Source]:
    """Return the modules of folders at the top of the repository."""
    return [source for top in tops for source in _parsed(top)]


def nodes(kind: type[Node], *tops: str) -> Iterator[tuple[str, Node]]:
    """Yield each node of a kind in these folders, with the path of its file."""
    for source in sources(*tops):
        yield from ((source.path, node) for node in source.nodes if isinstance(node, kind))
