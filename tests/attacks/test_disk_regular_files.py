"""Every text that a user gives is read whatever editor saved it: with a byte order mark, with line
ends of Windows. UTF-16 and binary files are refused in one line that says what to do."""

import argparse
import codecs
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import PenstockError
from artifacts.options import declared
from artifacts.records.store import FolderStore
from artifacts.remote.endpoints import endpoint_of, keys_from
from artifacts.texts.decisions import read_decisions
from artifacts.texts.edits import read_journal
from flows.commands.export.options import ExportConfig
from flows.commands.label.label_set import label_set
from flows.commands.label.rows import read_examples
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parser
from flows.commands.tune.training_data import examples_in
from flows.core.checkpoint.tagger import read_tagger
from flows.core.ledger.prompts import FilePlaceholders
from flows.core.media.generated_files import HandwrittenTexts
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.sources import find_media
from flows.core.options.answers import questions_in
from flows.core.options.commands import CaptionConfig
from flows.core.options.serving import ServeConfig
from flows.core.options.text import read_schema
from flows.core.options.training import LearnConfig, TuneConfig
from flows.core.options.vectors import LabelConfig
from flows.interfaces.serve.tokens import read_tokens
from flows.interfaces.studio import start_routes
from tests.support.builders.taggers import write_graph, write_selected_tags
from tests.support.pipeline import ROOT

SECRET = "0123456789abcdef" * 4
EDIT = {
    "id": "1", "time": "2026-01-01T00:00:00+00:00", "does": "correct",
    "changes": [
        {
            "of": "key", "media_path": "a.mp4", "start": 0.0, "said": "x",
            "caption": "a red ball", "review": "accepted",
        }
    ],
}  # fmt: skip
Reader = Callable[[Path], Any]
"""Returns what a file says, and raises its error; or returns the notes of a run that goes on."""


def labels(path: Path) -> list[str]:
    return label_set(str(path)).names


def templates(path: Path) -> list[list[str]]:
    return label_set("cat", str(path)).texts


def examples(path: Path) -> dict[str, list[str]]:
    return {image: sorted(n) for image, n in read_examples(str(path), ["red", "blue"]).items()}


def schema(path: Path) -> Any:
    return json.loads(read_schema(str(path)))


def prompt_file(path: Path) -> str | None:
    given = parser().parse_args(["caption", "x.mp4", "--prompt-file", str(path)])
    return config_of(given, CaptionConfig).prompt


def token_file(path: Path) -> str:
    return read_tokens(str(path))[""]


def endpoint_keys(path: Path) -> list[str]:
    path.chmod(0o600)
    urls = ("https://a.example/v1", "https://b.example/v1")
    return [keys_from(str(path)).key(endpoint_of(url)) for url in urls]


def journal(path: Path) -> list[str | None]:
    return [edit.caption for edit in read_journal(path).now.values()]


def sources(path: Path) -> list[Any]:
    for name in ("a.mp4", "b.mp4"):
        (path.parent / name).touch()
    found, failures = find_media([str(path)], Selection(recursive=False, extensions=()))
    if failures:
        raise PenstockError(failures[0].message, hint=failures[0].hint)
    return [(file.path.name, file.prompt) for file in found]


def data(path: Path) -> list[str]:
    for name in ("a.mp4", "b.mp4"):
        (path.parent / name).touch()
    return [example.caption for example in examples_in(str(path))]


def beside(path: Path) -> list[str]:
    (path.parent / "clip.mp4").touch()
    return [example.caption for example in examples_in(str(path.parent))]


def medium(path: Path) -> MediaFile:
    video = path.with_name("clip.mp4")
    return MediaFile(path=video, media_path="clip.mp4", source=str(path.parent), kind="video")


def tags(path: Path) -> str:
    placeholders = FilePlaceholders(FolderStore(path.parent / "store"))
    filled = placeholders.fill("{tags}", medium(path), "d" * 64)
    if notes := placeholders.notes():
        raise PenstockError(*notes, hint="")
    return filled


def handwritten(path: Path) -> str:
    texts = HandwrittenTexts(FolderStore(path.parent / "store"), path.parent / "out")
    found = texts.of([path], "d" * 64, str(path.with_suffix(".png")))
    for note in texts.notes():
        raise PenstockError(note, hint="")
    assert found is not None
    return found[1].strip()


def presets(path: Path) -> list[str]:
    folder = start_routes.preset_folder()
    shutil.rmtree(folder, ignore_errors=True)  # prompts that another test kept
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_bytes(path.read_bytes())
    found = [each["text"] for each in start_routes.presets() if not each["why"]]
    if not found:
        raise PenstockError("left out: it is no text (UTF-8)", hint="")
    return found


def questions(path: Path) -> list[str]:
    return [question.text for question in questions_in(str(path), {})]


def decisions(path: Path) -> list[str]:
    asked = questions_in("", {"a": "Is it?"})
    return [row.answer for row in read_decisions(str(path), asked)]


DECLARED = """graph = "model.onnx"

[input]
layout = "NHWC"
order = "BGR"
size = 16
scale = "0..255"
padding = "before"
resampling = "bicubic"

[output]
activation = "none"

[tags]
file = "tags.csv"
format = "csv"

[categories]
0 = "general"

[thresholds]
general = 0.35
"""


def tagger(path: Path) -> list[str]:
    write_graph(path.with_name("model.onnx"), ("N", 16, 16, 3), 1, sigmoid=True)
    write_selected_tags(path.with_name("tags.csv"), [("rain", 0)])
    return [*read_tagger(str(path)).tags]


