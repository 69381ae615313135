"""What a stranger may try on a Prefect server: endpoints, logins, origins, names and paths; asks
nothing of any."""

from typing import Any

from tests.support.servers import basic

EVIL = "https://evil.example"
RUN = {"state": {"type": "SCHEDULED"}, "parameters": {"config": {"trust_remote_code": True}}}
ENDPOINTS: list[tuple[str, str, Any]] = [
    ("GET", "/admin/version", None),
    ("GET", "/admin/settings", None),
    ("GET", "/version", None),
    ("GET", "/openapi.json", None),
    ("GET", "/csrf-token?client=me", None),
    ("POST", "/deployments/filter", {}),
    ("POST", "/flows/filter", {}),
    ("POST", "/flow_runs/filter", {}),
    ("POST", "/logs/filter", {}),
    ("POST", "/artifacts/filter", {}),
    ("POST", "/events/filter", {"filter": {}}),
    ("POST", "/work_pools/filter", {}),
    ("POST", "/block_documents/filter", {}),
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
    ("POST", "/admin/database/create", {"confirm": True}),
]
"""Not tried with the login, because it works."""
READING: tuple[str, str, Any] = ("POST", "/flow_runs/filter", {})
STARTING = ENDPOINTS[-1]
OPEN = {"/api/health", "/api/ready"}
"""What anybody may ask: whether it is up."""

WRONG: dict[str, str] = {
    "empty": "",
    "scheme alone": "Basic",
    "empty pair": basic(""),
    "colon": basic(":"),
    "user alone": basic("penstock"),
    "user without password": basic("penstock:"),
    "another password": basic("penstock:penstock"),
    "bearer": "Bearer {login}",
    "plain": "{login}",
    "not encoded": "Basic {login}",
    "small scheme": "basic {encoded}",
    "other scheme": "Digest {encoded}",
    "twice": "Basic {encoded} {encoded}",
    "not base64": "Basic %%%%",
    "not UTF-8": "Basic /////w==",
    "cut": "Basic {cut}",
    "longer": "Basic {longer}",
    "upper case": "Basic {upper}",
    "password alone": "Basic {password}",
    "with a line's end": "Basic {ended}",
    "very long": "Basic " + "QUFB" * 4000,
    "null": "null",
    "many colons": basic(":" * 500),
}

ELSEWHERE = {
    "cookie": ("/api/flow_runs/filter", {"Cookie": "Authorization={login}; auth={login}"}),
    "query": ("/api/flow_runs/filter?Authorization={login}&auth={login}", {}),
    "forwarded": ("/api/flow_runs/filter", {"X-Forwarded-Authorization": "{login}"}),
    "proxy": ("/api/flow_runs/filter", {"Proxy-Authorization": "{login}"}),
    "key": ("/api/flow_runs/filter", {"X-API-Key": "{login}"}),
}

LIKE_OURS = [
    "https://127.0.0.1:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:{other}",
    "http://localhost:{other}",
    "http://localhost:{port}.evil.example",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1.evil.example:{port}",
    "http://localhost.evil.example:{port}",
    "http://evil.example/http://127.0.0.1:{port}",
    "http://evil.example#http://127.0.0.1:{port}",
    "http://127.0.0.1:{port}@evil.example",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port},{evil}",
    "{evil},http://127.0.0.1:{port}",
    "HTTP://127.0.0.1:{port}",
    "http://LOCALHOST:{port}",
    "http://localhost.:{port}",
    "http://[::1]:{port}",
    "http://0.0.0.0:{port}",
    "http://127.1:{port}",
    "http://2130706433:{port}",
    "file://",
    "null",
    "*",
    "",
    "chrome-extension://abcdefgh",
]

SOCKETS = [
    "/api/events/in",
    "/api/events/out",
    "/api/logs/out",
    "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/gpu/workers/connect",
]

HOSTS = [
    "rebound.example",
    "rebound.example:{port}",
    "evil@127.0.0.1:{port}",
    "127.0.0.1:{port}/api/health?",
    "127.0.0.1:{port}/api/health#",
    "/api/health",
    "",
]

PATHS = [
    "/api/health/../flow_runs/filter",
    "/api/health/%2e%2e/flow_runs/filter",
    "/api/health%2f..%2fflow_runs/filter",
    "/api//flow_runs/filter",
    "//api/flow_runs/filter",
    "/api/flow_runs/filter?/health",
    "/api/flow_runs/filter#/health",
    "/api/flow_runs/filter;/health",
    "/api/flow_runs/filter/",
    "/api/health/",
    "/api/api/health",
    "/API/flow_runs/filter",
    "/v2/api/flow_runs/filter",
]

KINDS = (None, "text/plain", "application/json", "application/x-www-form-urlencoded")
"""Of content. A browser sends the first, second and fourth for any page without asking before."""
