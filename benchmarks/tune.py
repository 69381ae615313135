"""What `penstock tune` makes of the demo: another style from 300 captions; prints a table.

Captions of clips that the demo never saw are rewritten in styles of two sorts. The ceiling is what
the demo itself tells rightly of the clips that are held out.

    python -m benchmarks.tune [--styles clip,tags] [--clips 300] [--held-out 100]
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penstock_demo.clips import write_clips
from stages.process.host_memory import cores, cpu_line
from tests.support.builders.common import PENSTOCK, heads, met

SHORT = "80"
"""Most tokens of a caption: twice what the longest has."""
LEAST = {"native": 0.85, "nf4": 0.75}
"""Precision → share that has to be exact."""
MOST_SECONDS = 600.0


def words_of(caption: str) -> list[str]:
    """Return a caption's words but for those that say nothing of what is seen."""
    bare = re.sub(r"\b(A|a|an|An|on|the)\b ?", "", caption.rstrip("."))
    return [word for word in re.split(r"[ ,]+", bare) if word]


STYLES: dict[str, Callable[[str], str]] = {
    "clip": lambda caption: "clip: " + " ".join(words_of(caption)),
    "tags": lambda caption: "tags: " + ", ".join(words_of(caption)),
}
"""Styles that the demo was never trained to say: a trigger word and a telegram; and a list, with a
comma after each word."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--styles", default=",".join(STYLES))
    options.add_argument("--clips", type=int, default=300)
    options.add_argument("--held-out", type=int, default=100)
    given = options.parse_args(arguments)
    print(f"{cpu_line('model name')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-tune-") as made:
        print(heads("style | adapter, precision | seconds | exact | goal"), flush=True)
        for style in given.styles.split(","):
            for line in learned(Path(made, style), style, given.clips, given.held_out):
                print(line, flush=True)


def learned(folder: Path, style: str, clips: int, held_out: int) -> Iterator[str]:
    """Yield what was learned of a style, in each precision."""
    for name, count, seed in (("train", clips, 11), ("held", held_out, 12)):
        for truth in write_clips(folder / name, count, seed):
            text = STYLES[style](truth.caption)
            (folder / name / truth.file).with_suffix(".txt").write_text(text)
    ceiling = captions_of(folder, "base", styled=style)
    yield f"| {style} | none: its own style, put into this one | | {ceiling:.0%} of {held_out} | |"
    for precision in LEAST:
        began = time.perf_counter()
        command = ["tune", str(folder / "train"), "--precision", precision]
        penstock(folder, *command, "--out", str(folder / precision), "--max-new-tokens", SHORT)
        seconds = time.perf_counter() - began
        exact = captions_of(folder, precision, "--language-precision", precision)
        held = met(exact >= LEAST[precision] and seconds <= MOST_SECONDS)
        goal = f"≥ {LEAST[precision]:.0%} in ≤ {MOST_SECONDS:.0f} s: {held}"
        yield f"| {style} | {precision} | {seconds:.0f} | {exact:.0%} | {goal} |"


def captions_of(folder: Path, name: str, *more: str, styled: str = "") -> float:
    """Return the share of the clips held out that are captioned to the letter, by an adapter or by
    the demo itself, whose captions are then put into the style."""
    out = folder / f"captions-{name}"
    adapter = [] if styled else ["--adapter", str(folder / name)]
    penstock(folder, "caption", str(folder / "held"), "--out", str(out), *adapter, *more)
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    right = [(folder / "held" / row["media_path"]).with_suffix(".txt").read_text() for row in rows]
    found = [STYLES[styled](row["caption"]) if styled else row["caption"] for row in rows]
    exact: int = sum(one == other for one, other in zip(found, right, strict=True))
    return exact / len(rows)


def penstock(folder: Path, *command: str) -> None:
    """Run a command on the demo."""
    where = ["--model", "demo", "--store", str(folder / "store"), "--quiet"]
    subprocess.run([*PENSTOCK, *command, *where], check=True)


if __name__ == "__main__":
    main()
