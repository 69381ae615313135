"""The captions that a model is to learn are read in every form that people have them in. What is
wrong with them is told in one line."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from artifacts.errors import UsageError
from artifacts.records.store import open_store
from flows.commands.tune.run import resolve_run
from flows.commands.tune.training_data import Example, examples_in, split
from flows.core.options.commands import CaptionConfig
from flows.core.options.training import TuneConfig
from tests.support.media import write_video
from tests.support.saying import lines, run
from tests.support.stand_ins import config_in

ROWS: list[dict[str, Any]] = [
    {"media_path": "a.mp4", "source": "", "start": 0.0, "end": 4.0, "caption": "one"},
    {"media_path": "a.mp4", "source": "", "start": 4.0, "end": 8.0, "caption": "two,\nlines"},
    {"media_path": "b.png", "source": "", "start": 0.0, "end": 0.0, "caption": "three"},
]


SUFFIXES = ("jsonl", "csv", "parquet")


def written(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def jsonl(folder: Path, *rows: Any) -> str:
    return written(folder / "captions.jsonl", [*rows])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_captions_of_a_run_are_read_from_all_its_tables(tmp_path: Path, suffix: str) -> None:
    found = examples_in(written(tmp_path / f"c.{suffix}", ROWS))
    assert [each.caption for each in found] == ["one", "two,\nlines", "three"]
    assert [each.path for each in found] == [tmp_path / n for n in ("a.mp4", "a.mp4", "b.png")]
    assert (found[1].start, found[1].end) == (4.0, 8.0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_line_separators_that_end_no_row_stay_in_captions(tmp_path: Path, suffix: str) -> None:
    captions = [f"one{mark}two" for mark in "\u2028\u2029\x85\x0b\x0c\x1c"]
    rows = [{**ROWS[0], "start": 4.0 * at, "caption": c} for at, c in enumerate(captions)]
    found = examples_in(written(tmp_path / f"c.{suffix}", rows))
    assert [each.caption for each in found] == captions


def test_a_corrected_caption_counts_as_accepted(tmp_path: Path) -> None:
    one, two, three = ROWS
    accepted, corrected = {**one, "review": "accepted"}, {**two, "original": "model's"}
    undecided, message = [accepted, corrected, {**three, "review": ""}], list[str]()
    found = examples_in(jsonl(tmp_path, *undecided), message.append)
    assert [each.caption for each in found] == ["one", "two,\nlines"]
    assert message == ["training on 2 of 3 captions: those accepted"]
    alone = [one, corrected, three]
    assert [each.caption for each in examples_in(jsonl(tmp_path, *alone))] == ["two,\nlines"]
    rejected = [accepted, {**corrected, "review": "rejected"}, three]
    assert [each.caption for each in examples_in(jsonl(tmp_path, *rejected))] == ["one"]


HF_ROWS: list[dict[str, Any]] = [
    {"file_name": f"clip-{at}.mp4", "text": text, "media_path": "long.mp4", "model": "demo"}
    | {"start": at * 4.0, "end": at * 4.0 + 4}
    for at, text in enumerate(("one", "two"))
]
"""Rows as `--format hf` writes them: clips of a source that lies elsewhere."""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_names_go_before_the_source_of_a_clip(tmp_path: Path, suffix: str) -> None:
    for row in HF_ROWS:
        (tmp_path / row["file_name"]).touch()
    found = examples_in(written(tmp_path / f"metadata.{suffix}", HF_ROWS))
    assert [each.path for each in found] == [tmp_path / row["file_name"] for row in HF_ROWS]
    assert [each.caption for each in found] == ["one", "two"]
    assert {(each.start, each.end) for each in found} == {(None, None)}, "each clip is one chunk"


def test_times_without_a_source_are_those_in_the_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    row = {"file_name": "a.mp4", "text": "one", "start": 4.0, "end": 8.0}
    (found,) = examples_in(jsonl(tmp_path, row))
    assert (found.path, found.start, found.end) == (tmp_path / "a.mp4", 4.0, 8.0)


def test_a_row_whose_file_name_is_not_there_is_found_by_its_source(tmp_path: Path) -> None:
    (media := tmp_path / "media").mkdir()
    (long := media / "long.mp4").touch()
    found = examples_in(jsonl(tmp_path, *({**row, "source": str(media)} for row in HF_ROWS)))
    assert [(each.path, each.start) for each in found] == [(long, 0.0), (long, 4.0)]


def test_a_run_s_source_leads_to_its_files(tmp_path: Path) -> None:
    (media := tmp_path / "media").mkdir()
    (one := tmp_path / "one.mp4").touch()
    rows = [
        {"media_path": name, "source": str(source), "caption": "x"}
        for name, source in (("sub/a.mp4", media), ("one.mp4", one))
    ]
    found = examples_in(jsonl(tmp_path, *rows))
    assert [each.path for each in found] == [media / "sub" / "a.mp4", one]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_prompts_has_an_example_for_each_caption(tmp_path: Path, suffix: str) -> None:
    chunk = {"media_path": "a.mp4", "source": str(tmp_path), "start": 0.0, "end": 4.0}
    texts = {"short": "one", "short_prompt": "What?", "caption_model": "two"}
    rows = [{**chunk, **texts, "model": "demo", "model_prompt": "Which?"}]
    found = examples_in(written(tmp_path / f"captions.{suffix}", rows))
    assert [(each.prompt, each.caption) for each in found] == [("What?", "one"), ("Which?", "two")]
    assert {(each.path, each.end) for each in found} == {(tmp_path / "a.mp4", 4.0)}


def test_paths_of_data_may_lead_upwards(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "data").mkdir()
    found = examples_in(jsonl(tmp_path / "data", {"file_name": "../a.mp4", "text": "one"}))
    assert [each.path for each in found] == [tmp_path / "a.mp4"]


def test_a_dataset_of_hugging_face_and_texts_beside_media_are_read(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "one"}, {"path": "b.mp4", "caption": "two"}]
    found = {each.path.name: each.caption for each in examples_in(jsonl(tmp_path, *rows))}
    assert found == {"a.png": "one", "b.mp4": "two"}
    (folder := tmp_path / "media" / "more").mkdir(parents=True)
    for name in ("c.jpg", "d.mp4", "e.png"):
        (folder / name).touch()
    (folder / "c.txt").write_text("three\n")
    (folder / "d.txt").write_text("\ufefffour")
    found = {each.path.name: each.caption for each in examples_in(str(tmp_path / "media"))}
    assert found == {"c.jpg": "three", "d.mp4": "four"}


def test_texts_beside_media_have_the_names_that_captions_get(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg", "none.mp4", ".hidden.jpg"):
        (tmp_path / name).touch()
    texts = {"a.jpg": "a jpg", "a.png": "a png", "b.jpg": "long name", "b": "short name"}
    texts |= {"c.jpg": " \n", "c": "c", "d": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    message = list[str]()
    found = {each.path.name: each.caption for each in examples_in(str(tmp_path), message.append)}
    assert found == {"a.jpg": "a jpg", "a.png": "a png", "b.jpg": "long name", "c.jpg": "c"}
    assert message == ["left out: 2 files with no words in a .txt (d.jpg, none.mp4)"]


def test_a_folder_may_be_named_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "a.png").touch()
    (tmp_path / "data" / "a.txt").write_text("one")
    monkeypatch.chdir(tmp_path / "here")
    (found,) = examples_in("../data")
    assert found.path == tmp_path / "data" / "a.png"  # as the search for media names it


A = {"path": "a.mp4", "caption": "a"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no captions"),
        ([A | {"caption": "  "}], "line 1 has no caption"),
        ([{"path": "a.mp4"}], "line 1 has no caption"),
        ([{"caption": "a"}], "line 1 has no file"),
        (["a"], "line 1 is no JSON object"),
        ([A | {"caption": "a \ud800"}], "line 1 holds half of a surrogate pair"),
        ([A | {"prompt": "\udc80?"}], "line 1 holds half of a surrogate pair"),
        ([A | {"start": "x"}], "line 1 has a start or an end that is no number"),
        ([A, A | {"caption": "b"}], "line 1 and line 2 are two captions of one item, a.mp4"),
    ],
)
def test_wrong_data_is_told_in_one_line(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        examples_in(jsonl(tmp_path, *rows))
    assert says in str(caught.value) and "\n" not in str(caught.value) and caught.value.hint
    with pytest.raises(UsageError, match="no captions found"):
        examples_in(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("\na.png,a red disk, dark\n", "line 3 cannot be read: more cells than columns ('dark'"),
        ('a.png,"a red\ndisk"\nb.png,x,y\n', "line 4 cannot be read: more cells than columns ('y'"),
        ('a.png,"a red disk\nb.png,a blue one\n', "line 2 cannot be read: "),
        (f"a.png,{'x' * 200_000}\n", "line 2 cannot be read: "),
    ],
)
def test_a_csv_that_would_cut_captions_is_told_of(tmp_path: Path, rows: str, says: str) -> None:
    (data := tmp_path / "data.csv").write_text(f"file_name,text\n{rows}")
    with pytest.raises(UsageError) as caught:
        print([each.caption[:80] for each in examples_in(str(data))])
    advice = "Shorten the cell" if len(rows) > 131_072 else "Quote a cell"
    assert says in str(caught.value) and advice in caught.value.hint
    data.write_text('file_name,text,\na.png,"a red disk, dark",,\n,,\n')
    assert [each.caption for each in examples_in(str(data))] == ["a red disk, dark"]


def test_wrong_options_are_told() -> None:
    for wrong in (
        {"steps": 3, "epochs": 2.0},
        {"lora_rank": 0},
        {"lr": -1.0},
        {"validate": 1.0},
        {"seed": 2**63},
    ):
        with pytest.raises(UsageError):
            TuneConfig(data="d", model="demo", out="o", **wrong)


def test_a_caption_counts_once_for_a_prompt(tmp_path: Path) -> None:
    rows = [A, A, A | {"caption": "b", "prompt": "In one word?"}]
    assert [each.caption for each in examples_in(jsonl(tmp_path, *rows))] == ["a", "b"]


def test_chunks_of_one_medium_are_held_out_together() -> None:
    examples = [
        Example(path=Path(f"/{name}.mp4"), caption=f"{name}{at}", start=float(at), end=at + 1.0)
        for name in "abcdefgh"
        for at in range(3)
    ]
    trained, held = split(examples, 0.25, 0, {})
    assert len(held) == 6 and len(trained) == 18
    assert not {each.path for each in trained} & {each.path for each in held}
    assert split(examples, 0.25, 0, {}) == (trained, held)
    assert split(examples, 0.25, 1, {}) != (trained, held)
    assert split(examples, 0.0, 0, {}) == (examples, [])
    assert split(examples[:3], 0.5, 0, {}) == (examples[:3], [])


def test_one_content_under_two_names_is_held_out_whole() -> None:
    examples = [Example(path=Path(f"/{copy}/{at}"), caption="a") for copy in "ab" for at in "01234"]
    contents = {str(each.path): each.path.name for each in examples}
    parts = split(examples, 0.2, 0, contents)
    sides = [{each.path.name for each in part} for part in parts]
    assert len(sides[1]) == 1 and sides[0] & sides[1] == set()
    alone = [each for each in examples if each.path.parent.name == "a"]
    assert split(alone, 0.2, 0, contents) == split(alone, 0.2, 0, {}), "without doubles as before"


def test_clips_of_one_video_in_a_data_set_are_held_out_together(tmp_path: Path) -> None:
    (folder := tmp_path / "videos").mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", ticks=range(number, number + 75), gop=25)
    config = config_in(tmp_path, folder, chunk=1.0, format=("hf",))
    run(config)
    data = Path(config.out) / "hf" / "videos" / "metadata.jsonl"
    rows = map(json.loads, data.read_text().splitlines())
    video_of = {row["file_name"]: row["media_path"] for row in rows}
    for store in (open_store(config.store), None):
        parts = split(examples_in(str(data), store=store), 0.25, 0, {})
        sides = [{video_of[str(e.path.relative_to(data.parent))] for e in part} for part in parts]
        assert len(video_of) == 12 and sides[0] & sides[1] == set() and len(sides[1]) == 1
        (Path(config.out) / "media.jsonl").unlink(missing_ok=True)  # a data set that was moved


def clips_beside(out: Path, folder: str, captions: dict[str, str]) -> Path:
    """A data set folder with a text beside each clip of a film, by the clip's number."""
    for clip in [path for path in sorted((out / folder).iterdir()) if path.suffix == ".mp4"]:
        film, number = clip.name.split("-")[0], clip.stem.split("-")[2]
        clip.with_suffix(".txt").write_text(captions[f"{film} {int(number)}"])
    return out / folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """A run with two prompts over four films of three chunks and a picture, in all data sets."""
    (folder := (root := tmp_path_factory.mktemp("films")) / "videos").mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", ticks=range(number, number + 75), gop=25)
    Image.new("L", (64, 48), 80).save(folder / "photo.png")
    config = config_in(root, folder, chunk=1.0, prompts=ASKED, prefix="In short: ")
    run(config, format=("hf", "ltx", "musubi", "diffusion-pipe", "kohya"))
    return config


