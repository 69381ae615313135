"""The dependencies and the extras are what the program imports, and a missing package is named with
its extra before anything starts."""

import ast
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from artifacts.packages import CORE, EXTRAS, PACKAGES, install_command
from flows.commands.shared.parser import module_of
from flows.core.machine.versions import package_lines
from tests.support.commands import completed, ended_cpu_seconds
from tests.support.hidden_modules import hiding
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS
from tests.support.sources import PRODUCT, nodes

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROUGHT = {
    "jinja2": "torch",
    "onnx_ir": "onnxscript",
    "packaging": "transformers",
    "pydantic_core": "pydantic",
    "pydantic_settings": "prefect",
    "tokenizers": "transformers",
    "triton": "torch",
    "uvloop": "uvloop",
}
"""Module that is imported and in no table → the package that requires it."""
BY_TRANSFORMERS = {"accelerate", "google", "num2words", "sentencepiece", "torchvision"}
"""Modules that only transformers imports, for processors, tokenizers and placed layers."""
OF_OTHERS = ("_typeshed", "IPython")
"""Modules of type checkers, and of the notebook that the program runs in."""
OPTIONAL = tuple(module for extra in EXTRAS.values() for module in extra.modules)


def imported() -> set[str]:
    """Return the top-level modules that the files of the product import."""
    names = {alias.name for _, node in nodes(ast.Import, *PRODUCT) for alias in node.names}
    parts = (node for _, node in nodes(ast.ImportFrom, *PRODUCT) if not node.level)
    return {name.partition(".")[0] for name in (*names, *(node.module or "" for node in parts))}


def packages_of(modules: Sequence[str]) -> set[str]:
    return {canonicalize_name(PACKAGES.get(module, module)) for module in modules}


