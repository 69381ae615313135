"""Asks whether a Prefect server answers. Requests to this machine go past any proxy.

Prefect must not be imported before `exempt_loopback` ran, and `penstock doctor` asks a server
without Prefect, so this module does not import Prefect.
"""

import contextlib
import http.client
import os
import urllib.request
from urllib.parse import urlsplit

from artifacts.errors import redacted
from artifacts.remote.endpoints import is_this_machine

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_local(url: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        return is_this_machine(urlsplit(url).hostname or "")
    except ValueError:
        return False


def answers(url: str) -> bool:
    """Return whether a Prefect server is up there."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        return _health(url, seconds=5) == 200
    return False


ANSWER_SECONDS = 20.0
"""How long a server may take to answer. Prefect's client would wait for four minutes."""


def is_silent(url: str) -> bool:
    """Return whether a request to the server at this address times out after ANSWER_SECONDS."""
    try:
        _health(url, ANSWER_SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return isinstance(getattr(error, "reason", error), TimeoutError)
    return False


def _health(url: str, seconds: float) -> int:
    """Return the HTTP status of a server's health endpoint."""
    proxies = [urllib.request.ProxyHandler({})] if is_local(url) else []
    opener = urllib.request.build_opener(*proxies)
    with opener.open(f"{url}/health", timeout=seconds) as reply:
        return int(reply.status)


def fault_of_api(url: str) -> str:
    """Return why no Prefect API will ever answer at this address; empty if one may."""
    if not url.startswith(("http://", "https://")):
        return "it must begin with http:// or https://"
    below = f"{url.rstrip('/')}/api"
    return f"the API is at {redacted(below)}: add /api" if answers(below) else ""


def exempt_loopback() -> None:
    """Add this machine to the hosts that this process and its children ask without a proxy. Of the
    two variables, programs read either."""
    lower, upper = os.environ.get("no_proxy"), os.environ.get("NO_PROXY")
    for name, hosts_text in (("no_proxy", lower or upper), ("NO_PROXY", upper or lower)):
        hosts = [host.strip() for host in (hosts_text or "").split(",") if host.strip()]
        all_hosts = hosts_text == "*"  # which is understood alone
        os.environ[name] = "*" if all_hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
