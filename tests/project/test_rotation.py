"""What the commits take in turn of tests and pages, and that nothing is left out for ever."""

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.prove import rotation
from scripts.prove.rotation import LONG, PARTS_OF_ROWS, in_turn
from scripts.prove.slow_sample import PARTS
from tests.support.commands import completed
from tests.support.pipeline import ROOT

TABLES = f"""
import pytest

@pytest.mark.parametrize("row", range({4 * LONG}))
def test_long(row): pass

@pytest.mark.parametrize("row", range({LONG}))
def test_short(row): pass

@pytest.mark.whole
@pytest.mark.parametrize("row", range(9))
def test_whole(row): pass

@pytest.mark.in_turn
@pytest.mark.parametrize("row", range(3))
def test_dear(row): pass

@pytest.mark.slow
@pytest.mark.parametrize("row", range({4 * LONG}))
def test_slow(row): pass
"""


@pytest.mark.parametrize("parts", [PARTS_OF_ROWS, PARTS])
def test_as_many_commits_in_a_row_as_there_are_parts_take_all_once(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Counter[int]()
    for commit in range(3510, 3510 + parts):
        monkeypatch.setattr(rotation, "commits", lambda commit=commit: commit)
        taken.update(in_turn(range(100), parts))
    assert taken == Counter(range(100))


def test_of_a_long_table_a_quarter_is_quick_and_the_rest_slow(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_tables.py").write_text(TABLES)
    rows = {}
    for marks in ("slow", "not slow"):
        options = ["-p", "scripts.prove.rotation", "-p", "no:cacheprovider", "--collect-only", "-q"]
        done = completed(
            [sys.executable, "-m", "pytest", *options, "-m", marks],
            cwd=tmp_path,
            env={"PATH": "/nowhere", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        )
        names = [line for line in done.stdout.splitlines() if "::" in line]
        rows[marks] = Counter(name.partition("::")[2].partition("[")[0] for name in names)
    slow = {"test_long": 3 * LONG, "test_dear": 2, "test_slow": 4 * LONG}
    assert rows == {
        "not slow": {"test_long": LONG, "test_short": LONG, "test_whole": 9, "test_dear": 1},
        "slow": slow,
    }
