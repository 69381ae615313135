"""What the command line may load before it knows what it is asked for."""

import os
import sys
from pathlib import Path

import pytest

from flows.console.display import READING
from tests.support.commands import completed

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    *("PIL", "accelerate", "av", "bitsandbytes", "fastapi", "huggingface_hub", "llguidance"),
    *("numpy", "obstore", "onnxruntime", "pandas", "peft", "prefect", "pyarrow", "pydantic"),
    *("safetensors", "starlette", "torch", "torchvision", "transformers", "uvicorn"),
}
"""Each costs from a tenth of a second to ten."""

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
    done = completed([sys.executable, "-c", RUN, *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("caption", "--help")], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments).intersection(HEAVY)


FIRST = """
import io
import os
import sys

class First(io.StringIO):
    def isatty(self):
        return True

    def write(self, text):
        print(text.strip(), *sys.modules, sep="\\n", flush=True)
        os._exit(0)

from flows.cli.main import main
sys.stderr = First()
main(sys.argv[1:])
"""


def test_the_first_line_of_a_run_comes_before_what_does_it_is_loaded() -> None:
    asked = ("caption", "VIDEOS/", "--model", "demo")
    done = completed(
        [sys.executable, "-c", FIRST, *asked], env={**os.environ, "TERM": "xterm"}, check=True
    )
    line, *loaded = done.stdout.splitlines()
    assert line == READING
    slow = {"rich", "flows.running.run", "flows.planning.estimate", "flows.checkpoint.models"}
    assert not slow.union(HEAVY).intersection(loaded)


def test_what_prepares_a_run_loads_nothing_heavy() -> None:
    done = completed([sys.executable, "-c", "import sys, flows.running.run; print(*sys.modules)"])
    assert not {*HEAVY, "asyncio"}.intersection(done.stdout.split()), done.stderr


@pytest.mark.slow
def test_a_plan_of_a_model_loads_nothing_heavy_but_in_a_process_of_its_own(tmp_path: Path) -> None:
    loaded = loaded_by("plan", "--model", "demo", "--what-fits", "--store", str(tmp_path))
    # NVML, which a plan looks at a GPU with, is not among them.
    assert not loaded.intersection(HEAVY)
