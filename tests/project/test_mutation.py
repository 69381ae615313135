"""The measurement of what the tests notice: which faults are planted, and where."""

import ast
from pathlib import Path

import pytest

from scripts.prove.mutation.choice import Choice, folders
from scripts.prove.mutation.mutants import (
    Contexts,
    Mutant,
    all_mutants,
    collected,
    drawn,
    located,
    mutants_of,
    planted,
    redrawn,
)

CODE = """
LIMIT: int = 3

def largest(first: int, second: int = 0, *, name: str | None = None) -> int:
    \"\"\"Say the larger.\"\"\"
    if not first < second:
        note(first, second)
    return LIMIT

class Held:
    def open(self, flag: bool = True) -> bool:
        logger.info("opened")
        return f"{1 + 2}" in self.names and flag
"""
FILE = "artifacts/held.py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / FILE).write_text(CODE)
    return tmp_path


def test_each_kind_of_fault_is_found_once_where_a_user_could_meet_it(root: Path) -> None:
    found = {(each.function, each.kind): text for each, (_, text) in mutants_of(root, FILE).items()}
    assert found == {
        ("<module>", "constant"): "(3 + 1)",
        ("largest", "constant"): "(0 + 1)",
        ("largest", "default"): "1",
        ("largest", "not"): "(first < second)",
        ("largest", "comparison"): "(first >= second)",
        ("largest", "boundary"): "(first <= second)",
        ("largest", "call"): "pass",
        ("largest", "argument"): "note(second, first)",
        ("Held.open", "constant"): "False",
        ("Held.open", "comparison"): "(f'{1 + 2}' not in self.names)",
    }


def test_a_planted_fault_changes_its_own_place_alone(root: Path) -> None:
    for mutant, (node, text) in mutants_of(root, FILE).items():
        changed = planted(root, mutant)
        assert changed is not None and ast.parse(changed.data)
        line = node.lineno - 1  # type: ignore[attr-defined]
        assert text.encode() in changed.data.splitlines()[line]
        rest = [*enumerate(zip(CODE.splitlines(), changed.data.decode().splitlines(), strict=True))]
        assert all(was == now for at, (was, now) in rest if at != line)


def test_a_fault_whose_code_has_changed_is_drawn_anew(root: Path) -> None:
    before = drawn(root, 20, 20, seed=1)
    assert drawn(root, 20, 20, seed=1) == before and len(before) == 10
    (root / FILE).write_text(CODE.replace("return LIMIT", "return first").replace("Say", "Tell"))
    kept = redrawn(root, before, seed=2)
    assert len(kept) == 10
    assert {each for each in before if each.function != "largest"} <= set(kept)
    assert planted(root, next(each for each in before if each.function == "largest")) is None


def test_what_two_commits_share_is_found_in_whatever_file_it_lies(
    root: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    (before / "flows/old").mkdir(parents=True)
    moved = CODE.replace("LIMIT: int = 3", "LIMIT: int = 4").replace("Say", "Tell")
    (before / "flows/old/kept.py").write_text(moved.replace("and flag", "or flag"))
    (before / "artifacts").mkdir()
    (before / "artifacts/held.py").write_text("def another() -> int:\n    return 3\n")
    shared = drawn(root, 20, 20, seed=1, shared=all_mutants(before))
    assert {each.function for each in shared} == {"largest"}, "docstrings apart it is the same"
    since = drawn(root, 20, 20, seed=1, older=all_mutants(before))
    assert {each.function for each in since} == {"<module>", "Held.open"}
    assert len(shared) == 7 and {each.file for each in shared} == {FILE}
    places = located(before, shared)
    assert {places[each].file for each in shared} == {"flows/old/kept.py"}
    for each in shared:
        changed = planted(before, places[each])
        assert changed is not None and changed.line in range(4, 8)
    assert located(before, drawn(root, 20, 20, seed=1)).keys() == set(shared)


def test_names_of_own_variables_and_paths_of_imports_are_no_change(root: Path) -> None:
    code = (
        "def first(words):\n    from {path} import pick\n    {name} = pick(words, {kept})\n"
        "    return {name} > 3\n"
    )
    (root / FILE).write_text(code.format(path="a.b", name="found", kept="found"))
    before = all_mutants(root)
    (root / FILE).write_text(code.format(path="c", name="word", kept="word"))
    assert all_mutants(root) == before
    (root / FILE).write_text(code.format(path="c", name="word", kept="another"))
    assert all_mutants(root).isdisjoint(before), "another variable"


def test_the_tests_of_a_function_are_those_that_call_it_within_the_limits(tmp_path: Path) -> None:
    (tmp_path / "1.calls").write_text(
        "\ttests/test_a.py::x\nartifacts/held.py:largest\n\ttests/test_b.py::y\n"
        "artifacts/held.py:largest\nartifacts/held.py:Held.open\n\tunknown\nartifacts/held.py:largest\n"
    )
    (tmp_path / "main.seconds").write_text(
        '["tests/test_a.py::x", "call", 1]\n["tests/test_b.py::y", "setup", 30]\n'
        '["tests/test_b.py::y", "call", 20]\n'
    )
    contexts = collected(tmp_path)
    largest = Mutant(FILE, "largest", "not", 0, "")
    assert contexts.callers["artifacts/held.py:largest"] == [
        "tests/test_a.py::x",
        "tests/test_b.py::y",
    ]
    assert contexts.tests_for(largest) == ["tests/test_a.py::x"], "the other one takes too long"
    own = Contexts(
        seconds={"tests/test_b.py::y": 1, "tests/rooms/artifacts/test_held.py::z": 9},
        callers={
            "artifacts/held.py:Held.open": [
                "tests/test_b.py::y",
                "tests/rooms/artifacts/test_held.py::z",
            ]
        },
        breadth={"tests/test_b.py::y": 1, "tests/rooms/artifacts/test_held.py::z": 400},
    )
    module = Mutant(FILE, "<module>", "constant", 0, "")
    assert own.tests_for(module)[0] == "tests/rooms/artifacts/test_held.py::z", (
        "its own tests come first"
    )


def test_the_choice_leaves_out_what_shows_least_for_its_seconds_and_nothing_that_is_alone() -> None:
    calls = {"a": ["quick", "long"], "b": ["long", "rows[1]", "rows[2]"], "c": ["alone"]}
    callers = {
        f"artifacts/held.py:{name}": [f"t.py::{test}" for test in tests]
        for name, tests in calls.items()
    }
    seconds = {"t.py::quick": 1.0, "t.py::long": 9.0, "t.py::alone": 50.0}
    seconds.update({"t.py::rows[1]": 1.0, "t.py::rows[2]": 1.0})
    contexts = Contexts(seconds=seconds, callers=callers, breadth=dict.fromkeys(seconds, 1))
    assert Choice(contexts).leave_out(most_seconds=60) == ["t.py::long"]
    assert Choice(contexts).leave_out(most_seconds=1) == ["t.py::long"], "others are short or last"
    assert Choice(contexts).leave_out(most_seconds=70) == []
    (folder,) = folders(contexts, killers=["t.py::quick"])
    assert (folder.tests, folder.seconds, folder.called, folder.noticed) == (5, 62, 3, 1)
