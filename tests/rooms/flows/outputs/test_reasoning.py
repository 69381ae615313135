"""Captions of models that reason: what stands behind the last closing tag is the caption, and what
is reasoning alone is a failure, derived from what is stored and never made again."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.texts.captions import TAGS, answer_in, ends_inside
from artifacts.texts.edits import Action, Edit, EditJournal, changes_of, key_of
from flows.core.job.prepare import prepare
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from flows.outputs.captions import (
    MAYBE_THINKING,
    StoredCaption,
    _text_and_warnings,
    caption_of,
)
from penstock_demo import CHECKPOINT
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeItem, SamplingParams
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import load_processor, tag_ids
from stages.models.processors.prepare import opens_reasoning
from stages.process.events import StageOutcome
from tests.support.inside import run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place, read_lines
from tests.support.saying import Saying, lines, make, run
from tests.support.stand_ins import PROFILE

OPENING = "<|im_start|>assistant\n<think>\n"
SWITCHED = (
    "<|im_start|>assistant\n{% if '/no_think' in messages[-1]['content'][-1]['text'] %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
WORDS = {
    "long": "It has a <b>dog</b>.</think>\n\nA dog.",
    "cut": "It has a dog and",
    "both": "<think>A</think> or </think> B",
    "empty": "It is.</think>",
}


class Reasoning(Saying):
    """Says this of each chunk; its model's template opens the tag."""

    def __init__(self, text: str, **meta: Any) -> None:
        super().__init__()
        self._text, self._more = text, meta

    def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        if call.name == "describe":
            outcome.notes["profile"] = replace(PROFILE, opens_reasoning=True).to_json()
            return outcome
        return super()._answer(call, outcome)

    def says(self, item: DecodeItem, number: int) -> str:
        return self._text


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return replace(make(tmp_path), format=("txt",), strip_think=True)


def failures(config: CaptionConfig) -> list[dict[str, Any]]:
    return read_lines(Path(config.out) / "failures.jsonl")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two chunks, and a copy of the demo's model whose template opens a tag."""
    clips, model = tmp_path / "clips", tmp_path / "thinker"
    clips.mkdir()
    write_video(clips / "a.mp4", ticks=range(50))
    shutil.copytree(CHECKPOINT, model)
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant\n", SWITCHED))
    out, store = tmp_path / "out", tmp_path / "store"
    return Place(clips=clips, out=out, store=store, model=str(model))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inflight", "transformers"])
def test_reasoning_that_a_template_opens_is_no_caption(place: Place, engine: str) -> None:
    requests: dict[str, Any] = {"chunk": 1.0, "max_new_tokens": 6, "engine": engine}
    requests |= {"strip_think": True, "prompt": "What?"}
    first = run_inside(place, **requests)
    assert [row["caption"] for row in place.captions()] == []
    assert [row["error"] for row in place.failures()] == ["thinking", "thinking"]
    assert "1.0 s" in place.failures()[1]["message"] and first.result.failures
    assert run_inside(place, **requests).started == []
    assert len(place.failures()) == 2
    assert run_inside(place, **requests | {"strip_think": False}).started == []
    shown = [row["caption"] for row in place.captions()]
    assert len(shown) == 2 and all(shown) and not place.failures()
    # What the template closes itself is no reasoning, and neither is what a user writes.
    run_inside(place, **requests | {"prompt": "What? /no_think"})
    assert len(place.captions()) == 2 and not place.failures()
    run_inside(place, **requests | {"start_with": "So it is.</think> A"})
    assert all(row["caption"].startswith("A") for row in place.captions()) and place.captions()


@pytest.mark.slow
def test_a_summary_that_is_reasoning_alone_is_a_failure(place: Place) -> None:
    requests: dict[str, Any] = {"chunk": 1.0, "max_new_tokens": 16, "prompt": "What? /no_think"}
    requests |= {"summary": True, "max_frames": 1}
    run_inside(place, **requests)
    (row,) = read_lines(place.out / "summaries.jsonl")
    assert row["summary"]
    assert run_inside(place, **requests, strip_think=True).started == ["summarize"]
    assert read_lines(place.out / "summaries.jsonl") == []
    assert [(row["stage"], row["error"]) for row in place.failures()] == [("summarize", "thinking")]
    assert run_inside(place, **requests, strip_think=True).started == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "caption"), [("long", "A dog."), ("both", "B"), ("empty", ""), ("cut", None)]
)
def test_captions_that_were_stored_before_are_read_so_too(
    config: CaptionConfig, text: str, caption: str | None
) -> None:
    run(config, Reasoning(WORDS[text]))
    shown, failed = [row["caption"] for row in lines(config)], failures(config)
    assert shown == ([] if caption is None else [caption] * 5)
    assert len(failed) == (5 if caption is None else 0)
    assert all(each["stage"] == "decode" and "--max-new-tokens" in each["hint"] for each in failed)


