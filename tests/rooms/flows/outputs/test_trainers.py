"""Data sets of trainers, read by the rules of their readers; the captions are made up."""

import errno
import io
import json
import os
import shutil
import subprocess
import tomllib
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image

import flows.core.machine.launch
from artifacts.errors import EnvironmentFault, Interrupted, MediaError, UsageError
from artifacts.texts.shards import read_index
from artifacts.texts.trainers import TRAINERS, TrainerEntry, TrainerSetup
from flows.core.console.display import Display
from flows.core.ledger.tasks import Medium
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import TRAINER_FORMATS
from flows.core.plan.sizes import _header
from flows.execution.run import caption as caption_run
from flows.interfaces.studio.captions_routes import sets_in
from flows.outputs.clips import Clips, _read_index
from flows.outputs.marker import Marker, write_marker
from flows.outputs.run_result import RunResult
from stages.frames.image import is_still
from stages.process.job import job_fields
from tests.support.faults import failing
from tests.support.media import write_video
from tests.support.reports import status_of
from tests.support.rows import caption
from tests.support.saying import LONG, ODD, Saying, lines, make, run, samples
from tests.support.trainers import READERS

Stats = dict[str, tuple[int, int, bytes]]


def with_more(root: Path) -> CaptionConfig:
    """The clips of `make`, and beside them files that have another's stem."""
    config = make(root)
    folder = Path(config.sources[0])
    (folder / "sub").mkdir()
    write_video(folder / "sub" / "long.mkv", ticks=range(30))
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "photo.webp")
    return config


def write(config: CaptionConfig, stages: Saying | None = None, **more: Any) -> RunResult:
    return run(config, stages, **{"format": TRAINER_FORMATS, "recursive": True, **more})


def stats(config: CaptionConfig) -> Stats:
    """What lies in the folders of trainers and of clips, with inode and time of each."""
    found: Stats = {}
    for name in (*TRAINERS, "clips"):
        for path in sorted((Path(config.out) / name).rglob("*")):
            if path.is_file():
                stat = path.stat()
                key = str(path.relative_to(config.out))
                found[key] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
    return found


def pictures(path: Path) -> dict[float, Any]:
    """Time of each frame → its pixels, by a plain decode."""
    with av.open(str(path)) as container:
        frames = [*container.decode(video=0)]
    return {float(f.time or 0): f.to_ndarray(format="rgb24").astype(int) for f in frames}


def captions_of(config: CaptionConfig, name: str) -> list[str]:
    return sorted(READERS[name](Path(config.out)).values())


def all_say(config: CaptionConfig, prompt: str) -> bool:
    """Whether every data set has captions, and of this prompt alone."""
    said = [[text.startswith(prompt) for text in captions_of(config, n)] for n in TRAINERS]
    return all(each and all(each) for each in said)


def clips_in(config: CaptionConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.out, "clips").glob("*.mp4")}


