"""A real server of scripts/run/server, and a temporary one, asked by everybody but their user:
pages of other sites, pages that rebind a name to this machine, programs without the login."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from scripts.run.prefect_stack import Stack, prefect_stack
from scripts.run.stage_processes import marked
from tests.support.attacks import attacked
from tests.support.servers import Server, basic

pytestmark = pytest.mark.slow

EVIL = "https://evil.example"
RUN = {"state": {"type": "SCHEDULED"}, "parameters": {"config": {"trust_remote_code": True}}}
ENDPOINTS: list[tuple[str, str, Any]] = [
    ("GET", "/admin/settings", None),
    ("GET", "/openapi.json", None),
    ("POST", "/deployments/filter", {}),
    ("POST", "/flows/filter", {}),
    ("POST", "/flow_runs/filter", {}),
    ("POST", "/variables/filter", {}),
    ("POST", "/variables/", {"name": "made", "value": "1"}),
    ("POST", "/work_pools/", {"name": "made", "type": "process"}),
    ("POST", "/flows/", {"name": "made"}),
    ("POST", "/deployments/{deployment}/create_flow_run", RUN),
]
"""What the right login does as well, so that a refusal says something."""
REFUSED_ALWAYS: list[tuple[str, str, Any]] = [
    ("POST", "/admin/database/clear", {"confirm": True}),
    ("POST", "/admin/database/drop", {"confirm": True}),
]
"""Not tried with the login, because it works."""
READING: tuple[str, str, Any] = ("POST", "/flow_runs/filter", {})
STARTING = ENDPOINTS[-1]
OPEN = {"/api/health", "/api/ready"}
"""What anybody may ask: whether it is up."""

WRONG: list[str] = [
    *("", "Basic", basic(""), basic("penstock"), basic("penstock:penstock"), "Bearer {login}"),
    *("Basic {login}", "basic {encoded}", "Digest {encoded}", "Basic {encoded} {encoded}"),
    *("Basic %%%%", "Basic /////w==", "Basic {cut}", "Basic {longer}", "Basic {password}"),
    *("Basic {ended}", "Basic " + "QUFB" * 4000),
]


SOCKETS = [
    *("/api/events/in", "/api/events/out", "/api/logs/out"),
    *("/api/task_runs/subscriptions/scheduled", "/api/work_pools/gpu/workers/connect"),
]

HOSTS = [
    *("rebound.example:{port}", "evil@127.0.0.1:{port}", "127.0.0.1:{port}/api/health?"),
    *("/api/health", ""),
]

PATHS = [
    *("/api/health/../flow_runs/filter", "/api/health/%2e%2e/flow_runs/filter"),
    *("/api/health%2f..%2fflow_runs/filter", "/api//flow_runs/filter", "//api/flow_runs/filter"),
    *("/api/flow_runs/filter?/health", "/api/flow_runs/filter#/health"),
    *("/api/flow_runs/filter;/health", "/api/health/", "/API/flow_runs/filter"),
    "/v2/api/flow_runs/filter",
]

KINDS = (None, "text/plain", "application/json", "application/x-www-form-urlencoded")
"""Of content. A browser sends the first, second and fourth for any page without asking before."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with prefect_stack() as found:
        process = found.serve()
        yield found
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def server(stack: Stack) -> Server:
    return Server(port=stack.port, login=stack.login(), pid=0)


@pytest.fixture(scope="module")
def deployment(server: Server) -> str:
    """One whose runs nobody would take."""
    flow = server.ask("POST", "/api/flows/", {}, {"name": "caption-videos"}, login=server.login)
    expected = {"name": "batch", "flow_id": json.loads(flow.body)["id"]}
    made = server.ask("POST", "/api/deployments/", {}, expected, login=server.login)
    return str(json.loads(made.body)["id"])


@pytest.fixture
def nothing_made(server: Server, deployment: str) -> Iterator[None]:
    """Whatever was answered, the attack changed nothing."""
    before = what_there_is(server)
    yield
    assert what_there_is(server) == before


def what_there_is(server: Server) -> list[int]:
    kinds = ("flow_runs", "deployments", "variables", "work_pools", "flows", "block_documents")
    requests = [server.ask("POST", f"/api/{k}/filter", {}, {}, login=server.login) for k in kinds]
    return [len(json.loads(answer.body)) for answer in requests]


def named(endpoint: tuple[str, str, Any]) -> str:
    return f"{endpoint[0]} {endpoint[1]}"


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, *REFUSED_ALWAYS], ids=named)
def test_no_page_and_no_program_without_the_login_gets_anything(
    server: Server, deployment: str, nothing_made: None, endpoint: tuple[str, str, Any]
) -> None:
    method, path, body = endpoint
    path = f"/api{path.format(deployment=deployment)}"
    expected = {"Access-Control-Request-Method": method}
    expected["Access-Control-Request-Headers"] = "content-type"
    for headers in ({"Origin": EVIL}, {"Origin": "null"}, {}):
        for kind in KINDS:
            given = headers | ({"Content-Type": kind} if kind else {})
            request = server.ask(method, path, given, body)
            assert (request.status, request.allowed) == (401, None)
        request = server.ask("OPTIONS", path, headers | expected)
        assert request.status in (400, 401) and request.allowed is None


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
def test_with_the_login_the_same_requests_are_answered(
    server: Server, deployment: str, endpoint: tuple[str, str, Any]
) -> None:
    method, path, body = endpoint
    own = f"http://127.0.0.1:{server.port}"
    path = f"/api{path.format(deployment=deployment)}"
    request = server.ask(method, path, {"Origin": own}, body, login=server.login)
    assert request.status in (200, 201), request.body
    assert request.allowed == own


