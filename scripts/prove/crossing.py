"""Prints the folders that a change to a command crosses: `python -m scripts.prove.crossing label`.

A file counts if its path has one of the command's words, or if it defines the command's
configuration, its cost or its stage. Servers, pages, Prefect and the Python package are left out:
they show a command and are not part of it. Without names, all commands of WORDS are printed.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ("flows/interfaces/", "flows/core/pages/", "penstock/", "penstock_demo/")
WORDS = {
    "tune": (r"tun(e|ed)", r"training(?!_terms)", r"Tune(Config|Options|Job|Item|d)"),
    "export": (r"export|convert", r"quantized_export", r"Export(Config|ed|Job)|ConvertJob"),
    "label": (r"label(s|_set)?", r"label", r"Label(Config|sWritten|Options)"),
    "sift": (r"sift", r"sift", r"Sift(Config|ed|Options|FirstOptions|Job)"),
    "embed": (r"embed", r"embed_texts", r"Embed(Config|Job)"),
    "search": (r"search|index", r"index", r"(Index|Search)(Config|Query|Place)"),
    "learn": (r"learn", r"rounds", r"Learn(Config|Options|ed)"),
    "plan": (r"plan", r"costs", r"Plan"),
    "cache": (r"cache|rebuild", r"store_limit", r"Rebuild(Config|Options)"),
    "report": (r"report", r"media_rows", r"Report"),
}
"""Command → patterns of a name in a path, of a second one, and of what a file defines."""


def files_of(command: str) -> Iterator[str]:
    """Yield the files of flows and stages that are made for a command."""
    first, second, defined = WORDS[command]
    in_path = re.compile(rf"(?:^|[/_])(?:{first}|{second})(?:_command)?(?:/|\.py$)")
    for top in ("flows", "stages"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(LEFT_OUT) or path.name == "__init__.py":
                continue
            if in_path.search(name) or _defines(path, defined):
                yield name


def _defines(path: Path, pattern: str) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return any(re.fullmatch(pattern, name) for name in names)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"one of {', '.join(WORDS)}")
    given = parser.parse_args()
    for command in given.commands or WORDS:
        files = [*files_of(command)]
        folders: dict[str, list[str]] = {}
        for name in files:
            folder, _, file = name.rpartition("/")
            folders.setdefault(folder, []).append(file)
        of_flows = [folder for folder in folders if folder.startswith("flows")]
        print(f"{command}: {len(files)} files, {len(folders)} folders, {len(of_flows)} of flows")
        for folder, names in folders.items():
            print(f"  {folder}: {' '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
