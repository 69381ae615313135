"""Fields in lines and columns in tables of captions that follow a schema."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from artifacts.errors import UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import FolderStore
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from stages.decode.generation import DecodeJob, SamplingParams
from stages.decode.json_schema import canonical
from stages.process.events import StageOutcome
from tests.support.forms import SHORT, SIX, TAGS, text_of
from tests.support.pipeline import read_lines
from tests.support.saying import ALL, Saying, lines, make, run, samples

# The library leaves its shards open.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
Said = pytest.CaptureFixture[str]
ANSWER = {
    "title": "a dog, “here” \U0001f415", "kind": "clip", "tags": ["a dog", "grass"], "people": 2,
    "score": 1, "outdoors": True,
}  # fmt: skip


class Answering(Saying):
    """Says one answer of each chunk."""

    def __init__(self, answer: Mapping[str, Any], **meta: Any) -> None:
        super().__init__()
        self._said = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        self._meta = meta

    def _make(self, call: StageCall, outcome: StageOutcome) -> None:
        if call.name != "decode":
            return super()._make(call, outcome)
        assert isinstance(call.job, DecodeJob)
        store, namespace = FolderStore(Path(call.job.store)), call.job.namespace
        for member in (m for batch in call.job.batches for m in batch):
            meta = {"caption": self._said, "tokens": 9, "ended": "stop", **self._meta}
            record = Record(key=member.key, meta=meta)
            RecordSet(store, "captions", namespace).publish([record])
            outcome.items += 1
        return None


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return replace(make(tmp_path), format=("txt", "vtt", "srt", "csv", "parquet"))


def table(config: CaptionConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(Path(config.out) / "captions.parquet").to_pylist()
    return rows


def test_lines_have_fields_and_tables_a_column_a_property(config: CaptionConfig) -> None:
    stages = Answering(ANSWER)
    run(config, stages, schema=text_of(SIX), prefix="P ", suffix=" S")
    for line in lines(config):
        assert line["fields"] == ANSWER and line["caption"].startswith('P {"title":')
        assert json.loads(line["caption"][2:-2]) == ANSWER
    for row in table(config):
        assert {name: row[name] for name in ANSWER} == ANSWER
        assert isinstance(row["score"], float) and row["outdoors"] is True
    with (Path(config.out) / "captions.csv").open(encoding="utf-8", newline="") as file:
        cells = next(csv.DictReader(file))
    assert cells["title"] == ANSWER["title"] and json.loads(cells["tags"]) == ANSWER["tags"]
    (messages,) = {c.job.generation.schema for c in stages.calls if isinstance(c.job, DecodeJob)}
    assert messages == canonical(text_of(SIX))
    assert (Path(config.out) / "photo.txt").read_text(encoding="utf-8").startswith('P {"title":')


def test_without_a_schema_lines_and_columns_are_as_before(config: CaptionConfig) -> None:
    stages = Saying()
    run(config, stages)
    assert all("fields" not in line for line in lines(config))
    assert "fields" not in table(config)[0]
    (message,) = (c.job.generation for c in stages.calls if isinstance(c.job, DecodeJob))
    assert message == SamplingParams()


def test_names_of_ours_are_not_hidden(config: CaptionConfig) -> None:
    names = ("caption", "field_caption", "tokens", "dog")
    form = {"type": "object", "properties": {n: {"type": "string"} for n in names}}
    run(config, Answering({"caption": "c", "dog": "d"}), schema=text_of(form))
    row = table(config)[0]
    assert row["field_caption"] == "c" and row["dog"] == "d" and row["tokens"] == 9
    assert row["field_field_caption"] is None and row["field_tokens"] is None


def test_named_prompts_have_columns_of_their_own(config: CaptionConfig) -> None:
    form = {"type": "object", "properties": {"tokens": {"type": "integer"}, "dog": {"enum": [1]}}}
    requests = {"short": "What?", "long": "What, in full?"}
    run(config, Answering({"tokens": 3, "dog": 1}), schema=text_of(form), prompts=requests)
    row = table(config)[0]
    assert [row[f"{name}_dog"] for name in requests] == [1, 1]
    assert [row[f"{name}_field_tokens"] for name in requests] == [3, 3]
    assert [row[f"{name}_tokens"] for name in requests] == [9, 9]
    assert json.loads(row["short"]) == {"tokens": 3, "dog": 1}


def test_prompts_named_as_columns_hide_nothing(config: CaptionConfig) -> None:
    requests = {name: f"{name}?" for name in ("prompt", "source", "start", "tokens")}
    run(config, Saying(), prompts=requests)
    row = table(config)[0]
    place = (row["media_path"], row["start"])
    here = [line for line in lines(config) if (line["media_path"], line["start"]) == place]
    texts = {line["name"]: line["caption"] for line in here}
    assert {name: row[f"{name}_prompt"] for name in requests} == requests
    assert (row["prompt"], row["tokens"]) == (texts["prompt"], texts["tokens"])
    assert (row["caption_source"], row["caption_start"]) == (texts["source"], texts["start"])
    assert row["source"] == config.sources[0]


def test_texts_of_tags_hold_them_alone(config: CaptionConfig) -> None:
    stages = Answering({"tags": ["a dog", "grass", "--> <b>"]})
    run(config, stages, schema=text_of(TAGS), prefix="photo: ", suffix=".", format=ALL)
    out = Path(config.out)
    assert (out / "photo.txt").read_text() == "photo: a dog, grass, --> <b>.\n"
    assert "photo: a dog, grass, --&gt; &lt;b&gt;.\n" in (out / "photo.vtt").read_text()
    assert "photo: a dog, grass, → <b>.\n" in (out / "photo.srt").read_text()
    assert {line["caption"] for line in lines(config)} == {
        'photo: {"tags":["a dog","grass","--> <b>"]}.'
    }
    assert all(sample["json"]["fields"] for sample in samples(config))


def test_another_form_makes_other_captions_of_the_same_features(config: CaptionConfig) -> None:
    first, second = Answering(ANSWER), Answering({"tags": ["a"]})
    run(config, first, schema=text_of(SIX))
    run(config, second, schema=text_of(TAGS))
    assert second.names()[0] == "decode"
    again = Answering(ANSWER)
    run(config, again, schema=json.dumps(SIX, indent=2, sort_keys=False))
    assert "decode" not in again.names()


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        ("{", (), "is not JSON"),
        ("[]", (), "is not an object"),
        (text_of({"type": "array"}), (), "not an object schema"),
        (text_of(TAGS), ("--start-with", "A"), "--schema and --start-with"),
        ("", (), "cannot be read: No such file"),
    ],
)
def test_a_command_that_cannot_be_kept_to_ends_in_one_line(
    content: str, more: tuple[str, ...], words: str, tmp_path: Path, capsys: Said
) -> None:
    form = tmp_path / "form.json"
    if content:
        form.write_text(content)
    command = ["caption", "a.mp4", "--model", "demo", "--schema", str(form), *more]
    assert main([*command, "--out", str(tmp_path / "out"), "--store", str(tmp_path / "s")]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.strip().count("\n") <= 1 and "Traceback" not in printed
    assert not (tmp_path / "out").exists() and not (tmp_path / "s").exists()


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "form.json"
    path.write_text("\ufeff" + json.dumps(TAGS, indent=2), encoding="utf-8")
    config = CaptionConfig(sources=("a",), schema=str(path))
    path.unlink()
    assert config.schema == canonical(text_of(TAGS)) == replace(config, limit=1).schema
    with pytest.raises(UsageError, match="cannot be read"):
        CaptionConfig(sources=("a",), schema=str(path))


@pytest.mark.slow
def test_a_larger_limit_makes_what_was_cut_and_no_more(tmp_path: Path, capsys: Said) -> None:
    form, out = tmp_path / "form.json", tmp_path / "out"
    form.write_text(text_of(SHORT))
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", "demo", "--schema", str(form)]
    command += ["--out", str(out), "--store", str(tmp_path / "store"), "--max-new-tokens"]
    for limit, made, code in ((9, 0, 1), (9, 0, 1), (100, 1, 0), (101, 0, 0)):
        assert main([*command, str(limit)]) == code, capsys.readouterr()
        captions, failures = (
            read_lines(out / f"{name}.jsonl") for name in ("captions", "failures")
        )
        if code:
            assert not captions
            (failure,) = failures
            why = "the JSON was cut after 9 tokens, at --max-new-tokens 9"
            assert (failure["error"], failure["message"]) == ("cut", why)
        else:
            (line,) = captions
            assert not failures and set(line["fields"]) == {"kind", "word", "count"}
        stages = json.loads((out / "run.json").read_text())["stages"]
        assert [each["items"] for each in stages if each["name"] == "decode"] == [made]
