"""Several named prompts in one run, prompts that hold the caption of the chunk before, and
summaries: prompts, places of captions, and what the next run reuses."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifacts.errors import Interrupted, UsageError
from flows.core.job.prepare import prepare
from flows.core.ledger.ledger import Ledger
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from stages.decode.engines.transformers import run_generate
from stages.process.job import job_fields
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint
from tests.support.inside import run_inside
from tests.support.long_context import with_context
from tests.support.media import picture, write_numbered, write_video
from tests.support.pipeline import Place, read_lines
from tests.support.saying import LONG, ODD, Saying, lines, make, run, samples

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
CHAINED = "Before: [{previous}] And now?"
ASKED = {"long": "Describe it.", "tags": "Which things?"}
WORDLESS = "with texts without words: the model may be unable to summarize"


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> CaptionConfig:
    """A run that has asked everything."""
    config = make(tmp_path_factory.mktemp("asked"))
    result = run(config, prompts=ASKED)
    assert result.files == 3 and not result.failures
    return config


def test_every_chunk_is_asked_everything(requests: CaptionConfig) -> None:
    rows = lines(requests)
    places = [(ODD, rows[0]["start"]), (LONG, 0.0)]
    assert [(r["media_path"], r["start"], r["name"]) for r in rows[:4]] == [
        (*place, name) for place in places for name in ASKED
    ]
    assert [r["prompt"] for r in rows[:2]] == list(ASKED.values())
    assert all(r["caption"].startswith(r["prompt"]) for r in rows)
    assert len(rows) == 2 * 5
    out, stem = Path(requests.out), LONG.removesuffix(".mp4")
    texts = {str(path.relative_to(out)) for path in out.glob("*.txt")}
    assert {f"{stem}.long.txt", f"{stem}.tags.txt", "photo.long.txt"} <= texts and len(texts) == 6
    assert [place["captions"] for place in read_lines(out / "media.jsonl")] == [2, 6, 2]


def test_tables_have_a_row_a_chunk_and_columns_a_prompt(requests: CaptionConfig) -> None:
    out, text = Path(requests.out), lines(requests)
    long = [row for row in text if row["media_path"] == LONG]
    with open(out / "captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(out / "captions.parquet").to_pylist()
    assert len(rows) == len(table) == 5
    assert [row["long"] for row in rows] == [r["caption"] for r in text if r["name"] == "long"]
    assert [row["tags"] for row in table] == [r["caption"] for r in text if r["name"] == "tags"]
    assert {row["tags_prompt"] for row in rows} == {ASKED["tags"]}
    assert {row["long_tokens"] for row in table} == {1}
    assert "caption" not in table[0] and table[2]["frames"] == long[2]["frames"]


def write_list(config: CaptionConfig, *entries: Mapping[str, Any]) -> tuple[str]:
    listed = Path(config.sources[0], "list.jsonl")
    listed.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return (str(listed),)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


def test_copies_with_one_name_have_rows_of_their_own(config: CaptionConfig) -> None:
    picture = Path(config.sources[0], "photo.PNG")
    for name in ("one", "two"):
        (picture.parent / name).mkdir()
        (picture.parent / name / "x.png").write_bytes(picture.read_bytes())
    listed = write_list(config, {"path": "one/x.png"}, {"path": "two/x.png"})
    run(config, sources=listed, prompts=ASKED)
    texts = [(row["media_path"], row["name"]) for row in lines(config)]
    assert texts == [("x.png", "long"), ("x.png", "tags")] * 2
    assert pq.read_table(Path(config.out) / "captions.parquet").num_rows == 2


def test_a_line_of_a_list_asks_for_itself(config: CaptionConfig) -> None:
    entries: list[dict[str, Any]] = [
        {"path": ODD, "prompts": {"who": "Who?", "where": "Where?"}},
        {"path": LONG, "prompt": "What?"},
        {"path": "photo.PNG"},
    ]
    run(config, sources=write_list(config, *entries), prompts=ASKED)
    assert {(row["media_path"], row.get("name", ""), row["prompt"]) for row in lines(config)} == {
        (ODD, "who", "Who?"),
        (ODD, "where", "Where?"),
        (LONG, "", "What?"),
        *(("photo.PNG", name, prompt) for name, prompt in ASKED.items()),
    }


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_of_which_two_things_are_asked_has_two_of_each(
    config: CaptionConfig, beside: bool
) -> None:
    requests = [{"path": ODD, "prompt": "Who?"}, {"path": ODD, "prompt": "Where?"}, {"path": ODD}]
    stages = Saying()
    run(config, stages, sources=write_list(config, *requests), prompt="What?", beside=beside)
    assert [row["prompt"] for row in lines(config)] == ["Who?", "Where?", "What?"]
    assert [len(batch) for batch in stages.batches("encode")] == [1]
    folder = Path(config.sources[0] if beside else config.out)
    for suffix in ("txt", "vtt", "srt"):
        for name, word in ((ODD, "Who?"), (f"{ODD}-2", "Where?"), (f"{ODD}-3", "What?")):
            assert word in (folder / f"{name}.{suffix}").read_text()
    assert len({sample["__key__"] for sample in samples(config)}) == 3
    assert Path(config.out, "captions.csv").is_file()


def test_a_prompt_with_a_place_of_a_picture_is_refused(config: CaptionConfig) -> None:
    requests = [{"path": LONG}, {"path": ODD, "prompt": "What is <image>?"}]
    with pytest.raises(UsageError, match=r"no\.1") as caught:
        run(config, sources=write_list(config, *requests))
    assert "<image>" in caught.value.message


def test_a_file_that_fails_is_named_once(config: CaptionConfig) -> None:
    (Path(config.sources[0]) / "odd.mp4").write_bytes(b"no video at all" * 9)
    result = run(config, Saying(), prompts=ASKED)
    assert [failure.media_path for failure in result.failures] == ["odd.mp4"]
    assert (result.files, result.exit_code) == (4, 1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two videos, of eight chunks and of one, and a picture."""
    clips = write_numbered(tmp_path / "clips", 1)
    write_video(clips / "long.mp4", ticks=range(240))
    write_video(clips / "short.mp4", ticks=range(20))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def answers(place: Place) -> dict[Any, str]:
    return {(row["start"], row["prompt"]): row["caption"] for row in place.captions()}


