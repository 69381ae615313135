"""Files that are replaced while a run is going on: no caption is filed under what they held before,
and the next run sees what they are."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from flows.console.display import Display
from flows.job.launch import StageCall
from flows.running.run import caption
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.stand_ins import Answer, Stages, config_in


class Disturbed(Stages):
    """Stages before one of which something happens."""

    def __init__(self, stage: str, happens: Callable[[], object]) -> None:
        super().__init__()
        self._stage = stage
        self._happens = happens

    def start(self, call: StageCall) -> Answer:
        if call.name == self._stage:
            self._stage = ""
            self._happens()
        return super().start(call)


def clips(folder: Path) -> tuple[Path, Path]:
    """Two clips in a folder, and another version of the first beside it."""
    (folder / "clips").mkdir()
    first = write_video(folder / "clips" / "latest.mp4", ticks=range(60))
    write_video(folder / "clips" / "other.mp4", ticks=range(30))
    return first, write_video(folder / "next.mp4", ticks=range(90))


def test_a_file_that_is_replaced_before_it_is_cut_is_left_to_the_next_run(tmp_path: Path) -> None:
    first, following = clips(tmp_path)
    kept = first.read_bytes()
    config = config_in(tmp_path, tmp_path / "clips")
    stages = Disturbed("frames", lambda: os.replace(following, first))
    result = caption(config, Display(quiet=True), stages.launcher)
    assert result.exit_code == 1 and result.captions == 1
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["media_path"], failure["error"]) == ("latest.mp4", "changed")
    assert caption(config, Display(quiet=True), Stages().launcher).exit_code == 0
    durations = {line["media_path"]: line["end"] for line in captions(tmp_path)}
    assert durations == {"latest.mp4": 3.0, "other.mp4": 1.0}
    first.write_bytes(kept)  # what it held is asked for again, and nothing of it is there
    assert caption(config, Display(quiet=True), Stages().launcher).exit_code == 0
    assert {line["media_path"]: line["end"] for line in captions(tmp_path)}["latest.mp4"] == 2.0


def test_a_file_that_is_replaced_after_it_was_captioned_is_in_no_shard(tmp_path: Path) -> None:
    first, following = clips(tmp_path)
    config = config_in(tmp_path, tmp_path / "clips", format=("webdataset",))
    stages = Disturbed("decode", lambda: os.replace(following, first))
    result = caption(config, Display(quiet=True), stages.launcher)
    assert result.captions == 2 and "files were changed" in result.warnings[-1]
    (shard,) = (tmp_path / "out" / "webdataset").glob("*.tar")
    assert suffixes(shard) == {"latest": {"json", "txt"}, "other": {"json", "txt", "mp4"}}


def captions(folder: Path) -> list[dict[str, object]]:
    return read_lines(folder / "out" / "captions.jsonl")


def suffixes(shard: Path) -> dict[str, set[str]]:
    """Beginning of a sample's key → the members that it has."""
    found: dict[str, set[str]] = {}
    with tarfile.open(shard) as tar:
        for name in tar.getnames():
            found.setdefault(name.partition("-")[0], set()).add(name.rpartition(".")[2])
    return found
