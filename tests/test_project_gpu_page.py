"""Every file of the product that speaks of a GPU stands in docs/gpu.md, with what shows that it is
right."""

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEAKS = re.compile(r"cuda|nvml|pin_memory|\bStream\(", re.IGNORECASE)
BYTES_OF_FILES = (
    "flows/reviewing/app.py",
    "flows/serving/uploads.py",
    "stages/frames/opening.py",
    "stages/models/hub/transfer.py",
)
"""Those whose streams are others."""


def places() -> list[str]:
    """Patterns of paths that stand in the table's first column."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    table = page.partition("## What only a card can show")[2]
    found = []
    for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row.partition(":")[0]):
            folder = name.rpartition("/")[0] or folder
            found.append(
                name + "*" if name.endswith("/") else f"{folder}/{name.rpartition('/')[2]}"
            )
    return found


def test_every_file_that_speaks_of_a_gpu_is_told_of() -> None:
    files = [path for top in ("flows", "stages") for path in (ROOT / top).rglob("*.py")]
    speaking = {
        str(path.relative_to(ROOT))
        for path in files
        if SPEAKS.search(path.read_text(encoding="utf-8"))
    }
    patterns = places()
    missing = {n for n in speaking if not any(fnmatch(n, pattern) for pattern in patterns)}
    assert missing <= set(BYTES_OF_FILES)
    assert len(speaking) > 25


def test_every_place_of_the_page_is_there() -> None:
    for pattern in places():
        assert list(ROOT.glob(pattern.removesuffix("*"))) or list(ROOT.glob(pattern)), pattern
