"""Refuses a configuration that leads out of the folders of a worker."""

import os
from pathlib import Path

from artifacts.disk.paths import lies_in
from artifacts.errors import UsageError
from artifacts.records.store import open_store
from artifacts.remote.endpoints import refuse_unlisted
from flows.core.job.prepare import out_folder
from flows.core.options.commands import MediaOptions
from flows.core.options.text import FolderOptions

VARIABLE = "PENSTOCK_OUT_ROOT"
"""Folders separated by `:`; unset or empty: any folder that the worker's user can write to."""
REMOTE_CODE = "PENSTOCK_ALLOW_REMOTE_CODE"
"""`1` lets runs set `trust_remote_code`, unless VARIABLE confines them to folders."""


def confine(config: MediaOptions) -> None:
    """Raise UsageError for parameters that would write outside the worker's folders, run code that
    could, or send media to an address that the worker does not list."""
    refuse_unlisted(config.groups.endpoint.endpoint)
    if config.trust_remote_code and os.environ.get(REMOTE_CODE) != "1":
        raise UsageError(
            "`trust_remote_code` is not allowed on this worker",
            hint=f"Leave it out, run the plain command on that machine, or set {REMOTE_CODE}=1 in "
            "the worker's environment",
        )
    roots = [root for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    if not roots:
        return
    where = f"the folders of this worker ({VARIABLE})"
    written = {"out": out_folder(config)} if isinstance(config, FolderOptions) else {}
    if config.store:  # an empty one means the worker's own
        written["store"] = open_store(config.store_url).local
    for name, folder in written.items():
        if path := outside(folder, roots):
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
    """Return the first folder on the way to `path` that a run would create outside the roots, links
    resolved; empty if there is none."""
    for step in (path, *(above for above in path.parents if not os.path.lexists(above))):
        inside = any(lies_in(str(step), root) for root in roots)
        above = step is not path and any(lies_in(root, str(step)) for root in roots)
        if not inside and not above:
            return os.path.realpath(step)
    return ""
