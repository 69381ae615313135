"""Sends requests to servers on this machine to them directly, through no proxy.

A module of its own, because Prefect must not be imported before `exempt_loopback` ran, and
`penstock doctor` asks a server without Prefect.
"""

import contextlib
import http.client
import ipaddress
import os
import urllib.request
from urllib.parse import urlsplit

from artifacts.errors import redacted

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_local(url: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def answers(url: str) -> bool:
    """Return whether a Prefect server is up there."""
    proxies = [urllib.request.ProxyHandler({})] if is_local(url) else []
    opener = urllib.request.build_opener(*proxies)
    with (
        contextlib.suppress(OSError, ValueError, http.client.HTTPException),
        opener.open(f"{url}/health", timeout=5) as reply,
    ):
        return bool(reply.status == 200)
    return False


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
    for name, given in (("no_proxy", lower or upper), ("NO_PROXY", upper or lower)):
        hosts = [host.strip() for host in (given or "").split(",") if host.strip()]
        all_hosts = given == "*"  # which is understood alone
        os.environ[name] = "*" if all_hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
