"""Copies of the program with a toy in them, put there by a patch that is kept in tests/data/toys:
what a new stage, store or engine takes is counted in files, and then run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "tests" / "data" / "toys"
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")


def patched(toy: str, folder: Path) -> tuple[Path, list[str]]:
    """A copy of the program in `folder` with a toy in it, and the names of the files that took.
    One that does not apply any more is made anew: apply it by hand, mend it, `git diff`."""
    copy = folder / "penstock"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    patch = TOYS / f"{toy}.patch"
    # Outside of any repository git applies a patch to the folder that it stands in.
    apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)}
    done = subprocess.run(
        ["git", "apply", "-C1", str(patch)],
        cwd=copy,
        env=apart,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [line.split("/", 1)[1] for line in patch.read_text().splitlines() if line[:4] == "+++ "]
    return copy, names


def inside(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command in the copy, with its modules and nobody else's."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
