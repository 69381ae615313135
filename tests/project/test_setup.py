"""scripts/run/setup and scripts/prove/other_python on machines that lack something; what they
install and run is a stand-in here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import completed
from tests.support.terminals import terminal

ROOT = Path(__file__).resolve().parents[2]
# What the scripts themselves call, so that a PATH can be made that holds these and nothing else.
TOOLS = ["awk", "basename", "cat", "chmod", "cksum", "cp", "df", "dirname", "git", "head", "mkdir"]
TOOLS += ["rm", "sed", "sh", "sleep", "sort", "tr", "uname", "xargs"]


class Machine:
    """A clone on a machine whose PATH holds some utilities and what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.clone = folder / "clone of penstock"
        self.log = folder / "calls.log"
        self.bin.mkdir()
        (self.clone / "scripts" / "run").mkdir(parents=True)
        for name in ("setup", "install_progress.py"):
            shutil.copy(ROOT / "scripts" / "run" / name, self.clone / "scripts" / "run")
        shutil.copytree(ROOT / "requirements", self.clone / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.clone)
        for name in TOOLS:
            found = shutil.which(name)
            assert found
            (self.bin / name).symlink_to(found)

    def has(self, name: str | Path, body: str) -> Path:
        """Put a command on the PATH, or elsewhere, that writes its arguments down and then runs
        `body`."""
        command = self.bin / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f'#!/bin/sh\necho "{command.name} $*" >>"{self.log}"\n{body}\n')
        command.chmod(0o755)
        return command

    def has_python(self, name: str | Path, version: str) -> Path:
        """An interpreter that claims a version, and has neither venv nor pip."""
        claim = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
        claim += f"; sys.executable = '{self.bin / name}'\n"
        run = f'[ "$1" = -c ] || exit 1\nexec "{sys.executable}" -c "{claim}$2" "$3"'
        return self.has(name, run)

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
            [self.clone / "scripts" / "run" / "setup"], env={"PATH": str(self.bin), **variables}
        )

    def calls(self, *begins: str) -> list[str]:
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        return [call for call in calls if call.startswith(begins)]

    def uv_calls(self) -> list[str]:
        return self.calls("uv venv", "uv pip")

    def uv_verbs(self) -> list[str]:
        return [call.split()[1] for call in self.uv_calls()]


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
    assert "6 to 7 GB" in lines[1]
    assert lines[-1].strip() == f'export PATH="{able.clone}/.venv/bin:$PATH"'
    packages, project = able.uv_calls()[1:]
    assert "--require-hashes --requirement requirements/runtime.txt" in packages
    assert "--offline --no-deps --no-build-isolation --editable ." in project


def test_only_another_lock_and_a_moved_clone_are_installed_anew(able: Machine) -> None:
    able.setup()
    able.log.unlink()
    again = able.setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not able.log.exists()
    with (able.clone / "requirements" / "runtime.txt").open("a") as lock:
        lock.write("another==1.0\n")
    assert "up to date" in able.setup().stdout
    assert able.uv_verbs() == ["pip", "pip"]
    able.log.unlink()
    able.clone = able.clone.rename(able.clone.with_name("moved"))
    able.setup()
    assert able.uv_verbs() == ["venv", "pip", "pip"]


def test_what_tests_need_is_added_to_the_environment_of_users(able: Machine) -> None:
    able.setup()
    able.log.unlink()
    added = able.setup(LOCK="requirements/dev.txt")
    assert added.returncode == 0, added.stderr
    assert added.stdout.splitlines()[0].startswith("penstock: adding requirements/dev.txt to ")
    assert able.uv_verbs() == ["pip", "pip"]
    able.log.unlink()
    for name in ("dev", "runtime"):
        assert able.setup(LOCK=f"requirements/{name}.txt").stdout == ""
    assert not able.log.exists()


def test_the_lock_of_tests_serves_users_too(able: Machine) -> None:
    able.setup(LOCK="requirements/dev.txt")
    able.log.unlink()
    assert (able.setup().stdout, able.log.exists()) == ("", False)


INSTALLS_FOR_USERS = ("setup", "demo", "server", "worker")
INSTALLS_MORE = ("check", "lint", "test", "test-slow", "docs", "docs-check", "pictures", "bench")


