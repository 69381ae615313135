"""Plants mutants in copies of the clone, one at a time in each copy, and runs the tests that may
kill them.

1. A copy is a clone of the repository at one commit, with this environment's packages and a
   process that has imported the heavy libraries (`child.py`).
2. A mutant is planted by writing one file; the file gets a modification time of its own, so that no
   bytecode of another state is believed.
3. The chosen tests run until the first fails. A test that fails on the unchanged copy, too, proves
   nothing: it is left out from then on, and the rest runs again. The same holds for a time-out.
4. The verdict is appended to a file of results as a line of JSON; a mutant that has one there is
   not run again.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.prove.follow_deploy import lend_environment
from scripts.prove.mutation.mutants import Contexts, Mutant, located, planted
from scripts.prove.mutation.recording import RECORD

ROOT = Path(__file__).resolve().parents[3]
CHILD = Path(__file__).with_name("child.py")
GRACE_SECONDS = 20.0
"""Added to the limit of every group: starting pytest, and a busy machine."""
TIMES = 4.0
"""A group may take so many times what its tests took when they were recorded."""


class Copy:
    """One copy of the clone, and the process that runs tests in it."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.root = folder
        _clone(folder, commit)
        subprocess.run(["git", "-C", folder, "checkout", "-q", "."], check=True)
        # Threads do not survive a fork.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [folder / ".venv/bin/python", CHILD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
        )
        self._plants = 0

    def run(self, tests: Sequence[str], limit: float) -> dict[str, object]:
        """Run tests on the copy as it is now."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"tests": list(tests), "limit": limit}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, object] = json.loads(self._process.stdout.readline())
        return answer

    def run_planted(
        self, mutant: Mutant, tests: Sequence[str], limit: float
    ) -> dict[str, object] | None:
        """Run tests on the copy with a fault in it; None where its code has changed."""
        path = self.root / mutant.file
        if not path.exists():
            return None
        before, times = path.read_bytes(), path.stat()
        changed = planted(self.root, mutant)
        if changed is None:
            return None
        self._plants += 1
        try:
            path.write_bytes(changed.data)
            os.utime(path, (times.st_atime, 1_000_000_000 + self._plants))
            where = {"line": changed.line, "text": changed.text}
            return {**self.run(tests, limit), **where}
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@dataclass(slots=True, kw_only=True)
class Judge:
    """Decides which mutants the tests kill, in as many threads as there are copies."""

    contexts: Contexts
    results: Path
    places: Mapping[Mutant, Mutant] = field(default_factory=dict)
    """Where a mutant lies in the copies, if that is another file than the one it was drawn in."""
    healthy: set[str] = field(default_factory=set)
    """Tests that passed on an unchanged copy after they had failed on a planted one."""
    unfit: set[str] = field(default_factory=set)
    killers: dict[str, str] = field(default_factory=dict)
    """The test that killed a mutant in an earlier run, by the mutant's name: it is run first."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge_all(self, mutants: Sequence[Mutant], copies: Sequence[Copy]) -> None:
        """Judge every mutant that has no result yet, a line to stdout for each."""
        done = {json.loads(line)["name"] for line in _lines(self.results)}
        waiting = [each for each in mutants if each.name not in done]
        total = len(waiting)

        def work(copy: Copy) -> None:
            while True:
                with self.lock:
                    if not waiting:
                        return
                    mutant = waiting.pop(0)
                self._keep(self.judge(mutant, copy), f"{total - len(waiting)}/{total}")

        threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def judge(self, mutant: Mutant, copy: Copy) -> dict[str, object]:
        """Return the verdict on one mutant as a row of the results."""
        row: dict[str, object] = {**mutant.row(), "name": mutant.name, "by": "", "seconds": 0.0}
        while tests := self._tests_for(mutant):
            limit = TIMES * sum(map(self.contexts.seconds.__getitem__, tests)) + GRACE_SECONDS
            found = copy.run_planted(self.places.get(mutant, mutant), tests, limit)
            if found is None:
                return {**row, "verdict": "changed"}
            row.update({name: found[name] for name in ("line", "text", "seconds")})
            row["tests"] = len(tests)
            if found["code"] == 0:
                return {**row, "verdict": "survived"}
            failed = str(found["failed"])
            suspects = [failed] if failed in tests else tests
            if self._passes_unchanged(copy, suspects, limit):
                verdict = "killed" if found["code"] is not None else "timeout"
                return {**row, "verdict": verdict, "by": failed or tests[0]}
        return {**row, "verdict": "untested", "tests": 0}

    def _tests_for(self, mutant: Mutant) -> list[str]:
        first = self.killers.get(mutant.name, "")
        tests = [first] if first in self.contexts.seconds else []
        place = self.places.get(mutant, mutant)
        tests += [test for test in self.contexts.tests_for(place) if test != first]
        return [test for test in tests if test not in self.unfit]

    def _passes_unchanged(self, copy: Copy, tests: Sequence[str], limit: float) -> bool:
        """Whether tests pass without the fault, within half of the limit; tests that do not are
        unfit from then on."""
        if set(tests) <= self.healthy:
            return True
        found = copy.run(tests, limit)
        passed = found["code"] == 0 and float(str(found["seconds"])) < limit / 2
        failed = str(found["failed"])
        unfit = {failed} if failed in tests else set(tests)
        with self.lock:
            if passed:
                self.healthy.update(tests)
            else:
                self.unfit.update(unfit)
        return passed

    def _keep(self, row: dict[str, object], count: str) -> None:
        with self.lock:
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{count} {row['verdict']:<9}{row['name']}  {row['by']}", flush=True)


