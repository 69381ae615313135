"""Prints files whose code falls into parts that share no name: `python -m scripts.prove.seams 40`.

A file is one connected idea. Two definitions are connected if one uses the name of the other; lists
of public names, aliases and strings that only name a definition connect nothing. A file is printed
if its second largest part has at least so many lines: both numbers of lines, and the names of the
smaller part.
"""

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scripts.prove.floors import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
QUOTED = re.compile(r"[\w.\[\], |]+")
"""An annotation in quotes, and no text of an option."""
DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, DEFINING):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)} - {"__all__"}


def used_in(node: ast.AST) -> Iterator[str]:
    """Yield the names that code uses, also those of quoted annotations."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        annotation = getattr(inner, "annotation", None) or getattr(inner, "returns", None)
        for text in ast.walk(annotation) if annotation is not None else ():
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield from re.findall(r"\w+", text.value) if QUOTED.fullmatch(text.value) else ()


def parts_of(tree: ast.Module) -> list[tuple[int, list[str]]]:
    """Return the lines and names of each part of a module that has a function or a class, the
    largest part first."""
    nodes = [node for node in tree.body if names_of(node)]
    nodes = [node for node in nodes if not isinstance(getattr(node, "value", None), ast.Name)]
    place = {name: at for at, node in enumerate(nodes) for name in names_of(node)}
    part = list(range(len(nodes)))
    for at, node in enumerate(nodes):
        for other in {place[name] for name in used_in(node) if name in place}:
            old, new = part[other], part[at]
            part = [new if number == old else number for number in part]
    members: defaultdict[int, list[ast.stmt]] = defaultdict(list)
    for number, node in zip(part, nodes, strict=True):
        members[number].append(node)
    return sorted(
        (
            (
                sum((node.end_lineno or 0) - node.lineno + 1 for node in of_part),
                sorted(name for node in of_part for name in names_of(node)),
            )
            for of_part in members.values()
            if any(isinstance(node, DEFINING) for node in of_part)
        ),
        reverse=True,
    )


def seam_of(tree: ast.Module, least: int) -> str:
    """Return how a module is divided, "" if its second largest part has fewer lines."""
    first, *others = parts_of(tree) or [(0, [])]
    if not others or others[0][0] < least:
        return ""
    return f"{first[0]}+{others[0][0]} lines, apart: {' '.join(others[0][1])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lines", nargs="?", type=int, default=40, help="of the smaller part [40]")
    least, seams = parser.parse_args().lines, 0
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        if seam := seam_of(ast.parse(path.read_text(encoding="utf-8")), least):
            seams += 1
            print(f"{path.relative_to(ROOT)}: {seam}")
    return int(seams > 0)


if __name__ == "__main__":
    sys.exit(main())
