"""Probabilities of the demo about drawn films against what was drawn: as they are, and calibrated
by decisions on one film where the other is measured.

The demo says nothing but descriptions, so it is asked how its description begins: 96 labels, "A
small red star" and so on. The probability of a colour or a shape is the sum over the labels that
name it. Each chunk of two seconds in which one thing is seen gives a pair for each word: the
probability, and whether it is so. For a badly calibrated half, the log probabilities of the labels
are blunted before they are summed.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.records.keys import item_key
from artifacts.records.packs import RecordSet, packs
from artifacts.records.store import open_store
from artifacts.texts.calibration import (
    RAW,
    Calibration,
    Decision,
    best_fit,
    calibration_error,
    fit,
    normalized,
)
from artifacts.texts.questions import canonical, read_questions
from penstock_demo.words import COLOURS, SHAPES, SIZES
from tests.support.builders.common import run_penstock
from tests.support.builders.films import Scene, sample_film, write_film

FORMS = [f"A {size} {colour} {shape}" for size in SIZES for colour in COLOURS for shape in SHAPES]
(QUESTION,) = read_questions(
    json.dumps(
        {"begins": {"text": "Describe this video in detail.", "labels": FORMS, "instruction": ""}}
    ),
    "the benchmark",
)
CHUNK_SECONDS, FRAMES_PER_SECOND = 2, 2
COUNTS, DRAWS = (20, 50, 100), 20
"""Decisions that are drawn, and how often."""


@dataclass(frozen=True, slots=True)
class Window:
    """A chunk in which one thing is seen."""

    film: str
    start: float
    thing: str
    scores: list[float]
    """Log probabilities of FORMS."""


def windows_of(root: Path, minutes: float, seed: int) -> list[Window]:
    """Draw two films, ask about their chunks, and read the log probabilities from the store."""
    (folder := root / "films").mkdir(parents=True)
    rng, scenes = random.Random(seed), dict[str, list[Scene]]()
    for at in range(2):
        scenes[f"film-{at}.mp4"] = sample_film(rng, minutes * 60)
        write_film(scenes[f"film-{at}.mp4"], folder / f"film-{at}.mp4")
    chunks = ("--chunk", str(CHUNK_SECONDS), "--fps", str(FRAMES_PER_SECOND))
    options = ("--questions", canonical((QUESTION,)), *chunks, "--precision", "fp32")
    run_penstock("ask", folder, "demo", root / "out", root / "store", *options)
    media = map(json.loads, (root / "out" / "media.jsonl").read_text().splitlines())
    contents = {one["media_path"]: one["content"] for one in media}
    store = open_store(str(root / "store"))
    (namespace,) = {p.namespace for p in packs(dict(store.stats())) if p.kind == "answers"}
    records = RecordSet(store, "answers", namespace)
    windows, counts = list[Window](), dict.fromkeys(contents, 0)
    for line in (root / "out" / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        film, start = row["media_path"], row["start"]
        key = item_key(namespace, contents[film], counts[film], QUESTION.probes[0].text)
        counts[film] += 1
        times = (start + at / FRAMES_PER_SECOND for at in range(CHUNK_SECONDS * FRAMES_PER_SECOND))
        things = {t for time in times for scene in scenes[film] for t in scene.things(time)}
        if len(things) == 1:
            windows.append(Window(film, start, things.pop(), records.meta(key)["scores"]))
    return windows


def pairs_of(windows: Sequence[Window], words: Sequence[str], blunted: float) -> list[Decision]:
    """Return what is so of each word in each window, with its log probability and that of its
    opposite."""
    decisions = []
    for one in windows:
        shares = normalized([blunted * score for score in one.scores])
        for word in words:
            pairs = zip(FORMS, shares, strict=True)
            p = min(1 - 1e-9, max(1e-9, sum(s for form, s in pairs if word in form.split())))
            is_so = word in one.thing.split()
            scores = (math.log(p), math.log1p(-p))
            decisions.append(Decision(scores, 0 if is_so else 1, f"{one.film} {one.start}"))
    return decisions


def area_under_curve(pairs: Sequence[Decision]) -> float:
    """Return the share of pairs of a right and a wrong one in which the right one has the larger
    probability."""
    right, wrong = ([d.scores[0] for d in pairs if d.label == label] for label in (0, 1))
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured on the second film."""

    areas: dict[str, float]
    errors: dict[str, float]
    """Kind of word → area under the curve, and calibration error, without decisions."""
    blunted: float
    """Calibration error of shapes with blunted log probabilities."""
    calibrated: float
    """The same with a line that was fitted on the first film."""
    line: Calibration
    by_count: dict[int, list[float]]
    """Number of decisions on the first film → the error of each draw."""


def figures_of(windows: Sequence[Window], blunted: float, seed: int) -> Figures:
    first, second = ([w for w in windows if w.film == f"film-{at}.mp4"] for at in range(2))
    kinds = {"colours": COLOURS, "shapes": SHAPES}
    own = {kind: pairs_of(second, words, 1.0) for kind, words in kinds.items()}
    decided, test = (pairs_of(some, SHAPES, blunted) for some in (first, second))
    line, rng = fit(decided, with_shift=True), random.Random(seed)
    draws = {
        count: [calibration_error(test, best_fit(rng.sample(decided, count))) for _ in range(DRAWS)]
        for count in COUNTS
        if count <= len(decided)
    }
    return Figures(
        areas={kind: area_under_curve(pairs) for kind, pairs in own.items()},
        errors={kind: calibration_error(pairs, RAW) for kind, pairs in own.items()},
        blunted=calibration_error(test, RAW),
        calibrated=calibration_error(test, line),
        line=line,
        by_count=draws,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4, help="length of each film")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--blunted", type=float, default=0.08, help="factor of log probabilities")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        windows = windows_of(Path(temporary), chosen.minutes, chosen.seed)
    figures = figures_of(windows, chosen.blunted, chosen.seed)
    print(f"{len(windows)} chunks with one thing; measured on the second film")
    for kind, area in figures.areas.items():
        print(f"  {kind:8} area {area:.4f}, calibration error {figures.errors[kind]:.4f}")
    line = f"slope {figures.line.slope:.2f}, shift {figures.line.shift:.2f}"
    print(f"shapes, log probabilities times {chosen.blunted:g}")
    print(f"  raw                         calibration error {figures.blunted:.4f}")
    print(f"  line of the first film      calibration error {figures.calibrated:.4f} ({line})")
    for count, errors in figures.by_count.items():
        of = f"median of {DRAWS} draws, {min(errors):.4f} to {max(errors):.4f}"
        print(f"  {count:3} decisions                {statistics.median(errors):.4f} ({of})")


if __name__ == "__main__":
    main()
