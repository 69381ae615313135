"""What is found out about processors: how turns are written, at which sizes frames are stored; and
two stages caption with them as the whole models do."""

import functools
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from stages.decode.generation import SamplingParams
from stages.decode.prompts import start_ids
from stages.decode.scoring import caption_of
from stages.models import describe
from stages.models.halves.generate import new_tokens
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_layout import layout_of
from stages.models.processors.input_sizes import ASPECTS, COMMON, black, probe, resized
from stages.models.processors.loading import load_processor
from stages.models.processors.placeholders import token
from stages.models.processors.prepare import (
    answer_blank,
    answer_ids,
    full_answer_ids,
    prepare,
    rebuild,
)
from stages.models.processors.processor_calls import system_form, write
from stages.tune.training import make_example
from tests.support.checkpoints import OMNI, whole_checkpoint
from tests.support.clips import PROMPTS, clips, joint_model, profile_of
from tests.support.families import BUILDERS, checkpoint
from tests.support.keys import COMMANDS, namespaces
from tests.support.processors import KINDS, plain_call, processor_folder
from tests.support.templates import AS_JSON, STYLES, Style
from tests.support.waves import Wave

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


FAMILIES = ("blip_2", "gemma3", "git", "glm4v", "internvl", "llava_next", "paligemma")
slow = pytest.mark.slow
GOES_ON = {"blip_2", "git", "paligemma"}
"""Families that write what follows a prompt, which may be empty."""


def whole_says(family: str, batch: list[Clip], prompts: tuple[str, ...]) -> list[str]:
    folder = whole_checkpoint(family)
    processor = load_processor(folder)
    inputs = plain_call(family, processor, batch, prompts)
    if family == "git":  # its tokenizer ends a prompt, which its captions begin with
        assert (inputs["input_ids"][:, -1] == processor.tokenizer.eos_token_id).all()
        texts = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {n: v[:, :-1] if n in texts else v for n, v in inputs.items()}
    with torch.inference_mode():
        tokens = joint_model(folder).generate(**inputs, do_sample=False, max_new_tokens=8)
    new = new_tokens(tokens, inputs["input_ids"])
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [*((name, "video") for name in FAMILIES), ("glm4v", "image"), ("internvl", "image")],
)
def test_two_stages_say_what_the_whole_model_says(family: str, kind: str, tmp_path: Path) -> None:
    batch, prompts = clips(kind, 2), PROMPTS[:2]
    folder = whole_checkpoint(family)
    profile = profile_of(folder)
    assert profile.images_per_prompt == (not KINDS[family].many)
    assert profile.continues_prompt == (family in GOES_ON)
    how = {"route": profile.route, "attention": profile.language.attention}
    wave = Wave(tmp_path / "store", folder, [batch], **how)
    wave.encode()
    wave.decode(prompts)
    found = [caption["caption"] for caption in wave.captions()]
    assert found == whole_says(family, batch, prompts)
    assert len(set(found)) == 2


PROMPT = 'What\'s "it"? {x} Ünï'
SYSTEM = 'Don\'t say "image".'
MORE = ("glm4v", "pixtral", "qwen2_vl", "internvl", "idefics3")
ASKED = ["llava_next", *(pytest.param(name, marks=slow) for name in MORE)]


@functools.cache
def asked_by(family: str, style: Style) -> Any:
    """The family's processor with a template of this style."""
    processor = load_processor(processor_folder(family))
    processor.chat_template = style.of(token(processor, "image"), token(processor, "video"))
    return processor


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", ASKED)
def test_a_turn_is_what_the_template_makes_of_its_proper_form(family: str, style: str) -> None:
    processor, how = asked_by(family, STYLES[style]), STYLES[style]
    layout = layout_of(processor, "images")
    assert layout.form == how.question
    assert system_form(processor, layout.form) == how.system
    for system in ("", SYSTEM):
        turns = how.turns(token(processor, "image"), PROMPT, system)
        expected = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert write(processor, layout.form, "images", 1, PROMPT, system) == expected
        assert PROMPT in expected and system in expected and "'type'" not in expected


@pytest.mark.parametrize("style", STYLES)
def test_a_stored_prompt_is_the_template_s_own(style: str) -> None:
    processor, how = asked_by("llava_next", STYLES[style]), STYLES[style]
    (clip,) = clips("image", 1)
    turns = how.turns(token(processor, "image"), PROMPT, SYSTEM)
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    begins = {"add_special_tokens": False} if text.startswith("<s>") else {}
    expected = processor(text=[text], images=[list(clip.frames)], return_tensors="pt", **begins)
    found = rebuild(processor, [prepare(processor, clip)], [PROMPT], SYSTEM)
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()


