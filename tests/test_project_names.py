"""A name means one thing in the whole program, and a file is short enough to be one."""

import ast
from collections import defaultdict
from pathlib import Path

from scripts.wide_parameters import wide_parameters

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
MOST_LINES = 400
"""Of one file of the product; a longer one holds two ideas."""


def test_no_two_classes_have_one_name() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
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
    product = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    product = (path for path in product if path.name != "unsupported.py")  # it names downloads
    naming = {
        str(path.relative_to(natives)) if path.is_relative_to(natives) else str(path)
        for path in product
        if any(name in path.read_text(encoding="utf-8").lower() for name in families)
    }
    assert {name.split("/")[0] for name in naming} == {"registry.py", *families}


def test_few_parameters_take_a_whole_command() -> None:
    assert len(wide_parameters()) <= 20, "take the groups of options that are read"
