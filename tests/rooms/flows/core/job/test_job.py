"""What a job asks of its model: what answers for a longer or shorter `--max-new-tokens`, a
placeholder in a prompt, a model that changes, and sampling from the card of its family."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import ModelChanged, UsageError
from artifacts.records.model_files import ModelFiles
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import FolderStore
from flows.core.console.display import Display
from flows.core.job.card_sampling import with_card_sampling
from flows.core.job.prepare import prepare
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from flows.core.plan.sizes import clip_pixels, estimates
from flows.execution.run import caption
from flows.outputs.run_result import RunResult
from stages.decode.generation import DecodeJob
from stages.process.events import StageOutcome
from tests.support.media import write_video, write_videos
from tests.support.pipeline import read_lines
from tests.support.stand_ins import PROFILE, Answer, Stages, config_in

LENGTHS = (3, 5, 9)
"""Tokens of each clip's caption, without a limit."""


class Speaking(Stages):
    """Generates captions of LENGTHS tokens, cut at the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def _make(self, call: StageCall, outcome: StageOutcome) -> None:
        if call.name != "decode":
            return super()._make(call, outcome)
        assert isinstance(call.job, DecodeJob)
        limit = call.job.max_new_tokens
        record_set = RecordSet(FolderStore(Path(call.job.store)), "captions", call.job.namespace)
        for member in (m for batch in call.job.batches for m in batch):
            length = LENGTHS[int(member.prompt)]
            tokens = min(length, limit)
            ended = "stop" if length <= limit else "length"
            texts = {"caption": "word " * tokens, "tokens": tokens, "ended": ended}
            outcome.items += len(record_set.publish([Record(key=member.key, meta=texts)]))
            self.made.append(length)
        return None


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (clips := tmp_path / "clips").mkdir()
    for number in range(3):
        write_video(clips / f"{number}.mp4", ticks=range(5 + number))
    rows = [f'{{"path": "clips/{n}.mp4", "prompt": "{n}"}}\n' for n in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(rows))
    return replace(config_in(tmp_path, clips), sources=(str(tmp_path / "list.jsonl"),))


def run_to_limit(config: CaptionConfig, limit: int, stages: Speaking) -> RunResult:
    return caption(replace(config, max_new_tokens=limit), Display(quiet=True), stages.launcher)


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("before", "now", "made"),
    [(128, 256, []), (4, 256, [5, 9]), (256, 4, [5, 9]), (7, 8, [9]), (8, 7, [9]), (256, 9, [])],
)
def test_what_ended_by_itself_within_a_limit_answers_for_it(
    config: CaptionConfig, before: int, now: int, made: list[int]
) -> None:
    run_to_limit(config, before, Speaking())
    again = Speaking()
    result = run_to_limit(config, now, again)
    assert again.made == made
    text, cut = (Path(config.out) / "captions.jsonl").read_text(), sum(n > now for n in LENGTHS)
    assert text.count("word") == sum(min(length, now) for length in LENGTHS)
    assert text.count('"ended": "length"') == result.written.cut == cut


def test_captions_that_were_cut_are_told_of(config: CaptionConfig) -> None:
    result = run_to_limit(config, 4, Speaking())
    assert "3 captions" in result.line() and "2 cut at 4 tokens" in result.line()
    assert any("--max-new-tokens 8" in note for note in result.warnings)
    assert (result.exit_code, result.to_json()["cut"]) == (0, 2)
    whole = run_to_limit(config, 256, Speaking())
    assert "cut at" not in whole.line() and not whole.warnings


WORD = "<|image_pad|>"


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for at, name in enumerate(names):
        Image.fromarray(np.full((32, 32, 3), 40 * at, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_images(tmp_path / "clips", "a.png")


def run(config: CaptionConfig, **profile: Any) -> tuple[RunResult, list[str]]:
    """What a run gives, and the stages that it started."""
    stages = Stages()
    stages.profile = replace(PROFILE, **{"placeholders": (WORD,), **profile})
    try:
        return caption(config, Display(quiet=True), stages.launcher), stages.names()
    except UsageError:
        assert stages.names() == []
        raise


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("What is {name}?", ("a.png", f"{WORD}.png", "b.png")),
        ("What is <|image_{name}|>?", ("a.png", "pad.png", "b.png")),
        ("{name} and {folder}?", ("a.png", f"x {WORD} y.png", "b.png")),
    ],
)
def test_a_file_so_named_fails_alone(prompt: str, names: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", *names)
    result, stages = run(config_in(tmp_path, folder, prompt=prompt))
    (failure,) = result.failures
    assert failure.media_path == names[1] and failure.error == "placeholder"
    assert WORD in failure.message and "{name}" in failure.hint
    assert result.captions == 2 and "decode" in stages


def test_tags_beside_a_file_fail_it_alone_and_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", "a.png", "b.png")
    (folder / "b.txt").write_text(f"red, {WORD}\n")
    prompts = {"one": "Of {tags}?", "two": "What of {tags}?", "three": "What?"}
    result, _ = run(config_in(tmp_path, folder, prompts=prompts))
    (failure,) = result.failures
    assert failure.media_path == "b.png" and result.captions == 4


@pytest.mark.parametrize("place", ["name", "folder", "tags"])
def test_any_control_token_in_a_name_or_tags_fails_that_file(place: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", "a.png", "b.png", "<|im_end|>.png")
    (folder / "<|im_end|>").mkdir()
    shutil.copy(folder / "a.png", folder / "<|im_end|>" / "c.png")
    (folder / "b.txt").write_text("red, <|im_end|>\n")
    prompt = f"<|im_end|> is mine. Of {{{place}}}?"
    config = config_in(tmp_path, folder, prompt=prompt, recursive=True)
    result, _ = run(config, control_tokens=(WORD, "<|im_end|>"))
    failed = {"name": "<|im_end|>.png", "folder": "<|im_end|>/c.png", "tags": "b.png"}
    assert [each.media_path for each in result.failures] == [failed[place]]
    assert result.captions == 3
    assert "tags put into the prompt <|im_end|>, a control token of" in result.failures[0].message


def test_a_blank_at_the_end_of_a_beginning_is_noted(one: Path, tmp_path: Path) -> None:
    run(config := config_in(tmp_path, one, start_with="A small "))
    record = json.loads((Path(config.out) / "run.json").read_text())
    notes = [each for each in record["plan"]["notes"] if "ends with a blank" in each]
    (note,) = notes or ["no note"]
    assert note.startswith("--start-with 'A small ' ends with a blank: tokenizers usually join it")


def test_nothing_is_left_where_every_name_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "clips", f"{WORD}.png")
    with pytest.raises(UsageError, match="nothing to caption"):
        run(config_in(tmp_path, folder, prompt="{name}"))


PERSONS = {"system": f"You see {WORD}.", "start_with": WORD, "prompt": f"Is {WORD} in {{name}}?"}


@pytest.mark.parametrize(("option", "value"), PERSONS.items())
def test_what_a_person_wrote_is_refused(option: str, value: str, one: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(config_in(tmp_path, one, **{option: value}))
    assert WORD in caught.value.message and "an image placeholder" in caught.value.message
    assert option == "prompt" or f"--{option.replace('_', '-')}" in caught.value.message
    assert "Leave it out" in caught.value.hint


def test_a_control_token_that_captions_would_lack_is_refused(one: Path, tmp_path: Path) -> None:
    tokens = ("<s>", "<|im_end|>")
    config = config_in(tmp_path, one, start_with="A photo.<|im_end|>")
    with pytest.raises(UsageError, match=r"--start-with holds <\|im_end\|>, a control token"):
        run(config, control_tokens=tokens)
    config = replace(config, start_with="<think> A photo", prompt="<|im_end|>?")
    assert run(config, control_tokens=tokens)[0].captions == 1


def test_a_system_text_without_a_place_is_refused(one: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system: not supported"):
        run(config_in(tmp_path, one, system="Be brief."), takes_system=False)


class Comparing(Stages):
    """Stages that compare the files of their model as real ones do, after something happened."""

    def __init__(self, stage: str, *happens: Callable[[], object]) -> None:
        super().__init__()
        self._stage, self._happens = stage, [*happens]

    def start(self, call: StageCall) -> Answer:
        if call.name == self._stage and self._happens:
            self._happens.pop(0)()
        getattr(getattr(call.job, "half", call.job), "files", ModelFiles()).check()
        return super().start(call)


def replace_weights(root: Path, text: str) -> None:
    (root / "new").write_text(text)
    os.replace(root / "new", root / "model" / "model.safetensors")


@pytest.fixture
def one_clip(tmp_path: Path) -> CaptionConfig:
    return config_in(tmp_path, write_videos(tmp_path / "clips", 1))


def test_outputs_are_of_the_model_planned_last(one_clip: CaptionConfig, tmp_path: Path) -> None:
    heard = StringIO()
    stages = Comparing("decode", lambda: replace_weights(tmp_path, "other"))
    assert caption(one_clip, Display(to=heard), stages.launcher).exit_code == 0
    assert heard.getvalue().count("planning again") == 1
    assert stages.names() == ["frames", "encode", "frames", "encode", "decode"]
    (first,), (second,) = stages.batches("encode")
    assert first != second, "features of the two models have keys of their own"
    (line,) = read_lines(tmp_path / "out" / "captions.jsonl")
    assert line["features"] == second


def test_a_second_change_ends_it_and_writes_none(one_clip: CaptionConfig, tmp_path: Path) -> None:
    changes = [lambda: replace_weights(tmp_path, "two"), lambda: replace_weights(tmp_path, "three")]
    with pytest.raises(ModelChanged, match="changed twice") as caught:
        caption(one_clip, Display(quiet=True), Comparing("decode", *changes).launcher)
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "captions.jsonl").exists()


INSTRUCT = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""What generation_config.json of the published Qwen3-VL Instruct states."""
CARD = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}


