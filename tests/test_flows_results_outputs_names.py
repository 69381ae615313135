"""Which files a run writes of which media: two prompts of one file, names that are long or odd,
what is there already; the captions are made up."""

import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from flows.job.config import CaptionConfig
from tests.support.saying import LONG, ODD, Saying, lines, make, run, samples

# The library leaves its shards open.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


@pytest.fixture
def clips(config: CaptionConfig) -> Path:
    return Path(config.sources[0])


def write_list(clips: Path, *entries: Mapping[str, str]) -> tuple[str]:
    (clips / "list.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return (str(clips / "list.jsonl"),)


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_of_which_two_things_are_asked_has_two_of_each(
    config: CaptionConfig, clips: Path, tmp_path: Path, beside: bool
) -> None:
    asked = [{"path": ODD, "prompt": "Who?"}, {"path": ODD, "prompt": "Where?"}, {"path": ODD}]
    stages = Saying()
    run(config, stages, sources=write_list(clips, *asked), prompt="What?", beside=beside)
    assert [row["prompt"] for row in lines(config)] == ["Who?", "Where?", "What?"]
    assert [len(batch) for batch in stages.batches("encode")] == [1]
    folder = clips if beside else tmp_path / "out"
    for suffix in ("txt", "vtt", "srt"):
        texts = [folder / f"{name}.{suffix}" for name in (ODD, f"{ODD}-2", f"{ODD}-3")]
        for text, word in zip(texts, ("Who?", "Where?", "What?"), strict=True):
            assert word in text.read_text()
    assert len({sample["__key__"] for sample in samples(config)}) == 3
    assert (tmp_path / "out" / "captions.csv").is_file()


def test_a_line_s_prompt_that_holds_the_place_of_a_picture_is_refused(
    config: CaptionConfig, clips: Path
) -> None:
    asked = [{"path": LONG}, {"path": ODD, "prompt": "What is <image>?"}]
    with pytest.raises(UsageError, match=r"no\.1") as caught:
        run(config, sources=write_list(clips, *asked))
    assert "<image>" in caught.value.message


def test_files_beside_are_kept_in_every_format(config: CaptionConfig, clips: Path) -> None:
    mine = clips / "long.srt"
    mine.write_text("by hand\n")
    (clips / "photo.vtt").mkdir()
    config = replace(config, format=("txt", "vtt", "srt"))
    kept = run(config, beside=True).warnings
    assert [".vtt" in kept[0], ".srt" in kept[1], len(kept)] == [True, True, 2]
    assert mine.read_text() == "by hand\n"
    run(config, beside=True, overwrite=True)
    assert mine.read_text().startswith("1\n00:00:00,000 --> ")


@pytest.mark.parametrize("beside", [False, True])
def test_the_longest_names_have_every_text(
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


@pytest.mark.parametrize("name", ["..mp4", "...mp4", ".hidden.mp4", "-rf.mp4", "a\nb.mp4"])
def test_no_name_leads_out_of_the_folder(
    config: CaptionConfig, clips: Path, tmp_path: Path, name: str
) -> None:
    os.rename(clips / ODD, clips / name)
    outside = {path for path in tmp_path.iterdir()}
    run(config, sources=(str(clips / name),))
    assert {path for path in tmp_path.iterdir()} - outside == {tmp_path / "out", tmp_path / "store"}
    assert [path.parent for path in tmp_path.rglob("*.txt")] == [tmp_path / "out"]
    with tarfile.open(tmp_path / "out" / "webdataset" / "000000.tar") as tar:
        assert all("/" not in member and member.count(".") == 1 for member in tar.getnames())