def planned_by(*words: str) -> str:
    return completed(["make", "--dry-run", "--directory", ROOT, *words]).stdout


@pytest.mark.parametrize("target", [*INSTALLS_FOR_USERS, *INSTALLS_MORE])
def test_a_target_installs_no_more_than_it_needs(target: str) -> None:
    planned = planned_by(target)
    assert "scripts/run/setup" in planned
    assert ("LOCK=requirements/dev.txt" in planned) == (target in INSTALLS_MORE)


def test_a_wheel_is_built_without_an_installation() -> None:
    planned = planned_by("wheel")
    assert "scripts/run/setup" not in planned and "wheel" in planned


def test_a_worker_of_a_ray_cluster_installs_ray() -> None:
    assert "LOCK=requirements/dev.txt" in planned_by("worker", "RAY=head")


UV_PRINTS = """echo 'Resolved 3 packages in 1ms'
echo 'Downloading torch (812.5MiB)'
echo 'Downloading numpy (16.1MiB)'
echo ' Downloaded numpy'
sleep 0.5
echo 'Installed 3 packages in 70ms'
echo ' + numpy==2.4.6'
"""


INSTALL = ROOT / "scripts" / "run" / "install_progress.py"


def test_an_installation_names_what_it_downloads_and_no_package_that_it_installed(
    tmp_path: Path,
) -> None:
    run = [sys.executable, "-c", f"import runpy, sys; sys.argv[0] = '{INSTALL}'"]
    run[-1] += f"; m = runpy.run_path('{INSTALL}'); m['show'].__globals__['LINE_SECONDS'] = 0.2"
    run[-1] += "; sys.exit(m['main'](*sys.argv[1:]))"
    done = completed([*run, tmp_path, "sh", "-c", UV_PRINTS])
    first, *_, last = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "0.0 of 0.8 GB, downloading torch" in first
    assert last in ("penstock: 3 packages in 1 s", "penstock: 3 packages in 0 s")
    assert "numpy" not in done.stdout + done.stderr


def test_an_installation_that_fails_shows_all_that_it_printed(tmp_path: Path) -> None:
    failing = f"{UV_PRINTS}echo 'No space left on device' >&2; exit 2"
    done = completed([sys.executable, INSTALL, tmp_path, "sh", "-c", failing])
    assert done.returncode == 2
    assert "No space left on device" in done.stderr and "+ numpy==2.4.6" in done.stderr


def test_an_installation_has_a_bar_on_a_terminal(tmp_path: Path) -> None:
    with terminal(70) as seen:
        command = [sys.executable, str(INSTALL), str(tmp_path), "sh", "-c", UV_PRINTS]
        subprocess.run(command, stdout=seen.to, check=True)
        text = seen.close()
    drawn = [line for line in text.split("\r") if line.startswith("[")]
    assert any("downloading torch" in line and "[------" in line for line in drawn), text
    assert all(len(line.removesuffix("\x1b[K")) < 70 for line in drawn)


def test_another_lock_can_be_named(able: Machine) -> None:
    assert able.setup(LOCK="requirements/colab.txt").returncode == 0
    assert "--requirement requirements/colab.txt" in able.uv_calls()[1]


def test_an_interrupted_installation_is_taken_up_again(machine: Machine) -> None:
    machine.has_python("python3", "3.12")
    machine.has_uv(install="exit 130")
    assert machine.setup().returncode == 130
    machine.has_uv()
    assert machine.setup().returncode == 0
    assert (machine.clone / ".venv" / "installed-runtime").exists()


