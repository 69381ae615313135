"""Shows that the nightly rebuild is scheduled and run by the server itself and encodes only what
has changed: starts a server and a worker, has the deployment run every minute, changes the files
and the model between its runs, and leaves nothing behind. Takes ten minutes.

    python scripts/cron_check.py [--postgres]
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.prefect_stack import Stack, described
from scripts.stage_processes import CheckFailed
from scripts.throwaway_postgres import checked_on_stack

DEPLOYMENT = "rebuild-features/nightly"
FLOW = "rebuild-features"
EVERY_MINUTE = "* * * * *"
TICK_SECONDS = 300
"""A minute until the tick, and what a busy machine takes for the run."""
CLIPS = 4
"""Each is one chunk."""


class Library:
    """A few clips and a model, in folders that may be changed."""

    def __init__(self, folder: Path) -> None:
        self.clips = folder / "clips"
        self.model = folder / "model"
        self._shipped = sorted(penstock_demo.CLIPS.glob("*.mp4"))
        self.clips.mkdir()
        for clip in self._shipped[:CLIPS]:
            shutil.copy(clip, self.clips)
        shutil.copytree(penstock_demo.CHECKPOINT, self.model)

    def touch(self) -> None:
        self._clip(0).touch()

    def replace(self) -> None:
        shutil.copyfile(self._shipped[CLIPS], self._clip(1))

    def delete(self) -> None:
        self._clip(2).unlink()

    def change_model(self) -> None:
        """Another weight in the vision half, whose tensors are the file's last; the size stays."""
        (path,) = self.model.glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)

    def nothing(self) -> None:
        pass

    def _clip(self, number: int) -> Path:
        return self.clips / self._shipped[number].name


def check(stack: Stack) -> None:
    """Every change, and what the server's own next run makes of it. Raises CheckFailed."""
    stack.serve()
    stack.work()
    library = Library(stack.folder)
    deployment = stack.ask("GET", f"/deployments/name/{DEPLOYMENT}")
    crons = [each["schedule"].get("cron") for each in deployment["schedules"] if each["active"]]
    if not crons or not all(crons):
        raise CheckFailed(f"{DEPLOYMENT} has no cron schedule: {deployment['schedules']}")
    stack.say(f"{DEPLOYMENT} is deployed for {', '.join(crons)}")
    config = {
        "sources": [str(library.clips)],
        "model": str(library.model),
        "store": str(stack.folder / "store"),
    }
    parameters = {**deployment["parameters"], "config": config}
    stack.ask("PATCH", f"/deployments/{deployment['id']}", {"parameters": parameters})
    every_minute = ("--cron", EVERY_MINUTE, "--replace", "--accept-yes")
    stack.prefect("deployment", "schedule", "create", DEPLOYMENT, *every_minute)
    stack.say(f"and now for {EVERY_MINUTE}; nobody asks for a run from here on")
    tick(stack, library.nothing, "nothing is stored", CLIPS)
    tick(stack, library.touch, "one file was touched", 0)
    tick(stack, library.replace, "one file was replaced", 1)
    tick(stack, library.delete, "one file was deleted", 0)
    tick(stack, library.change_model, "the model was changed", CLIPS - 1)
    tick(stack, library.nothing, "nothing was changed", 0)


def tick(stack: Stack, change: Callable[[], None], what: str, expected: int) -> None:
    """Change something and wait for a run that began thereafter. Raises CheckFailed."""
    before = datetime.now(UTC)
    change()
    runs = scheduled_after(stack, before)
    encoded = sum(chunks(stack, run) for run in runs)
    last = runs[-1]
    if encoded != expected:
        raise CheckFailed(
            f"{what}: {encoded} chunks were encoded, not {expected}: {described(last)}"
        )
    late = moment(last["start_time"]) - moment(last["expected_start_time"])
    stack.say(
        f"{what}: {last['state']['message']} ({abs(late.total_seconds()):.0f} s after its minute)"
    )


def scheduled_after(stack: Stack, before: datetime) -> list[dict[str, Any]]:
    """The runs that ended after a moment, up to one that began after it. Raises CheckFailed."""
    deadline = time.monotonic() + TICK_SECONDS
    while time.monotonic() < deadline:
        ended = [
            run
            for run in stack.flow_runs(FLOW)
            if run["end_time"] and moment(run["end_time"]) > before
        ]
        for run in ended:
            if run["state"]["type"] != "COMPLETED" or not run["auto_scheduled"]:
                raise CheckFailed(f"{described(run)}\n{stack.log_end('worker')}")
        if ended and moment(ended[-1]["start_time"]) > before:
            return ended
        time.sleep(1)
    logs = stack.log_end("server") + stack.log_end("worker")
    raise CheckFailed(f"the server ran nothing by itself for {TICK_SECONDS} s\n{logs}")


def chunks(stack: Stack, run: dict[str, Any]) -> int:
    """How many a run encoded, by its own account, which the stages that it started must bear
    out. Raises CheckFailed."""
    found = re.search(r"\bencoded (\d+) chunks?\b", run["state"]["message"])
    of_the_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    stages = [each["name"] for each in stack.ask("POST", "/task_runs/filter", of_the_run)]
    if found is None or bool(int(found[1])) != ("encode" in stages):
        raise CheckFailed(f"{described(run)}; its stages: {stages}")
    return int(found[1])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def main() -> int:
    """0 when every tick encoded what it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--postgres", action="store_true", help="on a Postgres that is started for the check"
    )
    given = parser.parse_args()
    good = "the server runs the rebuild by itself, and it encodes what changed and nothing else"
    return checked_on_stack(check, good, postgres=given.postgres)


if __name__ == "__main__":
    sys.exit(main())
