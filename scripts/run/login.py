"""Prints the login that scripts/run/server asks for, or that scripts/run/worker gives, for the
shell to take, or waits until a Prefect server answers. Loads nothing of Prefect, which
takes seconds.

    PREFECT_SERVER_API_AUTH_STRING="$(python -m scripts.run.login server PID)"
    PREFECT_API_URL=http://127.0.0.1:4200/api python -m scripts.run.login await
"""

import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError, redacted
from flows.core.machine.server_health import answers, fault_of_api
from flows.interfaces.prefect.server import (
    is_own_server,
    login_file,
    note_server,
    own_login,
    stored_login,
)

SERVER = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT = "PREFECT_API_AUTH_STRING"
API = "PREFECT_API_URL"
WAIT_SECONDS = 300
"""On an empty database a server's first start takes a minute on a busy machine."""
ASK_SECONDS = 0.5
SAY_SECONDS = 8.0
"""Between two lines while it is waited for."""


def given(*names: str) -> str:
    """The first of these settings that the user made, in the environment or in the Prefect profile
    in use. Prefect would tell as well, but two seconds later."""
    profile = active_profile()
    for name in names:
        if value := os.environ.get(name) or str(profile.get(name, "")):
            return value
    return ""


def active_profile() -> dict[str, Any]:
    """The settings of the profile that Prefect will use; none where it would find none."""
    home = login_file().parent
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        message = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    profiles = message.get("profiles", {})
    name = os.environ.get("PREFECT_PROFILE") or message.get("active", "")
    found = profiles.get(name, {}) if isinstance(profiles, dict) else {}
    return found if isinstance(found, dict) else {}


def of_server(pid: str) -> str:
    """What the server is to ask for; it never starts without. The process becomes the server, and
    its address is written down. Raises PenstockError."""
    login = given(SERVER, CLIENT)
    where = f"that {SERVER if given(SERVER) else CLIENT} holds" if login else f"in {login_file()}"
    host = os.environ.get("PREFECT_SERVER_API_HOST", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
    page = f"http://{f'[{host}]' if ':' in host else host}:{os.environ['PREFECT_SERVER_API_PORT']}"
    shown = [f"penstock: the page is {page}; it asks for the string {where}"]
    if not login:
        login = own_login()
        shown += [
            "penstock: commands in another terminal need",
            f"    export {API}={page}/api",
            f'    export {CLIENT}="$(cat {login_file()})"',
        ]
    note_server(page, int(pid))
    print("\n".join(shown), file=sys.stderr)
    return login


def of_worker() -> str:
    """What the worker is to give: what the user set for clients, and nothing else of this machine's
    but to the user's own server. Raises PenstockError."""
    if login := given(CLIENT):
        return login
    own = is_own_server(os.environ.get(API, ""))
    return (given(SERVER) or stored_login() or "") if own else ""


def await_server() -> int:
    """Say which server is waited for, from the first moment, and wait; returns an exit code."""
    url = os.environ.get(API, "")
    if not url:
        say(f"{API} is not set. Call scripts/run/worker, which sets it")
        return 2
    say(f"waiting for the Prefect server at {redacted(url)}; start one with `make server`")
    began = said = time.monotonic()
    while not answers(url):
        if fault := fault_of_api(url):
            say(f"{API} is {redacted(url)}. Correct it: {fault}")
            return 2
        now = time.monotonic()
        if now - said > SAY_SECONDS:
            said = now
            say(f"still waiting for it, {now - began:.0f} s so far")
        if now - began > WAIT_SECONDS:
            why = f"after {WAIT_SECONDS} s. Start one: make server"
            say(f"no Prefect server at {redacted(url)} {why}")
            return 5
        time.sleep(ASK_SECONDS)
    say("the Prefect server answers; loading Prefect, then deploying what changed")
    return 0


def say(text: str) -> None:
    print(f"penstock: {text}", flush=True)


def main(what: str, *more: str) -> int:
    if what == "await":
        return await_server()
    try:
        print(of_server(*more) if what == "server" else of_worker())
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