ONE_CAPTION = ("kohya", "musubi", "ltx")
"""Trainers that take one caption of each picture or video."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """What was written once, to be looked at."""
    config = with_more(tmp_path_factory.mktemp("trainers"))
    assert "not in kohya: 5 videos (it reads no videos)" in write(config).warnings
    return config


@pytest.mark.parametrize("name", TRAINER_FORMATS)
def test_a_trainer_s_reader_finds_media_and_captions(done: CaptionConfig, name: str) -> None:
    suffixes = {"kohya": {".PNG", ".webp"}}
    rows = lines(done)
    assert len(rows) == 7
    taken = suffixes.get(name, {".mp4", ".mkv", ".PNG", ".webp"})
    expected = [row for row in rows if Path(row["media_path"]).suffix in taken]
    assert captions_of(done, name) == sorted(" ".join(row["caption"].split()) for row in expected)
    for path in READERS[name](Path(done.out)):
        if Path(path).suffix in (".mp4", ".mkv"):
            with av.open(path) as container:
                assert next(container.decode(video=0)).width
        else:
            Image.open(path).load()


def test_the_page_s_check_reads_every_data_set(done: CaptionConfig) -> None:
    found = {each["format"]: each for each in sets_in(Path(done.out), 7, Counter({"a.mp4": 7}))}
    assert found.keys() == set(TRAINER_FORMATS)
    assert {each["problem"] for each in found.values()} == {""}
    assert all(each["samples"] and each["missing"] == [0, []] for each in found.values())


def test_lines_name_what_was_written_and_is_replaced(done: CaptionConfig, tmp_path: Path) -> None:
    out, said = tmp_path / "out", io.StringIO()
    config = replace(done, out=str(out), format=("kohya", "hf", "csv", "webdataset"))
    sets = "webdataset/, kohya/ (2 captions), hf/"  # of two pictures and the videos
    written = f"{out / 'captions.jsonl'} and captions.csv, {sets}"
    replaced = f"replaces in {out}: captions.jsonl, captions.csv, webdataset/"
    for prompt, first in (("What?", ""), ("What?", ""), ("Where?", replaced)):
        result = caption_run(replace(config, prompt=prompt), Display(to=said), Saying().launcher)
        assert written in result.line()
        assert "writing the data set: " in said.getvalue()
        assert first in said.getvalue() and ("replaces" in said.getvalue()) == bool(first)


def test_the_page_names_what_a_trainer_does_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(still := tmp_path / "still.gif")
    chunks = Counter({"a.heic": 1, "b.jpg": 1, "c.mp4": 3, str(still): 1})
    for name in ("kohya", "musubi"):
        (tmp_path / name).mkdir()
    unread = ["3 videos (it reads no videos)", "1 single-frame GIF (save it as PNG)"]
    for mode, expected in (
        ("original", [*unread, "1 file that kohya does not read: a.heic"]),
        ("exact", unread),  # of the picture it gets a copy
    ):
        write_marker(tmp_path, Marker(command="caption", media=mode))
        found, other = sets_in(tmp_path, 6, chunks)
        assert found["left_out"] == expected and found["captions"] == 6
        why = "3 chunks (of longer videos, which --media original does not cut)"
        left_out: Any = other["left_out"]
        assert (why in left_out) == (mode == "original")


def test_whole_files_are_named_where_they_lie_and_clips_as_cut(done: CaptionConfig) -> None:
    out, clips = Path(done.out), Path(done.sources[0])
    videos = [path for path in READERS["musubi"](out) if path.endswith((".mp4", ".mkv"))]
    assert videos[0] == str(clips / ODD)
    assert [Path(path).parent for path in videos[1:4]] == [out / "clips"] * 3
    # Matroska states no number of frames, which trainers take for one.
    assert not list((out / "hf" / "videos").glob("*.mkv"))
    assert os.path.samefile(next((out / "hf" / "images").glob("*.png")), clips / "photo.PNG")
    hard = [path for path in READERS["hf"](out) if os.stat(path).st_nlink < 2]
    assert not hard  # nothing is there twice


def test_clips_hold_the_pictures_of_their_chunks(done: CaptionConfig, tmp_path: Path) -> None:
    whole = pictures(Path(done.sources[0], LONG))
    values = json.loads((Path(done.out) / "clips" / "index.json").read_text())["clips"]
    values = {key: entry for key, entry in values.items() if "plain" not in entry}
    rows = {row["start"]: row for row in lines(done) if row["media_path"] == LONG}
    assert len(values) == len(rows) == 3
    for key, start in zip(sorted(values, key=lambda key: key[-5:]), sorted(rows), strict=True):
        expected = [p for at, p in whole.items() if start <= at < rows[start]["end"] - 1e-6]
        cut = pictures(Path(done.out) / "clips" / values[key]["file"])
        assert [*cut] == pytest.approx([at / 30 for at in range(len(expected))], abs=1e-3)
        for shown, want in zip(cut.values(), expected, strict=True):  # and no other one
            assert np.abs(shown - want).mean() < 3


@pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")  # the library's
def test_original_media_are_whole_and_chunks_of_longer_videos_are_counted(tmp_path: Path) -> None:
    config, stages = with_more(tmp_path), Saying()
    notes = write(config, stages, media="original", format=("musubi", "webdataset", "ltx")).warnings
    assert "not in ltx: 1 image (it does not read .webp)" in notes
    rows = [row for row in lines(config) if row["media_path"] != LONG]
    for name in ("musubi", "webdataset"):
        why = "of longer videos, which --media original does not cut"
        assert f"not in {name}: 3 chunks ({why})" in notes
    assert "cut" not in stages.names() and not Path(config.out, "clips").exists()
    expected = {os.stat(Path(config.sources[0], row["media_path"])).st_ino for row in rows}
    assert {os.stat(path).st_ino for path in READERS["musubi"](Path(config.out))} == expected
    assert [sample["json"]["media_path"] for sample in samples(config)] == [
        row["media_path"] for row in rows
    ]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("jq")), reason="the page's tools")
def test_the_page_s_command_copies_without_encoding(done: CaptionConfig, tmp_path: Path) -> None:
    page = Path(__file__).parents[4] / "docs" / "clips.md"
    command = page.read_text().partition("## Clips without encoding")[2].split("\n\n")[2]
    (tmp_path / "OUT").symlink_to(done.out)
    (tmp_path / "FOLDER").symlink_to(done.sources[0])
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    whole = pictures(Path(done.sources[0], LONG))
    assert len(list((tmp_path / "clips").rglob("*.mp4"))) == 5
    (path,) = (tmp_path / "clips").glob(f"{Path(LONG).stem}-2*.mp4")
    expected = [picture for at, picture in whole.items() if 2.0 <= at < 4.0 - 1e-6]
    for copied, original in zip(pictures(path).values(), expected, strict=False):
        assert np.array_equal(copied, original)


def test_a_gif_of_one_frame_is_planned_and_named_as_what_it_is(tmp_path: Path) -> None:
    config = make(tmp_path)
    still, moving = (Path(config.sources[0]) / f"{name}.gif" for name in ("still", "moving"))
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    first.save(still)
    first.save(moving, save_all=True, append_images=[second], duration=500)
    assert is_still(still) and not is_still(moving)
    media = [Medium(digest="", path=str(path), kind="video", prompt="") for path in (still, moving)]
    assert [_header(each).seconds for each in media] == [0.1, 1.0]  # ffprobe: 10, 100 of 1/100 s
    assert "not in kohya: 1 single-frame GIF (save it as PNG)" in write(config).warnings


def test_named_prompts_are_all_there_where_a_trainer_takes_several_captions(tmp_path: Path) -> None:
    config = with_more(tmp_path)
    notes = write(config, prompts={"short": "A?", "model": "B?"}).warnings
    messages = [
        f"not in {name}: {len(captions_of(config, name))} captions (it takes one per sample, that "
        "of prompt short)"
        for name in ONE_CAPTION
    ]
    assert [note for note in notes if "takes one per" in note] == messages
    for name in ONE_CAPTION:
        assert {text.split()[0] for text in captions_of(config, name)} == {"A?"}
    out = Path(config.out)
    both = json.loads((out / "diffusion-pipe" / "videos" / "captions.json").read_text())
    assert len(both) == 5
    assert all([t.split()[0] for t in texts] == ["A?", "B?"] for texts in both.values())
    lines = (out / "hf" / "images" / "metadata.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["text"] == row["short"] and row["caption_model"].startswith("B?")
        assert row["model"] == "model"
    assert len(list((out / "clips").glob("*.mp4"))) == 4


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return with_more(tmp_path)


def test_later_runs_write_and_cut_what_is_missing_alone(config: CaptionConfig) -> None:
    write(config, prompt="First?")
    before, stages = stats(config), Saying()
    write(config, stages, prompt="First?")
    assert stages.names() == [] and stats(config) == before
    result = write(config, stages, prompt="Second?", format=())
    assert stages.names() == ["decode"] and result.written.earlier == []
    assert all_say(config, "Second?")
    media = {k for k in before if Path(k).suffix in (".mp4", ".mkv", ".png", ".webp", ".toml")}
    assert {k: v for k, v in stats(config).items() if k in media} == {k: before[k] for k in media}
    clips = Path(config.out) / "clips"
    gone = min(path.name for path in clips.glob("*.mp4"))
    (clips / gone).unlink()  # as when a run was killed before it had its name
    (clips / ".penstock-new").mkdir()
    half = Path(config.out) / "diffusion-pipe" / "videos" / ".penstock-x.mp4"
    half.write_bytes(b"half")  # the trainer would take it
    write(config, stages, prompt="Second?")
    assert [len(job_fields(call.job)["cuts"]) for call in stages.calls if call.name == "cut"] == [1]
    after = stats(config)
    cut = {k for k in media if k.startswith("clips/") and after[k] != before[k]}
    assert cut == {f"clips/{gone}"}
    assert not (clips / ".penstock-new").exists() and not half.exists()
    assert all_say(config, "Second?")


def test_formats_that_were_not_asked_for_are_not_written(config: CaptionConfig) -> None:
    write(config, format=("musubi",))
    there = {path.name for path in Path(config.out).iterdir() if path.is_dir()}
    assert there - {"logs"} == {"clips", "musubi"}
    assert "musubi" in status_of(Path(config.out))


def test_what_a_person_edited_is_kept_until_it_is_to_be_replaced(config: CaptionConfig) -> None:
    out = Path(config.out)
    write(config, prompt="First?")
    toml, rows = out / "musubi" / "dataset.toml", out / "hf" / "videos" / "metadata.jsonl"
    clip = next((out / "clips").glob("*-00001.mp4"))
    for path in (toml, rows, clip):
        path.rename(path.with_suffix(".old"))  # as an editor does
        path.write_bytes(path.with_suffix(".old").read_bytes() + b"#\n")
        path.with_suffix(".old").unlink()
    edited = {path: path.read_bytes() for path in (toml, rows, clip)}
    result = write(config, prompt="Second?", format=("musubi", "hf", "ltx"))
    assert {path: path.read_bytes() for path in edited} == edited
    kept = [note for note in result.warnings if "edited by you" in note]
    assert [any(path.name in note for note in kept) for path in edited] == [True] * 3
    assert all("--existing replace would overwrite your edits" in note for note in kept)
    assert result.written.earlier == []
    assert result.written.edited == {"musubi": ["dataset.toml"], "hf": ["videos/metadata.jsonl"]}
    for form, name in (("musubi/", "dataset.toml"), ("hf/ (2 captions)", "videos/metadata.jsonl")):
        assert f"{form} with {name} kept, edited by you" in result.line()
    printed = status_of(out)
    assert "dataset.toml kept, edited by you" in printed and "earlier run" not in printed
    (lines,) = (out / "musubi").glob("videos-*fps.jsonl")
    assert "First?" not in lines.read_text()
    result = write(config, prompt="Second?", existing="replace")
    assert [note for note in result.warnings if "edited by you" in note] == []
    assert not any(path.read_bytes() == content for path, content in edited.items())
    assert all_say(config, "Second?")


def test_a_file_that_was_there_before_is_a_person_s(config: CaptionConfig) -> None:
    mine = Path(config.out) / "kohya" / "dataset.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine\n")
    result = write(config, format=("kohya",))
    assert mine.read_text() == "mine\n"
    assert "kohya/ (2 captions) with dataset.toml kept, edited by you" in result.line()
    (mine.parent / "metadata.json").write_text("mine\n")  # and no file of a run is left
    written = write(config, format=()).written
    assert written.edited == {"kohya": ["metadata.json", "dataset.toml"]}
    assert written.earlier == []
    result = write(config, format=("kohya",), overwrite=True)
    assert (result.written.earlier, result.written.edited) == ([], {})
    assert len(captions_of(config, "kohya")) == 2


@pytest.mark.slow
def test_stopped_while_clips_are_cut_the_old_files_stay_and_the_rest_is_made_then(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> str:
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM"):
            patch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:stop")
            write(config, prompt="Second?")
        return status_of(Path(config.out))

    assert f"{config.out}/captions.jsonl" in (message := stop())
    assert not any(f"{config.out}/{name}" in message for name in TRAINERS), "they do not exist"
    write(config, prompt="First?", limit=1)
    before = stats(config)
    assert "hf (from an earlier run)" in stop()
    there = stats(config)
    assert {name: there[name] for name in before} == before
    write(config, prompt="Second?")
    assert all_say(config, "Second?")


@pytest.mark.slow
def test_a_chunk_that_cannot_be_cut_out_is_left_out_and_not_tried_again(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(Path(config.sources[0], "deadly.mp4"), ticks=range(150), gop=20)
    monkeypatch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:run")
    stages = Saying()
    for _ in range(2):
        notes = write(config, stages, format=("musubi", "hf")).warnings
        assert any(note.startswith("2 chunks could not be cut for trainers") for note in notes)
        assert len(captions_of(config, "musubi")) == len(captions_of(config, "hf")) == 8
    assert stages.names().count("cut") == 2  # it died of the one, and went on with the others


def test_what_is_no_source_any_more_leaves_and_is_not_lost(config: CaptionConfig) -> None:
    folder, out = Path(config.sources[0]), Path(config.out)
    write(config)
    before = stats(config)
    (folder / "photo.webp").unlink()  # what lies in the data sets is all there is of it now
    result = write(config, sources=(str(folder / ODD),), replace=True)
    videos = {path.name for path in (out / "hf" / "videos").iterdir()}
    assert len(videos - {"README.md", "metadata.jsonl"}) == 1
    assert [len(captions_of(config, name)) for name in ("musubi", "ltx")] == [1, 1]
    assert not (out / "musubi" / "images.jsonl").exists()
    assert {k for k in before if k.startswith("clips/")} <= set(stats(config))
    # Of four names the last one stays, since it is the file by now.
    assert [name[:10] for name in stats(config) if name.endswith(".webp")] == ["hf/images/"]
    (note,) = (note for note in result.warnings if "possibly the last copy" in note)
    (kept,) = (Path(name).name for name in stats(config) if name.endswith(".webp"))
    assert "1 file in" in note and f"({kept})" in note


def test_a_file_with_two_prompts_is_in_each_data_set_twice(config: CaptionConfig) -> None:
    clips = Path(config.sources[0])
    requests = product((ODD, LONG, "photo.PNG"), ("A?", "B?"))
    lines = (json.dumps({"path": name, "prompt": prompt}) + "\n" for name, prompt in requests)
    (clips / "list.jsonl").write_text("".join(lines))
    write(config, sources=(str(clips / "list.jsonl"),))
    for name in TRAINERS:
        firsts = [text.split()[0] for text in captions_of(config, name)]
        assert firsts.count("A?") == firsts.count("B?") == (1 if name == "kohya" else 5)
    assert len(list((Path(config.out) / "clips").glob("*.mp4"))) == 3


@pytest.mark.slow
def test_what_a_run_made_is_not_captioned_again(config: CaptionConfig, tmp_path: Path) -> None:
    write(config, sources=(str(tmp_path),))
    before = len(lines(config))
    assert write(config, sources=(str(tmp_path),)).files == write(config).files
    assert len(lines(config)) == before
    folder = Path(config.out) / "clips"
    clips = [path for path in folder.iterdir() if path.suffix in (".mp4", ".jpg", ".png")]
    assert write(config, sources=(str(folder),), out=str(tmp_path / "other")).files == len(clips)


def test_where_the_disk_takes_no_links_media_are_copied_once_and_that_is_told(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", failing(errno.EPERM))
        write(config, format=("diffusion-pipe",))
        assert all(p.is_symlink() for p in Path(config.out, "diffusion-pipe/videos").glob("*.mp4"))
        patch.setattr(os, "symlink", failing(errno.EPERM))
        notes = write(config, format=("hf",)).warnings
        assert any("7 files copied into" in note for note in notes)
        assert not any("copied" in note for note in write(config, format=("hf",)).warnings)
    assert len(captions_of(config, "hf")) == len(captions_of(config, "diffusion-pipe")) == 7


@pytest.mark.parametrize("place", ["kohya", "clips"])
def test_a_file_in_the_place_of_a_folder_is_one_line(config: CaptionConfig, place: str) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / place).write_text("mine")
    with pytest.raises(EnvironmentFault, match="a file is in its place"):
        write(config)
    assert (Path(config.out) / place).read_text() == "mine"


CIRCLE = TrainerEntry(kind="image", path="a.png", rows=(caption("a red circle"),))


@pytest.mark.parametrize(("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K")])
def test_a_card_says_how_many_rows_there_are(count: int, size: str) -> None:
    card = TRAINERS["hf"].write([CIRCLE] * count, Path("/out"), TrainerSetup())["images/README.md"]
    assert f"size_categories:\n- {size}\n" in card


def test_a_library_that_keeps_what_it_loaded_does_not_take_other_rows_for_it() -> None:
    """`LocalDatasetModuleFactory` in huggingface/datasets src/datasets/load.py keeps rows by the
    last name of the folder and the configuration in the card, and by nothing else."""

    def kept_as(text: str) -> object:
        entry = TrainerEntry(kind="video", path="videos/clip.mp4", rows=(caption(text),))
        card = TRAINERS["hf"].write([entry], Path("/out"), TrainerSetup())["videos/README.md"]
        return yaml.safe_load(card.split("---")[1])["configs"]

    assert kept_as("a dog") != kept_as("a cat")
    assert kept_as("a dog") == kept_as("a dog")


def test_a_control_character_in_a_folder_s_name_is_escaped() -> None:
    toml = TRAINERS["kohya"].write([CIRCLE], Path("/a\x7fb"), TrainerSetup())["dataset.toml"]
    assert repr("/a\x7fb/")[1:-1] in str(tomllib.loads(toml))


def test_a_clip_is_a_file_of_the_folder_and_of_nowhere_else(tmp_path: Path) -> None:
    """Otherwise a private file would get into a data set, which people publish."""
    private, folder = tmp_path / "private", tmp_path / "out" / "clips"
    private.write_text("key")
    folder.mkdir(parents=True)
    (folder / "a-00001.mp4").symlink_to(private)
    (folder / "b-00001.mp4").write_text("cut by a user")
    for suffix in (".txt", ".npz", ".safetensors"):  # a caption beside it, and latents of trainers
        (folder / f"b-00001{suffix}").write_text("no clip")
    (folder / "index.json").write_text(json.dumps({"clips": {"c-00001": {"file": str(private)}}}))
    clips = Clips.__new__(Clips)  # needs no job to look at its folder
    clips.folder = folder
    clips._index = _read_index(folder / "index.json")
    assert clips._present() == {"b-00001": "b-00001.mp4"}
    assert clips._clip_path("c-00001") == folder / "private"


def test_an_index_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    assert _read_index(tmp_path / "index.json") == {}
    assert read_index(tmp_path) == []


@pytest.mark.slow
def test_clips_that_a_stopped_run_finished_are_taken_over(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, sources=(str(Path(config.sources[0], LONG)),))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:stop")
        write(config, format=("musubi",))
    assert not clips_in(config)
    stages = Saying()
    write(config, stages, format=("musubi",))
    (call,) = (call for call in stages.calls if call.name == "cut")
    assert len(job_fields(call.job)["cuts"]) == 2 and len(captions_of(config, "musubi")) == 3
    other = replace(config, out=f"{config.out}-2")
    write(other, format=("musubi",))  # never stopped
    assert clips_in(other) == clips_in(config)


@pytest.mark.slow
def test_a_run_that_names_no_mode_of_media_keeps_that_of_its_folder(config: CaptionConfig) -> None:
    write(config, media="original")
    before = stats(config)
    write(config, prompt="Other?")
    media = [name for name in before if Path(name).suffix in (".mp4", ".mkv", ".png", ".webp")]
    assert {name: stats(config)[name] for name in media} == {name: before[name] for name in media}
    write(config, media="exact")
    for path in (p for p in READERS["musubi"](Path(config.out)) if p.endswith(".mp4")):
        with av.open(path) as container:
            stream = container.streams.video[0]
            assert stream.frames == len([*container.decode(stream)])


def sounding(config: CaptionConfig, name: str) -> dict[str, bool]:
    """Number of each chunk of the long video → whether a trainer's file of it has sound."""
    found = {}
    for path in READERS[name](Path(config.out)):
        if Path(path).name.startswith("long-"):
            with av.open(path) as container:
                found[Path(path).stem[-5:]] = bool(container.streams.audio)
    return found


