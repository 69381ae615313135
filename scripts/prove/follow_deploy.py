"""Follows docs/deploy/README.md to the letter: what stands under "By hand" is run in a fresh clone
of this repository with an empty PREFECT_HOME.

    python scripts/prove/follow_deploy.py [--install]
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from flows.core.machine.server_health import answers
from scripts.run.prefect_stack import ROOT, WORKER_STARTED, Stack, prefect_stack
from scripts.run.stage_processes import CheckFailed, checked

DOCUMENT = "docs/deploy/README.md"
SECTION = "By hand"
TERMINALS = {"make server": "server", "make worker": "worker"}
"""Commands that stay."""
PORT = "4200"
"""Replaced by a free one, that no server of this machine is in the way."""
PREFECT_HOME = "~/.prefect"
"""Replaced by the empty one, that nothing of the user's is."""
NOT_OURS = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_WORKER_QUERY_SECONDS",
    "PYTHONPATH",
)


def blocks(text: str) -> list[str]:
    """The commands of the section, a block for each terminal."""
    section = re.search(rf"^## {SECTION}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section, f"{DOCUMENT} has no section {SECTION}"
    return re.findall(r"^```sh\n(.*?)\n```", section[1], re.MULTILINE | re.DOTALL)


def follow(stack: Stack) -> None:
    """Every block, in order. Raises CheckFailed."""
    clone = stack.root
    env = {name: value for name, value in stack.environment().items() if name not in NOT_OURS}
    for block in blocks((clone / DOCUMENT).read_text(encoding="utf-8")):
        command = block.replace(PORT, str(stack.port))
        command = command.replace(PREFECT_HOME, str(stack.folder / "prefect"))
        name = TERMINALS.get(block)
        if name is None:
            run(stack, command, env)
            continue
        process = stack.start(name, "sh", "-euc", command, env=env)
        stack.wait_up(process, name, lambda name=name: up(stack, name))  # type: ignore[misc]
        stack.say(f"$ {command}: is up")
    captions = (clone / "penstock-out" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    if not captions or not all(json.loads(line)["caption"] for line in captions):
        raise CheckFailed("nothing was captioned")
    stack.say(f"{len(captions)} captions in the clone's penstock-out")


def up(stack: Stack, name: str) -> bool:
    """What the document says that one should wait for."""
    return answers(stack.api) if name == "server" else WORKER_STARTED in stack.log_end("worker")


def run(stack: Stack, command: str, env: dict[str, str]) -> None:
    """A block that ends. Raises CheckFailed."""
    done = stack.ended_command("sh", "-euc", command, env=env)
    if done.returncode != 0:
        logs = "\n".join(map(stack.log_end, ("server", "worker")))
        raise CheckFailed(f"{command}\n{done.stdout}{done.stderr}\n{logs}")
    for line in command.splitlines():
        stack.say(f"$ {line}")


def lend_environment(clone: Path, code: Path | None = None) -> None:
    """A .venv over the packages of ours, so that nothing is downloaded; scripts/run/setup takes it
    for its own. `code` is the clone whose program is run, this one where it is not given."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    (packages,) = (clone / ".venv/lib").glob("python*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "lent.pth").write_text("\n".join([str(code or clone), *lent]) + "\n")
    for command, module in (("prefect", "prefect"), ("penstock", "flows.interfaces.cli.main")):
        path = clone / ".venv/bin" / command
        path.write_text(f'#!/bin/sh\nexec "{clone}/.venv/bin/python" -m {module} "$@"\n')
        path.chmod(0o755)
    stamp = "sed '/^\\[dependency-groups\\]/,$d' pyproject.toml"
    stamp += " | cat - requirements/runtime.txt | cksum"
    made_from = subprocess.run(["sh", "-c", stamp], cwd=clone, capture_output=True, check=True)
    text = f"{clone.resolve()} {made_from.stdout.decode().strip()}\n"
    (clone / ".venv/installed-runtime").write_text(text)


def main() -> int:
    """0 when everything in the section works."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--install", action="store_true", help="let `make setup` install (7 to 8 GB)"
    )
    given = parser.parse_args()

    def check() -> None:
        with prefect_stack() as stack:
            stack.root = stack.folder / "penstock"
            clone = ["git", "clone", "--quiet", str(ROOT), str(stack.root)]
            subprocess.run(clone, check=True)
            if not given.install:
                lend_environment(stack.root)
            follow(stack)

    return checked(check, f"{DOCUMENT} works as it stands")


if __name__ == "__main__":
    sys.exit(main())
