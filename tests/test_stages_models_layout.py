"""Processors of many families are called as their families document it, found out by trying."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.processors.layout import layout_of
from stages.models.processors.loading import is_picture, takes_images
from stages.models.processors.prepare import (
    Clip,
    load_processor,
    prepare,
    rebuild,
    takes_videos,
)
from tests.support.clips import PROMPTS, clips
from tests.support.processors import KINDS, plain_call, processor_folder, render, whole

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ONE_SIZE = ("instructblipvideo", "perception_lm")
"""Families whose processors take no batch of different sizes."""
CASES = [
    (family, kind)
    for family in KINDS
    for kind in ("image", "video")
    if kind == "video" or KINDS[family].image
]


@functools.cache
def processor_of(family: str) -> Any:
    return load_processor(processor_folder(family))


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
        else:
            assert str(found[name]) == str(value), name


def rebuilt(processor: Any, batch: list[Clip], prompts: tuple[str, ...]) -> dict[str, Any]:
    return rebuild(processor, [prepare(processor, clip) for clip in batch], prompts)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_prompt_without_pictures_equals_the_documented_call(family: str, kind: str) -> None:
    processor, batch, prompts = processor_of(family), clips(kind, 2), PROMPTS[:2]
    wanted = plain_call(family, processor, batch, prompts)
    assert_same(whole(processor, batch, prompts), wanted)
    texts = {name: value for name, value in wanted.items() if not is_picture(name)}
    assert_same(rebuilt(processor, batch, prompts), texts)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_pictures_are_prepared_as_in_the_documented_call(family: str, kind: str) -> None:
    processor, batch = processor_of(family), clips(kind, 1)
    wanted = plain_call(family, processor, batch, PROMPTS[:1])
    inputs = prepare(processor, batch[0]).inputs
    shown = [name for name in wanted if is_picture(name)]
    assert shown
    assert_same({name: inputs[name] for name in shown}, {name: wanted[name] for name in shown})


@pytest.mark.parametrize("family", [name for name in KINDS if name not in ONE_SIZE])
def test_rows_of_different_sizes_share_a_batch(family: str) -> None:
    processor, prompts = processor_of(family), PROMPTS[:2]
    kind = "image" if KINDS[family].image else "video"
    batch = [clips(kind, 1)[0], clips(kind, 1, height=96, width=40)[0]]
    wanted = plain_call(family, processor, batch, prompts)
    texts = {name: value for name, value in wanted.items() if not is_picture(name)}
    assert_same(rebuilt(processor, batch, prompts), texts)


@pytest.mark.parametrize("family", KINDS)
def test_how_many_pictures_a_prompt_takes_is_found_out(family: str) -> None:
    processor = processor_of(family)
    assert takes_videos(processor) == (KINDS[family].video is not None)
    if takes_images(processor):
        assert layout_of(processor, "images").alone == (not KINDS[family].many)


def test_a_video_goes_in_as_its_middle_frame_where_a_prompt_takes_one_picture() -> None:
    processor, (clip,) = processor_of("blip_2"), clips("video", 1)
    row = prepare(processor, clip)
    assert row.count.media == 1
    assert torch.equal(
        row.inputs["pixel_values"], prepare(processor, clip.middle()).inputs["pixel_values"]
    )
    assert clip.middle().times == (clip.times[2],)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("blip", "Who?"),
        ("chameleon", "<image><image>\nWho?"),
        ("florence2", "Who?"),
        ("got_ocr2", "<imgpad><imgpad>\nWho?"),
        ("gemma3", "User: <boi><boi>Who?Assistant:"),
        ("paligemma", "<image><image>Who?"),
    ],
)
def test_without_a_chat_template_media_stand_where_the_processor_wants_them(
    family: str, text: str
) -> None:
    assert render(processor_of(family), "images", 2, "Who?") == text


def test_a_template_of_a_language_model_gets_the_words_for_pictures() -> None:
    processor = load_processor(processor_folder("chameleon"))
    processor.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert render(processor, "images", 1, "Who?") == "[<image>\nWho?]"


@pytest.mark.parametrize("family", ["gemma3", "instructblip", "idefics3"])
def test_a_word_that_stands_for_a_picture_is_refused(family: str) -> None:
    processor = processor_of(family)
    word = "<soft>" if family == "gemma3" else "<image>"
    with pytest.raises(UsageError, match=word):
        rebuilt(processor, clips("image", 1), (f"What is {word}?",))


@pytest.mark.parametrize(
    ("family", "texts"),
    [
        ("glm4v", ("<|end_of_image|>0<", "<|end_of_image|>61<")),
        ("video_llama_3", ("Time 0.5s:", "Time 1.5s:", "Time 61.0s:", "Time 62.5s:")),
    ],
)
def test_true_times_stand_in_the_prompt(family: str, texts: tuple[str, ...]) -> None:
    processor, (noise,) = processor_of(family), clips("video", 1)
    row = prepare(processor, replace(noise, times=(0.5, 1.5, 61.0, 62.5), seconds=64.0))
    (ids,) = rebuild(processor, [row], ["What happens?"])["input_ids"]
    said = processor.tokenizer.decode(ids)
    assert all(text in said for text in texts), said


def test_a_processor_that_takes_one_prompt_a_call_is_called_for_each() -> None:
    processor = load_processor(processor_folder("idefics2"))
    compute = type(processor).__call__

    class Single(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            assert len(kwargs["text"]) == 1, "one at a time"
            return compute(self, *args, **kwargs)

    processor.__class__ = Single
    batch, prompts = clips("image", 2), PROMPTS[:2]
    wanted = plain_call("idefics2", processor_of("idefics2"), batch, prompts)
    assert not layout_of(processor, "images").batched
    assert_same(whole(processor, batch, prompts), wanted)
    texts = {name: value for name, value in wanted.items() if not is_picture(name)}
    assert_same(rebuilt(processor, batch, prompts), texts)


def test_a_processor_that_takes_pictures_in_no_way_is_refused() -> None:
    processor = load_processor(processor_folder("git"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not today")

    processor.image_processor.preprocess = refuse
    with pytest.raises(UsageError, match="takes images in no way that is known: not today"):
        prepare(processor, clips("image", 1)[0])


def test_a_processor_whose_text_depends_on_what_is_shown_is_refused() -> None:
    processor = load_processor(processor_folder("kosmos2"))
    compute = type(processor).__call__

    class Telling(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            outputs = compute(self, *args, **kwargs)
            outputs["brightness"] = outputs["pixel_values"].sum()[None]
            return outputs

    processor.__class__ = Telling
    with pytest.raises(UsageError, match="no prompt can be written without"):
        prepare(processor, clips("image", 1)[0])


def test_a_package_that_a_processor_needs_while_it_works_is_named() -> None:
    processor = load_processor(processor_folder("git"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ImportError("Package `num2words` is required.\nInstall it with `pip`.")

    processor.image_processor.preprocess = refuse
    with pytest.raises(EnvironmentFault, match=r"`num2words` is required\. Install it") as caught:
        prepare(processor, clips("image", 1)[0])
    assert "\n" not in str(caught.value)