def test_captions_are_handed_to_python_as_they_are_written(config: CaptionConfig) -> None:
    run(config, Reasoning(WORDS["cut"]))
    job = prepare(config, Reasoning(""))
    (task, *_), file = job.ledger.tasks(job.media[:1]), job.files[0].file
    stored: StoredCaption = job.ledger["captions"].meta(task["captions"])
    assert caption_of(job, file, task, stored) is None
    row = caption_of(job, file, task, {**stored, "caption": WORDS["long"]})
    assert row is not None and row.caption == "A dog."


def test_the_next_prompt_gets_the_answer_alone(config: CaptionConfig) -> None:
    run(config, Reasoning(WORDS["long"]), prompt="Before: [{previous}] And now?")
    assert "Before: [A dog.] And now?" in {row["prompt"] for row in lines(config)}
    run(config, Reasoning(WORDS["cut"]), prompt="Then: [{previous}] And now?", strip_think=False)
    assert {row["prompt"] for row in lines(config)} == {"Then: [] And now?"}


@pytest.mark.parametrize(
    ("text", "correction", "left"),
    [("cut", "A cat.", 4), ("long", "It has a <b>cat</b>.</think>\n\nA cat.", 0)],
)
def test_an_edit_of_the_text_with_reasoning_still_counts_without_it(
    config: CaptionConfig, text: str, correction: str, left: int
) -> None:
    run(config, Reasoning(WORDS[text]), strip_think=False)
    row = lines(config)[0]
    journal = EditJournal(Path(config.out), f"{config.store}")
    key = key_of(row["features"], "", row["prompt"], WORDS[text])
    of: Any = {
        "key": key,
        "media_path": row["media_path"],
        "start": row["start"],
        "said": WORDS[text],
    }
    changes = changes_of([of], {key: Edit(caption=correction)}, {})
    time = "2026-01-01T00:00:00+00:00"
    journal.add(Action(id="1", time=time, does="edit", changes=changes))
    journal.close()
    run(config, Reasoning(WORDS[text]), trust_folder=True)
    assert [row["caption"] for row in lines(config)] == ["A cat.", *["A dog."] * (4 - left)]
    assert len(failures(config)) == left


def test_tags_that_decoding_removes_are_found_in_the_ids() -> None:
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    tokenizer, tags = processor.tokenizer, ["[THINK]", "[/THINK]"]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    opening, closing = tag_ids(processor)
    assert [*opening, *closing] == tokenizer.convert_tokens_to_ids(tags)
    thought, answer = (tokenizer.encode(text) for text in ("a man", " a clip"))
    kwargs = GenerateKwargs(SamplingParams(), 99)
    row = [*opening, *thought, *closing, *answer]
    (text,) = kwargs.texts_of(processor, [row])
    assert "[" not in text
    at = kwargs.reasoning(processor, row, text)["answer_at"]
    assert text[at:].strip() == "a clip"
    assert kwargs.reasoning(processor, row[: -1 - len(answer)], "a man") == {"opened": True}
    assert kwargs.reasoning(processor, answer, "a clip") == {}


def test_only_what_the_template_writes_behind_a_prompt_opens_a_tag() -> None:
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    template, layout = processor.chat_template, layout_of(processor, "images")
    assert opens_reasoning(processor, layout, "Write <think> first") is None
    processor.chat_template = template + "{# </think> #}"
    assert opens_reasoning(processor, layout, "Write <think> first") is False
    processor.chat_template = template.replace("<|im_start|>assistant\n", OPENING)
    assert opens_reasoning(processor, layout, "Write </think> last") is True


def test_the_last_closing_tag_of_each_pair_ends_the_reasoning() -> None:
    for opening, closing in TAGS.items():
        assert answer_in(f"a{closing}b {closing} c") == "c"
        assert answer_in(f" {opening}a") is None and answer_in("a", opened=True) is None
        assert answer_in(" a ") == "a"
        assert ends_inside(f"{closing}{opening}\n") and not ends_inside(f"{opening}\n{closing}")


def test_a_cut_answer_of_a_server_stays_with_a_warning(config: CaptionConfig) -> None:
    job: Any = SimpleNamespace(config=config)
    job.model = SimpleNamespace(served=object(), profile=PROFILE)
    for text, ended, warns in (("It has", "length", True), ("It has", "stop", False)):
        stored: Any = {"caption": text, "ended": ended}
        assert _text_and_warnings(job, stored) == (text, [MAYBE_THINKING] * warns)
    stored = {"caption": "<think>It has", "ended": "length"}
    assert _text_and_warnings(job, stored) == (None, [])
