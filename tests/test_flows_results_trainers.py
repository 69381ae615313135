"""Data sets of trainers, read by the rules of the trainers' readers; the captions are made up, and
all else, the cutting of clips included, is real."""

import json
import os
from pathlib import Path

import av
import pytest
from PIL import Image

from artifacts.errors import UsageError
from artifacts.trainers import TRAINERS
from flows.job.config import CaptionConfig
from flows.job.formats import TRAINER_FORMATS
from flows.job.label_config import check_label_formats
from tests.support.data_sets import said, with_more, write
from tests.support.media import decode_plainly
from tests.support.saying import LONG, ODD, lines
from tests.support.trainers import READERS

ONE_CAPTION = ("kohya", "musubi", "ltx")
"""Trainers that take one caption of each picture or video."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """What was written once, to be looked at."""
    config = with_more(tmp_path_factory.mktemp("trainers"))
    write(config)
    return config


@pytest.mark.parametrize("name", TRAINER_FORMATS)
def test_a_trainer_s_reader_finds_what_it_can_read_with_its_caption(
    done: CaptionConfig, name: str
) -> None:
    suffixes = {"kohya": {".PNG", ".webp"}, "ltx": {".mp4", ".mkv", ".PNG"}}
    rows = lines(done)
    assert len(rows) == 7
    taken = suffixes.get(name, {".mp4", ".mkv", ".PNG", ".webp"})
    wanted = [row for row in rows if Path(row["media_path"]).suffix in taken]
    assert said(done, name) == sorted(" ".join(row["caption"].split()) for row in wanted)
    for path in READERS[name](Path(done.out)):
        if Path(path).suffix in (".mp4", ".mkv"):
            with av.open(path) as container:
                assert next(container.decode(video=0)).width
        else:
            Image.open(path).load()


def test_the_formats_have_the_names_of_the_command_line() -> None:
    assert tuple(TRAINERS) == TRAINER_FORMATS
    with pytest.raises(UsageError, match="musubi is not known for labels"):
        check_label_formats(["txt", "musubi"])


def test_a_whole_file_is_named_where_it_lies_and_a_clip_where_it_was_cut(
    done: CaptionConfig,
) -> None:
    out, clips = Path(done.out), Path(done.sources[0])
    videos = [path for path in READERS["musubi"](out) if path.endswith((".mp4", ".mkv"))]
    assert videos[0] == str(clips / ODD)
    assert [Path(path).parent for path in videos[1:4]] == [out / "clips"] * 3
    assert os.path.samefile(next((out / "hf" / "videos").glob("*.mkv")), clips / "sub/long.mkv")
    hard = [path for path in READERS["hf"](out) if os.stat(path).st_nlink < 2]
    assert not hard  # nothing is there twice


def test_clips_hold_the_pictures_of_their_chunks(done: CaptionConfig, tmp_path: Path) -> None:
    whole = decode_plainly(Path(done.sources[0], LONG))
    told = json.loads((Path(done.out) / "clips" / "index.json").read_text())["clips"]
    rows = {row["start"]: row for row in lines(done) if row["media_path"] == LONG}
    assert len(told) == len(rows) == 3
    for key, start in zip(sorted(told, key=lambda key: key[-5:]), sorted(rows), strict=True):
        row, lead = rows[start], told[key]["media_start"]
        cut = decode_plainly(Path(done.out) / "clips" / told[key]["file"])
        there = {round(f.seconds - lead + start, 3): f.digest for f in cut}
        wanted = [f for f in whole if start <= f.seconds < row["end"]]
        assert [there[round(f.seconds, 3)] for f in wanted] == [f.digest for f in wanted]
        # Packets that are decoded before the last one of the chunk may be shown after it.
        assert cut[-1].seconds + 1 / 30 == pytest.approx(lead + row["end"] - start, abs=0.2)


def test_what_a_trainer_cannot_read_is_told(tmp_path: Path) -> None:
    notes = write(with_more(tmp_path)).warnings
    assert "not in kohya: 5 videos (it reads no videos)" in notes
    assert "not in ltx: 1 image (it does not read .webp)" in notes
    assert any("up to 0.7 s before their chunk" in note for note in notes)


def test_named_prompts_are_all_there_where_a_trainer_takes_several_captions(tmp_path: Path) -> None:
    config = with_more(tmp_path)
    notes = write(config, prompts={"short": "A?", "model": "B?"}).warnings
    told = [f"{name} takes one caption of each: that of the prompt short" for name in ONE_CAPTION]
    assert [note for note in notes if "one caption" in note] == told
    for name in ONE_CAPTION:
        assert {text.split()[0] for text in said(config, name)} == {"A?"}
    out = Path(config.out)
    both = json.loads((out / "diffusion-pipe" / "videos" / "captions.json").read_text())
    assert len(both) == 5
    assert all([t.split()[0] for t in texts] == ["A?", "B?"] for texts in both.values())
    lines = (out / "hf" / "images" / "metadata.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["text"] == row["short"] and row["caption_model"].startswith("B?")
        assert row["model"] == "model"
    assert len(list((out / "clips").glob("*.mp4"))) == 3
