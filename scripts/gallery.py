"""Writes docs/gallery.md and its pictures: fresh clips and pictures of the demo's world with what
`penstock` says of them, right or wrong; nothing in it is written by hand. Run from a clone.

    python -m scripts.gallery [--to docs]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.shown.commands import ROOT

CLIPS, CLIPS_SEED = 12, 1
"""How many are drawn, and the seed that says which."""
FRAMES = 4
HEIGHT = 96
GAP = 4
QUALITY = 82
PICTURES, SEED = 24, 5
SHOWN_PICTURES, FOUND = 6, 4
QUERIES = ("a red star", "something green")

HEAD = """# Gallery

This page shows what the program makes with the demo's models, in {precision} on a CPU, whether
correct or not. Each part begins with its commands. The models recognize moving shapes and nothing
else ([the demo's models](demo.md)). So this page does not show how well a real model sees.
`python -m scripts.gallery` writes the page with its images.
"""


def main() -> int:
    """Write the page and its pictures."""
    given = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    given.add_argument("--to", type=Path, default=ROOT / "docs", help="folder [docs]")
    to: Path = given.parse_args().to
    (to / "gallery").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        precision, clips = clips_part(place, to)
        parts = [clips, labels_part(place, to), search_part(place, to)]
    page = "\n".join([HEAD.format(precision=precision), *parts])
    (to / "gallery.md").write_text(page, encoding="utf-8")
    size = sum(path.stat().st_size for path in (to / "gallery").iterdir())
    print(f"{to / 'gallery.md'}, pictures of {size:,} bytes")
    return 0


def penstock(place: Path, *words: str) -> str:
    """Run a command with a store of its own; returns what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *words],
        cwd=ROOT,
        env={**os.environ, "PENSTOCK_STORE": str(place / "store")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def clips_part(place: Path, to: Path) -> tuple[str, str]:
    """Precision, and every clip beside its caption and the truth."""
    from penstock_demo.clips import write_clips

    clips, out = place / "clips", place / "captions"
    truths = {truth.file: truth.caption for truth in write_clips(clips, CLIPS, CLIPS_SEED)}
    penstock(place, "caption", str(clips), "--model", "demo", "--out", str(out))
    lines = [
        "## Captions of clips\n",
        f"    python -m penstock_demo.clips clips --count {CLIPS} --seed {CLIPS_SEED}\n"
        "    penstock caption clips --model demo\n",
        f"{FRAMES} evenly spaced frames of each clip, its caption, and whether it is correct:\n",
    ]
    right, precision = 0, ""
    for row in rows(out / "captions.jsonl"):
        name = f"{Path(row['media_path']).stem}.jpg"
        strip(clips / row["media_path"]).save(to / "gallery" / name, quality=QUALITY)
        truth = truths[row["media_path"]]
        exact = row["caption"] == truth
        right += exact
        precision = row["precision"]["language"]
        verdict = "exact" if exact else f"no: {truth}"
        lines.append(f"![{row['media_path']}](gallery/{name})\n\n{row['caption']} ({verdict})\n")
    lines.append(f"{right} of {len(truths)} captions are exactly the true text.\n")
    return precision, "\n".join(lines)


def strip(path: Path) -> Image.Image:
    """Frames of a clip side by side."""
    import av

    with av.open(str(path)) as container:
        arrays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    places = [round(at * (len(arrays) - 1) / (FRAMES - 1)) for at in range(FRAMES)]
    small = [at_height(Image.fromarray(arrays[place])) for place in places]
    width = sum(one.width for one in small) + GAP * (FRAMES - 1)
    found = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for one in small:
        found.paste(one, (left, 0))
        left += one.width + GAP
    return found


def at_height(picture: Image.Image) -> Image.Image:
    """A picture of the height that all have."""
    width = round(picture.width * HEIGHT / picture.height)
    return picture.convert("RGB").resize((width, HEIGHT), Image.Resampling.BICUBIC)


def labels_part(place: Path, to: Path) -> str:
    """A few pictures beside the labels that they were given."""
    from penstock_demo.dual.pictures import write_images
    from penstock_demo.words import COLOURS, SHAPES

    truths = write_images(place / "pictures", "several", PICTURES, SEED)
    texts = place / "labels.txt"
    texts.write_text("".join(f"{c} {s}\n" for c in COLOURS for s in SHAPES), encoding="utf-8")
    out = place / "labels"
    given = ["--model", "demo", "--labels", str(texts), "--out", str(out)]
    penstock(place, "label", str(place / "pictures"), *given)
    text = {row["media_path"]: row for row in rows(out / "labels.jsonl")}
    made = f"pictures --kind several --count {PICTURES} --seed {SEED}"
    lines = [
        "## Labels of images\n",
        f"    python -m penstock_demo.dual.pictures {made}\n"
        "    penstock label pictures --model demo --labels labels.txt\n",
        f"`labels.txt` has the {len(COLOURS) * len(SHAPES)} pairs of colour and shape. "
        f"The first {SHOWN_PICTURES} images:\n",
        "| image | labels | correct |\n|---|---|---|",
    ]
    for truth in truths[:SHOWN_PICTURES]:
        labels = [one["label"] for one in text[truth.file]["labels"] if one["passed"]]
        same = sorted(labels) == sorted(set(truth.labels))
        verdict = "yes" if same else f"no: {', '.join(truth.labels)}"
        shown = keep(place / "pictures" / truth.file, to)
        lines.append(f"| {shown} | {', '.join(labels) or 'none'} | {verdict} |")
    return "\n".join(lines) + "\n"


def keep(path: Path, to: Path) -> str:
    """Put a small copy beside the page; returns its Markdown."""
    at_height(Image.open(path)).save(to / "gallery" / path.name, quality=QUALITY)
    return f"![{path.name}](gallery/{path.name})"


def search_part(place: Path, to: Path) -> str:
    """What is found first for a few texts."""
    index = place / "found"
    source = str(place / "pictures")
    penstock(place, "index", "build", source, "--model", "demo", "--out", str(index), "--quiet")
    shown = "\n".join(f'    penstock search "{text}" --index photos' for text in QUERIES)
    lines = [
        "## Search by text\n",
        f"    penstock index build pictures --model demo --out photos\n{shown}\n",
        f"The best {FOUND} of the same {PICTURES} images:\n",
        "| text | best images |\n|---|---|",
    ]
    for text in QUERIES:
        hits = [place / "pictures" / name for name in names_found(place, index, text)]
        lines.append(f"| {text} | {' '.join(keep(path, to) for path in hits)} |")
    return "\n".join(lines) + "\n"


def names_found(place: Path, index: Path, text: str) -> list[str]:
    """The names of the first hits."""
    requests = ["--index", str(index), "--top", str(FOUND), "--json"]
    texts = penstock(place, "search", text, *requests)
    found = [json.loads(line) for line in texts.splitlines()]
    return [row["media_path"] for row in found if "media_path" in row]


if __name__ == "__main__":
    sys.exit(main())
