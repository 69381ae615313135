"""Plants small faults in the program, one at a time, and shows which of them the tests notice.

    python -m scripts.prove.mutation record       runs the tests once and records what each calls
    python -m scripts.prove.mutation draw --seed 1 draws mutants into mutants.jsonl
    python -m scripts.prove.mutation run          judges them, two at a time; continues
    python -m scripts.prove.mutation table        prints the share killed, by package, and survivors
    python -m scripts.prove.mutation folders      prints what each folder of tests costs and notices
    python -m scripts.prove.mutation choose --seconds 700   prints which tests to mark as slow, so
                                                  that what is left takes so long

All of it lies in --folder (build/mutation). `--commit` names another commit than HEAD.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.prove.mutation.choice import Choice, folders
from scripts.prove.mutation.mutants import (
    Mutant,
    all_mutants,
    collected,
    drawn,
    package_of,
    redrawn,
)
from scripts.prove.mutation.running import ROOT, check_python, judged, recorded


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("--folder", type=Path, default=ROOT / "build/mutation")
    parser.add_argument("--commit", default="HEAD", help="of the copies [HEAD]")
    parser.add_argument("--number", type=int, default=300, help="of mutants to draw [300]")
    parser.add_argument("--least", type=int, default=10, help="of each package [10]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--before", type=Path, help="mutants to draw again where code has changed")
    parser.add_argument("--shared", metavar="COMMIT", help="draw only what this commit has, too")
    parser.add_argument("--since", metavar="COMMIT", help="draw only what this commit has not")
    parser.add_argument("--earlier", type=Path, help="results; what killed then is run first")
    parser.add_argument("--seconds", type=float, default=700.0, help="choose: of one core [700]")
    parser.add_argument("--copies", type=int, default=2, help="in which mutants are judged [2]")
    parser.add_argument("tests", nargs="*", help="record: arguments of pytest")
    given = parser.parse_args(arguments)
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    return COMMANDS[given.what](given)


def record(given: argparse.Namespace) -> int:
    """Run the tests once; tests that fail are recorded, too, and left out when they prove unfit."""
    check_python()
    status = recorded(given.folder, _commit(given), given.tests)
    contexts = collected(given.folder / "calls")
    print(f"{len(contexts.seconds)} tests call {len(contexts.callers)} functions")
    return status


def draw(given: argparse.Namespace) -> int:
    """Draw mutants of the working tree, or those of an earlier draw again."""
    if given.before:
        mutants = redrawn(ROOT, _mutants(given.before), given.seed)
    else:
        shared, older = map(_mutants_of, (given.shared, given.since))
        mutants = drawn(ROOT, given.number, given.least, given.seed, shared=shared, older=older)
    path = given.folder / "mutants.jsonl"
    path.write_text("".join(json.dumps(each.row()) + "\n" for each in mutants), encoding="utf-8")
    print(f"{len(mutants)} mutants in {path}")
    return 0


def run(given: argparse.Namespace) -> int:
    """Judge the mutants that were drawn."""
    contexts = collected(given.folder / "calls")
    mutants = _mutants(given.folder / "mutants.jsonl")
    judged(contexts, mutants, given.folder, _commit(given), given.copies, given.earlier)
    return table(given)


def table(given: argparse.Namespace) -> int:
    """Print how many of each package were killed, then every survivor."""
    lines = (given.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    killed, of = Counter[str](), Counter[str]()
    for row in rows:
        of[package_of(row["file"])] += 1
        killed[package_of(row["file"])] += row["verdict"] in ("killed", "timeout")
    print("| Package | Mutants | Killed |\n|---|---:|---:|")
    for package in sorted(of):
        print(f"| {package} | {of[package]} | {killed[package]} |")
    print(f"| all | {of.total()} | {killed.total()} ({killed.total() / max(1, of.total()):.0%}) |")
    for row in rows:
        if row["verdict"] not in ("killed", "timeout"):
            where = f"{row['file']}:{row.get('line', '?')}"
            print(f"{row['verdict']}: {where} {row['function']}: {row.get('text', '')}")
    return 0


def folders_of_tests(given: argparse.Namespace) -> int:
    """Print what each folder of tests costs, calls and notices."""
    results = given.folder / "results.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    killers = [row["by"] for row in map(json.loads, lines) if row["verdict"] == "killed"]
    print("| Tests | Number | Seconds | Functions | Called here alone | Faults noticed |")
    print("|---|---:|---:|---:|---:|---:|")
    for folder in folders(collected(given.folder / "calls"), killers):
        numbers = f"{folder.called} | {folder.alone} | {folder.noticed}"
        print(f"| {folder.name} | {folder.tests} | {folder.seconds:.0f} | {numbers} |")
    return 0


def choose(given: argparse.Namespace) -> int:
    """Print the test functions to mark `slow`, then those to mark `in_turn`, with their seconds."""
    choice = Choice(collected(given.folder / "calls"))
    for test in choice.leave_out(given.seconds):
        print(f"slow    {choice.seconds[test]:7.1f} {test}")
    for test in sorted(choice.in_turn & choice.left):
        print(f"in_turn {choice.seconds[test]:7.1f} {test}")
    return 0


def _mutants(path: Path) -> list[Mutant]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Mutant(**row) for row in rows]


def _mutants_of(commit: str | None) -> set[Mutant] | None:
    """Return every mutant of a commit; None without one."""
    if commit is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        clone = ["git", "clone", "-q", "--shared", "--no-checkout", str(ROOT), name]
        subprocess.run(clone, check=True)
        subprocess.run(["git", "-C", name, "checkout", "-q", commit], check=True)
        return all_mutants(Path(name))


def _commit(given: argparse.Namespace) -> str:
    command = ["git", "rev-parse", given.commit]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


COMMANDS = {
    "record": record,
    "draw": draw,
    "run": run,
    "table": table,
    "folders": folders_of_tests,
    "choose": choose,
}

if __name__ == "__main__":
    sys.exit(main())