def test_a_template_that_changes_every_question_is_refused() -> None:
    style = Style(template=AS_JSON, question="", system="")
    with pytest.raises(UsageError, match="prints a question as a list, or changes its text"):
        layout_of(asked_by("llava_next", style), "images")


def test_a_word_for_a_picture_in_the_system_s_text_is_refused() -> None:
    processor = asked_by("llava_next", STYLES["qwen"])
    row = prepare(processor, clips("image", 1)[0])
    with pytest.raises(UsageError, match="<image>"):
        rebuild(processor, [row], ["What?"], "You see <image>.")


SPACED = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)
"""As SmolVLM's and Idefics' templates: a space stands between role and answer, not after the
generation prompt."""


def test_answers_begin_with_the_blank_of_the_template_s_own_conversation() -> None:
    folder = checkpoint("smolvlm")
    processor, text = load_processor(folder), "A red fox"
    # The template of the tests has no blank.
    started = start_ids(processor, SamplingParams(start_with=text))[0].tolist()
    assert started == own_ids(processor, text)
    assert answer_blank(processor) == ""
    processor.chat_template = SPACED
    turns = [
        {"role": role, "content": [{"type": "text", "text": texts}]}
        for role, texts in (("user", "What?"), ("assistant", text))
    ]
    whole = processor.apply_chat_template(turns, tokenize=True)[0]
    before = processor.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=True)[0]
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    expected = whole[len(before) : len(whole) - whole[::-1].index(end) - 1]
    assert whole[: len(before)] == before and processor.tokenizer.decode(expected) == f" {text}"
    assert start_ids(processor, SamplingParams(start_with=text))[0].tolist() == expected
    prepared = prepare(processor, black(processor, "image", 1.0, 32, 1))
    parts = {each.name: getattr(prepared, each.name) for each in fields(prepared)}
    row: Any = SimpleNamespace(**parts, joins_with=str)
    config = SimpleNamespace(is_encoder_decoder=True)
    half = SimpleNamespace(config=config, main_input_name="input_ids")
    example = make_example(half, processor, lambda: row, "What?", text, number=7)
    assert (example.ids.tolist(), example.joins_with[0]) == (expected, "7")  # type: ignore[index]
    assert caption_of(processor, row, "What?", text).ids[0].tolist() == expected
    forced = SamplingParams(start_with="A")
    rest = caption_of(processor, row, "What?", " red fox", forced).ids[0].tolist()
    assert [*start_ids(processor, forced)[0].tolist(), *rest] == expected
    assert answer_blank(processor) == " "


def test_a_caption_is_trained_behind_the_reasoning_that_a_template_opens() -> None:
    processor, text = load_processor(checkpoint("smolvlm")), "A red fox"
    assert full_answer_ids(processor, text) == own_ids(processor, text)
    processor.chat_template = SPACED.replace("'Assistant:'", "'Assistant:<think>\n'")
    closed = "\n</think>\n\nA red fox"
    assert full_answer_ids(processor, text) == own_ids(processor, closed)
    own = "It is red.</think> A red fox"
    assert full_answer_ids(processor, own) == own_ids(processor, own)
    assert answer_ids(processor, text) == own_ids(processor, text)  # of a forced beginning


@pytest.mark.slow
def test_only_forced_beginnings_of_a_model_with_that_blank_have_other_keys() -> None:
    found = [
        {name: namespaces(replace(profile, answer_blank=blank), name) for name in COMMANDS}
        for profile in [describe(checkpoint("smolvlm"))]
        for blank in ("", " ")
    ]
    assert [name for name in COMMANDS if found[0][name] != found[1][name]] == ["start"]
    assert found[0]["start"]["features"] == found[1]["start"]["features"]


def own_ids(processor: Any, text: str) -> list[int]:
    found: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


class Merging:
    """A processor whose tokenizer makes one token of a colon and the blank after it."""

    chat_template = SPACED

    def __init__(self) -> None:
        self.tokenizer = self

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [*map(len, re.findall(r": |.", text))]}

    def apply_chat_template(
        self, turns: list[Any], add_generation_prompt: bool = False, **_: Any
    ) -> str:
        written = "".join(f"{t['role']}: {t['content'][0]['text']}\n" for t in turns)
        return written + "assistant:" * add_generation_prompt


def test_an_answer_is_tokenized_alone_where_the_prompt_s_tokens_would_change() -> None:
    merging: Any = Merging()
    assert answer_ids(merging, "two") == [1, 1, 1] and answer_blank(merging) == ""


