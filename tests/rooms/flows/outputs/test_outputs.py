"""What a run writes, read by what its users read it with; the captions alone are made up."""

import csv
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet
import pytest

import flows.core.machine.launch
import flows.outputs.clips
from artifacts.errors import Interrupted, Killed
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from flows.outputs.captions import stale_frames
from flows.outputs.record.run_read import load_record
from flows.outputs.run_result import RunResult
from stages.process.job import job_fields
from tests.support.media import decode_plainly, flip_bits, write_video
from tests.support.reports import status_of
from tests.support.saying import ALL, LONG, ODD, Saying, lines, make, run, samples
from tests.support.stand_ins import config_in

# The library leaves its shards open.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


@pytest.fixture
def clips(config: CaptionConfig) -> Path:
    return Path(config.sources[0])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """What was captioned once, to be looked at."""
    config = make(tmp_path_factory.mktemp("outputs"))
    assert run(config).warnings == []
    return config


@pytest.mark.slow
def test_each_format_says_what_the_lines_say(done: CaptionConfig) -> None:
    import pandas

    rows = lines(done)
    chunks = [(ODD, 0.0), (LONG, 0.0), (LONG, 2.0), (LONG, 4.0), ("photo.PNG", 0.0)]
    assert [(row["media_path"], row["start"]) for row in rows] == chunks
    out = Path(done.out)
    table = pandas.read_parquet(out / "captions.parquet")
    assert list(table["caption"]) == [row["caption"] for row in rows]
    text = pandas.read_csv(out / "captions.csv", keep_default_na=False)
    assert list(text["caption"]) == [row["caption"] for row in rows]
    texts = [" ".join(row["caption"].split()) for row in rows]
    assert (out / "long.txt").read_text().splitlines() == texts[1:4]
    assert (out / f"{ODD[:-4]}.srt").read_text().splitlines()[2] == texts[0]
    assert "00:00:02.000 --> 00:00:04.000" in (out / "long.vtt").read_text()
    assert (out / "photo.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:00,001\n")


def test_the_webdataset_library_reads_every_sample(done: CaptionConfig) -> None:
    rows, found = lines(done), samples(done)
    assert len({sample["__key__"] for sample in found}) == len(rows)
    for row, sample in zip(rows, found, strict=True):
        assert sample["txt"] == row["caption"]
        assert sample["json"].pop("media_start") >= 0.0
        assert sample["json"].pop("clip")
        assert sample["json"] == row
    assert found[0]["mp4"] == Path(done.sources[0], ODD).read_bytes()
    assert found[4]["png"].size == (64, 48)


def test_a_chunk_of_a_video_comes_with_its_pictures(done: CaptionConfig) -> None:
    whole = decode_plainly(Path(done.sources[0], LONG))
    for sample in samples(done)[1:4]:
        row = sample["json"]
        with av.open(io.BytesIO(sample["mp4"]), "r") as container:
            times = [float(f.time) for f in container.decode(video=0) if f.time is not None]
        expected = [f.seconds for f in whole if row["start"] <= f.seconds < row["end"] - 1e-6]
        assert len(expected) >= 30 and row["media_start"] == 0.0
        assert times == pytest.approx([at - expected[0] for at in expected], abs=1e-3)


@pytest.mark.slow
def test_a_run_with_nothing_new_writes_no_shard_and_cuts_nothing(config: CaptionConfig) -> None:
    run(config)
    folder = Path(config.out) / "webdataset"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = Saying()
    run(config, again)
    assert again.names() == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    run(config, again, prompt="Who?")
    assert again.names() == ["decode"]  # the clips are in the old shards
    assert {sample["json"]["prompt"] for sample in samples(config)} == {"Who?"}


