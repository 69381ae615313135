"""The lock: complete, hashed, true to pyproject.toml, and free of addresses."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import completed

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize("lock", ["runtime", "dev"])
def test_the_lock_satisfies_every_dependency_declared(lock: str) -> None:
    locked = pins(ROOT / "requirements" / f"{lock}.txt")
    declared = list(PROJECT["project"]["dependencies"])
    if lock == "dev":
        declared += PROJECT["dependency-groups"]["dev"]
    for requirement in map(Requirement, declared):
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
