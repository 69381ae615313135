"""Which pairs of pictures and of videos `penstock sift` takes for copies, of a labelled set with as
many copies as others; prints a table.

    python -m benchmarks.copies [--seed 11] [--each 10] [--videos 6] [--clips ../shared/clips]
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from itertools import combinations
from pathlib import Path

from benchmarks._common import cells, heads
from benchmarks._pairs import Pair, write_pairs
from flows.cli.main import main as penstock


def groups_in(folder: Path, out: Path, store: Path) -> dict[str, int | None]:
    """Return the group of each file of a folder, as the command gives it."""
    words = ["sift", str(folder), "--quiet", "--out", str(out), "--store", str(store)]
    if code := penstock(words):
        sys.exit(f"penstock sift ended with {code}")
    lines = (out / "marks.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["media_path"]: row["group"] for row in map(json.loads, lines)}


def counted(pairs: list[Pair], group: dict[str, int | None]) -> tuple[Counter[str], float, float]:
    """Return how many pairs of each kind are grouped, and the recall and precision of all pairs.
    Files of two pairs in one group are counted as false, too."""
    grouped: Counter[str] = Counter()
    for pair in pairs:
        one, other = (group[name] for name in pair.names)
        grouped[pair.kind] += one is not None and one == other
    members: dict[int, list[str]] = {}
    for name, number in group.items():
        if number is not None:
            members.setdefault(number, []).append(name)
    right = {frozenset(pair.names) for pair in pairs if pair.is_copy}
    found = [set(two) for each in members.values() for two in combinations(each, 2)]
    hits = sum(frozenset(two) in right for two in found)
    return grouped, hits / len(right), hits / max(1, len(found))


def main() -> int:
    """Print the table; the exit code says whether the precision is below 0.99."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--each", type=int, default=10, help="pairs of pictures of every kind")
    parser.add_argument("--videos", type=int, default=6, help="pairs of videos of every kind")
    parser.add_argument("--clips", type=Path, default=Path(__file__).parents[2] / "shared/clips")
    parser.add_argument("--folder", type=Path, help="folder for the files [temporary]")
    given = parser.parse_args()
    clips = given.clips if given.clips.is_dir() else None
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place)
        pairs = write_pairs(
            folder / "media", clips=clips, seed=given.seed, each=given.each, videos=given.videos
        )
        grouped, recall, precision = counted(
            pairs, groups_in(folder / "media", folder / "out", folder / "store")
        )
    number, is_copy = Counter(pair.kind for pair in pairs), {p.kind: p.is_copy for p in pairs}
    print(f"{len(pairs)} pairs, {sum(p.is_copy for p in pairs)} of them copies; seed {given.seed}")
    print(heads("kind|are copies|taken for copies"))
    for kind, of in number.items():
        print(cells((kind, "yes" if is_copy[kind] else "no", f"{grouped[kind]} of {of}")))
    print(f"recall {recall:.3f}, precision {precision:.3f}")
    return int(precision < 0.99)


if __name__ == "__main__":
    sys.exit(main())
