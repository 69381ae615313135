"""The contracts of import-linter hold what they say: each is broken once, in a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["penstock", "flows", "stages", "artifacts", "penstock_demo"]
LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layers_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("artifacts/errors.py", "import stages", "penstock over flows over stages"),
        (
            "stages/process/report.py",
            "import flows",
            "penstock over flows over stages",
        ),
        ("flows/job/config.py", "import flows.planning", "Inside flows"),
        ("flows/results/outputs.py", "import flows.planning", "Inside flows"),
        ("flows/new.py", "", "Inside flows"),
        ("artifacts/errors.py", "import artifacts.keys", "No two rooms import each other"),
        ("stages/process/report.py", "import stages.models", "Inside stages"),
        ("stages/new.py", "", "Inside stages"),
        ("stages/frames/__init__.py", "import stages.encode", "Inside stages"),
        ("stages/models/halves/load.py", "import stages.models.processors", "Inside models"),
        ("stages/decode/protocol.py", "import stages.decode.engines", "Inside decode"),
        ("penstock_demo/world.py", "import artifacts", "The demo is a leaf"),
        ("stages/process/report.py", "import penstock_demo", "Only flows knows the demo"),
        ("stages/process/report.py", "import prefect", "Only flows.deployments knows Prefect"),
        ("flows/running/run.py", "import prefect", "Only flows.deployments knows Prefect"),
        ("flows/job/config.py", "import argparse", "Only flows.cli knows the command line"),
        ("artifacts/schema.py", "import transformers", "Artifacts know no models"),
    ],
)
def test_a_forbidden_import_fails(copy: Path, module: str, line: str, contract: str) -> None:
    with (copy / module).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    broken = [row for row in done.stdout.splitlines() if " BROKEN" in row]
    assert [row for row in broken if row.startswith(contract)], done.stdout
