"""Where flow runs may write, which the worker's environment decides and no parameter can widen."""

import os

from artifacts.errors import UsageError
from artifacts.paths import lies_in
from flows.config import CaptionConfig

VARIABLE = "PENSTOCK_OUT_ROOT"
"""Folders, with `:` between them; unset or empty: anywhere that the worker's user may."""


def confine(config: CaptionConfig, *, out: bool = True) -> None:
    """Refuse parameters that would make a flow run write outside the worker's folders, or run code
    that could; `out` is whether it uses that folder at all. Raises UsageError."""
    roots = [root for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    if not roots:
        return
    where = f"the folders of this worker ({VARIABLE})"
    for name in ("out", "store") if out else ("store",):
        path = getattr(config, name).removeprefix("file://")
        # An empty store is the worker's own.
        if path and not any(lies_in(os.path.expanduser(path), root) for root in roots):
            raise UsageError(
                f"`{name}` leads to {os.path.realpath(os.path.expanduser(path))}, which is not in "
                f"{where}",
                hint=f"Give a folder in {os.pathsep.join(roots)}",
            )
    for name in ("beside", "trust_remote_code"):
        if getattr(config, name):
            raise UsageError(
                f"`{name}` could write outside {where}",
                hint="Leave it out, or run the plain command on that machine",
            )
