"""Lists the Host headers that refer to this machine. A page of another site whose name is bound to
127.0.0.1 sends that name instead.
"""

import re

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that nobody else reaches."""
HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine, at whatever port: one that is forwarded is
    another there."""
    found = HOST.fullmatch(host.lower())
    return found is not None and (found["six"] or found["name"]) in LOOPBACK
