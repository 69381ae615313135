"""Every check, in the order in which they are made, with the seconds that it may take and what it
needs of a card."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.prove.gpu_check import driver, forks, halves, kernels, model, recorded_runs, towers
from scripts.prove.gpu_check.rows import ROOT, Row, Setting, failed, one_line, skipped
from stages.memory.oom_retry import release_memory
from stages.process.child_environment import child_environment

Rows = Callable[[Setting], Iterator[Row]]


class Check(NamedTuple):
    """One of them."""

    name: str
    rows: Rows
    seconds: float = 120.0
    """After so many it is given up."""
    needs: tuple[str, ...] = ()
    """Of `driver.LACKS`."""
    process: str = "device"
    """Consecutive checks share a process if this is equal: `device` computes, `runs` starts
    commands and computes nothing; empty: a process of its own."""


LOOK = Check("card", driver.look)
BNB = ("bitsandbytes",)
# First what is known least, in case time runs out.
CHECKS = (
    Check("kernels of products", kernels.products),
    Check("kernels of attention", kernels.attention),
    Check("kernels, each", kernels.backends),
    Check("kernels, new lengths", kernels.lengths),
    Check("packed layers", kernels.unpacking, needs=("device",)),
    Check("model", model.found, 600),
    # In processes of their own: a recording that fails may spoil its process.
    Check("recorded steps, bf16", model.recorded["bf16"], 200, process=""),
    Check("recorded steps, fp16", model.recorded["fp16"], 200, process=""),
    Check("recorded steps, nf4", model.recorded["nf4"], 200, BNB, ""),
    Check("windows", towers.windows, 200, process=""),
    Check("recorded tower", towers.recorded_tower, 200, process=""),
    Check("model, bf16", model.decoding["bf16"], 600),
    Check("model, loads", model.loads),
    Check("model, streamed", model.streamed, 200, ("device",)),
    Check("model, fp16", model.decoding["fp16"], 300),
    Check("model, nf4", model.decoding["nf4"], 300, BNB),
    Check("forks", forks.forks, 120, (), "runs"),
    Check("model, captions", model.captions, 600, process="runs"),
    Check("captions, recorded", recorded_runs.captions, 400, process="runs"),
    Check("captions, sampled", recorded_runs.sampled, 400, process="runs"),
    Check("decode beside encode", recorded_runs.beside, 400, process="runs"),
    Check("model, LoRA, fp16", model.fp16_training, 200, ("peft",)),
    Check("streamed encoder", halves.streamed),
    Check("layer by layer", halves.layer_by_layer),
    Check("model, LoRA", model.training["native"], 400, ("peft",), "runs"),
    Check("model, LoRA, nf4", model.training["nf4"], 400, (*BNB, "peft"), "runs"),
)


def expected_of(only: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks whose names hold one of these words; all, of no words."""
    return tuple(
        check
        for check in CHECKS
        if not only or any(word.lower() in check.name.lower() for word in only)
    )


def named(name: str) -> Check:
    """Raises StopIteration for a name that there is not."""
    return next(check for check in (LOOK, *CHECKS) if check.name == name)


COMMAND = (sys.executable, "-P", "-m", "scripts.prove.gpu_check.child")
LOOK_SECONDS = 0.05
ENDED = "ended"
"""Key of the line that a child writes after the rows of a check."""
NO_TIME = "no time was left; --minutes gives more"


def rows_of(checks: Sequence[Check], setting: Setting, deadline: float) -> Iterator[Row]:
    """Yield what checks find that share a process, each row as soon as it is known. After a check
    that dies or takes too long, a new process makes the rest. `deadline` is a time of
    `time.monotonic()`; what has not ended by then is skipped."""
    left = deque(checks)
    while left and time.monotonic() < deadline:
        yield from _in_one_process(left, setting, deadline)
    yield from (skipped(check.name, NO_TIME) for check in left)


def made(
    checks: Sequence[Check], setting: Setting, lacking: set[str], deadline: float
) -> Iterator[Row]:
    """Yield what checks find that share a process, and why others are not made."""
    possible = []
    for check in checks:
        if missing := [driver.LACKS[name] for name in check.needs if name in lacking]:
            yield skipped(check.name, "; ".join(missing))
        else:
            possible.append(check)
    yield from rows_of(possible, setting, deadline)


def _in_one_process(left: deque[Check], setting: Setting, deadline: float) -> Iterator[Row]:
    """Make checks until one does not end as it should; take those that were made from `left`."""
    file, log = (setting.folder / f"{left[0].name}.{kind}" for kind in ("rows", "log"))
    process = _started(left, setting, file, log)
    try:
        lines, over, message = Lines(file), False, False
        ends = time.monotonic() + left[0].seconds
        while left and not over:
            died = process.poll() is not None
            for line in lines.read():
                if ENDED in line:
                    left.popleft()
                    message = False
                    ends = time.monotonic() + (left[0].seconds if left else 0)
                else:
                    found = Row(**line)
                    message = message or found.verdict == "failed"
                    yield found
            over = died or time.monotonic() > min(ends, deadline)
            if left and not over:
                time.sleep(LOOK_SECONDS)
    finally:
        end(process)
    if not left:
        return
    check = left.popleft()
    if not died and deadline <= ends:
        yield skipped(check.name, NO_TIME)
    elif not message:
        code = process.returncode
        words = f"exit status {code}" if code >= 0 else f"signal {-code}"
        words = words if died else f"no end after {check.seconds:.0f} s"
        yield failed(check.name, one_line(f"{words} {last_line(log)}"))


def _started(
    checks: Sequence[Check], setting: Setting, file: Path, log: Path
) -> "subprocess.Popen[bytes]":
    file.unlink(missing_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, setting.to_json(), str(file), *(check.name for check in checks)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that what it started can be ended with it
            env={**child_environment(), **caches(setting)},
        )


class Lines:
    """The lines of a growing file of JSON."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the whole lines that are new."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as file:
            file.seek(self._seen)
            whole = file.read().rpartition(b"\n")[0]
        self._seen += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]


def caches(setting: Setting) -> dict[str, str]:
    """What is known of this machine is found out anew, and only models are looked for where they
    are kept."""
    folder = setting.folder / "cache"
    here = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    models = os.environ.get("HF_HOME") or os.path.join(here, "huggingface")
    return {"XDG_CACHE_HOME": str(folder), "HF_HOME": models}


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"({lines[-1]})" if lines else ""


def main(setting: str, file: str, *names: str) -> int:
    """Make the checks; each row is written as soon as it is known."""
    with open(file, "w", encoding="utf-8") as lines:

        def tell(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for name in names:
            try:
                for found in named(name).rows(Setting.from_json(setting)):
                    tell(found.values)
            except Exception as error:  # whatever it is, the other checks are still to be made
                tell(failed(name, one_line(f"{type(error).__name__}: {error}")).values)
                raise
            tell({ENDED: name})
            forget()
    return 0


def forget() -> None:
    """Release the memory that a check has left in this process."""
    release_memory()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
