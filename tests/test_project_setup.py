"""scripts/setup on machines that lack something; what it installs is not run here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import completed

ROOT = Path(__file__).resolve().parent.parent
# What the script itself calls, so that a PATH can be made that holds these and nothing else.
COREUTILS = ["sh", "dirname", "cat", "sed", "cksum", "uname", "df", "awk", "rm"]


class Machine:
    """A clone on a machine whose PATH holds the core utilities and what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.clone = folder / "clone of penstock"
        self.calls = folder / "calls.log"
        self.bin.mkdir()
        (self.clone / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup", self.clone / "scripts")
        shutil.copytree(ROOT / "requirements", self.clone / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.clone)
        for name in COREUTILS:
            found = shutil.which(name)
            assert found
            (self.bin / name).symlink_to(found)

    def has(self, name: str, body: str) -> None:
        """Put a command on the PATH that writes its arguments down and then runs `body`."""
        command = self.bin / name
        command.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.calls}"\n{body}\n')
        command.chmod(0o755)

    def has_python(self, name: str, version: str) -> None:
        """An interpreter that claims a version, and has neither venv nor pip."""
        claim = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
        claim += f"; sys.executable = '{self.bin / name}'"
        self.has(name, f'[ "$1" = -c ] || exit 1\nexec "{sys.executable}" -c "{claim}; $2"')

    def has_uv(self, install: str = ":") -> None:
        """A uv that makes an environment, and whose every installation is one shell command."""
        self.has(
            "uv",
            '[ "$1" != venv ] || { /bin/mkdir -p .venv/bin && '
            f'/bin/ln -s "{sys.executable}" .venv/bin/python; }}\n'
            f'[ "$1" != pip ] || {install}',
        )

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return completed(
            [self.clone / "scripts" / "setup"], env={"PATH": str(self.bin), **variables}
        )

    def uv_calls(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if call.startswith(("uv venv", "uv pip"))]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def able(machine: Machine) -> Machine:
    """One with Python and uv."""
    machine.has_python("python3", "3.12")
    machine.has_uv()
    return machine


def test_it_tells_the_size_first_and_the_path_last_and_holds_all_to_its_hash(able: Machine) -> None:
    done = able.setup()
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "7 to 8 GB" in lines[1]
    assert lines[-1].strip() == f'export PATH="{able.clone}/.venv/bin:$PATH"'
    packages, project = able.uv_calls()[1:]
    assert "--require-hashes --requirement requirements/dev.txt" in packages
    assert "--offline --no-deps --no-build-isolation --editable ." in project


def test_only_another_lock_and_a_moved_clone_are_installed_anew(able: Machine) -> None:
    able.setup()
    able.calls.unlink()
    again = able.setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not able.calls.exists()
    with (able.clone / "requirements" / "dev.txt").open("a") as lock:
        lock.write("another==1.0\n")
    assert "up to date" in able.setup().stdout
    assert [call.split()[1] for call in able.uv_calls()] == ["pip", "pip"]
    able.calls.unlink()
    able.clone = able.clone.rename(able.clone.with_name("moved"))
    able.setup()
    assert [call.split()[1] for call in able.uv_calls()] == ["venv", "pip", "pip"]


def test_an_interrupted_installation_is_taken_up_again(machine: Machine) -> None:
    machine.has_python("python3", "3.12")
    machine.has_uv(install="exit 130")
    assert machine.setup().returncode == 130
    machine.has_uv()
    assert machine.setup().returncode == 0
    assert (machine.clone / ".venv" / "installed").exists()


@pytest.mark.parametrize(("last", "chosen"), [("3.11", "{bin}/python3"), ("3.14", "3.13")])
def test_an_interpreter_too_old_or_too_new_is_passed_over(
    machine: Machine, last: str, chosen: str
) -> None:
    """Where none fits, uv finds one."""
    machine.has_python("python3.13", "3.10")
    machine.has_python("python3.12", "3.14")
    machine.has_python("python3", last)
    machine.has_uv()
    machine.setup()
    assert f"--python {chosen.format(bin=machine.bin)} .venv" in machine.uv_calls()[0]


@pytest.mark.parametrize(
    ("pythons", "variables", "message"),
    [
        ({}, {}, "no Python found"),
        ({"python3": "3.14"}, {}, "no Python 3.11, 3.12 or 3.13 found"),
        ({"python3": "3.12"}, {"PYTHON": "python2"}, "PYTHON=python2 is no Python 3.11"),
        ({"python3": "3.12"}, {}, "Install its venv module"),
    ],
    ids=["none", "too new", "named wrongly", "without venv"],
)
def test_a_machine_without_means_gets_one_line(
    machine: Machine, pythons: dict[str, str], variables: dict[str, str], message: str
) -> None:
    for name, version in pythons.items():
        machine.has_python(name, version)
    refused = machine.setup(**variables)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_when_uv_finds_none_either_the_last_line_says_what_to_do(machine: Machine) -> None:
    machine.has_python("python3", "3.14")
    machine.has("uv", '[ "$1" != venv ] || { echo "offline" >&2; exit 2; }')
    refused = machine.setup()
    assert refused.returncode == 1
    assert "Install Python 3.11, 3.12 or 3.13" in refused.stderr.splitlines()[-1]
    assert not (machine.clone / ".venv" / "installed").exists()


def test_another_platform_is_refused(machine: Machine) -> None:
    (machine.bin / "uname").unlink()
    machine.has("uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    refused = machine.setup()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "penstock: runs on Linux x86-64 (WSL2 too), and this is Darwin arm64."
    ]