READ: dict[str, tuple[Reader, str, str, Any]] = {
    "labels": (labels, "l.txt", "red\nblue\n", ["red", "blue"]),
    "labels in YAML": (labels, "l.yaml", "red:\nblue:\n", ["red", "blue"]),
    "labels in JSON": (labels, "l.json", '["red",\n"blue"]\n', ["red", "blue"]),
    "templates": (templates, "t.txt", "{} here\na {}\n", [["cat here", "a cat"]]),
    "examples": (
        examples, "e.csv", "media_path,label\na.png,red\nb.png,\n", {"a.png": ["red"], "b.png": []}
    ),
    "questions": (questions, "q.toml", '[a]\ntext = "Is it?"\n', ["Is it?"]),
    "questions in JSON": (questions, "q.json", '{"a":\n"Is it?"}\n', ["Is it?"]),
    "decisions": (
        decisions, "d.csv", "media_path,question,answer\na.png,a,yes\nb.png,a,no\n", ["Yes", "No"]
    ),
    "decisions in JSON lines": (
        decisions, "d.jsonl",
        '{"media_path": "a.png", "question": "a", "answer": "Yes"}\n', ["Yes"],
    ),
    "tagger": (tagger, "t.toml", DECLARED, ["rain"]),
    "schema": (schema, "s.json", '{"type":\n"object"}\n', {"type": "object"}),
    "prompt_file": (prompt_file, "p.txt", "What is it?\nShort.\n", "What is it?\nShort."),
    "token_file": (token_file, "t", f"{SECRET}\n", SECRET),
    "endpoint_keys": (
        endpoint_keys, "k", "a.example = one\nb.example = two\n", ["one", "two"]
    ),
    "journal": (journal, "edits.jsonl", f"{json.dumps(EDIT)}\n", ["a red ball"]),
    "sources": (sources, "l.txt", "a.mp4\nb.mp4\n", [("a.mp4", None), ("b.mp4", None)]),
    "sources in JSON lines": (sources, "l.jsonl", '{"path": "a.mp4"}\n', [("a.mp4", None)]),
    "sources in JSON": (sources, "l.json", '["a.mp4"\n]\n', [("a.mp4", None)]),
    "sources in CSV": (
        sources, "l.csv", 'path,prompt\na.mp4,"What?\nWhere?"\n', [("a.mp4", "What?\nWhere?")]
    ),
    "data": (data, "d.jsonl", '{"path": "a.mp4", "caption": "one"}\n', ["one"]),
    "data in CSV": (data, "d.csv", 'path,caption\na.mp4,"one\ntwo"\n', ["one\ntwo"]),
    "data beside media": (beside, "clip.txt", "one\ntwo\n", ["one\ntwo"]),
    "tags beside media": (tags, "clip.txt", "red\nround\n", "red round"),
    "captions beside media": (handwritten, "clip.txt", "one\ntwo\n", "one\ntwo"),
    "prompts of the studio": (presets, "mine.txt", "What?\nWhere?\n", ["What?\nWhere?"]),
}  # fmt: skip
"""Option, or another place of texts → (reader, name of a file, its text, what it says)."""
NO_TEXTS = {
    "adapter", "calibrate_store", "caption_model", "folder", "index", "model", "out", "source",
    "store", "root", "jobs", "captions",  # folders
    "language_gguf",  # binary
    "calibrate", "file",  # sources of another command
    "html", "to", "access_log", "vtt", "metrics_file",  # written
    "extensions", "what", "where", "names", "beside", "existing", "gone", "copy",  # no file's text
}  # fmt: skip
SAVED: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "a mark and CRLF": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
}
REFUSED: dict[str, Callable[[str], bytes]] = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, the other order": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "bytes": lambda text: b"\x89PNG\r\n\x1a\n\xff\xd8" + text.encode(),
}


PATHS = {
    each.name
    for kind in (CaptionConfig, LabelConfig, ExportConfig, TuneConfig, LearnConfig, ServeConfig)
    for each in declared(kind)
    if each.option.path
} | {"folder", "source"}
"""Options that name files or folders."""


def file_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of all commands that are declared as paths, or whose help speaks of a file."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from file_options(each)
        elif (
            action.dest in PATHS
            or "FILE" in str(action.metavar)
            or ("file " in (action.help or "") and action.nargs != 0)
        ):
            yield action.dest


def test_every_option_that_may_name_a_text_is_read_below() -> None:
    assert {*file_options(parser())} - NO_TEXTS == {*READ} & {*file_options(parser())}
    assert {*file_options(parser())} >= {"labels", "templates", "prompt_file", "token_file"}


def written(folder: Path, name: str, save: Callable[[str], bytes]) -> Path:
    """Save the text of an option as an editor does."""
    _, file, text, _ = READ[name]
    (path := folder / file).write_bytes(save(text))
    return path


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", READ)
def test_a_text_is_the_same_whatever_editor_saved_it(name: str, saved: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, SAVED[saved])
    reader, _, _, says = READ[name]
    assert reader(path) == says


@pytest.mark.parametrize("saved", REFUSED)
@pytest.mark.parametrize("name", READ)
def test_what_is_no_text_fails_in_one_line(name: str, saved: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, REFUSED[saved])
    try:
        found = READ[name][0](path)
    except PenstockError as error:
        assert "\n" not in error.message and "UTF-8" in f"{error.message} {error.hint}", error
    else:
        pytest.fail(f"it is read as {found!r}")


def test_a_mark_is_taken_in_one_place() -> None:
    folders = (ROOT / name for name in ("flows", "stages", "artifacts"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    (found,) = (path for path in files if "utf-8-sig" in path.read_text("utf-8"))
    assert found == ROOT / "artifacts/disk/regular_files.py"
