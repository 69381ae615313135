"""Flow runs of one deployment, asked for, looked at and started again, for the scripts that disturb
them."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.prefect_stack import RUN_SECONDS, Stack, described
from scripts.stage_processes import CheckFailed


class Runs:
    """Runs of `caption-videos/batch` over a folder of clips. All methods raise CheckFailed."""

    def __init__(self, stack: Stack, clips: Path) -> None:
        self._stack = stack
        self._clips = clips
        self._deployment = self.ask("GET", "/deployments/name/caption-videos/batch")["id"]

    def submit(self, out: Path) -> str:
        config = {"sources": [str(self._clips)], "model": "demo", "batch_size": 1}
        config |= {"out": str(out), "store": f"{out}-store"}
        body: dict[str, Any] = {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}}
        body["idempotency_key"] = f"{out.name} {time.monotonic()}"
        made = self.ask("POST", f"/deployments/{self._deployment}/create_flow_run", body)
        return str(made["id"])

    def sweep(self) -> None:
        code = (
            "from flows.deployments.sweep import sweep_crashed; sweep_crashed(older_than_seconds=0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self._stack.root,
            env=self._stack.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or "is started again" not in done.stdout + done.stderr:
            raise CheckFailed(f"the sweep started nothing\n{done.stdout}{done.stderr}")

    def retry(self, run: str) -> None:
        """As a person does who reads that it crashed, at once."""
        self._stack.prefect("flow-run", "retry", run)
        self.ended(run, "COMPLETED")

    def ended(self, run: str, wanted: str) -> None:
        state = self.over(run)
        if state["state"]["type"] != wanted:
            raise CheckFailed(f"{described(state)}, not {wanted}{self.log()}")

    def over(self, run: str) -> dict[str, Any]:
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.ask("GET", f"/flow_runs/{run}")
            if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return found
            time.sleep(0.5)
        raise CheckFailed(f"{described(found)} after {RUN_SECONDS} s{self.log()}")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As Prefect's clients do: a busy server answers 503."""
        for patience in (1, 5, 25, 0):
            try:
                return self._stack.ask(method, path, body)
            except OSError as error:
                if not patience:
                    raise CheckFailed(f"{path}: {error}") from error
                time.sleep(patience)

    def log(self) -> str:
        return f"\n{self._stack.log_end('worker')}"
