"""The measurement of what the tests notice: which faults are planted, and where."""

from pathlib import Path

import pytest

from scripts.mutation.mutants import drawn, mutants_of, planted, redrawn

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


def test_a_fault_whose_code_has_changed_is_drawn_anew(root: Path) -> None:
    before = drawn(root, 20, 20, seed=1)
    assert drawn(root, 20, 20, seed=1) == before and len(before) == 10
    (root / FILE).write_text(CODE.replace("return LIMIT", "return first").replace("Say", "Tell"))
    kept = redrawn(root, before, seed=2)
    assert len(kept) == 10
    assert {each for each in before if each.function != "largest"} <= set(kept)
    assert planted(root, next(each for each in before if each.function == "largest")) is None
