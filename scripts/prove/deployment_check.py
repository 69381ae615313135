"""Shows that a deployment makes the very bytes that the plain command makes: starts a Prefect
server, a worker and all that belongs to them, compares, and leaves nothing behind. `--nightly`
shows that the nightly rebuild is scheduled and run by the server itself and encodes only what has
changed: has the deployment run every minute, and changes files and model between its runs.

    python scripts/prove/deployment_check.py [--nightly] [--clips FOLDER]
                                              [--postgres | --database URL]
"""

import argparse
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.run.prefect_stack import Stack, described
from scripts.run.stage_processes import CheckFailed
from scripts.run.throwaway_postgres import checked_on_stack

DEPLOYMENT = "caption-videos/batch"
COMPARED = ("*.jsonl", "*.txt", "*.vtt")
REFUSED: tuple[dict[str, Any], ...] = (
    {"sources": []},
    {"sources": ["a.mp4"], "fsp": 2},
    {"sources": ["a.mp4"], "precision": "int9"},
    {"sources": ["a.mp4"], "shots": "often"},
)


def check(stack: Stack, clips: Path) -> None:
    """Every step, in order. Raises CheckFailed."""
    asks_for_no_worker(stack)
    lets_nobody_in(stack)
    for config in REFUSED:
        refuses(stack, config)
    deployed = stack.folder / "deployed"
    stack.run(DEPLOYMENT, caption_config(clips, deployed, stack.folder / "deployed-store"))
    if not all(items(deployed).values()):
        raise CheckFailed(f"the deployment run says that it made {items(deployed)}")
    plain = plain_run(stack, clips)
    compare(stack, deployed, plain)
    stack.run(DEPLOYMENT, caption_config(clips, deployed, stack.folder / "deployed-store"))
    if any(items(deployed).values()):
        raise CheckFailed(f"a second deployment run did work again: {items(deployed)}")
    stack.say("a second deployment run did no stage work")
    compare(stack, deployed, plain)
    keeps_the_secret(stack, stack.login().partition(":")[2])


def asks_for_no_worker(stack: Stack) -> None:
    """The worker that starts does not tell people to start one. Raises CheckFailed."""
    message = (stack.folder / "worker.log").read_text(encoding="utf-8")
    if f"penstock: deployed {DEPLOYMENT}\n" not in message or "worker start" in message:
        raise CheckFailed(f"the worker's first words are not what is promised\n{message}")
    stack.say("the worker told in a line each what it deployed")


