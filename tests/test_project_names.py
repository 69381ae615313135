"""A name means one thing in the whole program, names and texts use standard terms, and files are
short."""

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

from tests.support.wide_parameters import wide_parameters

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
MOST_LINES = 400
"""Of one file of the product; a longer one holds two ideas."""
RETIRED = ("told", "asked", "said", "hear", "tell")
"""Words of a former private dialect."""
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


def product_files(pattern: str) -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob(pattern)]


def pages() -> list[Path]:
    """README and every page of docs/ but the log, which is history."""
    found = (ROOT / "docs").rglob("*.md")
    return [ROOT / "README.md", *(page for page in found if page.name != "log.md")]


@cache
def tokens(path: Path) -> list[tuple[int, str]]:
    """Type and text of each token of a module."""
    reader = io.StringIO(path.read_text("utf-8")).readline
    return [(token.type, token.string) for token in tokenize.generate_tokens(reader)]


def test_no_two_classes_have_one_name() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in product_files("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 150
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_too_long_to_read() -> None:
    product = (*PACKAGES, "scripts", "benchmarks")
    files = [path for top in product for path in (ROOT / top).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 300
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_a_family_of_our_own_is_named_where_it_is_computed_and_nowhere_else() -> None:
    natives = ROOT / "stages" / "models" / "in_tree"
    families = {path.name for path in natives.iterdir() if (path / "__init__.py").exists()}
    assert families
    product = (path for path in product_files("*.py") if path.name != "unsupported.py")  # downloads
    naming = {
        str(path.relative_to(natives)) if path.is_relative_to(natives) else str(path)
        for path in product
        if any(name in path.read_text(encoding="utf-8").lower() for name in families)
    }
    assert {name.split("/")[0] for name in naming} == {"registry.py", *families}


def test_few_parameters_take_a_whole_command() -> None:
    assert len(wide_parameters()) <= 20, "take the groups of options that are read"


def test_no_name_has_a_retired_word() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in product_files("*.py")
        for kind, text in tokens(path)
        if kind == tokenize.NAME and text not in STORED
        if {*RETIRED} & {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}
    }
    assert found == set()


def test_no_text_and_no_page_has_a_retired_phrase() -> None:
    texts = (path for path in product_files("*.*") if path.suffix in (".py", ".js", ".html"))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (*texts, *pages())
        for match in PHRASES.finditer(path.read_text("utf-8"))
    ]
    assert found == []


def test_prose_seldom_has_a_retired_word() -> None:
    prose = [page.read_text("utf-8") for page in pages()]
    for path in product_files("*.py"):
        kinds = (tokenize.STRING, tokenize.COMMENT)
        prose += [text for kind, text in tokens(path) if kind in kinds]
    found = Counter(word.lower() for text in prose for word in re.findall("[A-Za-z]+", text))
    assert {word: found[word] for word in RETIRED if found[word] > MOST_IN_PROSE} == {}
