"""The inputs of every check: the models, the files, and a folder to work in."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = "demo"
SAMPLES = ROOT / "penstock_demo" / "samples"
TINY = "tiny"
"""Size of the random model on a stand-in."""
PICTURES, SIDE = 72, 64
"""How many pictures are rendered, more than a step has rows; and pixels of their edges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a check works with."""

    folder: Path
    """Where runs leave their outputs and stores; the checks share it."""
    model: str = DEMO
    """A hub id or a folder, checked beside the demo's; the demo's: one of random weights is."""
    source: Path = SAMPLES
    """What the named model captions."""
    samples: Path = SAMPLES
    """What the demo model and the random one caption."""
    size: str = ""
    """Of `random_model.SHAPES`; empty: the first that fits."""
    device: str = "cuda:0"

    @property
    def media(self) -> Path:
        """What the model beside the demo's captions."""
        return self.samples if self.model == DEMO else self.source

    def to_json(self) -> str:
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        told = json.loads(text)
        for name in ("folder", "source", "samples"):
            told[name] = Path(told[name])
        return cls(**told)


def pictures(folder: Path) -> Path:
    """Render pictures of the demo's world, for an environment that cannot decode videos."""
    from PIL import Image

    from penstock_demo.render import render_frames
    from penstock_demo.world import sample_clip

    rng = random.Random(5)
    folder.mkdir()
    for number in range(PICTURES):
        (frame,) = render_frames(sample_clip(rng, "trained"), [0.5], SIDE, SIDE)
        Image.fromarray(frame).save(folder / f"picture-{number:02}.png")
    return folder
