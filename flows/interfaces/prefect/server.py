"""Finds the Prefect server of `make server`, and stores that server's login.

The login is required by this machine's own Prefect server. It is one string in a file that only its
user can read. Without a login, every page open in the user's browser could start runs: the browser
sends a cross-site request to 127.0.0.1, and only hides the response from the other page.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from artifacts.disk.files import write_json
from artifacts.disk.signing import own_secret, stored_secret
from artifacts.errors import EnvironmentFault, UsageError, redacted
from flows.core.machine.processes import start_of
from flows.core.machine.server_health import answers, fault_of_api, is_local, is_silent

if TYPE_CHECKING:
    from prefect.settings.legacy import Setting

FILE = "penstock-auth"
"""Name of the file in Prefect's folder, next to the server's database."""
STARTED = "penstock-server-{}.json"
"""Name of the record, beside it, of the server that `make server` started on a port."""
LISTENS = "0A"
"""State of a listening socket in /proc/net/tcp."""
USER = "penstock"
NOUN_AND_HINT = ("login", "Delete it; the next `make server` makes another")
"""Noun for the file's content, and the hint for an invalid one."""
OWN = "only the address of your own `make server` gets it unasked"
"""Follows the hint to set the login."""
UNAUTHORIZED = 401


def login_file() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / FILE


def new_login() -> str:
    """Return a random login in Prefect's form `user:password`."""
    return f"{USER}:{secrets.token_urlsafe(24)}"


def stored_login() -> str | None:
    """Return the login of this machine's server, or None. Raises EnvironmentFault."""
    try:
        return _text(stored_secret(login_file(), *NOUN_AND_HINT))
    except OSError as error:
        raise _unusable(login_file(), error) from error


def own_login() -> str:
    """Return the login of this machine's server, created if missing. Concurrent creators get the
    same login. Raises EnvironmentFault."""
    try:
        login = _text(own_secret(login_file(), *NOUN_AND_HINT, lambda: f"{new_login()}\n".encode()))
    except OSError as error:
        raise _unusable(login_file(), error) from error
    assert login is not None
    return login


def login_for(url: str) -> str | None:
    """Return the stored login if this user's `make server` runs at the address. No other server
    gets it: whoever listens on a port may be another user. Raises EnvironmentFault."""
    return stored_login() if is_own_server(url) else None


def note_server(url: str, pid: int) -> None:
    """Record that a process becomes this user's server at an address, unless one runs there, which
    will keep its port. Raises EnvironmentFault."""
    if is_own_server(url):
        return
    address = urlsplit(url).netloc
    write_json(_record_of(url), {"address": address, "pid": pid, "start": start_of(pid)})


def is_own_server(url: str) -> bool:
    """Return whether a recorded server of this user runs at an address, and nobody else listens on
    its port."""
    if not is_local(url):
        return False
    try:
        server = json.loads(_record_of(url).read_bytes())
        runs = server["start"] == start_of(server["pid"]) != ""
        is_same = server["address"] == urlsplit(url).netloc
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return runs and is_same and _listeners(urlsplit(url).port) == {os.geteuid()}


def _record_of(url: str) -> Path:
    return login_file().with_name(STARTED.format(urlsplit(url).port))


def _listeners(port: int | None) -> set[int]:
    """Return the users that listen on a port of this machine: a recorded process may still be
    starting, or fail to, because another user has its port."""
    sockets = list[list[str]]()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            sockets += map(str.split, Path(path).read_text(encoding="ascii").split("\n")[1:-1])
    listening = [entry for entry in sockets if entry[3] == LISTENS]
    return {int(entry[7]) for entry in listening if int(entry[1][-4:], 16) == port}


def refuses_login(error: Exception) -> bool:
    """Return whether an error of Prefect's client means a wrong login."""
    return getattr(getattr(error, "response", None), "status_code", None) == UNAUTHORIZED


def _text(secret: bytes | None) -> str | None:
    """Return a login as text. Raises EnvironmentFault for an invalid one."""
    if secret is None:
        return None
    text = secret.decode("ascii", errors="replace").strip()
    if not (text.isascii() and text.isprintable()):
        raise EnvironmentFault(
            f"{login_file()} contains no {NOUN_AND_HINT[0]}", hint=NOUN_AND_HINT[1]
        )
    return text


def _unusable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"the login of Prefect's server cannot be stored in {path} ({error.strerror})",
        hint="Give a folder of your own with PREFECT_HOME",
    )


def client_settings() -> dict["Setting", str]:
    """Return the settings by which Prefect's client in this process reaches its server: the one of
    PREFECT_API_URL, or else that of this user's `make server`. Raises EnvironmentFault, and
    UsageError without a server."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    url = (PREFECT_API_URL.value() or "").strip()
    if not url:  # an empty one is none, too; Prefect would start a server that asks for no login
        url = own_server()
        login = stored_login()
        return {PREFECT_API_URL: url, **({PREFECT_API_AUTH_STRING: login} if login else {})}
    if not answers(url):
        if fault := fault_of_api(url):
            raise UsageError(f"PREFECT_API_URL is {redacted(url)}", hint=f"Correct it: {fault}")
        if is_silent(url):
            raise EnvironmentFault(
                f"no answer from the Prefect server at {redacted(url)}",
                hint="Start it again, or unset PREFECT_API_URL",
            )
    own = None if PREFECT_API_AUTH_STRING.value() else login_for(url)
    return {PREFECT_API_AUTH_STRING: own} if own else {}


def own_server() -> str:
    """Return the address of this user's `make server`. Raises UsageError if none runs."""
    for path in sorted(login_file().parent.glob(STARTED.format("*"))):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            url = f"http://{json.loads(path.read_bytes())['address']}/api"
            if is_own_server(url):
                return url
    raise UsageError(
        "--prefect needs a Prefect server, and none of yours is running",
        hint="Start one in another terminal: make server. Or name one: export PREFECT_API_URL=…",
    )
