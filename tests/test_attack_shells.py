"""Commands that are started in prepared folders and from odd shells: a folder's code is not run and
its settings set nothing, and shells that hold proxies, closed streams or no home change no run."""

import ast
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from stages.process.environment import child_environment
from tests.support.commands import completed
from tests.support.pipeline import ROOT

STARTERS = ("flows", "stages", "artifacts", "penstock", "penstock_demo", "scripts")
STARTS = {"stages/process/fork_client.py", "flows/deployments/server.py", "scripts/run_worker.py"}
"""Some of the files that start Python, so that a search that finds none fails."""
OF_DEVELOPERS = frozenset(
    ("page_pictures", "resume_picture", "gallery", "store_before", "follow_deploy", "fault_check",
     "prefect_stack")
)  # fmt: skip
"""Scripts that run in the clone and prepare or check a release: no user starts them."""


def words_after_python(path: Path) -> list[tuple[int, str]]:
    """The line of each list or call that begins with this Python, and the word that follows."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        words = getattr(node, "elts", None) or getattr(node, "args", None)
        if not isinstance(words, list):
            continue
        for first, second in pairwise(words):
            if ast.unparse(first) == "sys.executable":
                found.append((first.lineno, ast.unparse(second)))
    return found


def test_every_python_process_of_the_program_searches_no_current_folder() -> None:
    seen, without = set(), []
    for path in (path for name in STARTERS for path in (ROOT / name).rglob("*.py")):
        if path.stem in OF_DEVELOPERS and path.is_relative_to(ROOT / "scripts"):
            continue
        name = path.relative_to(ROOT).as_posix()
        for line, word in words_after_python(path):
            seen.add(name)
            if word != "'-P'":
                without.append(f"{name}:{line} {word}")
    assert without == [] and seen >= STARTS


@pytest.mark.parametrize("entry", ["", ".", "films", "./"])
def test_a_folder_s_code_is_not_searched_for_by_children(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, os.pathsep.join([entry, "/mine", entry, "/also", entry]))
    made = child_environment()
    assert made["PYTHONPATH"] == f"{ROOT}:/mine:/also"
    assert (made["PATH"], made["LD_LIBRARY_PATH"]) == ("/mine:/also", "/mine:/also")


CODE = """
import sys
from penstock.start import main
sys.argv = ["penstock", "--version"]
code = main()
sys.path_importer_cache.clear()
try:
    import a_name_of_nothing_else
except ModuleNotFoundError:
    print("not found")
import os
print(os.environ.get("PYTHONPATH"))
sys.exit(code)
"""


@pytest.mark.parametrize("path", [None, "", ":{root}", ".:{root}", "{root}:", "films:{root}"])
def test_the_command_imports_nothing_of_the_current_folder(
    path: str | None, tmp_path: Path
) -> None:
    (tmp_path / "films").mkdir()
    for folder in (tmp_path, tmp_path / "films"):
        (folder / "a_name_of_nothing_else.py").write_text("print('RUN', __file__)\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path.format(root=ROOT)
    # As the script of an installation does it: with a folder of its own first.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "penstock").write_text(CODE)
    done = completed([sys.executable, "bin/penstock"], cwd=tmp_path, env=environment)
    version, *lines = done.stdout.splitlines()
    kept = None if path is None else str(ROOT) if path else ""
    assert (done.returncode, lines) == (0, ["not found", str(kept)]), done.stdout + done.stderr
    if path is None:  # `python -c`, as `python -m`, puts the current folder first itself
        done = completed([sys.executable, "-c", CODE], cwd=tmp_path, env=environment)
        assert done.stdout.splitlines() == [version, *lines], done.stdout + done.stderr


def test_an_absolute_entry_stays_where_it_is_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "a_name_of_nothing_else.py").write_text("print('mine')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}::{ROOT}"}
    done = completed([sys.executable, "-c", CODE], cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[1:] == ["mine", f"{tmp_path}:{ROOT}"], done.stderr


def test_server_and_worker_hand_the_clone_on_to_flow_runs_and_no_current_folder() -> None:
    shown = ". scripts/prefect_variables; echo $PYTHONPATH $PYTHONSAFEPATH"
    for given, expected in (({}, f"{ROOT} 1"), ({"PYTHONPATH": "/mine"}, f"{ROOT}:/mine 1")):
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = completed(["sh", "-euc", shown], env={**kept, **given}, check=True)
        assert done.stdout.strip() == expected
