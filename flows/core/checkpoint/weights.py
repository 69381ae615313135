"""Downloads the files of a model's parts that are not local yet, before a stage needs them."""

from collections.abc import Collection

from artifacts.schema import Part
from flows.core.checkpoint.models import Model
from flows.core.console.display import Display
from stages.models.hub.fetch import fetch


def bytes_to_fetch(model: Model, parts: Collection[Part]) -> int:
    """Return the bytes to download for these parts; 0 if all files are local."""
    return sum(file.size for file in model.checkpoint.missing(model.shards(parts)))


def fetch_parts(model: Model, parts: Collection[Part], display: Display) -> None:
    """Download the files of these parts, unless they are local. Raises PenstockError."""
    if not parts:
        return
    is_whole = model.shards(parts) == model.shards(model.profile.parts)
    fetch(
        model.checkpoint,
        model.shards(parts),
        what="" if is_whole else f"the {next(iter(parts))} half of ",
        announce=display.print_line,
        progress=display.fetched,
    )
