"""scripts/other_python finds one more Python that works; what it then runs is a stand-in here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import completed

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["awk", "cat", "chmod", "cp", "dirname", "git", "mkdir", "rm", "sed", "sh", "sort", "tr"]
TOOLS += ["xargs"]
SETUP = """#!/bin/sh
echo "setup $PYTHON" >>"$CALLS"
mkdir -p .venv/bin
for name in python penstock pytest; do
    command=.venv/bin/$name
    printf '#!/bin/sh\\necho "%s $*" >>"$CALLS"\\n[ "%s" != "$FAILING" ]\\n' $name $name >$command
    chmod +x $command
done
"""


class Machine:
    """A clone on a machine with the Pythons that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.clone = folder / "clone"
        self.log = folder / "calls.log"
        self.bin.mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found
            (self.bin / name).symlink_to(found)
        (self.clone / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "other_python", self.clone / "scripts")
        self.write(self.clone / "scripts" / "setup", SETUP)
        subprocess.run(["git", "init", "-q"], cwd=self.clone, check=True)
        subprocess.run(["git", "add", "."], cwd=self.clone, check=True)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def has_python(self, path: Path, version: str) -> Path:
        """An interpreter that claims a version."""
        claim = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
        claim += f"; sys.executable = '{path}'"
        self.write(path, f'#!/bin/sh\nexec "{sys.executable}" -c "{claim}\n$2"\n')
        return path

    def has_shim(self, name: str) -> None:
        """A command of pyenv for a version that is not chosen: it always fails."""
        self.write(self.bin / name, "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")

    def run(self, failing: str = "") -> subprocess.CompletedProcess[str]:
        return completed(
            [self.clone / "scripts" / "other_python"],
            env={
                "PATH": str(self.bin),
                "HOME": str(self.folder / "home"),
                "CALLS": str(self.log),
                "FAILING": failing,
            },
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_another_python_is_no_fault(machine: Machine) -> None:
    machine.has_shim("python3.12")
    machine.has_python(machine.clone / ".venv" / "bin" / "python", "3.13")
    machine.has_python(machine.bin / "python3.13", "3.13")
    machine.has_python(machine.bin / "python3", "3.14")
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "no other Python" in done.stdout
    assert machine.calls() == []


def test_a_python_that_uv_knows_of_is_found(machine: Machine) -> None:
    there = machine.has_python(machine.folder / "of uv" / "python3.12", "3.12")
    listed = f"cpython-3.12.1-linux-x86_64-gnu    {there} -> elsewhere"
    machine.write(machine.bin / "uv", f"#!/bin/sh\necho '{listed}'\n")
    assert machine.run().returncode == 0
    assert machine.calls()[0] == f"setup {there}"


def test_the_core_runs_there_and_the_copy_is_removed(machine: Machine) -> None:
    machine.has_shim("python3.13")  # of a version before it, which fails
    there = machine.has_python(machine.bin / "python3", "3.12")
    assert machine.run().returncode == 0
    calls = machine.calls()
    assert calls[0] == f"setup {there}"
    assert any(call.endswith("-m penstock --version") for call in calls)
    assert any("import penstock" in call for call in calls)
    assert any("clip-01.mp4 picture.png" in call for call in calls)
    assert not (machine.clone / ".venv-other").exists()


@pytest.mark.parametrize("failing", ["penstock", "pytest"])
def test_a_core_that_fails_there_fails_the_script_and_leaves_nothing(
    machine: Machine, failing: str
) -> None:
    machine.has_python(machine.bin / "python3", "3.12")
    assert machine.run(failing).returncode != 0
    assert not (machine.clone / ".venv-other").exists()
