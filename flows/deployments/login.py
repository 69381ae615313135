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
"""Name of the file in Prefect's folder, beside the database of the server."""
USER = "penstock"
WORDS = ("login", "Delete it; the next `make server` makes another")
"""What the file holds, and what to do where it does not."""
UNAUTHORIZED = 401


def login_file() -> Path:
    """Return where the login of this machine's server lies, if there is one."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / FILE


def new_login() -> str:
    """Return a login that nobody can guess, as Prefect takes it: `user:password`."""
    return f"{USER}:{secrets.token_urlsafe(24)}"


def stored_login() -> str | None:
    """Return the login of this machine's server, or None where none was made. Raises
    EnvironmentFault."""
    try:
        return _text(stored_secret(login_file(), *WORDS))
    except OSError as error:
        raise _unusable(login_file(), error) from error


def own_login() -> str:
    """Return the login of this machine's server, made if there is none. Two that make it at once
    end with the same. Raises EnvironmentFault."""
    try:
        found = _text(own_secret(login_file(), *WORDS, lambda: f"{new_login()}\n".encode()))
    except OSError as error:
        raise _unusable(login_file(), error) from error
    assert found is not None
    return found


def login_for(url: str) -> str | None:
    """Return the stored login, if the server at this address is on this machine. No other is ever
    told. Raises EnvironmentFault."""
    return stored_login() if is_local(url) else None


def is_local(url: str) -> bool:
    """Return whether an address is one of this machine that no other machine has."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuses_login(error: Exception) -> bool:
    """Return whether an error of Prefect's client says that the login is not the server's."""
    return getattr(getattr(error, "response", None), "status_code", None) == UNAUTHORIZED


def _text(secret: bytes | None) -> str | None:
    """Return a login as it is sent. Raises EnvironmentFault for what cannot be."""
    if secret is None:
        return None
    text = secret.decode("ascii", errors="replace").strip()
    if not (text.isascii() and text.isprintable()):
        raise EnvironmentFault(f"{login_file()} holds no {WORDS[0]}", hint=WORDS[1])
    return text


def _unusable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"the login of Prefect's server cannot be kept in {path} ({error.strerror})",
        hint="Give a folder of your own with PREFECT_HOME",
    )
