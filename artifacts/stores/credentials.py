"""Checks the environment variables that locate and authorize a bucket service before it is used.
Never prints their values.
"""

import os
import re

from artifacts.errors import UsageError

SERVICES = ("AWS_", "AZURE_", "GOOGLE_")
"""Begins of the variables that obstore reads."""
ALLOW_HTTP = tuple(f"{service}ALLOW_HTTP" for service in SERVICES)
"""Variables that obstore reads too, but not where it is given other options."""
YES = ("1", "true", "yes", "on")
PLAIN = re.compile(r"[!-~]*")
"""What can stand in an address or in a header: obstore dies of anything else."""
REGION = re.compile(r"[A-Za-z0-9-]*")


def variables() -> tuple[tuple[str, str], ...]:
    """Return the variables that say where services are and who may use them."""
    return tuple(each for each in os.environ.items() if each[0].startswith(SERVICES))


def allows_http() -> bool:
    """Return whether a service may be used without TLS."""
    return any(os.environ.get(name, "").lower() in YES for name in ALLOW_HTTP)


def check_variables() -> None:
    """Raise UsageError for a variable that no service can be used with; names it alone."""
    for name, value in variables():
        shape = REGION if name.endswith("_REGION") else PLAIN
        if not shape.fullmatch(value):
            raise UsageError(
                f"{name} holds a character that it cannot hold",
                hint="Copy it anew, without spaces, quotes or signs that are no ASCII",
            )
