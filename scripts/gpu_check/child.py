"""Makes one check in a process of its own, `python -m scripts.gpu_check.child CHECK SETTING FILE`,
and the parent's side of that: a check that dies, or never ends, costs one row."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from scripts.gpu_check.checks import Check, named
from scripts.gpu_check.rows import Row, failed, one_line
from scripts.gpu_check.setting import ROOT, Setting
from stages.process.environment import child_environment

COMMAND = (sys.executable, "-m", "scripts.gpu_check.child")


def rows_of(check: Check, setting: Setting, seconds: float) -> list[Row]:
    """What a check finds, within so many seconds; a row that says what ended it is the last."""
    file, log = (setting.folder / f"{check.name}.{kind}" for kind in ("rows", "log"))
    file.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, check.name, setting.to_json(), str(file)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that what it started can be ended with it
            env={**child_environment(), **caches(setting)},
        )
    try:
        code = process.wait(seconds)
        words = f"exit status {code}" if code >= 0 else f"signal {-code}"
    except subprocess.TimeoutExpired:
        code, words = 1, f"no end after {seconds:.0f} s"
    finally:
        end(process)
    found = read_rows(file)
    if code and not any(each.verdict == "failed" for each in found):
        found.append(failed(check.name, one_line(f"{words} {last_line(log)}")))
    return found


def caches(setting: Setting) -> dict[str, str]:
    """What is known of this machine is found out anew, and only models are looked for where they
    are kept."""
    here = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    models = os.environ.get("HF_HOME") or os.path.join(here, "huggingface")
    return {"XDG_CACHE_HOME": str(setting.folder / "cache"), "HF_HOME": models}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def read_rows(file: Path) -> list[Row]:
    """As far as they were written."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"({lines[-1]})" if lines else ""


def main(name: str, setting: str, file: str) -> int:
    """Make the check; each row is written as soon as it is known."""
    with open(file, "w", encoding="utf-8") as rows:

        def tell(found: Row) -> None:
            rows.write(json.dumps(found.values) + "\n")
            rows.flush()

        try:
            for found in named(name).rows(Setting.from_json(setting)):
                tell(found)
        except Exception as error:  # whatever it is, the other checks are still to be made
            tell(failed(name, one_line(f"{type(error).__name__}: {error}")))
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
