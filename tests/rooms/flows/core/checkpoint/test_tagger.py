"""Declarations of taggers that are refused, each in one line that names the file and what is wrong;
what may stand in them instead."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from artifacts.errors import UsageError
from flows.core.checkpoint.tagger import KAOMOJI, read_tagger
from flows.interfaces.cli.main import main
from tests.support.builders.taggers import (
    SIZE,
    write_graph,
    write_metadata,
    write_selected_tags,
    write_tag_mapping,
)

TEXT = f"""
graph = "model.onnx"

[input]
layout = "NHWC"
order = "BGR"
size = {SIZE}
scale = "0..255"
padding = "before"
resampling = "bicubic"

[output]
activation = "none"

[tags]
file = "selected_tags.csv"
format = "csv"

[categories]
0 = "general"

[thresholds]
general = 0.35
"""
TAGS = [("long_hair", 0), ("^_^", 0), ("rin", 4)]
NHWC: tuple[int | str, ...] = ("N", SIZE, SIZE, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A declaration that fits."""
    write_graph(tmp_path / "model.onnx", NHWC, len(TAGS), sigmoid=True)
    write_selected_tags(tmp_path / "selected_tags.csv", TAGS)
    (tmp_path / "t.toml").write_text(TEXT)
    return tmp_path / "t.toml"


def refusal(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_tagger(str(file))
    message = str(caught.value)
    assert "\n" not in message and caught.value.hint
    return message.replace(f"{file.parent}/", "")


def test_what_fits_is_read(file: Path) -> None:
    tagger = read_tagger(str(file))
    assert tagger.tags == ("long hair", "^_^", "rin")
    assert tagger.categories == ("general", "general", "4")
    assert (tagger.dtype, tagger.rows(8), tagger.weight_files) == ("float32", 8, ("model.onnx",))
    file.write_text(TEXT.replace('format = "csv"', 'format = "csv"\nunderscores = "keep"'))
    assert read_tagger(str(file)).tags[0] == "long_hair"
    assert len(KAOMOJI) == 19


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("size = 16", "size = 16\npadd = 1", "t.toml: [input] unknown key padd. Known are layout"),
        ('graph = "model.onnx"', 'graf = "m"', "t.toml: unknown key graf. Known are graph, input"),
        ("size = 16\n", "", "t.toml: [input] size is missing. docs/taggers.md"),
        ('graph = "model.onnx"', "", "t.toml: graph is missing"),
        ("[output]\nactivation", "[outputs]\nactivation", "t.toml: unknown key outputs"),
        ("size = 16", 'size = "16"', "t.toml: input.size: expected whole number, got text"),
        ("size = 16", "size = 0", "t.toml: invalid input.size. Give a number of pixels"),
        (
            "size = 16",
            "size = true",
            "t.toml: input.size: expected whole number, got true or false",
        ),
        ("size = 16", "size = 16\nstd = [1, 0, 1]", "invalid input.std. Give three numbers above"),
        ("size = 16", "size = 16\nmean = [nan, 0, 1]", "invalid input.mean. Give three numbers"),
        (
            "size = 16",
            "size = 16\nmean = [0.5, 0.5]",
            "t.toml: input.mean: expected list of length",
        ),
        ("size = 16", "size = 16\npad_colour = [256, 0, 0]", "invalid input.pad_colour. Give red"),
        ('"BGR"', '"GBR"', 't.toml: [input] unknown order \'GBR\'. Choose from "RGB", "BGR"'),
        ('"0..255"', '"255"', "t.toml: [input] unknown scale '255'. Choose from"),
        ('"none"', '"softmax"', "t.toml: [output] unknown activation 'softmax'. Choose from"),
        ('"NHWC"', '"NCHW"', "t.toml says NCHW 16, but model.onnx takes ?x16x16x3. Set layout"),
        ("size = 16", "size = 448", "t.toml says NHWC 448, but model.onnx takes ?x16x16x3"),
        ('"none"', '"none"\nindex = 2', "says output 2, but model.onnx has 1 output, counted from"),
        ('"none"', '"none"\nindex = -1', "invalid output.index. Give 0 for the first output"),
        (
            "model.onnx",
            "gone.onnx",
            "gone.onnx cannot be read: No such file or directory. Download",
        ),
        ("model.onnx", "selected_tags.csv", "selected_tags.csv cannot be read: "),
        ('"selected_tags.csv"', '"gone.csv"', "gone.csv cannot be read: No such file"),
        ('"csv"', '"json"', 'selected_tags.csv is not of the format "json": '),
        ('"csv"', '"lines"', "selected_tags.csv lists 4 tags, but output 0 of model.onnx has the"),
        (
            "general = 0.35",
            "People = 0.35",
            "no tag has the category People of [thresholds]. Its t",
        ),
        (
            "general = 0.35",
            "general = 35",
            "invalid threshold 35 of general. Give a number from 0.",
        ),
        ("general = 0.35", "general = 0.001", "invalid threshold 0.001 of general"),
        ("general = 0.35", "general = nan", "invalid threshold nan of general"),
        ("general = 0.35", 'general = "first"', "unknown threshold 'first' of general. Give a num"),
        ("general = 0.35", 'general = "own"', 'have no thresholds of their "own". Name their'),
        ("general = 0.35", "general = true", "t.toml: thresholds[...]: expected "),
        ("general = 0.35", "", "t.toml: invalid thresholds. Give a threshold for a category"),
        ("[input]", "[input", "t.toml is not TOML: "),
        ('0 = "general"', "0 = 3", "t.toml: categories[...]: expected text, got whole number"),
        ('graph = "model.onnx"', 'graph = "model.onnx"\ninput = 3', "t.toml is not TOML: "),
    ],
)
def test_a_declaration_that_does_not_hold_is_refused(
    file: Path, old: str, new: str, said: str
) -> None:
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    assert said in refusal(file)