ASKED = {"short": "What is it?", "long": "What happens?"}
SETS = [
    "hf/videos/metadata.jsonl", "ltx/dataset.jsonl", "musubi/videos-30fps.jsonl", "clips",
    "diffusion-pipe/videos", "hf/videos", "ltx/videos",
]  # fmt: skip


@pytest.mark.parametrize("data", SETS)
def test_data_sets_train_a_prompt_and_hold_out_whole_films(films: CaptionConfig, data: str) -> None:
    out, rows = Path(films.out), lines(films)
    films_of = {row["caption"].split(":", 1)[1].strip(): row["media_path"] for row in rows}
    texts = {
        f"{Path(row['media_path']).stem} {int(row['start'])}": row["caption"]
        for row in rows
        if row["name"] == "long"
    }
    place = out / data if data.endswith(".jsonl") else clips_beside(out, data, texts)
    notes = list[str]()
    found = [
        each
        for each in examples_in(str(place), notes.append, open_store(films.store))
        if each.path.suffix == ".mp4"
    ]
    expected = "What happens?" if place.is_dir() else "What is it?"
    assert (len(found), {each.prompt for each in found}, notes) == (12, {expected}, [])
    assert not [each for each in found if each.caption.startswith("In short")]
    film = {" ".join(text.split()): name for text, name in films_of.items()}
    parts = split(found, 0.25, 0, {})
    sides = [{film[" ".join(each.caption.split())] for each in part} for part in parts]
    assert sides[0] & sides[1] == set() and len(sides[1]) == 1, "films on both sides"
    for path in out.rglob("*.txt"):
        path.unlink()