def declared(name: str) -> set[str]:
    """Return the packages of an extra, those of the extras that it names included."""
    found = set()
    for text in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(text)
        if requirement.name == "penstock":
            found |= set().union(*map(declared, requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def required(package: str) -> set[str]:
    """Return what a package requires; nothing if it is not installed."""
    try:
        return {canonicalize_name(Requirement(text).name) for text in requires(package) or ()}
    except PackageNotFoundError:
        return set()


def test_every_import_is_of_a_package_that_penstock_or_an_extra_installs() -> None:
    others = imported() - {*sys.stdlib_module_names, *PRODUCT, *OF_OTHERS}
    assert others - {*CORE, *OPTIONAL, *BROUGHT, "starlette"} == set()
    assert {*CORE} - BY_TRANSFORMERS <= others
    assert not {*CORE} & {*OPTIONAL}


@pytest.mark.parametrize(("module", "package"), BROUGHT.items())
def test_what_is_not_declared_comes_with_what_is(module: str, package: str) -> None:
    listed = {name for extra in PROJECT["optional-dependencies"] for name in declared(extra)}
    assert package in listed | packages_of(CORE)
    assert canonicalize_name(module) in {*required(package), package}


def test_the_tables_are_those_of_the_project() -> None:
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert core == packages_of(CORE)
    for name, extra in EXTRAS.items():
        found = declared(name)
        assert packages_of(extra.modules) <= found.union(*map(required, found)), name
    single = {"bits", "bucket", "graphs", "heif", "prefect", "search", "tune"}
    whole = set().union(*map(declared, single))
    assert declared("all") == whole | packages_of(EXTRAS["serve"].modules) - {"starlette"}
    assert {*PROJECT["optional-dependencies"]} == {*EXTRAS, "all", "notebook"}


NOTING = """
import os, sys
with open(os.environ["STARTED"], "a") as file:
    print(*sys.orig_argv, file=file)
"""
"""Code that writes down how each process was started."""
MESSAGE = r"needs the package (\S+), which is not installed\. Run .*pip install 'penstock\[(\w+)\]'"
STAGES = ("stages.process.child", "stages.process.fork_server")


class Hidden:
    """An environment whose processes cannot import some modules."""

    def __init__(self, folder: Path, *modules: str) -> None:
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(NOTING + hiding(modules))
        self._started = folder / "started"
        self.env = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "STARTED": str(self._started),
        }

    def stages(self) -> list[str]:
        lines = self._started.read_text().splitlines()
        return [line for line in lines if any(name in line for name in STAGES)]


class Command(NamedTuple):
    """A command, and the modules without which it refuses to run."""

    words: str
    needs: tuple[str, ...] = ()


def needing(words: str, *extras: str) -> Command:
    return Command(words, tuple(module for name in extras for module in EXTRAS[name].modules))


CAPTION = "caption media --model demo --out OUT --store store"
COMMANDS = (
    needing(CAPTION),
    Command(f"{CAPTION} --format parquet", ("pyarrow",)),
    needing(f"{CAPTION} --precision nf4", "bits"),
    needing(f"{CAPTION} --language-precision int8", "bits"),
    needing(f"{CAPTION} --precision auto"),
    needing(f"{CAPTION} --adapter adapter", "tune"),
    needing(f"{CAPTION} --vision-backend onnx", "graphs"),
    needing(f"{CAPTION} --language-gguf file.gguf --engine gguf", "gguf"),
    needing(f"{CAPTION} --sift blurred=0", "search"),
    needing(f"{CAPTION} --prefect", "prefect"),
    needing(f"{CAPTION} --ray auto", "ray"),
    needing("caption photo.heic --model demo --out OUT --store store", "heif"),
    needing("caption media --model demo --out OUT --store s3://nowhere/store", "bucket"),
    needing("caption s3://nowhere/clip.mp4 --model demo --out OUT --store store", "bucket"),
    needing("plan media --model demo --store store"),
    needing("plan media --model demo --store store --precision nf4", "bits"),
    Command("embed media --model demo --out OUT --store store", ("pyarrow",)),
    needing("label media --model demo --labels ball,box --out OUT --store store"),
    needing("sift media --out OUT --store store", "search"),
    needing("sift media --model demo --similar 0.9 --out OUT --store store", "search", "sift"),
    needing("index build media --model demo --out OUT --store store", "search"),
    needing("index stats --index OUT", "search"),
    needing("search ball --index OUT --store store", "search"),
    needing("tune captions.jsonl --model demo --out OUT --store store --steps 1", "tune"),
    needing("tune captions.jsonl --model demo --out OUT --precision nf4", "tune", "bits"),
    needing("tune captions.jsonl --model demo --out OUT --optimizer adamw8bit", "tune", "bits"),
    needing("tune captions.jsonl --model demo --out OUT --tensorboard", "tune", "tensorboard"),
    needing("learn captions --anyway", "tune"),
    needing("export demo --to nf4 --out OUT --store store", "bits"),
    needing("export demo --to onnx --out OUT --store store", "export", "graphs"),
    needing("serve --model demo --store store --port 0", "serve"),
    needing("review captions --port 0", "serve"),
    needing("studio media --port 0", "serve"),
    needing("status captions"),
    needing("report captions"),
    needing("cache ls --store store"),
    needing("cache ls --store s3://nowhere/store", "bucket"),
    needing("completion bash"),
    needing("doctor"),
    needing("demo --clips 0"),
    needing("demo --clips 0 --precision nf4", "bits"),
)
REFUSED = [(command.words, module) for command in COMMANDS for module in command.needs]
FIRST = {module: (words, module) for words, module in reversed(REFUSED)}
"""Module → the first command that needs it."""
RUN = [command for command in COMMANDS if not command.needs]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with media."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "media").mkdir()
    shutil.copy(ROOT / "penstock_demo" / "samples" / "clip-01.mp4", folder / "media")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    return folder


@pytest.fixture(scope="module")
def captioned(here: Path) -> Path:
    """The same with a run that captioned them."""
    words = CAPTION.replace("OUT", "captions").split()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = completed([*PENSTOCK, *words], cwd=here, env=env, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(here / "captions" / "captions.jsonl", here)
    return here


def check_refused(here: Path, tmp_path: Path, words: str, module: str) -> None:
    """Hide a module, and check that the command names its extra and starts nothing."""
    hidden, out = Hidden(tmp_path, module), tmp_path / "out"
    command = [*PENSTOCK, *words.replace("OUT", str(out)).split()]
    began = ended_cpu_seconds()
    done = completed(command, cwd=here, env=hidden.env, timeout=SECONDS)
    seconds = ended_cpu_seconds() - began  # whatever else this machine does
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stdout + done.stderr
    package, extra = re.findall(MESSAGE, said[-1])[0]
    assert module in EXTRAS[extra].modules
    # Here the extra `gguf` may be missing as a whole.
    assert package == PACKAGES.get(module, module) or extra == "gguf"
    assert hidden.stages() == []
    assert not [*out.rglob("run.json")]
    assert seconds < 5, f"{seconds:.1f} s"


@pytest.mark.parametrize(("words", "module"), FIRST.values())
def test_a_missing_package_is_named_with_its_extra_before_anything_starts(
    here: Path, tmp_path: Path, words: str, module: str
) -> None:
    check_refused(here, tmp_path, words, module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "module"), [each for each in REFUSED if each not in [*FIRST.values()]]
)
def test_so_it_is_by_every_command(
    captioned: Path, tmp_path: Path, words: str, module: str
) -> None:
    check_refused(captioned, tmp_path, words, module)


def test_what_needs_no_extra_is_imported_without_any(tmp_path: Path) -> None:
    core = ("caption", "plan", "label", "status", "report", "cache", "convert", "doctor", "demo")
    modules = [module_of(name).__name__ for name in core]
    modules += ["flows.commands.label.run", "flows.commands.caption.run", "flows.commands.tune.run"]
    modules += ["penstock.api", "penstock.captions", "penstock.vectors"]
    code = f"from importlib import import_module\nfor name in {modules}: import_module(name)"
    done = completed([sys.executable, "-c", code], env=Hidden(tmp_path, *OPTIONAL).env)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [command.words for command in RUN])