@pytest.mark.slow
def test_a_limit_of_pixels_makes_frames_smaller_where_the_processor_brings_its_own() -> None:
    profile = describe(whole_checkpoint(OMNI), max_pixels=80 * 80)
    assert profile.frame_tokens == 50  # two frames share the tokens of 8 x 8 pixels


ODD = (0.35, 0.43, 0.6, 0.87, 0.97, 1.29, 1.9, 2.9)
"""Heights / widths that no probe has."""
SLOW_WAYS = ("idefics3", "internvl", "llava_next", "pix2struct", "pixtral")
WAYS = ("emu3", "gemma3", "qwen2_vl", *(pytest.param(name, marks=slow) for name in SLOW_WAYS))
"""Families that resize in different ways."""
OWN_WAYS = {"emu3"}
"""Families whose processors keep frames of the size that is tried."""


def needed(processor: Any, clip: Clip) -> float:
    """The part of its size that a frame must keep."""
    height, width = clip.frames.shape[1:3]
    sizes, _ = resized(processor, clip, wait=True)
    return max(max(h / float(height), w / float(width)) for h, w in sizes)


@pytest.mark.parametrize("family", WAYS)
def test_no_frame_is_stored_smaller_than_it_is_seen(family: str) -> None:
    processor = load_processor(processor_folder(family))
    fit = probe(processor, "video").fit
    assert bool(fit.long_edges) == (family not in OWN_WAYS)
    for aspect in ODD if fit.long_edges else ():
        clip = black(processor, "video", aspect, 640)
        height, width = clip.frames.shape[1:3]
        stored = fit.size(height, width)
        least = needed(processor, clip)
        assert stored[0] >= math.floor(least * height), aspect
        assert stored[1] >= math.floor(least * width), aspect
        assert max(stored) < 640 or family == "pix2struct", aspect


def test_frames_of_common_aspects_are_fitted_exactly() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    fit = probe(processor, "image").fit
    for aspect in COMMON:
        clip = black(processor, "image", aspect, 1280)
        height, width = clip.frames.shape[1:3]
        least = needed(processor, clip)
        assert max(fit.size(height, width)) == math.ceil(least * 1280 - 1e-6), aspect


def test_frames_of_aspects_beyond_those_tried_keep_their_size() -> None:
    fit = probe(load_processor(checkpoint("llava")), "image").fit
    assert fit.size(100, 1000) == (100, 1000) and fit.size(1000, 100) == (1000, 100)
    assert min(ASPECTS) <= 1 / 3 and max(ASPECTS) >= 3 - 1e-9


def test_what_is_done_to_tiles_needs_no_larger_frame() -> None:
    processor = load_processor(checkpoint("smolvlm"))
    fit = probe(processor, "image").fit
    for height, width in ((1080, 1920), (1000, 1920), (700, 1280), (1234, 777)):
        assert 64 <= max(fit.size(height, width)) < 74


@pytest.mark.in_turn
@pytest.mark.parametrize("shape", [(700, 1280), pytest.param((1280, 740), marks=slow)])
@pytest.mark.parametrize(
    "family",
    [
        *("llava", "qwen2_5_vl", "pixtral"),
        *(pytest.param(n, marks=slow) for n in ("smolvlm", "llava_next", "mllama")),
    ],
)
def test_a_fitted_frame_comes_out_as_the_whole_one(family: str, shape: tuple[int, int]) -> None:
    folder = checkpoint(family) if family in BUILDERS else processor_folder(family)
    processor = load_processor(folder)
    fit = probe(processor, "image").fit
    frames = [np.zeros((1, *size, 3), np.uint8) for size in (shape, fit.size(*shape))]
    rows = [Clip(frames=f, times=(0.0,), seconds=0.0, kind="image") for f in frames]
    whole, fitted = (prepare(processor, row).inputs["pixel_values"] for row in rows)
    assert np.shape(whole) == np.shape(fitted) and max(fit.size(*shape)) < max(shape) / 4


@pytest.mark.slow
def test_a_processor_that_cuts_pieces_out_of_a_frame_as_it_is_gets_it_whole() -> None:
    processor = load_processor(processor_folder("git"))
    compute = type(processor).__call__

    class Cutting(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            outputs = compute(self, *args, **kwargs)
            pieces = [picture.size[0] // 64 for row in kwargs["images"] for picture in row]
            outputs["pixel_pieces"] = torch.zeros(sum(pieces), 64, 64)
            return outputs

    assert probe(processor, "image").fit != FrameFit()
    processor.__class__ = Cutting
    assert probe(processor, "image").fit == FrameFit()
