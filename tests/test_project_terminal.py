"""What `make server` and `make worker` do on a terminal: they ask nothing, change no profile, and
say from the first second what they are about."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.deployments.server import answers
from scripts.prefect_stack import free_port
from tests.support.pipeline import ROOT
from tests.support.terminals import Dialogue

FIRST_WORD_SECONDS = 3.0
"""Prefect's import alone takes as long; the first word takes a tenth, but machines are busy."""
START_SECONDS = 240.0


class Healthy(BaseHTTPRequestHandler):
    """A server that is up and can do nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> int:
    return free_port()


@contextlib.contextmanager
def terminal(script: str, home: Path, port: int) -> Iterator[Dialogue]:
    """A script on a terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port), "PATH": path}
    env = {**kept, **own, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with contextlib.closing(Dialogue([str(ROOT / "scripts" / script)], cwd=ROOT, env=env)) as shown:
        yield shown


def test_the_worker_says_at_once_what_it_waits_for_and_then_that_it_is_there(
    tmp_path: Path, port: int
) -> None:
    url = f"http://127.0.0.1:{port}/api"
    with terminal("worker", tmp_path, port) as shown:
        first = f"penstock: waiting for the Prefect server at {url}; start one with `make server`"
        assert shown.shows(re.escape(first), FIRST_WORD_SECONDS), shown.text
        assert shown.text.startswith(first)
        assert not shown.shows("the Prefect server answers", 0.3)
        server = HTTPServer(("127.0.0.1", port), Healthy)
        answering = threading.Thread(target=server.serve_forever)
        answering.start()
        try:
            assert shown.shows("penstock: the Prefect server answers", 10), shown.text
        finally:
            server.shutdown()
            answering.join()
            server.server_close()


MINE = 'active = "mine"\n\n[profiles.mine]\n'
THERE = '[profiles.there]\nPREFECT_API_URL = "http://127.0.0.1:{port}/api"\n'
"""A profile to which Prefect would change over by itself."""


@pytest.mark.slow
def test_the_server_asks_nothing_and_changes_no_profile(tmp_path: Path, port: int) -> None:
    """For somebody who has used Prefect before."""
    profiles = MINE + THERE.format(port=port)
    (tmp_path / "profiles.toml").write_text(profiles)
    with terminal("server", tmp_path, port) as shown:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/api"):
            assert "How would you like to proceed" not in shown.text
            assert time.monotonic() < deadline and shown.process.poll() is None, shown.text
            time.sleep(0.1)
        assert shown.text.startswith(f"penstock: the page is http://127.0.0.1:{port}; it asks for")
        assert str(tmp_path / "penstock-auth") in shown.text.splitlines()[0]
        assert "profile" not in shown.text
        assert (tmp_path / "penstock-auth").read_text().strip() not in shown.text
    assert (tmp_path / "profiles.toml").read_text() == profiles
