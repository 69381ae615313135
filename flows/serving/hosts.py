"""Tells requests of other sites' pages from those of our own. A web page from a domain that is
bound to 127.0.0.1 sends its own domain as Host (DNS rebinding).
"""

import re
from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine reaches."""
HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine. Any port is accepted, since port forwarding
    changes it."""
    found = HOST.fullmatch(host.lower())
    return found is not None and (found["six"] or found["name"]) in LOOPBACK


def is_of_other_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sends this from another site's page. Sec-Fetch-Site is preferred:
    behind a proxy, the Host header differs from the page's."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin, host = headers.get("origin"), headers.get("host", "")
    return origin is not None and origin not in (f"http://{host}", f"https://{host}")
