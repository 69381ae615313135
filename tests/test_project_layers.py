"""The contracts of import-linter hold what they say: each is broken once, in a copy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["penstock", "flows", "stages", "artifacts", "penstock_demo"]
LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
FORBIDDEN = [
    ("artifacts/errors.py", "import stages", "penstock over flows over stages"),
    ("stages/process/report.py", "import flows", "penstock over flows over stages"),
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
]
"""File, what is written into it, and the contract that this breaks."""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is said of a copy in which each contract is broken."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    for module, line, _ in FORBIDDEN:
        with (copy / module).open("a") as source:
            source.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1
    return done.stdout


@pytest.mark.parametrize(("module", "line", "contract"), FORBIDDEN)
def test_a_forbidden_import_fails(broken: str, module: str, line: str, contract: str) -> None:
    (section,) = re.findall(
        rf"^{contract}[^\n]*\n-{{20,}}\n(.*?)(?=\n[^\n]+\n-{{20,}}\n|\Z)", broken, re.M | re.S
    )
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    told = f" {name} -> {line.removeprefix('import ')} (" if line else f"- {name}\n"
    if contract.startswith("No two rooms"):
        told = "No cycles are allowed in artifacts."
    assert told in section, section
