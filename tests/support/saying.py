"""A run over a few clips whose captions are made up and hard to write down; all else, the cutting
of clips included, is real."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from artifacts.errors import Interrupted
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import FolderStore
from flows.core.console.display import Display
from flows.core.machine.launch import ENTRIES, DirectLauncher, StageCall
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from flows.outputs.run_result import RunResult
from stages.decode.generation import DecodeItem, DecodeJob
from stages.process.events import StageOutcome
from stages.process.stage_process import Listener
from tests.support.inside import InsideLauncher
from tests.support.media import write_video
from tests.support.rows import HARD
from tests.support.stand_ins import PROFILE, Stages, config_in

CUT = ENTRIES["cut"]
ALL = ("txt", "vtt", "srt", "csv", "parquet", "webdataset")
LONG = "long.mp4"
ODD = "[1] Übung & <b>no.1 & co.mp4"


class Saying(Stages):
    """Says something hard to write down of each chunk, its prompt included; clips are really cut,
    in a process of their own where a test has another function cut them."""

    def launcher(self, listen: Listener) -> "Saying":
        self._listen = listen
        return self

    def start(self, call: StageCall) -> Any:
        if call.name != "cut":
            return super().start(call)
        self.calls.append(call)
        if ENTRIES["cut"] == CUT:
            return InsideLauncher(listen=self._listen).start(call)
        return DirectLauncher(self._listen).start(call)

    def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        if call.name == "describe":
            outcome.notes["profile"] = replace(PROFILE, placeholders=("<image>",)).to_json()
            return outcome
        return super()._answer(call, outcome)

    def says(self, item: DecodeItem, number: int) -> str:
        """The caption of the item with this number in its process."""
        return f"{item.prompt} {HARD[number % len(HARD)]}"

    def _make(self, call: StageCall, outcome: StageOutcome) -> None:
        if call.name != "decode":
            return super()._make(call, outcome)
        assert isinstance(call.job, DecodeJob)
        record_set = RecordSet(FolderStore(Path(call.job.store)), "captions", call.job.namespace)
        for member in (m for batch in call.job.batches for m in batch):
            if outcome.items >= self.stop_after.get("decode", 10**9):
                raise Interrupted("decode was killed")
            text = self.says(member, outcome.items)
            record_set.publish(
                [Record(key=member.key, meta={"caption": text, "tokens": 1, "ended": "stop"})]
            )
            outcome.items += 1
        return None


def make(root: Path) -> CaptionConfig:
    """A video of three chunks, one of one chunk with an odd name, and a picture."""
    folder = root / "clips"
    folder.mkdir()
    for name, content in _clips().items():
        (folder / name).write_bytes(content)
    return config_in(root, folder, chunk=2.0, format=ALL)


@cache
def _clips() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / LONG, ticks=range(150), gop=25)
        write_video(folder / ODD, ticks=range(20))
        Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(folder / "photo.PNG")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(config: CaptionConfig, stages: Saying | None = None, **more: Any) -> RunResult:
    launcher = (stages or Saying()).launcher
    return caption(replace(config, **more), Display(quiet=True), launcher)


def lines(config: CaptionConfig) -> list[dict[str, Any]]:
    text = (Path(config.out) / "captions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def samples(config: CaptionConfig) -> list[dict[str, Any]]:
    """What the webdataset library makes of the shards; pictures are decoded."""
    import webdataset

    shards = sorted(str(path) for path in (Path(config.out) / "webdataset").glob("*.tar"))
    loaded = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    return list(loaded)
