"""Shows a checkpoint that is only partly here to a loader that would open all its weights. Knows
nothing of what the files hold."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.models.hub.checkpoint import INDEX, weight_names


@contextlib.contextmanager
def weights_here(folder: Path) -> Iterator[Path]:
    """Yield the folder itself when all files that its index names are there. Else yield a folder of
    links to what is, with an index of that alone: the loader then says which tensors are
    missing."""
    absent = {name for name in weight_names(folder) if not (folder / name).exists()}
    if not absent or not (folder / INDEX).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="penstock-weights-") as made:
        view = Path(made)
        for path in folder.iterdir():
            if path.name not in {INDEX, *absent}:
                (view / path.name).symlink_to(path.resolve())
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        found = {name: file for name, file in index["weight_map"].items() if file not in absent}
        (view / INDEX).write_text(json.dumps({**index, "weight_map": found}), encoding="utf-8")
        yield view