@pytest.mark.slow
def test_another_prompt_costs_its_captions_alone(place: Place) -> None:
    options = {"chunk": 2.0, "max_new_tokens": 4}
    run_inside(place, prompts=ASKED, **options)
    first = answers(place)
    assert run_inside(place, prompts=ASKED, **options).started == []
    more = run_inside(place, prompts={**ASKED, "who": "Name the person."}, **options)
    assert more.started == ["decode"]
    found = answers(place)
    assert first.items() <= found.items() and len(found) == 3 * len(first) // 2
    # One that was asked among others answers who asks it alone.
    assert run_inside(place, prompt=ASKED["tags"], **options).started == []
    alone = answers(place)
    assert alone.items() <= found.items() and "name" not in place.captions()[0]
    assert json.loads((place.out / "run.json").read_text())["state"] == "done"


@pytest.mark.parametrize(
    "given",
    [
        *({"prompts": prompts} for prompts in ({"Long": "What?"}, {"": "What?"}, {"a": " "})),
        {"prompts": ASKED, "prompt": "Who?"},
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CaptionConfig(sources=("a.mp4",), **given)


def test_prompt_of_a_list_line_requests_the_length_too(config: CaptionConfig) -> None:
    thing, person = "What is it?", "Name the person."
    videos = [{"path": ODD, "prompt": thing}, {"path": ODD, "prompt": person}]
    photo = {"path": "photo.PNG", "prompts": {"a": thing}}
    listed = write_list(config, videos[0], photo, videos[1], {"path": ODD})
    run(config, sources=listed, prompt=person, length="short")
    asked = [f"{prompt} Answer in one short sentence." for prompt in (thing, thing, person)]
    assert [row["prompt"] for row in lines(config)] == asked


def test_a_sample_holds_all_that_was_said_of_its_chunk(requests: CaptionConfig) -> None:
    texts = {(r["media_path"], r["start"], r["name"]): r["caption"] for r in lines(requests)}
    found = samples(requests)
    assert len(found) == 5
    for line, sample in ((sample["json"], sample) for sample in found):
        assert set(line["captions"]) == set(ASKED)
        for name in ASKED:
            text = texts[line["media_path"], line["start"], name]
            assert sample[f"{name}.txt"] == text == line["captions"][name]["caption"]
        assert any(suffix in sample for suffix in ("mp4", "png"))


def chains(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each file, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["media_path"], []).append(row)
    return [*found.values()]


def check(rows: list[dict[str, Any]]) -> None:
    for chain in chains(rows):
        text = ""
        for row in chain:
            assert row["prompt"] == CHAINED.replace("{previous}", text)
            text = row["caption"]


def test_a_chunk_is_asked_about_with_the_caption_before(config: CaptionConfig) -> None:
    stages = Saying()
    assert not run(config, stages, prompt=CHAINED).failures
    rows = lines(config)
    check(rows)
    assert [len(chain) for chain in chains(rows)] == [1, 3, 1]
    notes = json.loads((Path(config.out) / "run.json").read_text())["plan"]["notes"]
    assert any("captioned one after the other" in note for note in notes)
    requests = [call for call in stages.calls if call.name == "decode"]
    assert [sum(map(len, job_fields(call.job)["batches"])) for call in requests] == [3, 1, 1]
    again = Saying()
    run(config, again, prompt=CHAINED)
    assert [call.name for call in again.calls if call.name != "cut"] in ([], ["describe"])
    assert lines(config) == rows


def test_a_chain_that_is_broken_goes_on(config: CaptionConfig) -> None:
    broken = 0
    while True:
        stages = Saying()
        stages.stop_after = {"decode": 2}
        try:
            run(config, stages, prompt=CHAINED)
            break
        except Interrupted:
            broken += 1
    assert broken == 1
    rows = lines(config)
    assert [len(chain) for chain in chains(rows)] == [1, 3, 1]
    check(rows)


def test_who_makes_no_captions_waits_for_none(config: CaptionConfig) -> None:
    run(config, prompt="?")
    job = prepare(replace(config, prompt=CHAINED), Saying())
    request = Ledger(job.store, job.pipeline[:2], *job.ledger.variants)
    assert all(task.previous == "" for task in request.tasks(job.media))
    assert any(task.awaits_previous for task in job.ledger.tasks(job.media))


CONTEXT = 400


@pytest.fixture
def small(place: Place, tmp_path: Path) -> Place:
    """The same with a model of a small context."""
    model = with_context(checkpoint("qwen2_5_vl"), CONTEXT, tmp_path / "small")
    return replace(place, model=str(model))


def summarized(place: Place, **options: Any) -> Any:
    requests = {"chunk": 1.0, "max_frames": 1, "max_new_tokens": 8, "summary": True, **options}
    return run_inside(place, **requests)


def summaries(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "summaries.jsonl")


@pytest.mark.slow
def test_each_video_has_chapters_and_a_summary_that_fit_a_small_context(small: Place) -> None:
    first = summarized(small)
    assert first.started[-2:] == ["decode", "summarize"] and first.result.summaries == 2
    assert "2 summaries in " in first.result.line()
    long, short = summaries(small)
    assert (long["media_path"], short["media_path"]) == ("long.mp4", "short.mp4")
    assert long["levels"][0] > 1 and long["levels"][-1] == 1 and short["levels"] == [1]
    chapters = long["chapters"]
    assert (chapters[0]["start"], chapters[-1]["end"]) == (0.0, 8.0)
    assert all(a["end"] == b["start"] for a, b in pairwise(chapters))
    assert small.stages()["summarize"]["items"] == sum(long["levels"]) + 1
    values = json.loads((small.out / "run.json").read_text())
    assert values["summaries"] == 2 and values["outputs"]["summaries"].endswith("summaries.jsonl")
    memory = {each["stage"]: each["rung"] for each in values["plan"]["memory"]["stages"]}
    assert memory["summarize"]["context"] == CONTEXT

    before = (small.out / "summaries.jsonl").read_bytes()
    assert summarized(small).started == []
    assert (small.out / "summaries.jsonl").read_bytes() == before
    assert summarized(small, summary_prompt="What is it about?").started == ["summarize"]
    assert small.stages()["summarize"]["items"] == 2, "the chapters are there"
    assert "summaries.jsonl" in " ".join(summarized(small, summary=False).result.warnings)
    assert summarized(small, prompt="Name the person.").started == ["decode", "summarize"]
    assert summarized(small).started == []
    assert (small.out / "summaries.jsonl").read_bytes() == before


def test_texts_without_words_are_noted_and_counted(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    wordless, made = {0}, list[str]()

    def generated(*inputs: Any, **options: Any) -> list[Any]:
        (output,) = run_generate(*inputs, **options)
        made.append(" ... 12" if len(made) in wordless else "a ball rolls")
        return [output._replace(caption=made[-1])]

    monkeypatch.setattr("stages.summarize.run.run_generate", generated)

    def notes() -> list[list[str]]:
        rows = (row["warnings"] for row in summaries(small))
        return [[text.partition(";")[0] for text in of if "words" in text] for of in rows]

    line = summarized(small).result.line()
    assert notes() == [["without words: 1 chapter"], []]
    assert "2 summaries in " in line and f"summaries.jsonl (1 {WORDLESS})" in line
    first, *cues = (small.out / "long.chapters.vtt").read_text().split("\n\n")
    assert first == "WEBVTT" and cues[0] == "00:00:00.000 --> 00:00:04.000\n... 12"
    assert len(cues) == len(summaries(small)[0]["chapters"])
    wordless |= {*range(len(made), len(made) + 2)}
    line = summarized(small, summary_prompt="What is it about?").result.line()
    assert notes() == [["without words: the summary and 1 chapter"]] * 2
    assert f"(2 {WORDLESS})" in line


def test_equal_summaries_of_other_captions_count_each(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated(*inputs: Any, **options: Any) -> list[Any]:
        (output,) = run_generate(*inputs, **options)
        return [output._replace(caption="a ball rolls")]

    monkeypatch.setattr("stages.summarize.run.run_generate", generated)
    (small.clips / "long.mp4").unlink()
    write_video(
        small.clips / "other.mp4", ticks=range(20), draw=lambda n, w, h: 255 - picture(n, w, h)
    )
    summarized(small)
    captions = [row["caption"] for row in small.captions() if row["media_path"].endswith("mp4")]
    assert len({*captions}) == len(summaries(small)) == 2
    assert small.stages()["summarize"]["total"] == 2


@pytest.mark.slow
def test_of_several_prompts_the_first_is_summarized(place: Place) -> None:
    place = replace(place, model=str(checkpoint("qwen2_5_vl")))
    summarized(place, prompt="Name the person.")
    alone = summaries(place)
    prompts = {"who": "Name the person.", "where": "Where is it?"}
    assert summarized(place, prompts=prompts).started == ["decode"]
    assert summaries(place) == alone


@pytest.mark.parametrize("family", ["blip", pytest.param("instructblip", marks=pytest.mark.slow)])
def test_a_model_that_says_nothing_without_a_picture_is_refused_before_work(
    place: Place, family: str
) -> None:
    with pytest.raises(UsageError) as caught:
        summarized(replace(place, model=str(whole_checkpoint(family))))
    assert "cannot summarize: it needs an image to answer" in str(caught.value)
    assert "\n" not in str(caught.value) and not place.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["blip_2", "florence2", "mllama", "internvl"])
def test_a_family_of_each_route_summarizes(place: Place, family: str) -> None:
    place = replace(place, model=str(whole_checkpoint(family)))
    summarized(place)
    text = summaries(place)
    assert len(text) == 2 and all(row["summary"] for row in text)
    assert summarized(place).started == []


@pytest.mark.slow
def test_a_run_that_would_lose_the_trigger_of_its_folder_says_so_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    model, store = str(checkpoint("llava")), tmp_path / "store"
    place = Place(clips=tmp_path / "a.png", out=tmp_path / "lora", store=store, model=model)
    options: dict[str, Any] = {"format": ("kohya",), "max_new_tokens": 4}
    assert "trigger" not in run_inside(place, trigger="the ohwx", **options).said
    words = "the trigger the ohwx, and this run has none: give --trigger 'the ohwx' to keep it"
    note = f"{place.out / 'kohya'} had {words}"
    planned = ["caption", str(place.clips), "--model", model, "--store", str(store), "--dry-run"]
    assert main([*planned, "--out", str(place.out)]) == 0
    assert note in capsys.readouterr().out.replace("\n", " ")
    assert "trigger" not in run_inside(place, trigger="sks", **options).said
    assert note.replace("the ohwx", "sks").replace("'", "") in run_inside(place, **options).said


@pytest.mark.slow
def test_captions_of_files_that_are_gone_are_named_before_they_leave(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (64, 48), colour).save(clips / f"{name}.png")
    model, store = str(checkpoint("llava")), tmp_path / "store"
    place = Place(clips=clips, out=tmp_path / "out", store=store, model=model)
    assert "any more" not in run_inside(place, max_new_tokens=4).said
    (clips / "a.png").rename(clips / "renamed.png")
    (clips / "b.png").unlink()
    note = f"not in {place.out / 'captions.jsonl'} any more: 1 caption of 1 file that this run "
    assert f"{note}does not read (b.png)" in run_inside(place, max_new_tokens=4).said
    assert "any more" not in run_inside(place, max_new_tokens=4).said