def test_a_corrected_text_of_a_data_set_has_the_prompt_of_its_clip(films: CaptionConfig) -> None:
    data = Path(films.out) / "musubi" / "images.jsonl"
    row = json.loads(data.read_text())
    assert row["image_path"] == str(Path(films.sources[0]) / "photo.png"), "a whole file"
    (again := data.with_name("corrected.jsonl")).write_text(json.dumps({**row, "caption": "mine"}))
    (found,) = examples_in(str(again))
    assert (found.caption, found.prompt) == ("mine", "What is it?")


def test_without_its_run_the_default_prompt_is_told(films: CaptionConfig, tmp_path: Path) -> None:
    shutil.copytree(Path(films.out) / "ltx", tmp_path / "moved")
    message = list[str]()
    found = examples_in(str(tmp_path / "moved" / "dataset.jsonl"), message.append)
    assert {each.prompt for each in found} == {""}
    assert "the default prompt is trained for 13 captions of 13" in "\n".join(message)
    shutil.copytree(Path(films.out) / "hf", tmp_path / "hub")
    metadata = tmp_path / "hub" / "videos" / "metadata.jsonl"
    assert {each.prompt for each in examples_in(str(metadata), message.append)} == {"What is it?"}


def test_a_data_set_trains_captions_that_were_cut_without_an_end(tmp_path: Path) -> None:
    (folder := tmp_path / "pictures").mkdir()
    Image.new("L", (64, 48), 80).save(folder / "a.png")
    config, out = config_in(tmp_path, folder, format=("ltx", "hf")), tmp_path / "out"
    run(config)
    jsonl(out, *({**row, "ended": "length"} for row in lines(config)))
    for data in ("ltx/dataset.jsonl", "hf/images/metadata.jsonl"):
        assert [each.is_cut for each in examples_in(str(out / data))] == [True], data


