"""Tells requests of other sites' pages from those of our own.

A web page from a domain that is bound to 127.0.0.1 sends its own domain as Host (DNS rebinding).
The check distinguishes requests of such pages from those of our own pages.
"""

from collections.abc import Mapping

OWN_HOSTS = ("127.0.0.1", "[::1]", "localhost")
"""Addresses that only this machine reaches, as Host headers have them before a port. Port
forwarding changes that."""


def is_of_other_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sends this from another site's page. Sec-Fetch-Site is preferred:
    behind a proxy, the Host header differs from the page's."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    origin, host = headers.get("origin"), headers.get("host", "")
    return origin is not None and origin not in (f"http://{host}", f"https://{host}")
