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


def parts_of(text: str) -> list[tuple[int, list[str]]]:
    """Return the lines and names of each part of a module that has a function or a class, the
    largest part first."""
    nodes = [node for node in ast.parse(text).body if names_of(node)]
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


def seams_of(least: int) -> Iterator[str]:
    """Yield a line for each file whose second largest part has at least so many lines."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        first, *others = parts_of(path.read_text(encoding="utf-8")) or [(0, [])]
        if others and others[0][0] >= least:
            lines, names = others[0]
            yield f"{path.relative_to(ROOT)}: {first[0]}+{lines} lines, apart: {' '.join(names)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lines", nargs="?", type=int, default=40, help="of the smaller part [40]")
    lines = [*seams_of(parser.parse_args().lines)]
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
