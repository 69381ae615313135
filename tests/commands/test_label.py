"""`penstock label`: labels as people give them, and of pictures and frames by vectors that are made
once; killed in each stage, planned, shown, rebuilt; by the dual encoder of the demo, too."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.errors import UsageError
from flows.commands.label.files import LabelsWritten
from flows.commands.label.label_set import label_set
from flows.core.checkpoint.models import find_checkpoint
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION, EMBED, LABEL, REBUILD, Pipeline
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from tests.support.builders.clip import save_clip
from tests.support.builders.words import hf
from tests.support.described import spare_processes
from tests.support.embedding import items, write_images
from tests.support.media import flip_bits, write_video
from tests.support.pipeline import Place, kill_at, read_lines


def test_labels_in_line_stand_in_the_template() -> None:
    found = label_set("a red car, dog")
    assert found.names == ["a red car", "dog"]
    assert found.texts == [["a photo of a red car"], ["a photo of dog"]]


def test_a_file_has_a_label_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("# animals\ncat\n\n dog \n")
    forms = tmp_path / "forms.txt"
    forms.write_text("a {}\na drawing of a {}\n")
    found = label_set(str(path), str(forms))
    assert found.texts == [["a cat", "a drawing of a cat"], ["a dog", "a drawing of a dog"]]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_file_may_say_more_of_a_label(tmp_path: Path, form: str) -> None:
    messages = {
        "animal": None,
        "cat": {"prompts": ["a cat", "a kitten"], "parent": "animal", "threshold": 0.3},
        "indoors": {"group": "place"},
        "outdoors": {"group": "place", "prompts": "in the open"},
    }
    path = tmp_path / f"labels.{form}"
    path.write_text(json.dumps(messages))  # which is YAML, too
    animal, cat, indoors, outdoors = label_set(str(path)).labels
    assert cat.prompts == ("a cat", "a kitten") and cat.parent == "animal" and cat.threshold == 0.3
    assert (indoors.group, outdoors.prompts) == ("place", ("in the open",))
    assert animal.prompts == ("a photo of animal",)


NUMBERS = ["007", "010", "0555567", "12:30", "3.10", "1_000", "0x1F", "2020-01-02", "no", "on"]


@pytest.mark.parametrize("form", ["list", "mapping", "prompts"])
def test_what_looks_like_a_number_is_kept_as_it_is_written(tmp_path: Path, form: str) -> None:
    path = tmp_path / "labels.yaml"
    lines = {"list": "- {0}\n", "mapping": "{0}:\n", "prompts": "x{0}: [{0}]\n"}[form]
    path.write_text("".join(lines.format(each) for each in NUMBERS))
    found = label_set(str(path))
    shown = [each.prompts[0] for each in found.labels] if form == "prompts" else found.names
    assert shown == NUMBERS
    (tmp_path / "labels.json").write_text("[3.10, 1e3, -0]")
    assert label_set(str(tmp_path / "labels.json")).names == ["3.10", "1e3", "-0"]


def test_a_table_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    head = "threshold,label,prompts,parent"
    path.write_text(f'{head}\r\n0.3,"red, green",two colours,\r\n,cat,,x\r\n,x,,\n')
    first, cat, _ = label_set(str(path)).labels
    assert (first.name, first.threshold, first.prompts) == ("red, green", 0.3, ("two colours",))
    assert (cat.parent, cat.threshold, cat.prompts) == ("x", None, ("a photo of cat",))
    for text in ('cat\n# none\n"a, b"\n', 'label\ncat\n"a, b"\n'):
        path.write_text(text)
        assert label_set(str(path)).names == ["cat", "a, b"]
    (lines := tmp_path / "labels.txt").write_bytes(b"cat\rdog\r\n# none\nred disk")
    assert label_set(str(lines)).names == ["cat", "dog", "red disk"]


def test_the_digest_is_of_all_that_decides(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    digests = set()
    for text in ("a:\nb:", "a:\nb: {threshold: 0.1}", "a:\nb: {group: g}", "a:\nb: {parent: a}"):
        path.write_text(text)
        digests.add(label_set(str(path)).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("name", "text", "texts"),
    [
        ("labels.txt", "cat\ndog\ncat\n", "'cat' is listed twice"),
        ("labels.txt", "\n# none\n", "no labels in"),
        ("labels.yaml", "cat: {colour: red}", "unknown settings: colour"),
        ("labels.yaml", "cat: {parent: animal}", "ancestor 'animal', which is no label"),
        ("labels.yaml", "a: {parent: b}\nb: {parent: a}", "its own ancestor"),
        ("labels.yaml", "cat: {threshold: 7}", "invalid threshold '7'"),
        ("labels.yaml", "cat: {threshold: high}", "invalid threshold 'high'"),
        ("labels.yaml", "cat: {prompts: ['']}", "empty prompt"),
        ("labels.yaml", "cat: [", "cannot be parsed"),
        ("labels.yaml", "!!python/object/apply:os.getcwd []", "cannot be parsed"),
        ("labels.yaml", "cat: {group: a}\ndog:\ncat: {group: b}", "'cat' is listed twice"),
        ("labels.yaml", "cat: {threshold: 0.1, threshold: 0.2}", "'threshold' is listed twice"),
        ("labels.yaml", "1:\n'1':", "'1' is listed twice"),
        ("labels.yaml", "[cat, dog, cat]", "'cat' is listed twice"),
        ("labels.yaml", "- !!int 007", "entry 1 is 7, no text"),
        ("labels.yaml", "- cat\n- null\n", "entry 2 is null, no text. Quote it"),
        ("labels.yaml", "[cat, dog, ~]", "entry 3 is null, no text. Quote it"),
        ("labels.yaml", "cat:\nnull:\n", "entry 2 is null, no text. Quote it"),
        ("labels.yaml", "- cat\n-\n", "entry 2 is null, no text. Quote it"),
        ("labels.yaml", "- cat: {group: a}", 'entry 1 is {"cat": {"group": "a"}}, no text'),
        ("labels.yaml", "cat: [a, ~]", "label 'cat': a prompt, parent or group is no text. Quote"),
        ("labels.json", '{"cat": null, "cat": {"group": "a"}}', "'cat' is listed twice"),
        ("labels.json", '{"cat": true}', "unknown settings: True"),
        ("labels.json", '["cat", true]', "entry 2 is true, no text"),
        ("labels.csv", "label,group\ncat,a\ncat,b\n", "'cat' is listed twice"),
        ("labels.csv", "id,title\n1,cat\n", "first line names no column label"),
        ("labels.csv", "label;group\ncat;a\n", "first line names no column label"),
        ("labels.csv", "cat\nred, green\n", "line 2 cannot be read: more cells than columns ('g"),
        ("labels.csv", "label,threshold\ncat,high\n", "invalid threshold 'high'"),
        ("labels.csv", "\n", "first line names no column label"),
        ("labels.json", "7", "neither a list of labels"),
        ("labels.json", "{", "cannot be parsed"),
        ("labels.json", '{"\\ud800": {}}', "half of a surrogate pair"),
        ("labels.json", '{"cat": {"prompts": ["a", "\\ud800"]}}', "half of a surrogate pair"),
        ("labels.yaml", 'cat: {group: "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, name: str, text: str, texts: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        label_set(str(tmp_path / name))
    assert texts in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_label_and_no_template_is_refused(tmp_path: Path) -> None:
    for message in ("labels.txt", "", "a,,b", "/no/such/labels.yaml"):
        with pytest.raises(UsageError):
            label_set(message)
    (tmp_path / "forms.txt").write_text("a photo\n")
    with pytest.raises(UsageError, match="has no"):
        label_set("cat", str(tmp_path / "forms.txt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"a {}\0\n", "it holds a NUL byte, as UTF-16 does: save it as UTF-8"),
        (b"a {}\xff\n", "it is not UTF-8 text"),
        (b"# none\n", "no templates found"),
    ],
)
def test_a_file_of_templates_without_templates_is_told_what_it_holds(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "forms.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as error:
        label_set("cat", str(path))
    assert error.value.hint == "Give a file with one template per line, such as: a photo of {}"


def test_long_labels_and_templates_are_cut_in_messages(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "forms.txt").write_text(long)
    for labels, templates in ((f"{long},{long}", ""), (f"{long},", ""), ("cat", "forms.txt")):
        with pytest.raises(UsageError) as error:
            label_set(labels, templates and str(tmp_path / templates))
        assert "x…'" in error.value.message and len(error.value.message) < 400
    cut = LabelsWritten(out=tmp_path, files=1, cut=(long,))
    assert [*cut.notes()] == [f"label texts longer than the model reads, cut: '{'x' * 59}…'"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("fifo", "it is a FIFO, not a file"),
        ("folder", "it is a folder, not a file"),
        ("/dev/null", "it is a device, not a file"),
        *[(value, "No such file") for value in ("-", "/no/such/labels", "./labels", "folder/gone")],
        ("~nobody-here/labels", "home directory"),
    ],
)
def test_a_path_that_is_no_file_is_never_a_label_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=f"--labels {value} cannot be read: .*{reason}"):
        label_set(value)


@pytest.mark.parametrize("value", ["and/or", "folder/a,b", "./a b", "~nobody-here,b", "x" * 9999])
def test_a_text_that_names_no_file_is_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert label_set(value).names == value.split(",")


Said = pytest.CaptureFixture[str]
LABELS = "cat,sky,green"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_examples_whose_cells_have_no_column_are_refused(
    tmp_path: Path, capsys: Said, more: list[str]
) -> None:
    (tmp_path / "e.csv").write_text("media_path,label\np.jpg,cat, sky\n")
    examples = ["--examples", str(tmp_path / "e.csv"), *more]
    assert label(tmp_path, tmp_path / "none", tmp_path, *examples) == 2
    assert "e.csv: line 2 cannot be read: more cells than columns ('sky'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("pictures"))
    write_video(folder / "v.mp4", ticks=range(90))
    return folder


def label(sources: Path, model: Path, place: Path, *more: str, labels: str = LABELS) -> int:
    # The tiny tokenizer writes no end, so that the half reads the first letter alone.
    (place / "templates.txt").write_text("{} in a photo\n")
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    where += ["--templates", str(place / "templates.txt")]
    return main(["label", str(sources), "--model", str(model), "--labels", labels, *where, *more])


def lines(place: Path) -> list[dict[str, Any]]:
    return read_lines(place / "out" / "labels.jsonl")


@pytest.mark.slow
def test_labels_are_those_of_the_whole_model_and_another_set_opens_no_picture(
    pictures: Path, clip: Path, tmp_path: Path, capsys: Said
) -> None:
    assert label(pictures, clip, tmp_path, "--format", "csv,parquet,txt") == 0
    out = tmp_path / "out"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"; view them with `penstock report {out}`") and ".txt: 7 written" in last
    written = {path.name for path in out.iterdir() if path.is_file() and path.suffix != ".txt"}
    unnamed = {name for name in written if not name.startswith(".") and name not in last}
    assert unnamed <= {"failures.jsonl", "run.json"}
    assert items(tmp_path) == {"frames": 7, "embed": 7, "embed_texts": 1}
    found = lines(tmp_path)
    assert [row["time"] for row in found] == [None] * 6 + [0.0, 1.0, 2.0]
    stills = [row for row in found if row["time"] is None]
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(pictures / row["media_path"]) for row in stills]
    messages = [f"{name} in a photo" for name in LABELS.split(",")]
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        inputs = processor(images=images, text=messages, padding=True, return_tensors="pt")
        expected = whole(**inputs).logits_per_image / whole.logit_scale.exp()
    scores = [{one["label"]: one["score"] for one in row["labels"]} for row in stills]
    found_scores = [[each[name] for name in LABELS.split(",")] for each in scores]
    assert np.allclose(found_scores, expected, atol=2e-5)
    for row in found:
        given = [one["label"] for one in row["labels"] if one["passed"]]
        assert given and row["top"] == row["labels"][0]["label"] == given[0]
        assert all(one["why"] for one in row["labels"])
    report = json.loads((out / "label_report.json").read_text())
    assert report["pictures"] == 9 and report["bias"] == 0
    assert len(list(csv.DictReader((out / "labels.csv").read_text().splitlines()))) == 9
    text = (tmp_path / "out" / "p0.txt").read_text()
    assert text.strip().split(", ")[0] == stills[0]["top"]

    assert label(pictures, clip, tmp_path, labels="dog,house") == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 1}
    assert {row["top"] for row in lines(tmp_path)} <= {"dog", "house"}
    assert label(pictures, clip, tmp_path) == 0  # and the first is remembered
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 0}
    assert lines(tmp_path) == found


@pytest.mark.slow
def test_tiles_tell_where_a_label_was_seen(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (300, 420, 3), np.uint8)).save(folder / "large.png")
    Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "small.png")
    assert label(folder, clip, tmp_path, "--tiles", "auto", labels="a,b,c,d,e") == 0
    assert items(tmp_path) == {"frames": 2, "embed": 2, "embed_texts": 1}  # one decoding each
    large, small = lines(tmp_path)
    assert all(one["box"] is None for one in small["labels"])
    assert small["tiles"] == large["tiles"] == "auto"
    for one in large["labels"]:
        if one["box"] is not None:
            left, top, right, bottom = one["box"]
            assert 0 <= left < right <= 420 and 0 <= top < bottom <= 300
    assert label(folder, clip, tmp_path, "--tiles", "auto", labels="f,g") == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 1}


@pytest.mark.slow
def test_damage_is_named_on_its_own_image_or_frames(
    clip: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_processes(monkeypatch)
    folder = tmp_path / "media"
    folder.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "whole.jpg")
    cut = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) * 2 // 3])
    whole = write_video(tmp_path / "whole.mp4", ticks=range(720), size=(96, 128), gop=30)
    flip_bits(whole, folder / "v.mp4", packets=range(600, 628, 3))
    assert label(folder, clip, tmp_path) == 0
    assert "2 of 3 files with warnings (`warnings` in labels.jsonl)" in capsys.readouterr().out
    warned = [row for row in lines(tmp_path) if row["warnings"]]
    assert warned[0]["media_path"] == "cut.jpg" and warned[0]["time"] is None
    assert len(warned) > 1
    for row in warned[1:]:
        assert row["time"] >= 16 and "the first at 20.00 s" in " ".join(row["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embed_texts", "frames", "embed"])
def test_a_run_that_is_killed_in_any_stage_gives_the_same_bytes(
    stage: str, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert label(pictures, clip, whole) == 0
    more = ("--labels", LABELS, "--templates", str(whole / "templates.txt"))
    out, store = tmp_path / "out", tmp_path / "store"
    place = Place(clips=pictures, out=out, store=store, model=str(clip), verb="label")
    assert kill_at(place, stage, 1, "group", *more) != 0
    assert place.run(*more).returncode == 0
    expected, found = (folder / "out" / "labels.jsonl" for folder in (whole, tmp_path))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_the_other_commands_know_labels_by_what_the_stage_declares(
    pictures: Path, clip: Path, tmp_path: Path, capsys: Said
) -> None:
    store, out = ["--store", str(tmp_path / "store")], str(tmp_path / "out")
    plan = ["plan", str(pictures), "--for", "label", "--model", str(clip), *store]
    assert main([*plan, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["memory"]["stages"]
    assert [stage["stage"] for stage in planned] == ["frames", "embed", "embed_texts"]
    assert label(pictures, clip, tmp_path) == 0
    found = {stage["stage"]: stage for stage in planned}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (texts,) = (stage for stage in record["stages"] if stage["name"] == "embed_texts")
    taken = texts["peak_host_bytes"] - texts["notes"]["loaded_bytes"]
    assert 0 < taken <= found["embed_texts"]["peak_bytes"]
    capsys.readouterr()
    assert main(["status", out]) == 0
    assert "embed_texts" in capsys.readouterr().out
    assert main(["report", out]) == 0
    assert main(["cache", "ls", *store]) == 0
    assert "texts" in capsys.readouterr().out
    assert main(["cache", "verify", *store]) == 0
    assert main(["cache", "gc", "--max", "1B", *store]) in (0, 1)
    assert label(pictures, clip, tmp_path) == 0
    assert items(tmp_path)["embed_texts"] == 1


def test_the_demo_model_is_the_one_that_the_pipeline_is_for() -> None:
    def found(*pipelines: Pipeline) -> Path:
        return find_checkpoint(CaptionConfig(sources=(), model="demo"), None, *pipelines).folder

    assert found() == found(CAPTION) == found(REBUILD, EMBED) == CHECKPOINT
    assert found(EMBED) == found(LABEL) == DUAL_CHECKPOINT


@pytest.mark.slow
def test_other_labels_replace_the_texts_and_tables_of_the_first(here: Path, capsys: Said) -> None:
    words = ["label", "videos", "--model", "demo", "--out", "out", "--beside"]
    every = "txt,csv,parquet,coco"
    assert main([*words, "--labels", "orange triangle,orange star", "--format", every]) == 0
    texts = {path.name for path in (here / "videos").glob("*.txt")}
    assert texts, "no clip has a label"
    assert main([*words, "--labels", "green cross", "--format", "txt"]) == 0
    assert "earlier run" not in capsys.readouterr().out
    kept = {path.read_text().strip() for path in (here / "videos").glob("*.txt")}
    assert kept <= {"green cross"} and len(kept) < len(texts)
    for table in ("labels.csv", "labels.parquet", "labels.coco.json"):
        assert b"orange" not in (here / "out" / table).read_bytes(), table