def test_other_commands_run_without_any_extra(captioned: Path, tmp_path: Path, words: str) -> None:
    hidden = Hidden(tmp_path, *OPTIONAL)
    command = [*PENSTOCK, *words.replace("OUT", str(tmp_path / "out")).split()]
    done = completed(command, cwd=captioned, env=hidden.env, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    notes = re.findall(r"plans no int8 or nf4.*penstock\[bits\]", done.stdout + done.stderr)
    assert bool(notes) == ("--precision auto" in words)
    if words.startswith("doctor"):
        lines = [line for line in done.stdout.splitlines() if line.startswith("packages")]
        assert [name for name in EXTRAS if f"[{name}] is not installed" not in str(lines)] == []
        assert len(lines) == len(EXTRAS)


def test_doctor_names_packages_in_versions_that_were_not_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)) | {"penstock": "0.1.0"}
    versions |= {"av": "", "transformers": "5.15.0"}
    monkeypatch.setattr("flows.core.machine.versions.version_of", versions.__getitem__)
    monkeypatch.setattr("flows.core.machine.versions.requires", lambda _: PROJECT["dependencies"])
    monkeypatch.setattr("flows.core.machine.versions.missing_extras", lambda: ["bits"])
    assert [*package_lines()] == [
        f"av is missing: {install_command()}",
        "transformers 5.15.0: tested with <5.24,>=5.23 only",
        f"[bits] is not installed, for int8 and nf4: {install_command('bits')}",
    ]


def test_a_stage_without_a_package_of_the_core_names_it(here: Path, tmp_path: Path) -> None:
    """The process of a stage sends what its import lacked as an error of its own."""
    hidden = Hidden(tmp_path, "transformers")
    words = ["caption", "media", "--model", "demo", "--out", "out", "--store", str(tmp_path)]
    done = completed([*PENSTOCK, *words], cwd=here, env=hidden.env, timeout=SECONDS)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "needs the package transformers, which is not installed" in done.stderr
    assert "pip install penstock" in done.stderr


def advice(clone: Path, python: str | Path, extra: str = "sift") -> str:
    """Return the advice on an extra that a Python without Penstock's packages prints in a clone."""
    code = f"from artifacts.packages import install_command; print(install_command({extra!r}))"
    done = completed([str(python), "-c", code], cwd=clone, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_advice_is_what_installs_where_the_code_lies(tmp_path: Path) -> None:
    other, clone = sys._base_executable, tmp_path / "my clone"  # type: ignore[attr-defined]
    shutil.copytree(ROOT / "artifacts", clone / "artifacts")
    assert advice(clone, other) == "pip install 'penstock[sift]'"  # as a wheel is installed
    (clone / "scripts" / "run").mkdir(parents=True)
    (clone / "scripts" / "run" / "setup").touch()
    assert advice(clone, other) == f"make -C '{clone}' setup"

    own = clone / ".venv" / "bin" / "python"
    completed([other, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    assert advice(clone, other) == f"'{own}' in place of {other}"
    with_pip = f"'{own}' -m pip install"
    assert advice(clone, own) == f"'{own}' -m ensurepip && {with_pip} 'penstock[sift]'"
    (site,) = (clone / ".venv" / "lib").glob("python3*/site-packages")
    (site / "pip").mkdir()
    assert advice(clone, own) == f"{with_pip} 'penstock[sift]'"
    assert advice(clone, own, "") == f"{with_pip} penstock"

    elsewhere = tmp_path / "elsewhere"
    completed([other, "-m", "venv", "--without-pip", str(elsewhere)], check=True)
    (site,) = (elsewhere / "lib").glob("python3*/site-packages")
    (site / "penstock-0.1.0.dist-info").mkdir()
    (site / "penstock-0.1.0.dist-info" / "METADATA").write_text("Name: penstock\nVersion: 0.1.0\n")
    assert advice(clone, elsewhere / "bin" / "python") == "pip install 'penstock[sift]'"
