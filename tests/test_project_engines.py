"""What differs between engines is a field of their records: no file outside of their package names
one or compares a name, by its syntax tree."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from stages.decode import engines
from stages.decode.engines import (
    AUTO,
    AUTO_SHARED,
    ENGINE_CHOICES,
    ENGINES,
    accepted_by,
    choice_for,
    engines_for,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
HOME = "stages/decode/engines/"
NAMES = {*ENGINES, AUTO_SHARED}
LIBRARIES = {"transformers", "gguf"}
NAMING_THE_LIBRARY = {
    "flows/checkpoint/profile_loading.py",
    "flows/machine/versions.py",
    "stages/export/graphs/run.py",
    "stages/models/gguf/__init__.py",
    "stages/process/deferred_imports.py",
}
"""Files in which `transformers` or `gguf` is the package."""
NAMED = {"engine", "engines", "speakers"}
"""Fields, variables and keys that hold an engine's name."""


def naming(source: str, *, library: bool = False) -> list[int]:
    """The lines on which a module knows an engine by name. `library`: whether such a name is a
    package there."""
    names = NAMES - LIBRARIES if library else NAMES
    return sorted({line for node in ast.walk(ast.parse(source)) for line in _lines(node, names)})


def _lines(node: ast.AST, names: set[str]) -> Iterator[int]:
    if isinstance(node, ast.Constant) and node.value in names:
        yield node.lineno
    if isinstance(node, ast.Import | ast.ImportFrom) and any(map(_knows, _imported(node))):
        yield node.lineno
    if isinstance(node, ast.Match) and _is_name(node.subject):
        yield node.lineno
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        by_identity = all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        valid = isinstance(sides[-1], ast.Name) and sides[-1].id == "ENGINE_CHOICES"
        if not by_identity and not valid and any(map(_is_name, sides)):
            yield node.lineno


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The full names of what is imported."""
    before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [before + alias.name for alias in node.names]


def _knows(imported: str) -> bool:
    """Whether who imports this has engines' names: the package as a whole, or a constant of it."""
    package, _, name = imported.rpartition(".")
    if imported == engines.__name__:
        return True
    value = getattr(engines, name, None) if package == engines.__name__ else None
    if isinstance(value, str):
        return value in NAMES
    held = isinstance(value, dict | set | frozenset | tuple) and not NAMES.isdisjoint(value)
    return held and value != ENGINE_CHOICES


def _is_name(node: ast.expr) -> bool:
    """Whether an expression is an engine's name, by what it is called."""
    if isinstance(node, ast.Subscript):
        key = node.slice.value if isinstance(node.slice, ast.Constant) else ""
        return key in NAMED or _is_name(node.value)
    called = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return called in NAMED


def test_no_file_outside_of_their_package_knows_an_engine_by_name() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files = [path for path in files if not str(path.relative_to(ROOT)).startswith(HOME)]
    assert len(files) > 500
    found: dict[str, list[int]] = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        lines = naming(path.read_text(encoding="utf-8"), library=name in NAMING_THE_LIBRARY)
        found |= {name: lines} if lines else {}
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        'slots = config.engine == "inflight"',
        'TERMS = {"inflight-shared": 1}',
        'kind = "transformers"',
        "from stages.decode.engines import ENGINES",
        "from stages.decode.engines import AUTO, AUTO_SHARED",
        "from stages.decode import engines",
        "import stages.decode.engines",
        "slots = settings.engines[0] == SLOTTED",
        'flying = event.values["engine"] in SLOTTED',
        "first = config.speakers != DEFAULT",
        "match config.engine:\n    case other: pass",
    ],
)
def test_a_file_that_knows_an_engine_by_name_is_found(line: str) -> None:
    assert naming(f"x = 1\n{line}\n") == [2]


@pytest.mark.parametrize(
    "line",
    [
        "from stages.decode.engines import AUTO, ENGINE_CHOICES, engines_for",
        "known = config.engine in ENGINE_CHOICES",
        "second = engine is not first",
        'told = "engine" in event.values',
        "flying = engine_of(event.values['engine']).slots",
    ],
)
def test_a_file_that_asks_a_record_is_not(line: str) -> None:
    assert naming(line) == []


def test_what_people_may_ask_for_and_what_answers_it_stay_in_their_order() -> None:
    one, shared, compiled, batches = (
        "inflight",
        "inflight-shared",
        "inflight-compiled",
        "transformers",
    )
    assert [*ENGINE_CHOICES] == [AUTO, batches, one, compiled, "gguf"]
    begun = {choice: [e.name for e in engines_for(choice)] for choice in (AUTO, AUTO_SHARED)}
    assert begun == {AUTO: [one, batches], AUTO_SHARED: [shared, batches]}
    more = {choice: [e.name for e in accepted_by(choice)][2:] for choice in begun}
    assert more == {AUTO: [shared, compiled], AUTO_SHARED: [one, compiled]}
    for name, engine in ENGINES.items():
        assert engines_for(name) == accepted_by(name) == (engine,)


def test_beams_and_several_prompts_choose_another_engine() -> None:
    several = {name: choice_for(name, beams=1, prompts=2) for name in ENGINE_CHOICES}
    changed = {AUTO: AUTO_SHARED, "inflight": "inflight-shared"}
    assert several == {name: changed.get(name, name) for name in ENGINE_CHOICES}
    assert [choice_for(name, beams=1, prompts=1) for name in ENGINE_CHOICES] == [*ENGINE_CHOICES]
    for name in (AUTO, "transformers"):
        assert choice_for(name, beams=4, prompts=2) == "transformers"
    for name in ("inflight", "inflight-compiled"):
        with pytest.raises(UsageError, match=f"--engine {name} does not support --beams") as caught:
            choice_for(name, beams=2, prompts=1)
        assert caught.value.hint == "Use --engine transformers"
