"""Makes plans by the command that makes them, in a process that ends with the request."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError


def program(words: Sequence[str]) -> list[str]:
    """Return the program and the arguments of a command of Penstock."""
    return [sys.executable, "-P", "-m", "flows.cli.main", *words]


async def plan_of(words: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Return the plan of a `caption` command, made by `penstock plan`. When the caller is
    cancelled, that command ends. Raises UsageError with what it says of a command that it
    refuses."""
    made = await asyncio.create_subprocess_exec(
        *program(["plan", "--json", *words[1:]]),
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, errors = await asyncio.wait_for(made.communicate(), seconds)
        plan: dict[str, Any] = json.loads(out)
    except TimeoutError as error:
        raise UsageError(
            f"no plan within {seconds:.0f} s", hint="Try again: what was read is kept"
        ) from error
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise UsageError(lines[-1] if lines else "the plan failed") from None
    finally:
        if made.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(made.pid, signal.SIGKILL)
    return plan