def test_an_adapter_replaces_no_settings_of_somebody_else(tmp_path: Path) -> None:
    data = jsonl(tmp_path, ROWS[2])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text('{"my": "own"}')
    config = TuneConfig(data=data, model="demo", out=str(tmp_path / "theirs"))
    with pytest.raises(UsageError, match=r"holds other files \(adapter_config.json\)"):
        resolve_run(config)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_captions_that_the_token_limit_cut_have_no_end(tmp_path: Path, suffix: str) -> None:
    row = {"media_path": "a.png", "source": "", "caption": "cut in", "ended": "length"}
    person = {"original": "", "review": ""}
    rows = [
        {**row, "start": float(at), "end": at + 1.0, **person, **more}
        for at, more in enumerate(({}, {"ended": "stop"}, {"original": "x", "caption": "whole"}))
    ]
    message = list[str]()
    data = written(tmp_path / f"captions.{suffix}", rows[:2])
    assert [each.is_cut for each in examples_in(data, message.append)] == [True, False]
    advice = "trained as far as they go, without an end"
    assert message == [f"1 caption of 2 reached the token limit: {advice}"]
    data = written(tmp_path / f"captions.{suffix}", [*rows, {**rows[0], "review": "accepted"}][2:])
    assert not any(each.is_cut for each in examples_in(data))
    named = {"short": "cut in", "short_prompt": "What?", "short_ended": "length"}
    if suffix != "jsonl":
        data = written(tmp_path / f"captions.{suffix}", [{"media_path": "a.png", **named}])
        assert [each.is_cut for each in examples_in(data)] == [True]