def test_a_moved_environment_that_is_first_on_the_path_is_no_interpreter(machine: Machine) -> None:
    """It is removed before another is made."""
    venv = machine.clone / ".venv"
    base = Path(sys._base_executable)  # type: ignore[attr-defined]
    completed([base, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "installed-runtime").write_text("/elsewhere 1 2\n")
    machine.has_uv()
    done = machine.setup(PATH=f"{venv}/bin:{machine.bin}")
    assert done.returncode == 0, done.stderr
    python = Path(machine.uv_calls()[0].split("--python ")[1].removesuffix(" .venv"))
    assert python.exists() and not python.is_relative_to(venv), python


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("flock"), reason="flock is not installed")
def test_two_at_once_install_once(machine: Machine) -> None:
    machine.has_python("python3", "3.12")
    machine.has_uv(install="/bin/sleep 0.5")
    (machine.bin / "flock").symlink_to(str(shutil.which("flock")))
    command = [machine.clone / "scripts" / "run" / "setup"]
    both = [
        subprocess.Popen(command, env={"PATH": str(machine.bin)}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert machine.uv_verbs() == ["venv", "pip", "pip"]
    assert sum("waiting for another installation" in each for each in printed) == 1


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
    assert not (machine.clone / ".venv" / "installed-runtime").exists()


def test_another_platform_is_refused(machine: Machine) -> None:
    (machine.bin / "uname").unlink()
    machine.has("uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    refused = machine.setup()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "penstock: runs on Linux x86-64 (WSL2 too), and this is Darwin arm64."
    ]


SETUP = """#!/bin/sh
echo "setup $PYTHON $LOCK" >>"$CALLS"
mkdir -p .venv/bin
for name in python penstock pytest; do
    command=.venv/bin/$name
    printf '#!/bin/sh\\necho "%s $*" >>"$CALLS"\\n[ "%s" != "$FAILING" ]\\n' $name $name >$command
    chmod +x $command
done
"""
CORE = ("setup ", "penstock ", "python -W", "python -m", "pytest ")
"""Begins of what the stand-ins write down of the core that is run."""
SHIM = "exit 127"
"""A command of pyenv for a version that is not chosen: it always fails."""


@pytest.fixture
def other(machine: Machine) -> Machine:
    """One for scripts/prove/other_python, with a git repository and a stand-in for the setup."""
    (prove := machine.clone / "scripts" / "prove").mkdir()
    shutil.copy(ROOT / "scripts" / "prove" / "other_python", prove)
    (machine.clone / "scripts" / "run" / "setup").write_text(SETUP)
    subprocess.run(["git", "init", "-q"], cwd=machine.clone, check=True)
    subprocess.run(["git", "add", "."], cwd=machine.clone, check=True)
    return machine


def run_other(other: Machine, failing: str = "") -> subprocess.CompletedProcess[str]:
    home, script = str(other.folder / "home"), other.clone / "scripts" / "prove" / "other_python"
    env = {"PATH": str(other.bin), "HOME": home, "CALLS": str(other.log), "FAILING": failing}
    return completed([script], env=env)


def test_a_machine_without_another_python_is_no_fault(other: Machine) -> None:
    other.has("python3.12", SHIM)
    other.has_python(other.clone / ".venv" / "bin" / "python", "3.13")
    other.has_python("python3.13", "3.13")
    other.has_python("python3", "3.14")
    done = run_other(other)
    assert done.returncode == 0, done.stderr
    assert "no other Python" in done.stdout
    assert other.calls(*CORE) == []


def test_a_python_that_uv_knows_of_is_found(other: Machine) -> None:
    there = other.has_python(other.folder / "of uv" / "python3.12", "3.12")
    listed = f"cpython-3.12.1-linux-x86_64-gnu    {there} -> elsewhere"
    other.has("uv", f"echo '{listed}'")
    assert run_other(other).returncode == 0
    assert other.calls(*CORE)[0] == f"setup {there} requirements/colab.txt"


def test_the_core_runs_there_and_the_copy_is_removed(other: Machine) -> None:
    other.has("python3.13", SHIM)  # of a version before it, which fails
    there = other.has_python("python3", "3.12")
    assert run_other(other).returncode == 0
    calls = other.calls(*CORE)
    assert calls[0] == f"setup {there} requirements/colab.txt"
    assert any(call.endswith("-m penstock --version") for call in calls)
    assert any("import penstock" in call for call in calls)
    assert any("clip-01.mp4 picture.png" in call for call in calls)
    assert not (other.clone / ".venv-other").exists()


@pytest.mark.parametrize("failing", ["penstock", "pytest"])
def test_a_core_that_fails_there_fails_the_script_and_leaves_nothing(
    other: Machine, failing: str
) -> None:
    other.has_python("python3", "3.12")
    assert run_other(other, failing).returncode != 0
    assert not (other.clone / ".venv-other").exists()
