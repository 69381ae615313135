"""What conftest.py refuses, seen from outside: pytest run on a folder with a copy of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ERROR_LOGGED = """
import logging
def test_it():
    logging.getLogger("stages").error("lost a frame")
"""
ERROR_EXPECTED = """
import logging, pytest
@pytest.mark.logs_errors
def test_it():
    logging.getLogger("stages").error("lost a frame")
"""
WARNED = """
import warnings
def test_it():
    warnings.warn("old")
"""
DRAWN = """
import random
random.seed(1)
def test_first(): assert random.random() == random.Random(1).random()
def test_again(): assert random.random() == random.Random(1).random()
"""
OWN_STORE = """
import os, pathlib
def test_it(tmp_path):
    assert pathlib.Path(os.environ["PENSTOCK_STORE"]).parent == tmp_path
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "PREFECT_API_URL" not in os.environ
"""
ON_GPU = """
import pytest, torch
torch.cuda.is_available = lambda: False
@pytest.mark.gpu
def test_it(): pass
"""

IN_BROWSER = """
import os, pytest
os.environ["PATH"] = "/nowhere"
@pytest.mark.browser
def test_it(): pass
"""


def run(folder: Path, source: str, **variables: str) -> str:
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_one.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [(ERROR_LOGGED, "stages: lost a frame"), (WARNED, "UserWarning: old")],
    ids=["error logged", "warning"],
)
def test_what_is_only_muttered_fails(tmp_path: Path, source: str, message: str) -> None:
    output = run(tmp_path, source)
    assert message in output
    assert "1 passed" not in output or "1 error" in output


@pytest.mark.parametrize(
    ("source", "passed"),
    [(ERROR_EXPECTED, 1), (DRAWN, 2), (OWN_STORE, 1)],
    ids=["error expected", "drawn", "own store"],
)
def test_a_test_stands_alone(tmp_path: Path, source: str, passed: int) -> None:
    settings = {"PENSTOCK_STORE": "/nowhere", "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    assert f"{passed} passed in" in run(tmp_path, source, **settings)


@pytest.mark.parametrize(
    ("source", "promise"),
    [
        pytest.param(ON_GPU, "FAIL_WITHOUT_CUDA", marks=pytest.mark.slow),
        (IN_BROWSER, "FAIL_WITHOUT_BROWSER"),
    ],
)
@pytest.mark.parametrize(("promised", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_what_a_machine_lacks_is_skipped_unless_it_was_promised(
    tmp_path: Path, source: str, promise: str, promised: str, outcome: str
) -> None:
    assert outcome in run(tmp_path, source, **{promise: promised})
