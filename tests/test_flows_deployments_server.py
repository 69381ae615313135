"""The server that a command uses: what it starts for itself answers nobody else, and what is there
already gets the login of this machine only if it is on it."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.deployments.login import login_file, own_login
from flows.deployments.server import client_settings
from tests.support.pipeline import child_processes
from tests.support.servers import temporary_server

EVIL = "https://evil.example"


@pytest.mark.slow
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


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The login of the server of this machine."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    return own_login()


def test_a_server_of_this_machine_gets_its_login_from_the_command(made: str) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4242/api"}):
        assert client_settings() == {PREFECT_API_AUTH_STRING: made}
        login_file().unlink()  # one that was started by other means asks for none
        assert client_settings() == {}


def test_a_server_elsewhere_and_a_login_of_the_user_s_are_left_alone(made: str) -> None:
    with temporary_settings({PREFECT_API_URL: "https://penstock.example.org/api"}):
        assert client_settings() == {}
    here = {PREFECT_API_URL: "http://127.0.0.1:4242/api", PREFECT_API_AUTH_STRING: "me:mine"}
    with temporary_settings(here):
        assert client_settings() == {}
