"""The inputs of every check: the models, the files, and a folder to work in."""

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = "demo"
SAMPLES = ROOT / "penstock_demo" / "samples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a check works with."""

    folder: Path
    """Where runs leave their outputs and stores; the checks share it."""
    model: str = DEMO
    """What the checks of a real model run: a hub id or a folder."""
    source: Path = SAMPLES
    """What they caption."""
    device: str = "cuda:0"

    def to_json(self) -> str:
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        told = json.loads(text)
        folder, source = Path(told.pop("folder")), Path(told.pop("source"))
        return cls(folder=folder, source=source, **told)
