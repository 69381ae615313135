"""Stores the login that this machine's own Prefect server requires: one string in a file that only
its user can read.

Without a login, every page open in the user's browser could start runs: the browser sends a
cross-site request to 127.0.0.1, and only hides the response from the other page.
"""

import ipaddress
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.errors import EnvironmentFault
from artifacts.secret_files import own_secret, stored_secret

FILE = "penstock-auth"
"""Name of the file in Prefect's folder, next to the server's database."""
USER = "penstock"
NOUN_AND_HINT = ("login", "Delete it; the next `make server` makes another")
"""Noun for the file's content, and the hint for an invalid one."""
UNAUTHORIZED = 401


def login_file() -> Path:
    """Return the path of the login of this machine's server."""
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
        found = _text(own_secret(login_file(), *NOUN_AND_HINT, lambda: f"{new_login()}\n".encode()))
    except OSError as error:
        raise _unusable(login_file(), error) from error
    assert found is not None
    return found


def login_for(url: str) -> str | None:
    """Return the stored login if the server is on this machine. No other server gets it. Raises
    EnvironmentFault."""
    return stored_login() if is_local(url) else None


def is_local(url: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
