"""Conversations about several images, asked by OpenAI's client: the answers are those that
transformers gives with the whole model and its own processor and chat template."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from PIL import Image, ImageDraw

from penstock_demo import CHECKPOINT
from tests.support.pipeline import PENSTOCK
from tests.support.serving import serving

LIMIT = 40


def picture(colour: str, size: tuple[int, int]) -> Image.Image:
    drawn = Image.new("RGB", size, "white")
    ImageDraw.Draw(drawn).ellipse((8, 8, 48, 48), fill=colour)
    return drawn


RED, BLUE, GREEN = (
    picture("red", (96, 64)),
    picture("blue", (64, 96)),
    picture("green", (120, 120)),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    command = [*PENSTOCK, "serve", "--caption-model", "demo"]
    with serving(tmp_path_factory.mktemp("talk"), command=command) as server:
        base = f"http://127.0.0.1:{server.port}/v1"
        with OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120) as client:
            yield client


@pytest.fixture(scope="module")
def whole() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    return model.eval(), AutoProcessor.from_pretrained(CHECKPOINT)


def part_of(image: Image.Image) -> dict[str, Any]:
    image.save(file := io.BytesIO(), "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def said_by_transformers(
    whole: tuple[Any, Any], images: list[Image.Image], turns: list[str]
) -> tuple[str, int]:
    """Return the answer, and the number of tokens of the prompt."""
    model, processor = whole
    texts = [{"type": "text", "text": text} for text in turns]
    shown = [{"type": "image"} for _ in images]
    talk = [{"role": "user", "content": [*shown, texts[0]]}]
    for at, text in enumerate(texts[1:]):
        talk.append({"role": ("assistant", "user")[at % 2], "content": [text]})
    text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return processor.tokenizer.decode(tokens[0, length:], skip_special_tokens=True).strip(), length


@pytest.mark.parametrize(
    ("images", "turns"),
    [
        ([RED, BLUE], ["Describe this image in detail."]),
        ([BLUE, RED], ["Describe this image in detail."]),
        ([RED, BLUE, GREEN, RED], ["What do they show?"]),
        ([GREEN], ["Describe this image in detail.", "A green circle.", "What moves?"]),
        ([RED, GREEN], ["What is it?", "A ring.", "No.", "A square.", "Describe this image."]),
    ],
)
def test_answers_are_those_of_transformers(
    client: OpenAI, whole: tuple[Any, Any], images: list[Image.Image], turns: list[str]
) -> None:
    first, *later = turns
    talk: list[Any] = [
        {"role": "user", "content": [*map(part_of, images), {"type": "text", "text": first}]}
    ]
    talk += [
        {"role": ("assistant", "user")[at % 2], "content": text} for at, text in enumerate(later)
    ]
    create = client.chat.completions.create
    answer = create(model="demo", messages=talk, max_tokens=LIMIT)
    expected, length = said_by_transformers(whole, images, turns)
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None and answer.usage.prompt_tokens == length
    again = create(model="demo", messages=talk, max_tokens=LIMIT, stream=True)
    said = [chunk.choices[0].delta.content or "" for chunk in again if chunk.choices]
    assert "".join(said) == expected


def test_a_clip_stands_alone(client: OpenAI) -> None:
    clip = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAAGGZ0eXBpc29t"}}
    talk: list[Any] = [{"role": "user", "content": [part_of(RED), clip]}]
    with pytest.raises(BadRequestError, match="a clip cannot stand beside") as refused:
        client.chat.completions.create(model="demo", messages=talk)
    assert refused.value.param == "messages"