def test_no_route_that_the_server_has_is_open(server: Server, deployment: str) -> None:
    known = json.loads(server.ask("GET", "/api/openapi.json", login=server.login).body)
    tried = 0
    for path, methods in known["paths"].items():
        for method in methods:
            filled = "/".join(str(uuid4()) if "{" in part else part for part in path.split("/"))
            filled = filled if filled.startswith("/api/") else f"/api{filled}"
            if filled in OPEN:
                continue
            request = server.ask(method.upper(), filled, {"Origin": EVIL}, {})
            assert (request.status, request.allowed) == (401, None), (method, path)
            tried += 1
    assert tried > 150


def test_whether_it_is_up_is_told_to_everybody_but_shown_to_no_page(server: Server) -> None:
    for path in OPEN:
        request = server.ask("GET", path, {"Origin": EVIL})
        assert (request.status, request.allowed) == (200, None)
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert server.ask(method, "/api/health").status == 401


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[:40])
def test_a_wrong_login_is_none(
    server: Server, deployment: str, nothing_made: None, wrong: str
) -> None:
    login = server.login
    logins = {"encoded": login, "cut": login[:-1], "longer": f"{login}A", "ended": f"{login}\n"}
    logins["password"] = login.partition(":")[2]
    values = {name: basic(text).split()[1] for name, text in logins.items()}
    value = wrong.format(login=login, **values)
    for method, path, body in (READING, STARTING):
        path = f"/api{path.format(deployment=deployment)}"
        assert server.ask(method, path, {"Authorization": value}, body).status == 401


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_is_bound_to_this_machine_gets_nothing(
    server: Server, deployment: str, nothing_made: None, host: str
) -> None:
    given = host.format(port=server.port)
    headers = {"Host": given, "Origin": f"http://{given}", "Sec-Fetch-Site": "same-origin"}
    for method, path, body in (READING, STARTING):
        path = f"/api{path.format(deployment=deployment)}"
        assert server.ask(method, path, headers, body).status in (400, 401)


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_leads_past_the_login(server: Server, path: str) -> None:
    messages = {"X-HTTP-Method-Override": "GET", "X-Forwarded-Prefix": "/api/health"}
    others = dict.fromkeys(("X-Original-URL", "X-Rewrite-URL"), "/api/health")
    for headers in ({}, messages, others):
        assert server.ask("POST", path, headers, {}).status in (401, 404, 405)


def greeting(server: Server, path: str, protocol: bool, token: str | None) -> str:
    """What a websocket answers to a client that introduces itself."""
    try:
        with closing(
            connect(
                f"ws://127.0.0.1:{server.port}{path}",
                subprotocols=["prefect"] if protocol else None,  # type: ignore[list-item]
                additional_headers={"Origin": EVIL},
            )
        ) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            return str(socket.recv(timeout=20))
    except WebSocketException:
        return "closed"


@pytest.mark.parametrize("path", SOCKETS)
def test_no_websocket_talks_to_who_has_no_login(server: Server, path: str) -> None:
    for token in (None, "", "penstock", server.login[:-1], basic(server.login), [server.login]):
        assert greeting(server, path, True, token) == "closed"  # type: ignore[arg-type]
    assert greeting(server, path, False, server.login) == "closed"
    assert "auth_success" in greeting(server, path, True, server.login)


def test_a_worker_with_another_login_is_told_so_in_one_line(stack: Stack) -> None:
    environment = {**stack.environment(), "PREFECT_API_AUTH_STRING": "penstock:penstock"}
    outcome = attacked("-m", "scripts.run.prepare_pool", command=[sys.executable], env=environment)
    outcome.holds(1)
    assert outcome.err.startswith(f"penstock: the Prefect server at {stack.api} refuses the login")
    assert len(outcome.text.splitlines()) == 1


def test_nobody_is_shown_the_login(stack: Stack, server: Server) -> None:
    secret = server.login.partition(":")[2].encode()
    assert (stack.folder / "prefect" / "penstock-auth").stat().st_mode & 0o777 == 0o600
    assert secret not in (stack.folder / "server.log").read_bytes()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(stack.folder)]
    assert lines and not any(secret in line for line in lines)
    for path in ("/", "/ui-settings", "/v2/", "/docs", "/openapi.json", "/api/health"):
        request = server.ask("GET", path, {"Origin": EVIL})
        assert secret not in request.body and request.allowed is None
    assert secret not in server.ask("GET", "/api/admin/settings", login=server.login).body
