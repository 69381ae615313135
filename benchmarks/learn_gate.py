"""How often `penstock learn` accepts an adapter that is worse on films that nobody decided on, if
the test holds out chunks, and if it holds out whole films; prints a table.

A film is ten alike chunks: one scene of the demo's world with other grain and shades. *Whims*: in
half of the films, a person changes the colours to others for no reason that a frame shows, and
accepts the rest, so that nothing can be learned for other films. *Style*: every caption is
rephrased in one way, so that all can be learned. For each seed, an adapter is trained on what is
not held out, is judged as `penstock learn` judges, and is scored on a chunk of each of twenty fresh
films. It is worse on them if the loss is higher, or fewer captions are exact.

    python -m benchmarks.learn_gate [--correctors whims,style] [--seeds 20] [--films 8]
        [--steps 40] [--folder DIR]
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import cells, heads, run_penstock
from benchmarks.learn import ROWS, SIDE, Clip, Lab, style
from flows.learning.result import divide, is_better, times_lower
from flows.machine.versions import cpu_line
from flows.results.rounds import corrections_of, exact, loss_of
from penstock_demo.render import write_clip
from penstock_demo.words import COLOURS
from penstock_demo.world import sample_clip
from stages.process.memory import cores
from stages.tune.run import losses_by_example
from stages.tune.training import TrainingExample

CHUNKS, FRESH, WORLD = 10, 20, 40
"""Chunks of a film, fresh films of a seed, and films that the seeds draw from."""
FRAMES = 1
GATES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "chunks": lambda example: str(example["features"]),
    "films": lambda example: str(example["media_path"]),
}
"""What is held out → the group that an example is in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """One scene, and a chunk of it."""

    number: int
    clip: Clip


def world(folder: Path) -> list[Film]:
    """Write films, caption them with the demo, and return their chunks."""
    clips, out, rng = folder / "films", folder / "out", random.Random(11)
    if not (out / "captions.jsonl").exists():
        clips.mkdir(parents=True, exist_ok=True)
        for film in range(WORLD):
            while (spec := sample_clip(rng, "any")).aspect != 1.0 or len(spec.tracks) > 1:
                pass
            for chunk in range(CHUNKS):
                small = replace(spec, height=SIDE, width=SIDE, frames_per_second=8)
                alike = replace(small, seed=spec.seed + chunk)
                write_clip(alike, clips / f"{film:03d}-{chunk}.mp4")
        run_penstock("caption", clips, "demo", out, folder / "store", "--frames", str(FRAMES))
    rows = map(json.loads, (out / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        Film(
            number=int(row["media_path"][:3]),
            clip=Clip(
                features=row["features"],
                prompt=row["prompt"],
                caption=row["caption"],
                vector=np.zeros(0, np.float32),
            ),
        )
        for row in rows
    ]


def whims(seed: int) -> Callable[[Film], str]:
    """Return a corrector who gives the things of half of the films another colour each."""

    def right(film: Film) -> str:
        draw = random.Random(f"whim {seed} {film.number}")
        if draw.random() < 0.5:
            return film.clip.caption
        others = dict(zip(COLOURS, draw.sample(COLOURS, len(COLOURS)), strict=True))
        pattern = re.compile(rf"\b({'|'.join(COLOURS)})\b")
        return pattern.sub(lambda found: others[found[1]], film.clip.caption)

    return right


def rephrased(seed: int) -> Callable[[Film], str]:
    """Return a corrector who rephrases every caption in one way."""
    right = style(seed).right
    return lambda film: right(film.clip.caption)


CORRECTORS = {"whims": whims, "style": rephrased}


def scores(lab: Lab, examples: Sequence[TrainingExample]) -> list[dict[str, Any]]:
    """Return the scores of these captions, in the form of `round.json`."""
    import torch

    text, _ = lab.captions(examples)
    with torch.inference_mode():
        losses = losses_by_example(lab.half, lab.processor, examples, ROWS)
    return [
        {"loss": loss, "tokens": len(example.ids), "exact": one == example.caption}
        for loss, one, example in zip(losses, text, examples, strict=True)
    ]


def judged(
    lab: Lab, films: Sequence[Film], corrector: str, gate: str, seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Train on the films of a seed as a round does, judge, and score on fresh films."""
    draw, right = random.Random(f"films {seed}"), CORRECTORS[corrector](seed)
    chosen = draw.sample(range(WORLD), given.films + FRESH)
    decided = [film for film in films if film.number in chosen[: given.films]]
    fresh = [film for film in films if film.number in chosen[given.films :]][::CHUNKS]
    of = {film.clip.features: film for film in decided}
    examples = [
        {
            "key": random.Random(f"{seed} {features}").randbytes(12).hex(),
            "features": features,
            "media_path": f"{film.number}",
            "corrected": right(film) != film.clip.caption,
        }
        for features, film in of.items()
    ]
    examples = [{**each, "medium": GATES[gate](each)} for each in examples]

    def made(some: Sequence[Film]) -> list[TrainingExample]:
        return lab.examples([film.clip for film in some], [right(film) for film in some])

    trained, held = divide(examples, [])
    tested, new = made([of[each["features"]] for each in held]), made(fresh)
    lab.reset()
    round_: dict[str, Any] = {"held_out": held, "before": scores(lab, tested)}
    before = scores(lab, new)
    lab.train(made([of[each["features"]] for each in trained]), given.steps, seed)
    round_["after"] = scores(lab, tested)
    round_["lower"] = times_lower(round_, 0)
    losses = [loss_of(corrections_of(round_, name)) for name in ("before", "after")]
    after = scores(lab, new)
    worse = loss_of(after) > loss_of(before) or exact(after) < exact(before)
    found = {"corrector": corrector, "gate": gate, "seed": seed, "accepted": is_better(round_)}
    found |= {"worse": worse, "exact": [exact(before), exact(after)]}
    return {**found, "held": losses, "fresh": [loss_of(before), loss_of(after)]}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--correctors", default="whims,style")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--films", type=int, default=8)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--folder", default="", help="keep films and features here")
    given = options.parse_args(arguments)
    print(f"{cpu_line('model name')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-gate-") as made:
        folder = Path(given.folder or made)
        films = world(folder)
        lab, found = Lab(str(folder / "store")), list[dict[str, Any]]()
        for seed in range(given.seeds):
            for corrector in given.correctors.split(","):
                for gate in GATES:
                    found.append(judged(lab, films, corrector, gate, seed, given))
                    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(found)))


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the number of accepted adapters, and how many of them are worse on fresh films."""
    yield heads("corrector | held out | accepted | worse on fresh films | loss held out | fresh")
    for corrector, gate in dict.fromkeys((each["corrector"], each["gate"]) for each in found):
        some = [e for e in found if (e["corrector"], e["gate"]) == (corrector, gate)]
        accepted = [each for each in some if each["accepted"]]
        worse = sum(each["worse"] for each in accepted)
        means = [
            " to ".join(f"{sum(e[kind][at] for e in some) / len(some):.2f}" for at in (0, 1))
            for kind in ("held", "fresh")
        ]
        counts = (f"{len(accepted)} of {len(some)}", f"{worse} of {len(accepted)}")
        yield cells([corrector, gate, *counts, *means])


if __name__ == "__main__":
    main()