def lets_nobody_in(stack: Stack) -> None:
    """Without the secret there is no answer. Raises CheckFailed."""
    try:
        urllib.request.urlopen(f"{stack.api}/admin/version", timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            stack.say("a client without the secret was refused")
            return
    raise CheckFailed("a client without the secret was let in")


def keeps_the_secret(stack: Stack, secret: str) -> None:
    """It is in nothing that a run leaves. Raises CheckFailed."""
    shown = [path for path in stack.folder.rglob("*") if path.suffix in (".log", ".json", ".jsonl")]
    messages = [str(path) for path in shown if secret.encode() in path.read_bytes()]
    for kind in ("logs", "artifacts", "flow_runs", "task_runs"):
        if secret in json.dumps(stack.ask("POST", f"/{kind}/filter", {})):
            messages.append(kind)
    if messages:
        raise CheckFailed(f"the secret can be read in {', '.join(messages)}")
    stack.say(f"the secret is in no log, parameter or artifact ({len(shown)} files looked at)")


def refuses(stack: Stack, config: Mapping[str, Any]) -> None:
    """Bad parameters make no run. Raises CheckFailed."""
    before = len(stack.flow_runs("caption-videos"))
    if stack.submit(DEPLOYMENT, config) or len(stack.flow_runs("caption-videos")) != before:
        raise CheckFailed(f"{config} was taken for good parameters")
    stack.say(f"{json.dumps(config)} was refused before a run")


def caption_config(clips: Path, out: Path, store: Path) -> dict[str, Any]:
    return {
        "sources": [str(clips)],
        "model": "demo",
        "out": str(out),
        "store": str(store),
        "format": ["txt", "vtt"],
    }


def plain_run(stack: Stack, clips: Path) -> Path:
    """The plain command on the same clips, with a store of its own; returns its folder."""
    out = stack.folder / "plain"
    config = caption_config(clips, out, stack.folder / "plain-store")
    before = time.monotonic()
    options = [f"--{name}={config[name]}" for name in ("model", "out", "store")]
    options.append(f"--format={','.join(config['format'])}")
    env = {k: v for k, v in stack.environment().items() if k != "PREFECT_API_URL"}
    stack.call("flows.interfaces.cli.main", "caption", *config["sources"], *options, env=env)
    stack.say(f"plain command in {time.monotonic() - before:.0f} s")
    return out


def compare(stack: Stack, deployed: Path, plain: Path) -> None:
    """The same files with the same bytes. Raises CheckFailed."""
    found = [{p.name: p.read_bytes() for p in outputs(out)} for out in (deployed, plain)]
    if not found[1]["captions.jsonl"]:
        raise CheckFailed("the plain command captioned nothing")
    names = sorted({*found[0], *found[1]})
    differing = [name for name in names if found[0].get(name) != found[1].get(name)]
    if differing:
        raise CheckFailed(f"these files differ: {', '.join(differing)}")
    total = sum(map(len, found[1].values()))
    stack.say(f"{len(found[1])} files, {total} bytes: equal")


def outputs(out: Path) -> list[Path]:
    """What people asked for; not the record and the logs, which tell times, nor hidden files, which
    hold the folder's name."""
    found = (path for pattern in COMPARED for path in sorted(out.glob(pattern)))
    return [path for path in found if not path.name.startswith(".")]


def items(out: Path) -> dict[str, int]:
    """Stage → items that the run made."""
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage["items"] for stage in record["stages"]}


NIGHTLY = "rebuild-features/nightly"
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


def check_nightly(stack: Stack) -> None:
    """Every change, and what the server's own next run makes of it. Raises CheckFailed."""
    library = Library(stack.folder)
    deployment = stack.ask("GET", f"/deployments/name/{NIGHTLY}")
    crons = [each["schedule"].get("cron") for each in deployment["schedules"]]
    if not crons or not all(crons):
        raise CheckFailed(f"{NIGHTLY} has no cron schedule: {deployment['schedules']}")
    stack.say(f"{NIGHTLY} is deployed for {', '.join(crons)}")
    config = {
        "sources": [str(library.clips)],
        "model": str(library.model),
        "store": str(stack.folder / "store"),
    }
    parameters = {**deployment["parameters"], "config": config}
    stack.ask("PATCH", f"/deployments/{deployment['id']}", {"parameters": parameters})
    every_minute = ("--cron", EVERY_MINUTE, "--replace", "--accept-yes")
    stack.prefect("deployment", "schedule", "create", NIGHTLY, *every_minute)
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
    """0 when all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--clips", type=Path, default=penstock_demo.CLIPS, help="folder [the demo's]"
    )
    parser.add_argument(
        "--nightly", action="store_true", help="check the scheduled rebuild instead"
    )
    database = parser.add_mutually_exclusive_group()
    database.add_argument("--database", default="", help="postgresql+asyncpg://… [SQLite]")
    database.add_argument(
        "--postgres", action="store_true", help="on a Postgres that is started for the check"
    )
    given = parser.parse_args()
    good = "the deployment makes the same bytes as the plain command"
    if given.nightly:
        good = "the server runs the rebuild by itself, and it encodes what changed and nothing else"

    def check_either(stack: Stack) -> None:
        stack.serve()
        stack.work()
        if given.nightly:
            check_nightly(stack)
        else:
            check(stack, given.clips.absolute())

    return checked_on_stack(check_either, good, postgres=given.postgres, database=given.database)


if __name__ == "__main__":
    sys.exit(main())
