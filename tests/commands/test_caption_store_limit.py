"""The size of a store under `--max-store`: what fits in a wave, what goes, and what is refused."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Interrupted
from artifacts.index.words import FOLDER as WORDS
from artifacts.index.words import SUFFIX
from artifacts.option_texts import parse_size
from artifacts.records.packs import Record, RecordSet, read_header
from artifacts.records.store import FolderStore, open_store
from artifacts.records.stores.local import half_written
from flows.core.console.display import Display
from flows.core.console.lines import size
from flows.core.machine.launch import StageCall
from flows.core.machine.leases import hold_note_in, note_of
from flows.core.options.commands import CaptionConfig
from flows.core.plan.plan import Plan, plan_of
from flows.core.plan.store_limit import SMALL_BYTES, TOO_LARGE
from flows.core.plan.view import figures, plan_lines
from flows.execution.run import caption
from stages.frames.video import Video
from stages.process.events import StageOutcome
from stages.process.job import job_fields
from tests.support.media import write_video, write_videos
from tests.support.stand_ins import PROFILE, Stages, config_in

CLIPS = 12
WIDTH = 2500
"""Numbers of a token's features, in 4 bytes each: features are larger than frames."""


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
    """Stages whose features have the expected size, and that note the size of the store."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self.profile = replace(PROFILE, feature_width=WIDTH)
        self.feature_payload = payload
        self.sizes: list[int] = []

    def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        try:
            return super()._answer(call, outcome)
        finally:
            if "store" in (fields := job_fields(call.job)):
                self.sizes.append(bytes_in(Path(fields["store"])))


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    clips = write_videos(tmp_path / "clips", CLIPS)
    return config_in(tmp_path, clips, batch_size=1, prompt="First")


def planned(config: CaptionConfig) -> Plan:
    return plan_of(config, Sized(b""))


def run(config: CaptionConfig, chunks: int = CLIPS, **stop_after: int) -> Sized:
    """Caption so many chunks with stages that answer at once, and return them."""
    stages = Sized(bytes(figures(planned(config))["feature_bytes"] // chunks))
    stages.stop_after = stop_after
    if stop_after:
        with pytest.raises(Interrupted):
            caption(config, Display(quiet=True), stages.launcher)
    else:
        result = caption(config, Display(quiet=True), stages.launcher)
        assert (result.captions, result.exit_code) == (chunks, 0)
    assert config.max_store is None or max(stages.sizes, default=0) <= config.max_store
    return stages


def notes(config: CaptionConfig) -> list[str]:
    found = json.loads((Path(config.out) / "run.json").read_text())["plan"]["notes"]
    return [note for note in found if "--max-store" in note]


def least(config: CaptionConfig) -> int:
    """Return the size that a refusal names."""
    with pytest.raises(CannotFit, match="is too small") as caught:
        run(replace(config, max_store=1 << 20 if config.max_store is None else config.max_store))
    found = re.search(r"--max-store (\S+) or more", caught.value.hint)
    assert found is not None, caught.value
    return parse_size(found[1], "--max-store")


def features(config: CaptionConfig) -> list[str]:
    return list(FolderStore(Path(config.store_url)).list("features"))


@pytest.mark.slow
def test_a_store_stays_within_its_limit_and_the_last_features_are_left(
    config: CaptionConfig,
) -> None:
    limited = replace(config, max_store=200_000)
    assert planned(limited).limit is not None
    assert "another prompt encodes again" in figures(planned(limited))["notes"][-1]
    stages = run(limited)
    assert stages.names().count("encode") == CLIPS
    assert len(notes(limited)) == 1
    left = keys_of(config)
    order = [key for batch in stages.batches("encode") for key in batch]
    assert len(left) >= 2 and left == {*order[-len(left) :]}, "the oldest go first"
    assert run(limited).names() == [], "all captions are stored"


def keys_of(config: CaptionConfig) -> set[str]:
    """Return the keys of all features."""
    store = FolderStore(Path(config.store_url))
    return {key for pack in features(config) for key, _ in read_header(store, pack)}


def test_all_that_fits_stays_for_another_prompt(config: CaptionConfig) -> None:
    limited = replace(config, max_store=1_200_000)
    assert run(limited).names().count("encode") == 2, "half of the room is for the next wave"
    assert len(features(config)) == CLIPS and not notes(limited)
    assert {*run(replace(limited, prompt="Second")).names()} == {"decode"}


@pytest.mark.slow
def test_the_size_that_a_refusal_names_is_enough_and_a_smaller_one_is_not(
    config: CaptionConfig,
) -> None:
    named = least(replace(config, max_store=70_000))
    refusal = planned(replace(config, max_store=70_000)).refusal
    assert refusal is not None and f"{named >> 20}MiB" in refusal.hint
    stated = r"([\d.]+) kB must stay in \S+ \((.*)\), and .* need ([\d.]+) kB"
    found = re.search(stated, refusal.message)
    assert found is not None, refusal
    kinds = {name: float(of) for of, name in re.findall(r"([\d.]+) kB ([a-z ]+)", found[2])}
    assert "yet to be made" in kinds and "cards" in kinds, kinds
    assert sum(kinds.values()) == pytest.approx(float(found[1]), abs=1.0)
    exact, noted = round(1000 * (float(found[1]) + float(found[3]))), 2_000
    with pytest.raises(CannotFit):
        run(replace(config, max_store=exact - noted))
    run(replace(config, max_store=exact + noted))


def with_tape(tmp_path: Path, chunk: float) -> CaptionConfig:
    """Three short videos; `tape.mp4` is to be written beside them."""
    clips = write_videos(tmp_path / "clips", 3)
    return config_in(tmp_path, clips, batch_size=1, prompt="First", chunk=chunk)


def test_a_file_that_is_too_large_fails_by_name_and_the_others_are_captioned(
    tmp_path: Path,
) -> None:
    config, long = with_tape(tmp_path, chunk=1.0), 6
    write_video(tmp_path / "clips" / "tape.mp4", ticks=range(30 * long), gop=30)
    payload = bytes(figures(planned(config))["feature_bytes"] // (3 + long))
    limited = replace(config, max_store=exact(config) - 30_000)
    (note,) = (note for note in figures(planned(limited))["notes"] if "no room" in note)
    assert "has no room for 1 file, which will fail (tape.mp4)" in note
    stages = Sized(payload)
    result = caption(limited, Display(quiet=True), stages.launcher)
    assert (result.captions, result.exit_code) == (3, 1)
    (failure,) = result.failures
    assert (failure.media_path, failure.error) == ("tape.mp4", TOO_LARGE), failure
    assert max(stages.sizes) <= (limited.max_store or 0)
    named = re.search(r"--max-store (\S+) is enough", note)
    assert named is not None and f"--max-store {named[1]} or more" in failure.hint
    again = replace(limited, max_store=parse_size(named[1], "--max-store"))
    stages = Sized(payload)
    result = caption(again, Display(quiet=True), stages.launcher)
    assert (result.captions, result.exit_code) == (3 + long, 0)
    assert sum(map(len, stages.batches("encode"))) == long, "the others are not encoded again"


def test_small_records_of_a_file_that_is_too_large_take_no_room_of_the_others(
    tmp_path: Path,
) -> None:
    config = with_tape(tmp_path, chunk=0.2)
    limited = replace(config, max_store=exact(config))
    tape = tmp_path / "clips" / "tape.mp4"
    write_video(tape, ticks=range(900), gop=30)  # its records take 0.6 MB
    plan = planned(limited)
    assert plan.refusal is None and any("(tape.mp4)" in note for note in figures(plan)["notes"])
    result = caption(limited, Display(quiet=True), Sized(b"").launcher)
    assert [each.media_path for each in result.failures] == ["tape.mp4"] and result.captions


@pytest.mark.slow
def test_half_written_files_do_not_count(config: CaptionConfig) -> None:
    limited = replace(config, max_store=200_000)
    with half_written(Path(config.store_url)) as (_, file):
        file.write(bytes(1_000_000))
        file.flush()
        assert planned(limited).refusal is None
        result = caption(limited, Display(quiet=True), Sized(b"").launcher)
        assert (result.captions, result.exit_code) == (CLIPS, 0)


@pytest.mark.slow
def test_a_killed_run_goes_on_within_the_same_limit(config: CaptionConfig) -> None:
    limited = replace(config, max_store=150_000)
    for stage in ("encode", "decode", "encode"):
        run(limited, **{stage: 0})
    run(limited)


def exact(config: CaptionConfig) -> int:
    """Return the smallest size that is not refused, with room for the notes of a run."""
    refusal = planned(replace(config, max_store=1)).refusal
    assert refusal is not None
    found = re.search(r"([\d.]+) kB must stay .* need ([\d.]+) kB", refusal.message)
    assert found is not None, refusal
    return round(1000 * (float(found[1]) + float(found[2]))) + 5_000


CHUNKS = 8


@pytest.fixture
def long_videos(tmp_path: Path) -> CaptionConfig:
    clips = write_videos(tmp_path / "clips", 4, frames=30 * CHUNKS)
    return config_in(tmp_path, clips, batch_size=1, prompt="First", chunk=1.0)


def caption_chunks(config: CaptionConfig, **stop_after: int) -> Sized:
    """Caption with features about as large as frames, and return the stages."""
    return run(config, 4 * CHUNKS, **stop_after)


def stop_cutting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the frames stage after so many chunks of a video."""
    chunks = Video.chunks

    def some(*given: Any) -> Iterator[Any]:
        yield from islice(chunks(*given), after)
        raise Interrupted("frames was killed")

    monkeypatch.setattr(Video, "chunks", some)


