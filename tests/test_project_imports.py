"""What the command line may load before it knows what it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each costs from a tenth of a second to ten.
HEAVY = ["PIL", "accelerate", "av", "bitsandbytes", "huggingface_hub", "numpy", "onnxruntime"]
HEAVY += ["prefect", "pydantic", "safetensors", "torch", "torchvision", "transformers"]
HELP_SECONDS = 0.3

RUN = """
import sys
from flows.cli.main import main
sys.argv = ["penstock", *sys.argv[1:]]
try:
    code = main()
except SystemExit as exit:
    code = exit.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("caption", "--help")], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments).intersection(HEAVY)


def test_help_is_there_at_once() -> None:
    """The least of five: the machine may be busy, the program may not be slow every time."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-c", RUN, "--help"], cwd=ROOT, capture_output=True, check=True
        )
        after = os.times()
        spent = after.children_user + after.children_system
        seconds.append(spent - before.children_user - before.children_system)
    assert min(seconds) < HELP_SECONDS, seconds


@pytest.mark.parametrize("package", ["artifacts", "stages", "flows", "demo"])
def test_a_package_costs_nothing_to_import(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()).intersection(HEAVY)
