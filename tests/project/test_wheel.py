"""The wheel holds the whole program and its demo, and runs where there is no clone; the lock is
complete, hashed, true to pyproject.toml, and free of addresses."""

import os
import re
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import completed
from tests.support.sources import PRODUCT, ROOT

BUILD = "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The backend looks for its own binary on the PATH.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    built = completed([sys.executable, "-c", BUILD, str(folder)], env={**os.environ, "PATH": path})
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.splitlines()[-1]


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PRODUCT
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    weights = [ROOT / name for name in expected if name.endswith(".safetensors")]
    assert 0 < sum(path.stat().st_size for path in weights) <= 12_000_000


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """The packages of the wheel; the dependencies come from this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    return tmp_path / "site"


def test_the_program_runs_from_the_wheel_alone(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys, flows.interfaces.cli.main as cli; "
        "assert cli.__file__.startswith(sys.argv.pop(1)); "
        "from flows.commands.report.facts import page; assert page({}).endswith('</html>\\n'); "
        "sys.argv[0] = 'penstock'; sys.exit(cli.main())"
    )
    done = completed(
        [sys.executable, "-c", code, str(site), "doctor"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_command(site: Path, *before: Path) -> tuple[int, str]:
    """`penstock --version` as the script of an installation calls it, with folders on PYTHONPATH
    that come before it."""
    code = (
        "import sys; sys.argv = ['penstock', 'status', 'nowhere']; "
        "from penstock.start import main; sys.exit(main())"
    )
    path = os.pathsep.join(map(str, (*before, site)))
    done = completed(
        [sys.executable, "-c", code], cwd=site.parent, env={**os.environ, "PYTHONPATH": path}
    )
    return done.returncode, done.stdout + done.stderr


def test_a_folder_called_flows_on_the_path_of_a_user_hides_nothing(
    site: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "flows"
    mine.mkdir(parents=True)
    (mine / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    code, text = run_command(site, mine.parent)
    assert code == 2 and "no run has written to" in text, text


def test_a_package_that_was_installed_over_ours_is_named(site: Path) -> None:
    assert run_command(site)[0] == 2
    (site / "artifacts" / "__init__.py").write_text("__version__ = '3.0'\n")
    code, text = run_command(site)
    assert code == 5 and "Traceback" not in text
    assert "wrote its artifacts over Penstock's" in text and len(text.splitlines()) == 1
    (site / "artifacts" / "__init__.py").unlink()
    code, text = run_command(site)
    assert code == 5 and "Traceback" not in text, text


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What names the place packages come from, in any tool's spelling.
ADDRESS = re.compile(
    r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b|/simple\b/?[\"']?$|files\.pythonhosted"
    r"|\bpypi\.org/simple|^\s*\[\[(tool\.uv\.)?index\]\]",
    re.MULTILINE,
)


def pins(lock: Path) -> dict[str, set[str]]:
    """The versions a lock holds of each package; two where Python versions need different ones."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def tracked_text_files() -> list[Path]:
    listed = completed(["git", "ls-files", "-z"])
    if listed.returncode:
        pytest.skip("this is no git clone")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_is_pinned_and_hashed(lock: Path) -> None:
    text = re.sub(r"\\\n", " ", lock.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"^[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def of_extra(name: str) -> Iterator[Requirement]:
    """Yield what an extra requires, and the extras that it names."""
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][name]):
        if requirement.name == "penstock":
            yield from chain.from_iterable(map(of_extra, requirement.extras))
        else:
            yield requirement


@pytest.mark.parametrize(
    ("lock", "extra", "group"),
    [("runtime", "all", "build"), ("dev", "all", "dev"), ("colab", "notebook", "colab")],
)
def test_the_lock_satisfies_every_dependency_declared(lock: str, extra: str, group: str) -> None:
    locked = pins(ROOT / "requirements" / f"{lock}.txt")
    own = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"].get(group, [])
    for requirement in (*map(Requirement, own), *of_extra(extra)):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not locked: make lock"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: {versions}"


def test_developers_run_what_users_run() -> None:
    runtime, dev = (pins(ROOT / "requirements" / f"{name}.txt") for name in ("runtime", "dev"))
    assert {name: dev.get(name) for name in runtime} == runtime


def test_no_tracked_file_holds_a_package_index_address() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}: {found.group()!r}"
        for path in tracked_text_files()
        if path != Path(__file__) and (found := ADDRESS.search(path.read_text(errors="replace")))
    ]
    assert not offenders
    assert not (ROOT / "uv.lock").exists() or (ROOT / "uv.lock") not in tracked_text_files()


def test_an_index_address_is_recognised() -> None:
    index = "https://example.org" + "/simple"
    lines = (f"--index-url {index}", "-i https://example.org/", f'url = "{index}/"')
    for line in (*lines, "[[tool.uv.index]]", "--find-links /srv/wheels"):
        assert ADDRESS.search(f"before\n{line}\nafter")