@pytest.mark.slow
def test_a_run_killed_anywhere_needs_no_more_room_than_before(
    long_videos: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = replace(long_videos, max_store=exact(long_videos))
    for cut in (CHUNKS // 2, CHUNKS - 1):
        with monkeypatch.context() as patch:
            stop_cutting(patch, cut)
            caption_chunks(limited, frames=0)
        assert list(FolderStore(Path(limited.store_url)).list("frames"))
    for stage, after in (("encode", 3), ("decode", 2), ("encode", 5)):
        caption_chunks(limited, **{stage: after})
    caption_chunks(limited)


@pytest.mark.slow
def test_another_prompt_fits_within_the_same_limit_and_uses_what_is_stored(
    long_videos: CaptionConfig,
) -> None:
    limited = replace(long_videos, max_store=exact(long_videos) + 8 * SMALL_BYTES)
    caption_chunks(limited)
    stored = keys_of(limited)
    assert stored
    stages = caption_chunks(replace(limited, prompt="Second"))
    encoded = {key for batch in stages.batches("encode") for key in batch}
    assert encoded and not encoded & stored


@pytest.mark.slow
def test_a_plan_says_what_the_limit_does(long_videos: CaptionConfig) -> None:
    limited = replace(long_videos, max_store=exact(long_videos))
    (line,) = (line for line in plan_lines(planned(limited)) if line.startswith("store "))
    assert f"at most {size(exact(long_videos))}" in line and "a wave takes up to" in line
    caption_chunks(limited)
    values = figures(planned(limited))
    assert (values["waves"], values["in_waves"], values["frame_bytes_at_once"]) == (1, "", 0)
    stored = size(bytes_in(Path(limited.store_url)))
    assert f"{stored} stored now; nothing is left to encode" in values["max_store"]


@pytest.mark.slow
def test_chunks_that_are_cut_again_are_not_counted_as_done(long_videos: CaptionConfig) -> None:
    limited = replace(long_videos, max_store=exact(long_videos) + 8 * SMALL_BYTES)
    caption_chunks(limited)
    stages = caption_chunks(replace(limited, prompt="Second"))
    record = json.loads((Path(limited.out) / "run.json").read_text())
    again = sum(map(len, stages.batches("encode")))
    for stage in (stage for stage in record["stages"] if stage["name"] != "decode"):
        assert stage["items"] == again
        assert stage["before"] + stage["items"] == stage["total"] == 4 * CHUNKS


@pytest.mark.slow
def test_features_of_later_files_go_where_a_limit_is_lower_than_before(
    long_videos: CaptionConfig,
) -> None:
    limit = exact(long_videos) + 4 * CHUNKS * SMALL_BYTES
    limited = replace(long_videos, max_store=limit)
    caption_chunks(long_videos)
    assert len(keys_of(limited)) == 4 * CHUNKS
    assert bytes_in(Path(limited.store_url)) > limit
    caption_chunks(replace(limited, prompt="Second"))


@pytest.mark.slow
def test_waves_that_were_recorded_with_more_room_are_divided(config: CaptionConfig) -> None:
    run(config, encode=0)
    store = FolderStore(Path(config.store_url))
    for pack in store.list("frames"):
        store.delete(pack)
    limited = run(replace(config, max_store=250_000))
    assert limited.names().count("encode") > 1


@pytest.mark.slow
def test_features_of_another_model_go_first_unless_a_job_needs_them(config: CaptionConfig) -> None:
    limited = replace(config, max_store=400_000)
    store = open_store(config.store_url)
    run(replace(config, max_store=10**9, prompt="Zeroth"))
    for pack in features(config):
        store.delete(pack)
    other = RecordSet(store, "features", "ab" * 32)
    other.publish([Record(key="a", payload=bytes(300_000))])
    note = note_of(["ab" * 32], Path("elsewhere"))  # of another process
    needed = hold_note_in(Path(config.store_url), note)
    with needed, pytest.raises(CannotFit, match="must stay"):
        run(replace(limited, max_store=330_000))
    run(limited)
    other.refresh()
    assert len(other) == 0 and features(config)


def test_an_index_of_words_takes_no_room_of_a_run_and_goes_when_it_is_needed(
    config: CaptionConfig,
) -> None:
    index = Path(config.store_url) / WORDS / f"{'a' * 32}{SUFFIX}"
    index.parent.mkdir(parents=True)
    index.write_bytes(bytes(300_000))
    roomy = replace(config, max_store=1_600_000)
    run(roomy)
    assert index.exists(), "there was room for it"
    run(replace(config, max_store=200_000, prompt="Second"))
    assert not index.exists()
