"""A studio that is going on in a process of its own, and requests as its page makes them."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.servers import Answer, raw_request

ADDRESS = re.compile(r"studio at (http://127\.0\.0\.1:(\d+)/([0-9a-f]{32})/)\n")
SECONDS = 120


@dataclass
class OpenStudio:
    """A studio over a folder, on one port whatever becomes of its server."""

    folder: Path
    out: Path
    store: Path
    more: tuple[str, ...] = ()
    port: int = 0
    token: str = ""
    process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def start(self) -> "OpenStudio":
        """Start its server, or start it again."""
        where = ["--out", str(self.out), "--store", str(self.store), "--port", str(self.port)]
        command = [*PENSTOCK, "studio", str(self.folder), *where, *self.more]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = ADDRESS.fullmatch(line)
        assert found, line
        assert self.token in ("", found[3]), "the page that is open would not find it"
        self.port, self.token = int(found[2]), found[3]
        return self

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send its server a signal, and wait until it has ended."""
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(number)
        with self.process:
            self.process.stdout.read()
        return self.process.returncode

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        host: str | None = "",
    ) -> Answer:
        """Ask for a path below the token, or with `//` before it for that path as it is written.
        Only these headers are sent; `host` None: no Host."""
        target = path[1:] if path.startswith("//") else f"/{self.token}/{path}"
        named = {} if host is None else {"Host": host or f"127.0.0.1:{self.port}"}
        sent = {**named, **(headers or {})}
        return raw_request(self.port, method, target, sent, body, SECONDS)

    @property
    def page_headers(self) -> dict[str, str]:
        """The headers that its own page sends."""
        return {
            "Content-Type": "application/json",
            "Origin": f"http://127.0.0.1:{self.port}",
            "X-Penstock-Token": self.token,
        }

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        """Ask as the page does, with other headers."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, body, {**self.page_headers, **headers})

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def done(self, path: str, value: Any) -> Any:
        answer = self.post(path, value)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    @property
    def own(self) -> str:
        """The path of the captions that lie in its folder of outputs."""
        return f"run/{self.get('start')['own']}"

    def captions(self) -> dict[str, Any]:
        return dict(self.get(f"{self.own}/captions"))

    def key(self) -> str:
        """The key of the first caption."""
        return str(self.captions()["media"][0]["captions"][0]["key"])

    def deed(self, caption: Any, **more: Any) -> dict[str, Any]:
        """Return a correction of that caption, which names the edit now in force as its base."""
        found = self.captions()
        of = found["media"][0]["captions"][0]["key"]
        was = found["edits"].get(of, {"caption": None, "review": ""})
        change = {"of": of, "caption": caption, "review": "", "was": was, **more}
        return {"id": os.urandom(8).hex(), "does": "x", "changes": [change]}

    def runs(self) -> list[dict[str, Any]]:
        return list(self.get("runs")["runs"])

    def wait(self, until: Callable[[list[dict[str, Any]]], bool], seconds: float = SECONDS) -> Any:
        """Wait until this is true of the runs, and return them."""
        deadline = time.monotonic() + seconds
        while not until(found := self.runs()):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found


def all_done(runs: list[dict[str, Any]]) -> bool:
    return bool(runs) and all(run["state"] == "done" for run in runs)
