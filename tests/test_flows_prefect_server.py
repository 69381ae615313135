"""The server that a command starts for itself: nobody else can use it."""

from pathlib import Path

from tests.pipeline import child_processes
from tests.servers import temporary_server

EVIL = "https://evil.example"


def test_the_temporary_server_answers_only_who_started_it() -> None:
    with temporary_server() as server:
        own = f"http://127.0.0.1:{server.port}"
        asked = server.ask("POST", "/api/flow_runs/filter", {"Origin": EVIL}, b"{}")
        assert (asked.status, asked.allowed) == (401, None)
        wanted = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        assert server.ask("OPTIONS", "/api/flow_runs/filter", wanted).status == 400
        asked = server.ask(
            "POST", "/api/flow_runs/filter", {"Origin": own}, b"{}", login=server.login
        )
        assert (asked.status, asked.allowed) == (200, own)
        shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in child_processes(server.pid)]
        assert shown and not any(server.login.encode() in line for line in shown)
