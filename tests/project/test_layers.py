"""Import-linter notices what its contracts forbid: each is broken in a copy of the sources; and the
command line loads nothing heavy before it knows what it is asked for."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows.core.console.display import READING
from tests.support.commands import completed

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
PACKAGES: list[str] = SETTINGS["importlinter"]["root_packages"]
LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
SECTION = re.compile(r"^([^\n]+)\n-{20,}\n(.*?)(?=\n[^\n]+\n-{20,}\n|\Z)", re.MULTILINE | re.DOTALL)
CYCLES = "No two rooms import each other, not even by way of others"
BREACHES = {
    "penstock over flows over stages over artifacts": [
        ("artifacts/__init__.py", "import stages"),
        ("stages/__init__.py", "import flows"),
        ("flows/__init__.py", "import penstock"),
    ],
    "Inside flows: interfaces over commands over execution over outputs over core": [
        ("flows/commands/cache/__init__.py", "import flows.interfaces.serve"),
        ("flows/core/plan/__init__.py", "import flows.outputs"),
        ("flows/new.py", ""),
    ],
    "Inside flows.interfaces: the command line over Prefect over Ray and servers": [
        ("flows/interfaces/ray/__init__.py", "import flows.interfaces.serve"),
        ("flows/interfaces/new.py", ""),
    ],
    "Inside flows.commands: a command knows others only downwards": [
        ("flows/commands/status/__init__.py", "import flows.commands.doctor"),
    ],
    "Inside flows.core: a plan over a job over its keys over what it is made of": [
        ("flows/core/console/__init__.py", "import flows.core.pages"),
        ("flows/core/new.py", ""),
    ],
    "Inside artifacts: indexes and texts over records over disk": [
        ("artifacts/tiles.py", "import artifacts.packages"),
        ("artifacts/new.py", ""),
    ],
    CYCLES: [
        ("stages/models/halves/absent.py", "import stages.models.halves.load"),
        ("penstock_demo/world.py", "import penstock_demo.clips"),
    ],
    "Inside stages: independent stages over models over memory over process": [
        ("stages/embed/__init__.py", "import stages.tune"),
        ("stages/frames/__init__.py", "import stages.encode"),
        ("stages/new.py", ""),
    ],
    "Inside models: a job over processors and precision over halves over files": [
        ("stages/models/profile.py", "import stages.models.in_tree"),
    ],
    "Inside decode: the stage over its engines over what both of them speak": [
        ("stages/decode/generation.py", "import stages.decode.json_schema"),
    ],
    "The demo is a leaf: it imports nothing of the program": [
        ("penstock_demo/evaluate.py", "import artifacts.wording"),
        ("penstock_demo/evaluate.py", "import penstock.arguments"),
    ],
    "Only flows knows the demo": [
        ("stages/process/__init__.py", "import penstock_demo"),
        ("penstock/arguments.py", "import penstock_demo"),
    ],
    "Only flows.interfaces.prefect imports Prefect": [
        ("flows/core/pipelines.py", "import prefect"),
        ("flows/commands/review/__init__.py", "import prefect"),
        ("flows/commands/search/__init__.py", "import prefect"),
        ("flows/interfaces/serve/__init__.py", "import prefect"),
        ("penstock/arguments.py", "import prefect"),
        ("stages/process/__init__.py", "import prefect"),
    ],
    "Only flows.interfaces.ray imports Ray": [
        ("flows/interfaces/prefect/__init__.py", "import ray"),
        ("penstock/arguments.py", "import ray"),
        ("stages/process/__init__.py", "import ray"),
    ],
    "Only the parts of the command line and scripts of the demo import argparse": [
        ("flows/core/job/__init__.py", "import argparse"),
        ("penstock/arguments.py", "import argparse"),
        ("penstock_demo/world.py", "import argparse"),
    ],
    "Nothing but a stage imports a model library, not even by way of others": [
        ("artifacts/schema.py", "import transformers"),
        ("flows/commands/search/__init__.py", "import stages.models.halves.features"),
    ],
    "Only stages and the artifacts that are tensors import torch": [
        ("artifacts/schema.py", "import torch"),
        ("flows/core/job/__init__.py", "import onnxruntime"),
        ("penstock/arguments.py", "import torch"),
    ],
}
"""Contract → files, and what is written into each that this contract alone forbids."""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return completed([sys.executable, "-c", LINT, "--no-cache"], cwd=folder)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Contracts that are broken in a copy with all breaches → what import-linter prints of each."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    for module, line in (breach for breaches in BREACHES.values() for breach in breaches):
        with (copy / module).open("a") as source:
            source.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1
    return dict(SECTION.findall(done.stdout.partition("Broken contracts\n")[2]))


def test_every_contract_is_broken_by_a_line_of_its_own(sections: dict[str, str]) -> None:
    names = [contract["name"] for contract in SETTINGS["importlinter"]["contracts"]]
    assert sorted(BREACHES) == sorted(sections) == sorted(names)
    assert sorted(PACKAGES) == sorted(SETTINGS["uv"]["build-backend"]["module-name"])
    cycles = re.findall(r"No cycles are allowed in (\S+)\.", sections[CYCLES])
    assert cycles == ["flows", "penstock_demo", "stages.models.halves"]


@pytest.mark.parametrize(
    ("contract", "module", "line"),
    [(each, *breach) for each in BREACHES if each != CYCLES for breach in BREACHES[each]],
)
def test_a_forbidden_import_breaks_its_contract_alone(
    sections: dict[str, str], contract: str, module: str, line: str
) -> None:
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    shown = f" {name} -> {line.removeprefix('import ')} (" if line else f"- {name}\n"
    assert [each for each, text in sections.items() if shown in text] == [contract], sections


def test_benchmarks_import_no_scripts_and_of_tests_the_builders_alone() -> None:
    lines = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "benchmarks").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) (scripts|tests(?!\.support\.builders\b))\b", line)
    ]
    assert lines == []


@pytest.mark.parametrize(
    "patch",
    sorted((ROOT / "tests" / "data" / "toys").glob("*.patch")),
    ids=lambda patch: patch.stem,
)
def test_a_toy_of_the_slow_tests_still_applies(patch: Path) -> None:
    requests = ["git", "apply", "--check", "-C1", str(patch)]
    done = completed(requests)
    assert done.returncode == 0, done.stderr


HEAVY = {
    *("PIL", "accelerate", "av", "bitsandbytes", "fastapi", "huggingface_hub", "llguidance"),
    *("numpy", "obstore", "onnxruntime", "pandas", "peft", "prefect", "pyarrow", "pydantic"),
    *("safetensors", "starlette", "torch", "torchvision", "transformers", "uvicorn"),
}
"""Each costs from a tenth of a second to ten."""

RUN = """
import sys
from flows.interfaces.cli.main import main
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

