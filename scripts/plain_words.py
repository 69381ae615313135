"""Counts words of the former private dialect in names and prose: `python -m scripts.plain_words`.

Names are identifiers of the product's code, split at `_` and at capitals. Prose is its comments and
texts, docstrings among them, and the pages of docs/ but the log.
"""

import io
import re
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
RETIRED = ("told", "asked", "said", "hear", "tell")
STORED = {
    "tell": "method of files",
    "asked": "field of the plan that a run records",
    "said_before": "field of the decode stage's job, which tasks record",
}
"""Identifiers that may have such a word → where the name is stored."""
PHRASES = re.compile(
    r"\b(knows? (no|not|nothing|neither)|in few bits|to the bit|hangs on|(is|are|was|were) told"
    r"|overhears?|is said in|are said in|what is asked|who (asks|loads|reads|holds|takes) it)\b",
    re.IGNORECASE,
)
"""Phrases of the former dialect."""
MOST_IN_PROSE = 20
"""How often a word of RETIRED may stand in comments, texts and pages: plain English has it, too."""
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def files() -> list[Path]:
    """Return every module of the product."""
    return sorted(path for top in PACKAGES for path in (ROOT / top).rglob("*.py"))


@cache
def tokens(path: Path) -> list[tuple[int, str]]:
    """Return the type and the text of each token of a module."""
    reader = io.StringIO(path.read_text("utf-8")).readline
    return [(token.type, token.string) for token in tokenize.generate_tokens(reader)]


def counts(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return how often each word stands in the names of a module, and in its prose."""
    names, prose = Counter[str](), Counter[str]()
    for kind, text in tokens(path):
        if kind == tokenize.NAME:
            names.update(word.lower() for word in WORD.findall(text))
        elif kind in (tokenize.STRING, tokenize.COMMENT):
            prose.update(word.lower() for word in re.findall(r"[A-Za-z]+", text))
    return names, prose


def retired_names() -> dict[str, list[str]]:
    """Return the identifiers with a retired word, by module, but those of STORED."""
    found: dict[str, list[str]] = {}
    for path in files():
        names = {text for kind, text in tokens(path) if kind == tokenize.NAME} - STORED.keys()
        bad = [name for name in names if {*RETIRED} & {w.lower() for w in WORD.findall(name)}]
        if bad:
            found[path.relative_to(ROOT).as_posix()] = sorted(bad)
    return found


def pages() -> list[Path]:
    """Return README and every page of docs/ but the log, which is history."""
    found = (ROOT / "docs").rglob("*.md")
    return [ROOT / "README.md", *sorted(page for page in found if page.name != "log.md")]


def retired_phrases() -> dict[str, list[str]]:
    """Return the phrases of the former dialect, by file: modules, scripts, pages and page texts."""
    sources = (path for top in PACKAGES for path in (ROOT / top).rglob("*.*"))
    texts = (path for path in sources if path.suffix in (".py", ".js", ".html"))
    return {
        path.relative_to(ROOT).as_posix(): phrases
        for path in (*texts, *pages())
        if (phrases := [m[0] for m in PHRASES.finditer(path.read_text("utf-8"))])
    }


def all_counts() -> tuple[Counter[str], Counter[str]]:
    """Return how often each word stands in the product's names, and in its prose and pages."""
    names, prose = Counter[str](), Counter[str]()
    for path in files():
        found, text = counts(path)
        names.update(found)
        prose.update(text)
    for page in pages():
        prose.update(w.lower() for w in re.findall(r"[A-Za-z]+", page.read_text("utf-8")))
    return names, prose


def main() -> None:
    """Print the counts."""
    names, prose = all_counts()
    for word in RETIRED:
        print(f"{word:6} {names[word]:5} in names, {prose[word]:5} in prose")
    print(f"{len(files())} modules")


if __name__ == "__main__":
    main()
