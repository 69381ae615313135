"""Counts words of the former private dialect in names and prose: `python -m scripts.plain_words`.

Names are identifiers of the product's code, split at `_` and at capitals. Prose is its comments and
texts, docstrings among them, and the pages of docs/ but the log.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
RETIRED = ("told", "asked", "said", "hear", "tell")
NEGATIONS = re.compile(r"\b[Kk]nows? (no|not|nothing|neither)\b")
MOST_LINES = 400
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def files() -> list[Path]:
    """Return every module of the product."""
    return sorted(path for top in PACKAGES for path in (ROOT / top).rglob("*.py"))


def counts(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return how often each word stands in the names of a module, and in its prose."""
    names, prose = Counter[str](), Counter[str]()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.NAME:
            names.update(word.lower() for word in WORD.findall(token.string))
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            prose.update(word.lower() for word in re.findall(r"[A-Za-z]+", token.string))
    return names, prose


def main() -> None:
    """Print the counts."""
    names, prose, negated, long = Counter[str](), Counter[str](), 0, 0
    for path in files():
        found, text = counts(path)
        names += found
        prose += text
        source = path.read_text("utf-8")
        negated += bool(NEGATIONS.search(ast.get_docstring(ast.parse(source)) or ""))
        long += len(source.splitlines()) > MOST_LINES
    for page in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"):
        if page.name != "log.md":
            prose.update(w.lower() for w in re.findall(r"[A-Za-z]+", page.read_text("utf-8")))
    for word in RETIRED:
        print(f"{word:6} {names[word]:5} in names, {prose[word]:5} in prose")
    print(f"{negated} module docstrings that say what a module does not know")
    print(f"{len(files())} modules, {long} of more than {MOST_LINES} lines")


if __name__ == "__main__":
    main()