from flows.interfaces.cli.main import main
sys.stderr = First()
main(sys.argv[1:])
"""


def test_the_first_line_of_a_run_comes_before_what_does_it_is_loaded() -> None:
    request = ("caption", "VIDEOS/", "--model", "demo")
    done = completed(
        [sys.executable, "-c", FIRST, *request], env={**os.environ, "TERM": "xterm"}, check=True
    )
    line, *loaded = done.stdout.splitlines()
    assert line == READING
    slow = {
        "rich",
        "flows.execution.run",
        "flows.core.plan.half",
        "flows.core.checkpoint.models",
    }
    assert not slow.union(HEAVY).intersection(loaded)


def test_what_prepares_a_run_loads_nothing_heavy() -> None:
    done = completed([sys.executable, "-c", "import sys, flows.execution.run; print(*sys.modules)"])
    assert not {*HEAVY, "asyncio"}.intersection(done.stdout.split()), done.stderr


@pytest.mark.slow
def test_a_plan_of_a_model_loads_nothing_heavy_but_in_a_process_of_its_own(tmp_path: Path) -> None:
    loaded = loaded_by("plan", "--model", "demo", "--what-fits", "--store", str(tmp_path))
    # NVML, which a plan looks at a GPU with, is not among them.
    assert not loaded.intersection(HEAVY)
