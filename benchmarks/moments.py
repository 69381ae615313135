"""Orders the hits of searches in drawn films by what the demo's captioner answers about them;
prints how often the right scene is first, how far moments overlap the truth, and CPU seconds.

Actions: the text names a thing, and the label what it does first, which frames alone do not show.
Only actions whose scene is among the hits count, so the order is measured and not the search.
Objects: the text names a thing. A hit is right if it overlaps a true span by 0.3 (intersection over
union).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tests.support.builders.films import Shown, Truth, what_it_does, which_thing, write_films

RIGHT = 0.3
TOP = 12
CHUNK = "8"
"""Seconds of a chunk: sixteen frames, the most that the demo's model learnt."""


@dataclass
class Figures:
    """What the searches of films gave."""

    searched: list[bool] = field(default_factory=list)
    """For each action whose scene is among the hits, whether search alone has it first."""
    ordered: list[bool] = field(default_factory=list)
    """The same of the hits ordered by the answers."""
    unfound: int = 0
    alone: list[float] = field(default_factory=list)
    """Overlap of the first hit with the nearest true span, by object."""
    asked: list[float] = field(default_factory=list)


class Films:
    """Films in a folder with their stored features and their index."""

    def __init__(self, root: Path, count: int, minutes: float) -> None:
        self._root = root
        self.truth: Truth = write_films(root / "films", count, minutes)
        model = ("--model", "demo", "--store", str(root / "store"), "--quiet")
        films = str(root / "films")
        out = ("--out", str(root / "out"), "--chunk", CHUNK, "--precision", "fp32")
        self._penstock("caption", films, *model, *out)
        self._penstock("index", "build", films, *model, "--fps", "2", "--out", str(root / "index"))

    def _penstock(self, *words: str) -> str:
        program = [sys.executable, "-m", "penstock", *words]
        return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout

    def search(
        self, text: str, question: Mapping[str, object], *more: str, top: int = TOP
    ) -> list[dict[str, Any]]:
        words = ["--index", str(self._root / "index"), "--store", str(self._root / "store")]
        words += ["--top", str(top), "--json", "--ask", str(self._root / "out"), *more]
        words += ["--questions", json.dumps(question)]
        return [json.loads(line) for line in self._penstock("search", text, *words).splitlines()]

    def seconds(self, text: str, question: Mapping[str, object], top: int) -> float:
        """CPU seconds of a search, with all its processes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.search(text, question, "--label", text, top=top)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def overlap(hit: Mapping[str, Any], spans: Sequence[Shown]) -> float:
    return max((span.overlap(hit["media_path"], *hit["time"]) for span in spans), default=0.0)


def measure_actions(films: Films, figures: Figures, things: Sequence[str]) -> None:
    for thing in things:
        acts = films.truth.acts[thing]
        for action, spans in acts.items():
            hits = films.search(thing, what_it_does(thing), "--label", f"{thing} {action}")
            if not any(overlap(hit, spans) >= RIGHT for hit in hits):
                figures.unfound += 1
                continue
            alone = max(hits, key=lambda hit: hit["score"])
            figures.searched.append(overlap(alone, spans) >= RIGHT)
            figures.ordered.append(overlap(hits[0], spans) >= RIGHT)


def measure_objects(films: Films, figures: Figures, things: Sequence[str]) -> None:
    for thing in things:
        hits = films.search(thing, which_thing())
        spans = films.truth.seen[thing]
        figures.alone.append(overlap(max(hits, key=lambda hit: hit["score"]), spans))
        figures.asked.append(overlap(hits[0], spans))


def per_hit(films: Films, things: Sequence[str]) -> float:
    """CPU seconds of a hit more, with nothing stored: each question has other words."""
    seconds = []
    for thing in things:
        few, more = (
            films.seconds(thing, what_it_does(thing, f"Describe this video, {top}."), top)
            for top in (2, TOP)
        )
        seconds.append((more - few) / (TOP - 2))
    return median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--things", type=int, default=48, help="how many things are searched")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        films, figures = Films(Path(temporary), given.films, given.minutes), Figures()
        acting = [thing for thing, acts in films.truth.acts.items() if len(acts) > 1]
        measure_actions(films, figures, acting[: given.things])
        measure_objects(films, figures, [*films.truth.seen][: given.things])
        hit = per_hit(films, acting[:3])
    count = len(figures.ordered)
    print(f"actions whose scene is among the hits: {count} of {count + figures.unfound}")
    print(f"  right scene first, search alone    {sum(figures.searched):4d} of {count}")
    print(f"  right scene first, with --ask      {sum(figures.ordered):4d} of {count}")
    print(f"objects: mean overlap of the first hit, {len(figures.alone)} things")
    print(f"  search alone {fmean(figures.alone):.3f}, with --ask {fmean(figures.asked):.3f}")
    print(f"CPU seconds of a hit more: {hit:.3f}")


if __name__ == "__main__":
    main()
