"""Keeps the login that this machine's own Prefect server asks for; knows neither server nor client.
It is one string in a file that its user alone can read.

Without it every page that the user's browser shows could start runs: a browser sends a request to
127.0.0.1 for whoever asks, and only the answer is kept from a foreign page.
"""

import ipaddress
import os
import secrets
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.errors import EnvironmentFault
from artifacts.placing import place

FILE = "penstock-auth"
"""Name of the file in Prefect's folder, beside the database of the server."""
USER = "penstock"
PRIVATE = 0o600
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
    path = login_file()
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise EnvironmentFault(
            f"{path} holds no login", hint="Delete it; the next `make server` makes another"
        )
    return text


def own_login() -> str:
    """Return the login of this machine's server, made if there is none. Two that make it at once
    end with the same. Raises EnvironmentFault."""
    path = login_file()
    try:
        if stored_login() is None:
            _make(path)
        if path.stat().st_mode & 0o777 != PRIVATE:  # others could have read, or written it
            path.chmod(PRIVATE)
    except OSError as error:
        raise _unusable(path, error) from error
    found = stored_login()
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


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(prefix=f".{FILE}-", dir=path.parent)  # its user's alone
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{new_login()}\n")
            file.flush()
            os.fsync(file.fileno())
        place(Path(half), path)  # unless another start was first
    finally:
        Path(half).unlink(missing_ok=True)


def _unusable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"the login of Prefect's server cannot be kept in {path} ({error.strerror})",
        hint="Give a folder of your own with PREFECT_HOME",
    )
