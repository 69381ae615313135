"""Jobs of a server, as a client posts and follows them, and the rows that the command writes."""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.serving import Serving

SERVE = [*PENSTOCK, "serve", "--caption-model", "demo"]
OPTIONS: Mapping[str, Any] = {"chunk": 0.5, "frames": 2, "prompt": "What moves?"}
SECONDS = 200.0
ENDED = ("completed", "failed", "cancelled")


def post(server: Serving, body: bytes | None = None, **params: Any) -> dict[str, Any]:
    """Post a job that the server takes."""
    answer = server.ask("POST", f"/v1/jobs?{urlencode(params)}", body)
    assert answer.status == 202, answer.body
    job: dict[str, Any] = json.loads(answer.body)
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def job_of(server: Serving, name: str, **params: Any) -> dict[str, Any]:
    answer = server.ask("GET", f"/v1/jobs/{name}?{urlencode(params)}")
    assert answer.status == 200, answer.body
    job: dict[str, Any] = json.loads(answer.body)
    return job


def wait_for(server: Serving, name: str, *states: str) -> dict[str, Any]:
    """Return a job when it is in one of these states; without any, when it has ended."""
    until = time.monotonic() + SECONDS
    while (job := job_of(server, name))["state"] not in (states or ENDED):
        assert time.monotonic() < until, job
        time.sleep(0.1)
    return job


def all_rows(server: Serving, name: str, page: int = 4) -> list[dict[str, Any]]:
    """Return the rows of a job that has ended, page by page."""
    rows: list[dict[str, Any]] = []
    while True:
        job = job_of(server, name, after=len(rows), limit=page)
        rows += job["rows"]
        assert job["after"] == len(rows)
        if job["complete"]:
            return rows


def rows_of_command(clip: Path, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Return the rows that `penstock caption` writes for a file, in a store of its own."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    places = [f"--out={folder / 'out'}", f"--store={folder / 'own-store'}"]
    command = [*PENSTOCK, "caption", str(clip), "--model=demo", *places, *given]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = (folder / "out" / "captions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_source(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "source"} for row in rows]