def folder_of(place: Path, stated: Any, model_type: str = "qwen3_vl") -> Path:
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    if stated is not None:
        (place / "generation_config.json").write_text(json.dumps(stated))
    return place


def taken(folder: Path, **request: Any) -> dict[str, Any]:
    """The options that differ from the defaults after the card's sampling is applied."""
    before = CaptionConfig(sources=(), **{"sampling": "checkpoint", **request})
    config, notes = with_card_sampling(before, folder)
    assert not notes or config != before
    return {n: v for n, v in config.non_defaults.items() if n != "sampling"}


def test_qwen3_vl_instruct_is_given_the_presence_penalty_of_its_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INSTRUCT)
    assert taken(folder) == {"presence_penalty": 1.5}
    (note,) = with_card_sampling(CaptionConfig(sources=(), sampling="checkpoint"), folder)[1]
    assert "presence_penalty 1.5" in note and "QwenLM/Qwen3-VL" in note
    assert "temperature" not in note and "\n" not in note


@pytest.mark.parametrize(
    ("stated", "params", "found"),
    [
        (None, {}, CARD),
        ({}, {}, CARD),
        ([], {}, CARD),
        ({"temperature": None}, {}, CARD),
        (None, {"temperature": 0.3, "presence_penalty": 0.5},
         {**CARD, "temperature": 0.3, "presence_penalty": 0.5}),
        (None, {"presence_penalty": 0.0}, {n: CARD[n] for n in INSTRUCT if n in CARD}),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20}, {}, {}),
        ({"do_sample": True, "temperature": 0.9}, {}, {}),
        ({**INSTRUCT, "presence_penalty": 0}, {}, {}),
        ({**INSTRUCT, "presence_penalty": 0.2}, {}, {"presence_penalty": 0.2}),
        (None, {"sampling": "greedy"}, {}),
        ({"do_sample": False}, {}, {"presence_penalty": 1.5}),
    ],
)  # fmt: skip
def test_what_is_asked_for_or_stated_wins_over_the_card(
    stated: Any, params: dict[str, Any], found: dict[str, float], tmp_path: Path
) -> None:
    assert taken(folder_of(tmp_path, stated), **params) == found


