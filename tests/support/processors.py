"""How each family documents that its processor is called; builds no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stages.models.processors.calling import run
from stages.models.processors.chat_template import write
from stages.models.processors.input_layout import layout_of
from stages.models.processors.prepare import Clip, channel_of, video_metadata
from tests.support import builders
from tests.support.families import made_once


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A family's processor and its documented call."""

    build: Callable[[], Any]
    text: str | None = None
    """What is written for pictures and a prompt; None: the chat template writes it."""
    word: str = ""
    """What stands for a picture in it."""
    nested: bool = True
    """Whether pictures go in as a list for each prompt."""
    many: bool = True
    """Whether several pictures go into one prompt."""
    video: str | None = None
    """The argument that takes videos; None: frames go in as pictures."""
    timed: bool = True
    """Whether a video's times go in."""
    image: bool = True
    """Whether it takes pictures at all."""


KINDS: dict[str, Kind] = {
    "aya_vision": Kind(build=builders.aya_vision),
    "blip": Kind(build=builders.blip, text="{prompt}", many=False),
    "blip_2": Kind(build=builders.blip_2, text="{prompt}", many=False),
    "chameleon": Kind(build=builders.chameleon, text="{media}\n{prompt}", word="<image>"),
    "emu3": Kind(build=builders.emu3),
    "florence2": Kind(build=builders.florence2, text="{prompt}", many=False),
    "gemma3": Kind(build=builders.gemma3),
    "git": Kind(build=builders.git, text="{prompt}", many=False),
    "glm4v": Kind(build=builders.glm4v, video="videos"),
    "got_ocr2": Kind(
        build=builders.got_ocr2, text="{media}\n{prompt}", word="<imgpad>", nested=False
    ),
    "idefics": Kind(build=builders.idefics, text="{prompt}"),
    "idefics2": Kind(build=builders.idefics2),
    "idefics3": Kind(build=builders.idefics3),
    "instructblip": Kind(build=builders.instructblip, text="{prompt}", many=False),
    "instructblipvideo": Kind(
        build=builders.instructblipvideo, text="{prompt}", video="images", timed=False, image=False
    ),
    "internvl": Kind(build=builders.internvl, video="videos"),
    "janus": Kind(build=builders.janus),
    "kosmos2": Kind(build=builders.kosmos2, text="{prompt}", many=False),
    "llama4": Kind(build=builders.llama4),
    "llava_next": Kind(build=builders.llava_next),
    "llava_next_video": Kind(build=builders.llava_next_video, video="videos"),
    "mllama": Kind(build=builders.mllama),
    "paligemma": Kind(build=builders.paligemma, text="{media}{prompt}", word="<image>"),
    "perception_lm": Kind(build=builders.perception_lm, video="videos"),
    "pix2struct": Kind(build=builders.pix2struct, text="{prompt}", many=False),
    "pixtral": Kind(build=builders.pixtral),
    "qwen2_vl": Kind(build=builders.qwen2_vl, video="videos"),
    "video_llama_3": Kind(build=builders.video_llama_3, video="videos"),
    "video_llava": Kind(build=builders.video_llava, video="videos"),
}
"""Family -> its processor and its call."""


def plain_call(
    family: str, processor: Any, batch: Sequence[Clip], prompts: Sequence[str]
) -> dict[str, Any]:
    """What the processor gives for media and prompts at once, called as its family documents."""
    kind = KINDS[family]
    as_video = kind.video is not None and batch[0].kind == "video"
    clips = [clip if kind.many else clip.middle() for clip in batch]
    pictures = [[Image.fromarray(frame) for frame in clip.frames] for clip in clips]
    counts = [1 if as_video else len(row) for row in pictures]
    texts = []
    for count, prompt in zip(counts, prompts, strict=True):
        parts: list[dict[str, str]] = [{"type": "video" if as_video else "image"}] * count
        turn = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        if kind.text is None:
            texts.append(processor.apply_chat_template(turn, add_generation_prompt=True))
        else:
            texts.append(kind.text.format(media=kind.word * count, prompt=prompt))
    flat = [picture for row in pictures for picture in row]
    options: dict[str, Any] = {"images": pictures if kind.nested else flat}
    if as_video:
        options = {str(kind.video): [clip.frames for clip in clips]}
        if kind.timed:
            metadata = [video_metadata(clip) for clip in clips]
            options |= {"video_metadata": metadata, "do_sample_frames": False}
    if texts[0].startswith(processor.tokenizer.bos_token):
        options["add_special_tokens"] = False
    return dict(processor(text=texts, padding=True, return_tensors="pt", **options))


@made_once
def processor_folder(folder: Path, family: str) -> None:
    """Where the family's processor is saved."""
    KINDS[family].build().save_pretrained(folder)


def whole(processor: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Any]:
    """All that the processor gives for these media and prompts at once, pixels included: what a
    model takes that is not cut in two."""
    layout = layout_of(processor, channel_of(processor, clips[0].kind))
    seen = [clip.middle() if layout.alone else clip for clip in clips]
    return run(processor, layout, seen, prompts)


def render(processor: Any, channel: str, media: int, prompt: str) -> str:
    """The text of one turn, media first, by the checkpoint's chat template if it has one."""
    return write(processor, layout_of(processor, channel).form, channel, media, prompt)
