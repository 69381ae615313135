"""What conftest.py refuses, seen from outside: pytest run on a folder with a copy of it."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import completed

ROOT = Path(__file__).resolve().parents[2]
PROMISES = ("FAIL_WITHOUT_BROWSER", "FAIL_WITHOUT_CUDA")
SOURCES = """
import logging, os, pathlib, random, sys, warnings
from types import SimpleNamespace
import pytest

state = SimpleNamespace(get_rng_state=lambda: None, set_rng_state=lambda _: None)
cuda = SimpleNamespace(is_available=lambda: False)
sys.modules["torch"] = SimpleNamespace(cuda=cuda, random=state)

def test_error_logged():
    logging.getLogger("stages").error("lost a frame")

@pytest.mark.logs_errors
def test_error_expected():
    logging.getLogger("stages").error("lost a frame")

def test_warned():
    warnings.warn("old")

random.seed(1)
def test_drawn(): assert random.random() == random.Random(1).random()
def test_drawn_again(): assert random.random() == random.Random(1).random()

def test_own_store(tmp_path):
    assert pathlib.Path(os.environ["PENSTOCK_STORE"]).parent == tmp_path
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "PREFECT_API_URL" not in os.environ

@pytest.mark.browser
def test_browser(): pass

@pytest.mark.gpu
def test_gpu(): pass
"""


def run(folder: Path, source: str, **variables: str) -> str:
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_one.py").write_text(source)
    done = completed(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"],
        cwd=folder,
        env={"PATH": "/nowhere", "HOME": str(folder), **variables},
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("promised", "lacking"), [("", "SKIPPED"), ("1", "ERROR")])
def test_each_test_stands_alone_and_what_is_only_muttered_fails(
    tmp_path: Path, promised: str, lacking: str
) -> None:
    settings = {"PENSTOCK_STORE": "/nowhere", "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    output = run(tmp_path, SOURCES, **dict.fromkeys(PROMISES, promised), **settings)
    found = dict(re.findall(r"::test_(\w+) (\w+)", output))
    passed = dict.fromkeys(("error_expected", "drawn", "drawn_again", "own_store"), "PASSED")
    missing = dict.fromkeys(("browser", "gpu"), lacking)
    assert found == {**passed, **missing, "error_logged": "ERROR", "warned": "FAILED"}
    assert "stages: lost a frame" in output and "UserWarning: old" in output


def test_the_files_that_are_begun_first_exist() -> None:
    from tests.conftest import LONG

    assert [name for name in LONG if not (ROOT / "tests" / name).is_file()] == []
