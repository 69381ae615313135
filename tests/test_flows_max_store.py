"""The size of a store under `--max-store`: what fits in a wave, what goes, and what is refused."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Interrupted, UsageError
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from flows.console.display import Display
from flows.console.units import parse_size
from flows.machine.launch import DirectLauncher, StageCall
from flows.machine.leases import hold_note_in, note_of
from flows.options.commands import CaptionConfig
from flows.options.vectors import EmbedConfig
from flows.pipelines import EMBED
from flows.planning.plan import figures, plan_of
from flows.running.run import caption, embed
from stages.process.events import StageOutcome
from tests.support.media import write_videos
from tests.support.pipeline import SECONDS, Place, read_lines
from tests.support.stand_ins import Stages, config_in

CLIPS = 12
PAYLOAD = bytes(40_000)
"""More than the estimate of a chunk's features in these tests, which is 8 numbers of 4 bytes."""


def bytes_in(folder: Path) -> int:
    """Return the size of all files, each once: a file that is renamed by a link has two names."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


class Sized(Stages):
    """Stages that note the size of the store after each."""

    def __init__(self, store: str) -> None:
        super().__init__()
        self._store = Path(store)
        self.sizes: list[int] = []

    def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        try:
            return super()._answer(call, outcome)
        finally:
            self.sizes.append(bytes_in(self._store))


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return config_in(tmp_path, write_videos(tmp_path / "clips", CLIPS), batch_size=1)


def run(config: CaptionConfig, stages: Stages) -> dict[str, Any]:
    result = caption(config, Display(quiet=True), stages.launcher)
    assert (result.captions, result.exit_code) == (CLIPS, 0)
    record: dict[str, Any] = json.loads((Path(config.out) / "run.json").read_text())
    return record


def least(error: CannotFit) -> int:
    """Return the size that a refusal names."""
    found = re.search(r"--max-store (\S+) or more", error.hint)
    assert found is not None, error
    return parse_size(found[1], "--max-store")


def refused(config: CaptionConfig) -> CannotFit:
    with pytest.raises(CannotFit, match="is too small") as caught:
        run(config, Stages())
    return caught.value
