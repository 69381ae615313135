"""Draws films of several minutes with a known truth: scenes of the demo's world, one after another,
of which none shows two things at once."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from penstock_demo.render import Painter
from penstock_demo.tracks import place
from penstock_demo.words import Structure
from penstock_demo.world import ClipSpec, sample_clip

SIDE, RATE = 128, 8
"""Height and width in pixels, and frames per second."""


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