@pytest.mark.parametrize("stated", [3, -2.5, float("nan")])
def test_a_presence_penalty_that_is_none_is_named_by_file(stated: float, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"presence_penalty": stated})
    path = folder / "generation_config.json"
    with pytest.raises(UsageError, match=f"^{path}: presence_penalty is {stated}[.]"):
        taken(folder)
    assert taken(folder, presence_penalty=1.0)["presence_penalty"] == 1.0


def test_families_without_a_card_take_nothing(tmp_path: Path) -> None:
    for greedy in ("llava", "llava_onevision", "qwen2_vl", "nothing_known"):
        assert taken(folder_of(tmp_path, None, greedy)) == {}


def test_a_plan_counts_the_clips_of_data_sets(tmp_path: Path) -> None:
    """A video of 40 frames of 3,072 pixels, at 30 a second."""
    config = config_in(tmp_path, write_video(tmp_path / "a.mp4", ticks=range(40)).parent, chunk=0.5)
    for formats, media, pixels in (
        (("musubi",), None, 40 * 64 * 48),
        (("webdataset",), "exact", 40 * 64 * 48),
        (("webdataset",), "original", 0),
        (("kohya", "txt"), None, 0),  # of pictures alone
    ):
        job = prepare(replace(config, format=formats, media=media), Stages())
        assert clip_pixels(job, estimates(job)) == pixels, formats
