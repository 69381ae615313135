"""Shows that a deployment makes the very bytes that the plain command makes: starts a Prefect
server, a worker and all that belongs to them, compares, and leaves nothing behind.

    python scripts/deployment_check.py [--clips FOLDER] [--postgres | --database URL]
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.prefect_stack import Stack
from scripts.stage_processes import CheckFailed
from scripts.throwaway_postgres import checked_on_stack

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
    stack.serve()
    stack.work()
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
    told = (stack.folder / "worker.log").read_text(encoding="utf-8")
    if f"penstock: deployed {DEPLOYMENT}\n" not in told or "worker start" in told:
        raise CheckFailed(f"the worker's first words are not what is promised\n{told}")
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
    told = [str(path) for path in shown if secret.encode() in path.read_bytes()]
    for kind in ("logs", "artifacts", "flow_runs", "task_runs"):
        if secret in json.dumps(stack.ask("POST", f"/{kind}/filter", {})):
            told.append(kind)
    if told:
        raise CheckFailed(f"the secret can be read in {', '.join(told)}")
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
    stack.call("flows.cli.main", "caption", *config["sources"], *options, env=env)
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
    """What people asked for; not the record and the logs, which tell times."""
    return [path for pattern in COMPARED for path in sorted(out.glob(pattern))]


def items(out: Path) -> dict[str, int]:
    """Stage → items that the run made."""
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage["items"] for stage in record["stages"]}


def main() -> int:
    """0 when the flow run completed and every byte is equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clips", type=Path, default=penstock_demo.CLIPS, help="folder [the demo's]"
    )
    database = parser.add_mutually_exclusive_group()
    database.add_argument("--database", default="", help="postgresql+asyncpg://… [SQLite]")
    database.add_argument(
        "--postgres", action="store_true", help="on a Postgres that is started for the check"
    )
    given = parser.parse_args()
    return checked_on_stack(
        lambda stack: check(stack, given.clips.absolute()),
        "the deployment makes the same bytes as the plain command",
        postgres=given.postgres,
        database=given.database,
    )


if __name__ == "__main__":
    sys.exit(main())
