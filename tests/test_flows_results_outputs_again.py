"""A second prompt into a folder that has the outputs of a first: nothing of a person's is lost, and
nothing says what is no longer said; the captions are made up."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from artifacts.errors import Interrupted, UsageError
from flows.cli.status_command import lines as status_lines
from flows.job.config import CaptionConfig
from flows.results.run_read import load_record
from flows.results.run_result import RunResult
from flows.results.status import stages_of
from tests.support.saying import ALL, LONG, ODD, Saying, lines, make, run, samples

# The library leaves its shards open.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
TEXTS = ("txt", "vtt", "srt")
TABLES = ("csv", "parquet")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


@pytest.fixture
def clips(config: CaptionConfig) -> Path:
    return Path(config.sources[0])


def status(config: CaptionConfig) -> str:
    """What `penstock status` says of the last run."""
    record = load_record(Path(config.out))
    return "\n".join(status_lines(record, stages_of(record, 0.0)))


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


def test_a_second_prompt_leaves_no_format_stale(config: CaptionConfig) -> None:
    run(config, prompt="First?")
    result = run(config, prompt="Second?", format=())
    said = prompts_said(config)
    assert {name for name, prompts in said.items() if prompts == {"Second?"}} == set(said) - {
        "webdataset"
    }
    assert result.written.earlier == ["webdataset"]
    assert any("of an earlier run: webdataset" in note for note in result.warnings)
    assert "webdataset (of an earlier run)" in status(config)
    assert result.line().count("3 written") == 3 == status(config).count("3 written")
    again = run(config, prompt="Second?", format=("webdataset",))
    assert again.written.earlier == []
    assert "earlier" not in status(config)
    assert prompts_said(config)["webdataset"] == {"Second?"}


def test_formats_that_were_never_asked_for_are_not_written(config: CaptionConfig) -> None:
    run(config, format=())
    run(config, prompt="Second?", format=())
    written = {path.name for path in Path(config.out).iterdir()}
    always = {"captions.jsonl", "failures.jsonl", "media.jsonl", "run.json", ".lock"}
    assert written - {"logs"} == always


def test_tables_that_are_not_ours_are_named_and_left(config: CaptionConfig) -> None:
    out = Path(config.out)
    run(config, format=TABLES, prompt="First?")
    (out / "captions.csv").write_text("mine\n")
    result = run(config, format=(), prompt="Second?")
    assert result.written.earlier == ["csv"]
    assert (out / "captions.csv").read_text() == "mine\n"
    assert "captions.csv (of an earlier run)" in status(config)
    with pytest.raises(UsageError, match=r"captions\.csv is there already"):
        run(config, format=("csv",), prompt="Second?")
    assert (out / "captions.csv").read_text() == "mine\n"
    (out / "captions.csv").unlink()
    assert run(config, format=("csv",), prompt="Second?").written.earlier == []
    assert (out / "captions.csv").is_file()


@pytest.mark.parametrize("beside", [False, True])
def test_through_three_prompts_nothing_of_a_person_s_is_lost(
    config: CaptionConfig, clips: Path, tmp_path: Path, beside: bool
) -> None:
    """One text was there before, one is edited after the first prompt, one is ours throughout."""
    folder = clips if beside else tmp_path / "out"
    folder.mkdir(exist_ok=True)
    hand, edited, own = (folder / f"{Path(name).stem}.txt" for name in (ODD, LONG, "photo.PNG"))
    hand.write_text("by hand\n")
    results: list[RunResult] = []
    for prompt in ("First?", "Second?", "Third?"):
        results.append(run(config, prompt=prompt, format=ALL, beside=beside))
        assert own.read_text().startswith(prompt)
        if prompt == "First?":
            edited.write_text(edited.read_text() + "and more\n")
    assert hand.read_text() == "by hand\n"
    assert edited.read_text().startswith("First?") and edited.read_text().endswith("and more\n")
    text = next(texts for texts in results[2].written.texts if texts.form == "txt")
    assert (text.written, sorted(text.kept)) == (1, sorted((hand.name, edited.name)))
    told = "1 written, 2 kept as people made them"
    assert told in results[2].line() and told in status(config)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["texts"][0] == text.to_json()
    assert any("--overwrite" in note and hand.name in note for note in results[2].warnings)
    run(config, prompt="Third?", format=("txt",), beside=beside, overwrite=True)
    assert all(path.read_text().startswith("Third?") for path in (hand, edited, own))


def test_texts_beside_are_ours_whatever_the_folder_of_the_run_and_theirs(
    config: CaptionConfig, clips: Path, tmp_path: Path
) -> None:
    run(config, prompt="First?", format=("txt",), beside=True)
    moved = clips.rename(tmp_path / "moved")
    elsewhere = replace(config, sources=(str(moved),), out=str(tmp_path / "other"))
    result = run(elsewhere, prompt="Second?", format=("txt",), beside=True)
    assert [texts.kept for texts in result.written.texts] == [[]]
    assert (moved / "photo.txt").read_text().startswith("Second?")


def test_texts_beside_that_are_not_asked_for_again_are_named(
    config: CaptionConfig, clips: Path
) -> None:
    run(config, prompt="First?", format=("txt",), beside=True)
    assert run(config, prompt="First?", format=()).warnings == []
    result = run(config, prompt="Second?", format=())
    assert any("of an earlier run: 3 .txt files beside the media" in w for w in result.warnings)
    assert "beside the media: 3 of an earlier run" in result.line()
    assert (clips / "photo.txt").read_text().startswith("First?")


def test_texts_about_other_files_are_counted(config: CaptionConfig) -> None:
    run(config, prompt="First?", format=("txt",))
    result = run(config, prompt="Second?", format=("txt",), limit=1)
    assert [(texts.written, texts.others) for texts in result.written.texts] == [(1, 2)]
    assert any("about nothing in this run: 2 .txt files" in note for note in result.warnings)


def test_a_run_that_is_broken_off_says_what_is_of_an_earlier_one(config: CaptionConfig) -> None:
    run(config, prompt="First?", format=ALL)
    stopped = Saying()
    stopped.stop_after["decode"] = 1
    with pytest.raises(Interrupted):
        run(config, stopped, prompt="Second?", format=("txt",), batch_size=1)
    told = status(config)
    assert "of an earlier run" in told.split(".txt: ")[1].split("\n")[0]
    assert "webdataset (of an earlier run)" in told
    assert {row["prompt"] for row in lines(config)} == {"Second?"}


def test_what_lies_there_when_a_run_begins_is_of_an_earlier_one(config: CaptionConfig) -> None:
    run(config, prompt="First?")

    class Killed(Saying):
        def _make(self, call: Any, outcome: Any) -> None:
            assert "captions.jsonl (of an earlier run)" in status(config)
            assert "captions.csv (of an earlier run)" in status(config)
            super()._make(call, outcome)

    run(config, Killed(), prompt="Second?")
    assert "earlier" not in status(config)
