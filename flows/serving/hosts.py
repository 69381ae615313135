"""Checks whether a Host header names this machine. A web page from a domain that is bound to
127.0.0.1 sends its own domain instead (DNS rebinding).
"""

import re

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine reaches."""
HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine. Any port is accepted, since port forwarding
    changes it."""
    found = HOST.fullmatch(host.lower())
    return found is not None and (found["six"] or found["name"]) in LOOPBACK
