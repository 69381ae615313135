"""What the command line may load before it knows what it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each costs from a tenth of a second to ten.
HEAVY = ["PIL", "accelerate", "av", "bitsandbytes", "huggingface_hub", "numpy", "onnxruntime"]
HEAVY += ["pandas", "prefect", "pyarrow", "pydantic", "safetensors", "torch", "torchvision"]
HEAVY += ["transformers"]

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


@pytest.mark.slow
def test_a_plan_of_a_model_loads_nothing_heavy_but_in_a_process_of_its_own(tmp_path: Path) -> None:
    loaded = loaded_by("plan", "--model", "demo", "--what-fits", "--store", str(tmp_path))
    # NVML, which a plan looks at a GPU with, is not among them.
    assert not loaded.intersection(HEAVY)
