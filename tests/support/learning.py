"""Rounds of learning over made-up captions: media, store, journal, records and outputs are real,
and only the model is spared."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.commands.caption import run as sift_first
from flows.commands.learn import run as module
from flows.commands.learn.result import Learned
from flows.commands.learn.run import learn, preview
from flows.commands.review.captions import ReviewedCaptions
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.core.options.training import LearnConfig, RecordedRun
from flows.execution.run import caption
from flows.outputs.record.rounds import rounds_in
from flows.outputs.run_result import RunResult
from stages.decode.generation import DecodeItem
from tests.support.media import write_video
from tests.support.saying import Saying
from tests.support.stand_ins import config_in

PICTURES, FILM_CHUNKS = 44, 8
Change = tuple[str | None, str]
"""Text and review of a decision."""
Decider = Callable[[int, str], Change | None]


def style(text: str) -> str:
    return f"clip: {text.lower().rstrip('.')}"


def words(key: str, number: int) -> str:
    """Return what the model says of a chunk after so many accepted rounds."""
    return f"Model {number} sees {key[:8]}."


def numbered(adapter: str) -> int:
    """Return the number of the round that made an adapter; 0: none."""
    return int(adapter.split("round-")[1][:3]) if adapter else 0


def decide_in(out: Path, of: Decider) -> None:
    """Decide on captions by their number and words; None: not."""
    with closing(ReviewedCaptions(out)) as captions:
        changes = [
            {"of": key, "caption": change[0], "review": change[1]}
            for at, (key, row) in enumerate(captions.folder.rows.items())
            if (change := of(at, row["said"])) is not None
        ]
        number = len(captions.journal.edits.every)
        captions.apply({"id": f"{out} {number}", "does": "x", "changes": changes})


class Pupil(Saying):
    """Says of each chunk what the model says after a round."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def says(self, item: DecodeItem, _: int) -> str:
        return words(item.key, self.number)


def captions_of(config: CaptionConfig) -> RunResult:
    """Caption with the model that the adapter stands for."""
    number = numbered(config.adapter)
    # The limit keeps the models' captions apart in the store, as an adapter's digest does.
    known = replace(config, adapter="", max_new_tokens=256 + number, seed=number)
    return caption(known, Display(quiet=True), Pupil(number).launcher)


class School:
    """A folder of captions, and the rounds that learn from its corrections."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, films: int = 0, form: Any = ("txt",)
    ) -> None:
        """With `films`, the media are so many films of FILM_CHUNKS chunks."""
        folder = root / "pictures"
        folder.mkdir()
        for shade in range(0 if films else PICTURES):
            picture = Image.fromarray(np.full((8, 8, 3), 5 * shade, np.uint8))
            picture.save(folder / f"{shade:02}.png")
        for number in range(films):
            ticks = range(number, number + 25 * FILM_CHUNKS)
            write_video(folder / f"{number}.mp4", ticks=ticks, gop=25)
        self.config = config_in(root, folder, format=form, temperature=0.5, chunk=1.0)
        self.out = Path(self.config.out)
        self.trained: list[dict[str, str]] = []
        """Features → caption of each training."""
        self.losses: Callable[[str], float] = lambda adapter: 0.5 ** numbered(adapter)
        """Adapter → its loss per token."""
        self.dies_in = ""
        """What is killed: `train`, `score`, `recaption` or `write`."""
        captions_of(self.config)
        monkeypatch.setattr(module, "train", self._train)
        monkeypatch.setattr(module, "layout_of", lambda _: SimpleNamespace(rank=16))
        monkeypatch.setattr(sift_first, "caption", self._caption)

    def _dies(self, step: str) -> None:
        if self.dies_in == step:
            raise KeyboardInterrupt

    def _caption(self, config: CaptionConfig, *_: Any) -> RunResult:
        self._dies("write" if Path(config.out) == self.out else "recaption")
        return captions_of(config)

    def _train(self, training: Any, examples: Sequence[Any], run: Any, *__: Any) -> None:
        out = Path(run.out).parent
        self._dies("score" if training.validate_only else "train")
        if training.validate_only:
            (out / "run").mkdir(parents=True, exist_ok=True)
            each = {"loss": 10 * self.losses(run.adapter), "tokens": 10, "exact": bool(run.adapter)}
            score: dict[str, Any] = {
                "captions": len(examples),
                "loss": 0.0,
                "exact": 0.0,
                "words": 0.0,
            }
            score |= {"samples": [], "each": [each] * len(examples)}
            (out / "run" / "score.json").write_text(json.dumps(score))
            return
        self.trained.append({each.features: each.caption for each in examples})
        out.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (out / name).write_text(json.dumps(self.trained[-1]))

    def decide(self, of: Decider, out: Path | None = None) -> None:
        decide_in(out or self.out, of)

    def used(self) -> CaptionConfig:
        """Return the run with the last accepted adapter."""
        used = [each.round for each in rounds_in(self.out) if each.accepted][-1:]
        adapter = str(self.out / f"learn/round-{used[0]:03}/adapter") if used else ""
        return replace(self.config, adapter=adapter)

    def learn(self, **options: Any) -> Learned:
        """Run a round after the last accepted one."""
        run = RecordedRun(config=self.used())
        return learn(LearnConfig(out=str(self.out), **options), run, Display(quiet=True))

    def killed_in(self, step: str) -> None:
        """Run a round that is killed in this step."""
        self.dies_in = step
        with pytest.raises(KeyboardInterrupt):
            self.learn()
        self.dies_in = ""

    def preview(self) -> Any:
        """What a dry run tells of the next round."""
        return preview(LearnConfig(out=str(self.out)), RecordedRun(config=self.used()))

    def lines(self) -> list[dict[str, Any]]:
        text = (self.out / "captions.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def reviewed(self) -> dict[str, tuple[str, str]]:
        """Return name → caption and review of each decided caption."""
        return {
            line["media_path"]: (line["caption"], line.get("review", ""))
            for line in self.lines()
            if line.get("review") or line.get("original")
        }