AFFIXES = {"trigger": "ohwx", "prefix": "In short:\n", "suffix": " (end)"}


@pytest.fixture
def pictures(tmp_path: Path) -> CaptionConfig:
    """A run over three pictures, with something around every caption."""
    (folder := tmp_path / "pictures").mkdir()
    for level, name in enumerate("abc"):
        Image.new("L", (16, 16), 80 * level).save(folder / f"{name}.png")
    return config_in(tmp_path, folder, **AFFIXES)


def learned(data: Path, store: str) -> list[str]:
    return [each.caption for each in examples_in(str(data), store=open_store(store))]


def test_what_a_run_puts_around_captions_is_not_trained(pictures: CaptionConfig) -> None:
    out, folder = Path(pictures.out), Path(pictures.sources[0])
    run(pictures, format=("csv", "parquet", "hf"))
    own = [line["caption"] for line in lines(pictures)]
    assert all(text.startswith("ohwx, In short:\n") and text.endswith(" (end)") for text in own)
    expected = [text[len("ohwx, In short:\n") : -len(" (end)")] for text in own]
    for file in ("captions.jsonl", "captions.csv", "captions.parquet", "hf/images/metadata.jsonl"):
        found = learned(out / file, pictures.store)
        assert [text.split() for text in found] == [text.split() for text in expected], file
    run(pictures, format=("txt",), beside=True)
    flat = [" ".join(text.split()) for text in expected]
    assert learned(folder, pictures.store) == flat
    (folder / "a.txt").write_text("ohwx, In short: by a person (end)\n")
    (folder / "b.txt").write_text("by a person, ohwx, \n")
    by_person = ["by a person", "by a person, ohwx,", flat[2]]
    assert learned(folder, pictures.store) == by_person
    assert learned(out / "captions.jsonl", pictures.store) == [*by_person[:2], expected[2]]


def test_a_run_without_the_words_takes_them_from_texts_of_media(pictures: CaptionConfig) -> None:
    folder = Path(pictures.sources[0])
    run(pictures, format=("txt",), beside=True)
    run(pictures, format=("txt",), beside=True, trigger="", prefix="ohwx, ", suffix="")
    once = [(folder / f"{name}.txt").read_text().strip().removeprefix("ohwx, ") for name in "abc"]
    assert learned(folder, pictures.store) == once
    run(pictures, format=("txt",), beside=True, trigger="", prefix="", suffix="")
    (folder / "a.txt").write_text("ohwx, by a person")
    assert learned(folder, pictures.store)[0] == "ohwx, by a person", "no run adds it now"


def test_a_list_whose_captions_begin_or_end_alike_is_noted(tmp_path: Path) -> None:
    def notes(*texts: str) -> list[str]:
        message = list[str]()
        rows = [{"path": f"{at}.png", "caption": text} for at, text in enumerate(texts)]
        examples_in(jsonl(tmp_path, *rows), message.append)
        return message

    alike = [f"ohwx, picture {at}" for at in range(20)]
    (note,) = notes(*alike)
    assert note.startswith("20 of 20 captions begin with 'ohwx,', which is trained, too")
    (note,) = notes(*[f"{at} as seen in a film" for at in range(20)])
    assert "captions end with ' seen in a film'" in note
    assert notes(*alike[:19]) == notes(*alike[:18], "a dog", "a cat") == []
    (tmp_path / "run.json").write_text('{"plan": {}}')
    assert notes(*alike) == [], "the run says that it put nothing there"


def test_the_folder_of_a_run_names_its_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").touch()
    with pytest.raises(UsageError, match="holds no captions beside media") as raised:
        examples_in(str(tmp_path))
    assert raised.value.hint == f"Give {tmp_path / 'captions.jsonl'}"
