"""Confines where flow runs write, and whether they run code that comes with a checkpoint. The
worker's environment decides that, and no parameter can widen it."""

import os
from collections.abc import Callable
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.paths import lies_in
from artifacts.store import open_store
from flows.job.prepare import out_folder
from flows.options.commands import MediaOptions
from flows.options.text import FolderOptions

VARIABLE = "PENSTOCK_OUT_ROOT"
"""Folders, with `:` between them; unset or empty: anywhere that the worker's user may."""
REMOTE_CODE = "PENSTOCK_ALLOW_REMOTE_CODE"
"""`1`: runs may set `trust_remote_code`; never where VARIABLE holds them to folders."""

WRITTEN: dict[str, Callable[[MediaOptions], Path]] = {
    "out": lambda config: out_folder(FolderOptions.of(config)),
    "store": lambda config: open_store(config.store_url).local,
}
"""Parameter → the folder that the run itself makes of it: another reading of the same text could be
led elsewhere."""


def confine(config: MediaOptions, *, out: bool = True) -> None:
    """Refuse parameters by which a flow run would write outside the worker's folders. Those are
    refused, too, that would run code that could; `out` is whether it uses that folder at all.
    Raises UsageError."""
    if config.trust_remote_code and os.environ.get(REMOTE_CODE) != "1":
        raise UsageError(
            "`trust_remote_code` is not allowed to runs of this worker",
            hint=f"Leave it out, run the plain command on that machine, or set {REMOTE_CODE}=1 in "
            "the worker's environment",
        )
    roots = [root for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    if not roots:
        return
    where = f"the folders of this worker ({VARIABLE})"
    for name in ("out", "store") if out else ("store",):
        # An empty store is the worker's own.
        if (name == "out" or config.store) and (path := outside(WRITTEN[name](config), roots)):
            raise UsageError(
                f"`{name}` leads to {path}, which is not in {where}",
                hint=f"Give a folder in {os.pathsep.join(roots)}",
            )
    for name in ("beside", "trust_remote_code"):
        if getattr(config, name, False):
            raise UsageError(
                f"`{name}` could write outside {where}",
                hint="Leave it out, or run the plain command on that machine",
            )


def outside(path: Path, roots: list[str]) -> str:
    """Return where a folder leads that is in none of the roots; nothing if all is well. The same
    holds for one that a run would make on the way there and that is in none, nor above one."""
    for step in (path, *(above for above in path.parents if not os.path.lexists(above))):
        inside = any(lies_in(str(step), root) for root in roots)
        above = step is not path and any(lies_in(root, str(step)) for root in roots)
        if not inside and not above:
            return os.path.realpath(step)
    return ""