def two_inputs(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda path: write_graph(path, NHWC, 4),
            "lists 3 tags, but output 0 of model.onnx has th",
        ),
        (
            lambda path: write_graph(path, ("N", 3, SIZE, SIZE), 3),
            "t.toml says NHWC 16, but model.onnx takes ?x3x16x16",
        ),
        (lambda path: write_graph(path, (1, 768), 3), "model.onnx takes 1x768"),
        (
            lambda path: write_graph(path, NHWC, 3, dtype=TensorProto.UINT8),
            "takes pictures in neither float32 nor float16 (type 2 of ONNX)",
        ),
        (two_inputs, "model.onnx does not take one input, but 2 (picture, mask)"),
        (lambda path: path.write_bytes(b""), "model.onnx cannot be read"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs"),
            "model.onnx cannot be read: it",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:99]),
            "cannot be read: its end is missing",
        ),
        (lambda path: path.unlink() or path.mkdir(), "model.onnx cannot be read: "),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_by_name(
    file: Path, change: Callable[[Path], object], said: str
) -> None:
    change(file.parent / "model.onnx")
    assert said in refusal(file)


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("json", '{"0": {"tag": "a"}}', "tags is not of the format \"json\": no 'category'"),
        ("json", '{"1": {"tag": "a", "category": "b"}}', "no '0'"),
        ("json", '{"0": {"tag": 7, "category": "b"}}', "a tag or a category is no text"),
        ("json", "[1]", 'tags is not of the format "json"'),
        ("json", "{", 'tags is not of the format "json"'),
        ("metadata", "{}", "no 'dataset_info'"),
        ("csv", "name\na\n", "no 'category'"),
        ("csv", "name,category\na,b,c\n", "line 2 cannot be read"),
        ("csv", "name,category\n,0\n", "tags: a tag is empty"),
        ("csv", "", "tags: it has no tags"),
        ("lines", "a\n\nb", "tags: a tag is empty"),
    ],
)
def test_a_tag_file_of_another_form_is_refused(file: Path, form: str, text: str, said: str) -> None:
    (file.parent / "tags").write_text(text)
    names = TEXT.replace("selected_tags.csv", "tags").replace('"csv"', f'"{form}"')
    file.write_text(names)
    assert said in refusal(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5 0.5", "own.txt: 2 thresholds. Give 3 numbers"),
        ("0.5 0.5 7", "own.txt: invalid threshold 7"),
        ("0.5 0.5 x", "own.txt: could not convert string to float: 'x'"),
    ],
)
def test_thresholds_that_do_not_fit_the_tags_are_refused(file: Path, text: str, said: str) -> None:
    (file.parent / "own.txt").write_text(text)
    file.write_text(TEXT.replace('"csv"', '"csv"\nthresholds = "own.txt"'))
    assert said in refusal(file)


def test_tag_files_of_every_form_say_the_same(file: Path) -> None:
    pairs = [("long_hair", "general"), ("^_^", "general"), ("rin", "character")]
    write_tag_mapping(file.parent / "cl.json", pairs)
    write_metadata(file.parent / "camie.json", pairs)
    shuffled = json.loads((file.parent / "cl.json").read_text())
    (file.parent / "cl.json").write_text(json.dumps(dict(reversed(shuffled.items()))))
    for name, form in (("cl.json", "json"), ("camie.json", "metadata")):
        text = TEXT.replace("selected_tags.csv", name).replace('"csv"', f'"{form}"')
        file.write_text(re.sub(r"\[categories\]\n.*\n", "", text))
        tagger = read_tagger(str(file))
        assert tagger.tags == ("long hair", "^_^", "rin")
        assert tagger.categories == ("general", "general", "character")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--labels", "a,b"], "--labels: not possible with --tagger"),
        (["--model", "demo"], "--model: not possible with --tagger"),
        (["--labels", "a", "--model", "demo"], "--labels, --model: not possible with --tagger"),
        (["--examples", "e.csv"], "--examples: not possible with --tagger"),
        (["--tiles", "auto"], "--tiles: not possible with --tagger"),
        (["--precision", "fp16"], "--precision: not possible with --tagger"),
        (["--threshold", "0.001"], "--threshold 0.001 is too low for a tagger. Give 0.01"),
    ],
)
def test_options_that_a_tagger_has_no_use_for_are_refused(
    file: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["label", str(file.parent), "--tagger", str(file), "--out", str(file.parent / "out")]
    assert main([*words, *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "a"], "--model is missing. Give --model"),
        (["--model", "demo"], "--labels is missing. Give --labels"),
        ([], "--labels is missing"),
        (["--tagger", "gone.toml"], "--tagger gone.toml cannot be read: No such file"),
    ],
)
def test_without_labels_model_or_tagger_the_command_says_what_is_missing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
