"""Runs whose captions train with stored features, without captioning."""

import json
from pathlib import Path
from typing import Any

from tests.support.clips import clips
from tests.support.waves import encoded_wave, folder_of

TEXTS = ("A star.", "A blue ring moves to the left, slowly.", "Two.", "A cross on a wall.", "It")
NOW = "2026-11-30T00:00:00+00:00"


def record_run(out: Path, model: Path, store: Path, route: str = "protocol") -> None:
    """Write the record of a run of a checkpoint with features in a store, and no captions."""
    out.mkdir()
    (out / "captions.jsonl").touch()
    plan = {"model": model.name, "folder": str(model), "store": str(store), "route": route}
    run = {"state": "done", "pid": 1, "host": "", "started": NOW, "updated": NOW, "out": str(out)}
    (out / "run.json").write_text(json.dumps({**run, "stages": [{"name": "encode"}], "plan": plan}))


def run_of(folder: Path, family: str) -> Path:
    """Store the features of videos and pictures, with a run that captioned them; the last clip has
    two captions. Return the run's folder."""
    path, out = folder_of(family), folder / "out"
    batch = [*clips("video", 2), *clips("image", 3)]
    encoded_wave(folder, path, *([clip] for clip in batch))
    record_run(out, path, folder)
    rows: list[dict[str, Any]] = [
        {
            "media_path": f"{at}.png",
            "source": "media",
            "start": 0,
            "end": 0,
            "features": f"features-{at}",
            "prompt": "Describe.",
            "caption": text,
            "ended": "length" if at == 1 else "end",
        }
        for at, text in enumerate(TEXTS)
    ]
    rows.append(
        {**rows[4], "prompt": "What happens in it?", "caption": "Nothing moves.", "name": "b"}
    )
    (out / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return out