@pytest.mark.slow
def test_a_stopped_run_leaves_the_old_shards(
    config: CaptionConfig, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    out, stopped = Path(config.out), Saying()
    before = {path.name: path.read_bytes() for path in (out / "webdataset").iterdir()}
    stopped.stop_after["decode"] = 2
    with pytest.raises(Interrupted):
        run(config, stopped, prompt="Who?")
    assert len(lines(config)) == 2
    assert pyarrow.parquet.read_table(out / "captions.parquet").num_rows == 2
    assert (out / "captions.csv").read_text().count("Who?,") == 2
    write_video(clips / "new.mp4", ticks=range(150), gop=25)
    monkeypatch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:stop")
    with pytest.raises(Interrupted, match="SIGTERM"):  # while clips are cut
        run(config, prompt="Who?")
    shards = {path.name: path for path in (out / "webdataset").iterdir() if path.is_file()}
    assert {name: path.read_bytes() for name, path in shards.items()} == before
    assert {row["prompt"] for row in lines(config)} == {"Who?"}
    assert load_record(out).state == "interrupted"


@pytest.mark.slow
def test_a_process_that_dies_of_a_file_costs_that_file_s_clips_alone(
    config: CaptionConfig, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(clips / "deadly.mp4", ticks=range(150), gop=20)
    monkeypatch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:run")
    stages = Saying()
    result = run(config, stages)
    assert result.exit_code == 0
    assert stages.names()[-2:] == ["cut", "cut"]
    (warning,) = result.warnings
    assert warning.startswith("2 webdataset samples have no media") and "deadly.mp4" in warning
    found = {(s["json"]["media_path"], s["json"]["start"]): s for s in samples(config)}
    assert len(found) == 8
    bare = [key for key, sample in found.items() if sample["json"]["media_start"] is None]
    assert bare == [("deadly.mp4", 2.0), ("deadly.mp4", 4.0)]
    assert all("mp4" in sample for (name, _), sample in found.items() if name == LONG)
    again = run(config, stages)
    assert [w[:38] for w in again.warnings] == [warning[:38]]
    assert stages.names()[-2:] == ["cut", "cut"] and stages.names().count("cut") == 2


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_with_the_clips_that_are_left(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(flows.core.machine.launch.ENTRIES, "cut", "tests.support.crashing:killed")
    stages = Saying()
    result = run(config, stages)
    assert (result.exit_code, result.warnings) == (0, [])
    assert stages.names().count("cut") == 5  # two of them look at whole files
    assert all("mp4" in s for s in samples(config) if s["json"]["media_path"] == LONG)


@pytest.mark.slow
def test_one_that_is_killed_again_and_again_leaves_a_run_that_can_be_resumed(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Saying()
    killing = "tests.support.crashing:killed_at_once"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setitem(flows.core.machine.launch.ENTRIES, "cut", killing)
        run(config, stages)
    assert stages.names().count("cut") == 3
    assert run(config, stages).warnings == []
    assert len(samples(config)) == len(lines(config))


@pytest.mark.slow
def test_clips_cut_at_a_time(
    config: CaptionConfig, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_video(clips / f"more-{number}.mp4", ticks=range(75), gop=20 + number)
    monkeypatch.setattr(flows.outputs.clips, "SHARD_BYTES", (clips / LONG).stat().st_size - 1)
    stages = Saying()
    run(config, stages)
    messages = [job_fields(c.job)["cuts"] for c in stages.calls if c.name == "cut"]
    cut = [[Path(c.path).name[:6] for c in cuts if not c.whole] for cuts in messages]
    more = [["more-0", "more-0", "more-1", "more-1"], ["more-2", "more-2"]]
    assert [names for names in cut if names] == [[LONG[:6]] * 3, *more]
    rows = [s["json"] | {"media_start": 0, "clip": ""} for s in samples(config)]
    assert rows == [row | {"media_start": 0, "clip": ""} for row in lines(config)]


def test_files_beside_are_kept_in_every_format(config: CaptionConfig, clips: Path) -> None:
    (mine := clips / "long.srt").write_text("by hand\n")
    (clips / "photo.vtt").mkdir()
    config = replace(config, format=("txt", "vtt", "srt"))
    kept = run(config, beside=True).warnings
    assert [".vtt" in kept[0], ".srt" in kept[1], len(kept)] == [True, True, 2]
    assert mine.read_text() == "by hand\n"
    run(config, beside=True, overwrite=True)
    assert mine.read_text().startswith("1\n00:00:00,000 --> ")


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_longest_names_have_texts(
    config: CaptionConfig, clips: Path, tmp_path: Path, beside: bool
) -> None:
    names = ["ü" * 126 + ".ts", "🐦" * 63 + "m.x", "x" * 251 + ".mp4", "y" * 252 + ".ts", "z" * 255]
    for number, name in enumerate(names):
        (clips / name).write_bytes((clips / ODD).read_bytes() + bytes(number))
    result = run(config, sources=tuple(str(clips / name) for name in names), beside=beside)
    assert (result.captions, result.failures) == (5, [])
    folder = clips if beside else tmp_path / "out"
    for suffix in ("txt", "vtt", "srt"):
        assert len(list(folder.glob(f"*.{suffix}"))) == 5
    assert [sample["json"]["media_path"] for sample in samples(config)] == names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["..mp4", ".hidden.mp4", "a\nb.mp4"])
def test_no_name_leads_out(config: CaptionConfig, clips: Path, tmp_path: Path, name: str) -> None:
    os.rename(clips / ODD, clips / name)
    outside = set(tmp_path.iterdir())
    run(config, sources=(str(clips / name),))
    assert set(tmp_path.iterdir()) - outside == {tmp_path / "out", tmp_path / "store"}
    assert [path.parent for path in tmp_path.rglob("*.txt")] == [tmp_path / "out"]
    with tarfile.open(tmp_path / "out" / "webdataset" / "000000.tar") as tar:
        assert all("/" not in member and member.count(".") == 1 for member in tar.getnames())


TEXTS = ("txt", "vtt", "srt")
TABLES = ("csv", "parquet")


def status(config: CaptionConfig) -> str:
    return status_of(Path(config.out))


def prompts_said(config: CaptionConfig) -> dict[str, set[str]]:
    """Output → the first word of each prompt that its captions are of."""
    out = Path(config.out)
    table = (out / "captions.csv").read_text().splitlines(keepends=True)
    tables = {
        "jsonl": [row["prompt"] for row in lines(config)],
        "csv": [row["prompt"] for row in csv.DictReader(table)],
        "parquet": pyarrow.parquet.read_table(out / "captions.parquet")["prompt"].to_pylist(),
        "webdataset": [sample["json"]["prompt"] for sample in samples(config)],
    }
    found = {name: set(prompts) for name, prompts in tables.items()}
    for form in TEXTS:
        texts = [path.read_text() for path in out.glob(f"*.{form}")]
        assert len(texts) == 3
        found[form] = {p for p in ("First?", "Second?") for text in texts if p in text}
    return found


@pytest.mark.slow
def test_a_second_prompt_leaves_no_format_stale(config: CaptionConfig) -> None:
    run(config, prompt="First?")
    result = run(config, prompt="Second?", format=())
    text = prompts_said(config)
    fresh = {name for name, prompts in text.items() if prompts == {"Second?"}}
    assert fresh == set(text) - {"webdataset"}
    assert result.written.earlier == ["webdataset"]
    assert any("from an earlier run: webdataset" in note for note in result.warnings)
    assert "webdataset (from an earlier run)" in status(config)
    assert result.line().count("3 written") == 3 == status(config).count("3 written")
    assert run(config, prompt="Second?", format=("webdataset",)).written.earlier == []
    assert "from an earlier run" not in status(config)
    assert prompts_said(config)["webdataset"] == {"Second?"}


def test_idle_stages_are_named(config: CaptionConfig, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(prompt: str) -> str:
        caption(replace(config, prompt=prompt, format=()), Display(), Saying().launcher)
        return capsys.readouterr().err

    assert "nothing to do" not in printed("First?")
    assert "encoding: nothing to do, all of it is stored" in printed("Second?")
    assert "to do" not in printed("Second?")
    written = {path.name for path in Path(config.out).iterdir()}
    always = {".penstock.json", "captions.jsonl", "failures.jsonl", "media.jsonl", "run.json"}
    assert written - {"logs"} == always | {".lock"}, "formats that were never asked for"


def test_tables_that_are_not_ours_are_named_and_left(config: CaptionConfig) -> None:
    out = Path(config.out)
    run(config, format=TABLES, prompt="First?")
    (out / "captions.csv").write_text("mine\n")
    assert run(config, format=(), prompt="Second?").written.earlier == ["csv"]
    assert (out / "captions.csv").read_text() == "mine\n"
    assert "captions.csv (from an earlier run)" in status(config)
    (out / "captions.csv").unlink()
    assert run(config, format=("csv",), prompt="Second?").written.earlier == []
    assert (out / "captions.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_through_three_prompts_nothing_of_a_person_s_is_lost(
    config: CaptionConfig, clips: Path, tmp_path: Path, beside: bool
) -> None:
    """One text was there before, one is edited after the first prompt, one is ours throughout."""
    (folder := clips if beside else tmp_path / "out").mkdir(exist_ok=True)
    hand, edited, own = (folder / f"{Path(name).stem}.txt" for name in (ODD, LONG, "photo.PNG"))
    hand.write_text("by hand\n")
    results: list[RunResult] = []
    for prompt in ("First?", "Second?", "Third?"):
        results.append(run(config, prompt=prompt, format=TEXTS, beside=beside))
        assert own.read_text().startswith(prompt)
        if prompt == "First?":
            edited.write_text(edited.read_text() + "and more\n")
    assert hand.read_text() == "by hand\n"
    assert edited.read_text().startswith("First?") and edited.read_text().endswith("and more\n")
    text = next(texts for texts in results[2].written.texts if texts.form == "txt")
    assert (text.written, sorted(text.kept)) == (1, sorted((hand.name, edited.name)))
    message = "1 written, 2 edited by users kept"
    assert message in results[2].line() and message in status(config)
    assert load_record(tmp_path / "out").texts[0] == text.record
    assert any("--overwrite" in note and hand.name in note for note in results[2].warnings)
    run(config, prompt="Third?", format=("txt",), beside=beside, overwrite=True)
    assert all(path.read_text().startswith("Third?") for path in (hand, edited, own))


def test_texts_beside_not_asked_for_again_are_named(config: CaptionConfig, clips: Path) -> None:
    run(config, prompt="First?", format=("txt",), beside=True)
    assert run(config, prompt="First?", format=()).warnings == []
    result = run(config, prompt="Second?", format=())
    assert any("from an earlier run: 3 .txt files beside the media" in w for w in result.warnings)
    assert "beside the media: 3 from an earlier run" in result.line()
    assert (clips / "photo.txt").read_text().startswith("First?")


def test_texts_about_other_files_are_counted(config: CaptionConfig) -> None:
    run(config, prompt="First?", format=("txt",))
    result = run(config, prompt="Second?", format=("txt",), limit=1)
    assert [texts.written for texts in result.written.texts] == [1]
    (texts,) = result.written.texts
    assert [Path(config.out, name).exists() for name in texts.others] == [True, True]
    named = f"not from this run: 2 .txt files in the same folder ({', '.join(texts.others)})"
    assert named in result.warnings


@pytest.mark.slow
def test_a_run_that_is_broken_off_says_what_is_of_an_earlier_one(config: CaptionConfig) -> None:
    run(config, prompt="First?", format=ALL)
    stopped = Saying()
    stopped.stop_after["decode"] = 1
    with pytest.raises(Interrupted):
        run(config, stopped, prompt="Second?", format=("txt",), batch_size=1)
    message = status(config)
    assert "from an earlier run" in message.split(".txt: ")[1].split("\n")[0]
    assert "webdataset (from an earlier run)" in message
    assert {row["prompt"] for row in lines(config)} == {"Second?"}


def test_what_lies_there_when_a_run_begins_is_of_an_earlier_one(config: CaptionConfig) -> None:
    run(config, prompt="First?", format=TABLES)

    class Looking(Saying):
        def _make(self, call: Any, outcome: Any) -> None:
            assert "captions.jsonl (from an earlier run)" in status(config)
            assert "captions.csv (from an earlier run)" in status(config)
            super()._make(call, outcome)

    run(config, Looking(), prompt="Second?", format=TABLES)
    assert "earlier" not in status(config)


def test_a_chunk_without_a_frame_of_its_own_is_named() -> None:
    damaged: tuple[str, ...] = ("15 decoded frames damaged",)
    note = "no frame of its own can be decoded: the model saw that of 453.84 s"
    for times, warnings, expected in (
        *(((453.84,), damaged, [note]), ((453.84, 465.0), damaged, [])),
        *(((459.5,), damaged, []), ((453.84,), (), [])),
    ):
        size: dict[str, Any] = {"height": 16, "width": 16}
        chunk = ChunkIndex(index=46, start=460.0, end=470.0, times=times, **size)
        index = MediaIndex(kind="video", duration=900.0, chunks=(chunk,), warnings=warnings, **size)
        assert [*stale_frames(index, chunk)] == expected, (times, warnings)


def test_damage_is_named_on_its_own_chunk_alone(tmp_path: Path) -> None:
    (folder := tmp_path / "clips").mkdir()
    whole = write_video(tmp_path / "whole.mp4", ticks=range(240), size=(96, 128), gop=30)
    flip_bits(whole, folder / "a.mp4", packets=range(60, 118, 3))
    config = config_in(tmp_path, folder, chunk=2.0)
    assert run(config).warned == 1
    rows = {row["start"]: " ".join(row["warnings"]) for row in lines(config)}
    assert [start for start, text in rows.items() if "damaged" in text] == [2.0], rows
    assert "the first at 2.00 s" in rows[2.0]
