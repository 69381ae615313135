"""Starts a Prefect server for one command if the user has none.

Prefect would start one itself, but in our process group. Ctrl-C would then end the server before
the flow has reported its final state, and the flow would retry for minutes.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from artifacts.errors import EnvironmentFault, UsageError, redacted
from flows.deployments.login import login_for, new_login
from flows.machine.loopback import answers, fault_of_api
from stages.process.child import die_with
from stages.process.environment import ROOT, child_environment

START_SECONDS = 180.0
"""Seconds that a server may take to start. 8 to 15 are usual; the first time, and on a busy
machine, it takes much longer."""
STOP_SECONDS = 5.0
DATABASES = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
RELATIVE_FILE = re.compile(r"sqlite[^/]*:///(?=[^/:?]+)(?!file:)")
"""What stands before the path of a database that is relative to the working folder."""


def client_settings() -> dict[Any, str]:
    """Return the settings by which Prefect's client in this process reaches its server. A server is
    started if the user has none. Raises EnvironmentFault and UsageError."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    url = (PREFECT_API_URL.value() or "").strip()
    if not url:  # an empty one is none, too; Prefect would start a server that asks for no login
        url, login = start_server()
        return {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login}
    if not answers(url) and (fault := fault_of_api(url)):
        raise UsageError(f"PREFECT_API_URL is {redacted(url)}", hint=f"Correct it: {fault}")
    own = None if PREFECT_API_AUTH_STRING.value() else login_for(url)
    return {PREFECT_API_AUTH_STRING: own} if own else {}


def start_server() -> tuple[str, str]:
    """Start a server that lives as long as this process. Returns the URL of its API and the login
    that it asks for. Raises EnvironmentFault."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    login = new_login()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.deployments.server", str(os.getpid()), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            cwd=ROOT,  # Alembic, which makes the tables, searches the working folder for code
            env={**child_environment(), **databases(), **guarded(port, login)},
        )
        # After the last words of Prefect's threads, which end before this is called.
        atexit.register(stop, process)
        url = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"Prefect's temporary server did not start ({last_line(log)})",
                    hint="Leave --prefect out, or name a server with PREFECT_API_URL",
                )
            time.sleep(0.1)
        return url, login


def databases() -> dict[str, str]:
    """Return the addresses of databases in relative files as absolute ones."""
    return {
        name: value[: found.end()] + os.path.abspath(value[found.end() :])
        for name in DATABASES
        if (found := RELATIVE_FILE.match(value := os.environ.get(name, "")))
    }


def guarded(port: int, login: str) -> dict[str, str]:
    """Return the environment of a server that answers only who has the login. It lets no page but
    its own read that. The login stands there and not in the arguments, which every user of the
    machine can read."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
    }


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def main(parent: str, port: str) -> None:
    """Run the server in its process."""
    die_with(int(parent))
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(
        create_app(ephemeral=True, final=True),
        host="127.0.0.1",
        port=int(port),
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