def _clone(folder: Path, commit: str) -> None:
    """Clone the repository at a commit, with this environment's packages, unless it is there."""
    if not folder.exists():
        subprocess.run(["git", "clone", "-q", "--shared", ROOT, folder], check=True)
        subprocess.run(["git", "-C", folder, "checkout", "-q", commit], check=True)
        lend_environment(folder)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def judged(
    contexts: Contexts,
    mutants: Sequence[Mutant],
    folder: Path,
    commit: str,
    copies: int,
    earlier: Path | None = None,
) -> Path:
    """Judge mutants in copies of `commit` below `folder`; return the file of results. What killed
    a mutant in `earlier` results is run first."""
    results = folder / "results.jsonl"
    rows = map(json.loads, _lines(earlier) if earlier else [])
    killers = {row["name"]: row["by"] for row in rows}
    made: list[Copy] = []
    try:
        made.extend(Copy(folder / f"copy{at}", commit) for at in range(copies))
        places = located(made[0].root, mutants)
        judge = Judge(contexts=contexts, results=results, killers=killers, places=places)
        judge.judge_all(mutants, made)
    finally:
        for copy in made:
            copy.close()
    return results


def recorded(folder: Path, commit: str, arguments: Sequence[str]) -> int:
    """Run the tests of a copy of `commit` once with calls recorded; return pytest's status."""
    copy = folder / "recording"
    _clone(copy, commit)
    for name in ("recording.py", "recording_plugin.py"):  # the commit may be older than they are
        target = copy / "scripts/prove/mutation" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((CHILD.parent / name).read_bytes())
    (packages,) = (copy / ".venv/lib").glob("python*/site-packages")
    (packages / "recording.pth").write_text(
        f'import os; "{RECORD}" in os.environ and '
        '__import__("scripts.prove.mutation.recording").prove.mutation.recording.start()\n'
    )
    calls = folder / "calls"
    calls.mkdir(exist_ok=True)
    print(f"recording into {calls}", flush=True)
    options = ["-q", "-n2", "--dist=worksteal", "-pscripts.prove.mutation.recording_plugin"]
    return subprocess.run(
        [copy / ".venv/bin/python", "-m", "pytest", *options, *arguments],
        cwd=copy,
        env={**os.environ, RECORD: str(calls)},
        check=False,
    ).returncode


def check_python() -> None:
    """End with a line where this Python has no `sys.monitoring`."""
    if sys.version_info < (3, 12):
        sys.exit("mutation: recording needs Python 3.12 or 3.13: make PYTHON=python3.12 setup")
