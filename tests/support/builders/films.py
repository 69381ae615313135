"""Draws films of several minutes with a known truth: scenes of the demo's world, one after another,
of which none shows two things at once."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from penstock_demo.render import Painter
from penstock_demo.tracks import place
from penstock_demo.words import ACTIONS, COLOURS, SHAPES, SIZES, Structure
from penstock_demo.world import ClipSpec, sample_clip

SIDE, RATE = 128, 8
"""Height and width in pixels, and frames per second."""
PROMPT = "Describe this video in detail."
THINGS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A clip of a film."""

    start: float
    spec: ClipSpec

    def at(self, time: float) -> float:
        """Return a time of the film as a share of the scene."""
        return (time - self.start) / self.spec.duration_seconds

    def things(self, time: float) -> set[str]:
        """Return the things that are seen at a time of the film, such as `red star`."""
        if not 0 <= self.at(time) < 1:
            return set()
        tracks = zip(self.spec.sentence.things, self.spec.tracks, strict=True)
        return {f"{t.colour} {t.shape}" for t, track in tracks if place(track, self.at(time))[2]}


def sample_film(rng: random.Random, seconds: float) -> list[Scene]:
    """Return scenes of whole frames that last so long."""
    scenes, end = list[Scene](), 0.0
    while end < seconds:
        spec = sample_clip(rng, "trained", aspect=1.0)
        if spec.sentence.structure is not Structure.WHILE:
            length = round(spec.duration_seconds * RATE) / RATE
            spec = replace(spec, duration_seconds=length, height=SIDE, width=SIDE)
            scenes.append(Scene(start=end, spec=spec))
            end += length
    return scenes


def write_film(scenes: list[Scene], path: Path) -> None:
    """Write scenes as one H.264 file."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        for scene in scenes:
            painter = Painter(scene.spec, SIDE, SIDE)
            for time in scene.start + np.arange(round(scene.spec.duration_seconds * RATE)) / RATE:
                pixels = painter.frame(scene.at(float(time)))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


class Shown(NamedTuple):
    """A span in which something is seen, or does something first."""

    film: str
    start: float
    end: float

    def overlap(self, film: str, start: float, end: float) -> float:
        """Intersection over union with another span."""
        inside = max(0.0, min(end, self.end) - max(start, self.start))
        whole = max(end, self.end) - min(start, self.start)
        return inside / whole if film == self.film and whole else 0.0


@dataclass(frozen=True)
class Truth:
    """What films show."""

    seen: dict[str, list[Shown]]
    """Thing → when it is seen."""
    acts: dict[str, dict[str, list[Shown]]]
    """Thing → action → the scenes that begin with it."""


def write_films(folder: Path, count: int, minutes: float, seed: int = 7) -> Truth:
    """Write `film-N.mp4`; return what they show."""
    folder.mkdir(parents=True)
    rng, truth = random.Random(seed), Truth({}, {})
    for number in range(count):
        name, scenes = f"film-{number}.mp4", sample_film(rng, minutes * 60)
        write_film(scenes, folder / name)
        for scene in scenes:
            _note(truth, name, scene)
    return truth


def _note(truth: Truth, film: str, scene: Scene) -> None:
    sentence, length = scene.spec.sentence, scene.spec.duration_seconds
    for thing, track in zip(sentence.things, scene.spec.tracks, strict=True):
        start = scene.start + max(track.appears_at, 0.0) * length
        end = scene.start + min(track.vanishes_at, 1.0) * length
        if end > start:
            name = f"{thing.colour} {thing.shape}"
            truth.seen.setdefault(name, []).append(Shown(film, start, end))
    first = f"{sentence.things[0].colour} {sentence.things[0].shape}"
    of_thing = truth.acts.setdefault(first, {})
    of_thing.setdefault(sentence.actions[0], []).append(
        Shown(film, scene.start, scene.start + length)
    )


def which_thing() -> dict[str, object]:
    """A question with which of all things a sentence begins: all that the demo can answer."""
    labels = [f"A {size} {thing}" for thing in THINGS for size in SIZES]
    return {"begins": {"text": PROMPT, "labels": labels, "instruction": ""}}


def what_it_does(thing: str, prompt: str = PROMPT) -> dict[str, object]:
    """A question what a thing does first."""
    labels = [f"A {size} {thing} {action}" for action in ACTIONS for size in SIZES]
    return {"does": {"text": prompt, "labels": labels, "instruction": ""}}