@pytest.mark.slow
def test_clips_have_sound_if_a_trainer_reads_it_and_edited_ones_stay(tmp_path: Path) -> None:
    config = make(tmp_path)
    write_video(Path(config.sources[0], LONG), ticks=range(150), gop=25, audio=True)
    write(config, format=("hf",))
    assert {*sounding(config, "hf").values()} == {False}
    edited = next((Path(config.out) / "clips").glob("long-*-00001.mp4"))
    edited.rename(other := edited.with_suffix(".old"))  # as an editor does
    edited.write_bytes(content := other.read_bytes() + b"#")
    other.unlink()
    notes = write(config, format=("hf", "ltx", "musubi")).warnings
    for name in ("hf", "ltx", "musubi"):
        assert sounding(config, name) == {"00000": True, "00001": False, "00002": True}, name
    assert any(edited.name in note for note in notes if "edited by you" in note)
    assert edited.read_bytes() == content
    stages = Saying()
    write(config, stages, prompt="Other?", format=())
    assert "cut" not in stages.names() and sounding(config, "ltx")["00000"]
    write(config, clip_sound="none", existing="replace")
    assert {*sounding(config, "musubi").values()} == {False}
    stages = Saying()
    write(config, stages, prompt="And now?")
    assert "cut" not in stages.names() and not sounding(config, "ltx")["00000"]


@pytest.mark.slow
def test_a_model_that_hears_nothing_leaves_the_track_to_clips(tmp_path: Path) -> None:
    config = make(tmp_path)
    write_video(Path(config.sources[0], LONG), ticks=range(150), gop=25, audio=True)
    write(config, format=("ltx",), sound_track=1)
    assert any(sounding(config, "ltx").values())
    write(config, format=("ltx",), sound_track=2)
    assert not any(sounding(config, "ltx").values())  # the file has one track
    with pytest.raises(UsageError, match="hears nothing") as refused:
        write(config, format=("hf",), sound_track=2)
    assert "For the sound of clips, name --format ltx or musubi" in str(refused.value)


def test_clips_without_any_sound_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path)
    write_video(Path(config.sources[0], LONG), ticks=range(150), gop=25, audio=True)

    def refuse_sound(*_: object) -> None:
        raise MediaError("it is broken", kind="no-sound")

    monkeypatch.setattr("stages.frames.clip_sound.SoundPart.measure", refuse_sound)
    for _ in range(2):
        notes = write(config, format=("ltx", "webdataset")).warnings
        assert "3 clips for trainers without the sound of the video (it is broken)" in notes
    assert sounding(config, "ltx") == {"00000": False, "00001": False, "00002": False}
