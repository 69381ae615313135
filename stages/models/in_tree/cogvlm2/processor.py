"""The processors of CogVLM2, whose published folders contain only a tokenizer.

Each image or video stands in the prompt as one placeholder. A video expands to the placeholders of
each frame, each frame followed by its number as text. An image expands to its placeholders only. An
image given to the video model is a video of one frame.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import BatchFeature, CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import make_batched_videos

from stages.models.in_tree.cogvlm2.config import CogVLM2Config, CogVLM2VisionConfig

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
"""CLIP's mean and standard deviation."""
WHITE = 255


def of_video(frames: Any, side: int) -> torch.Tensor:
    """Return a video's frames [height, width, 3] of bytes as [frames, 3, side, side]."""
    return torch.stack([_of_frame(np.asarray(frame), side) for frame in frames])


def _of_frame(frame: np.ndarray[Any, Any], side: int) -> torch.Tensor:
    # One frame at a time: all frames of a chunk in 32 bit would need gigabytes.
    pixels = (torch.tensor(frame).permute(2, 0, 1).float() / WHITE - MEAN) / STD
    height, width = size = _scaled(frame.shape[0], frame.shape[1], side)
    pixels = functional.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[:, top : top + side, left : left + side]


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (height, width) in pixels with the shorter side scaled to `side`."""
    if height <= width:
        return side, math.floor(width / height * side)
    return math.floor(height / width * side), side


MAX_FRAMES = 24
"""Maximum frames of a video, as in the published model: the first frame of each second."""
TEMPLATE = (
    "{{% for m in messages %}}{{% if loop.first %}}{begin}{{% endif %}}"
    "{{% if m['role'] == 'user' %}}{{% for part in m['content'] %}}"
    "{{% if part['type'] != 'text' %}}{place}{{% endif %}}{{% endfor %}}{{% endif %}}{{% endfor %}}"
    "{{% for m in messages %}}{{% set said = m['content'] %}}"
    "{{% if said is not string %}}"
    "{{% set said = said | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}}"
    "{{% endif %}}"
    "{{% if m['role'] == 'user' %}}Question: {{{{ said }}}} Answer:"
    "{{% else %}} {{{{ said }}}}\n{{% endif %}}{{% endfor %}}"
)
"""Chat template, formatted with first token and placeholder; media precede all turns."""


class CogVLM2VideoProcessor(BaseVideoProcessor):
    """Turns frames into pixels: one frame per second, up to a maximum."""

    model_input_names = ["pixel_values_videos", "video_frame_counts"]  # noqa: RUF012
    fps = 1
    max_frames = MAX_FRAMES
    chunk_seconds = MAX_FRAMES
    side = 224
    """Side length in pixels of the model's input."""

    def preprocess(self, videos: Any, **_: Any) -> BatchFeature:
        videos_resized = [of_video(video, self.side) for video in make_batched_videos(videos)]
        counts = torch.tensor([len(frames) for frames in videos_resized])
        return BatchFeature(
            {"pixel_values_videos": torch.cat(videos_resized), "video_frame_counts": counts}
        )


class CogVLM2VideoChat(ProcessorMixin):
    """The processor of the video models."""

    def __init__(
        self, video_processor: Any, tokenizer: Any, *, chat_template: str, place: str, tokens: int
    ) -> None:
        super().__init__(video_processor, tokenizer, chat_template=chat_template)
        self.video_token = place
        self.video_token_id = tokenizer.convert_tokens_to_ids(place)
        self.tokens_per_frame = tokens

    def replace_video_token(self, video_inputs: Any, video_idx: int, **_: Any) -> str:
        frame = self.video_token * self.tokens_per_frame
        count = int(video_inputs["video_frame_counts"][video_idx])
        return "".join(f"{frame}{second}" for second in range(count))


class CogVLM2ImageChat(ProcessorMixin):
    """The processor of the image model, which takes one image per prompt."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, *, chat_template: str, place: str, tokens: int
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token = place
        self.image_token_id = tokenizer.convert_tokens_to_ids(place)
        self.tokens_per_image = tokens

    def validate_inputs(self, images: Any = None, text: Any = None, *args: Any, **kw: Any) -> None:
        super().validate_inputs(images, text, *args, **kw)
        if any(prompt_parts.count(self.image_token) > 1 for prompt_parts in text or ()):
            raise ValueError("the model takes one image per prompt")

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        return self.image_token * self.tokens_per_image


def load_video_processor(folder: Path) -> CogVLM2VideoChat:
    """Load the processor of a video model. Raises OSError or ValueError."""
    seen, tokenizer, prompt_parts = _parts(folder)
    frames = CogVLM2VideoProcessor()
    frames.side = seen.image_size
    return CogVLM2VideoChat(frames, tokenizer, **prompt_parts)


def load_image_processor(folder: Path) -> CogVLM2ImageChat:
    """Load the processor of the image model. Raises OSError or ValueError."""
    seen, tokenizer, prompt_parts = _parts(folder)
    size = {"height": seen.image_size, "width": seen.image_size}
    pixels = CLIPImageProcessorPil(size=size, do_center_crop=False)
    return CogVLM2ImageChat(pixels, tokenizer, **prompt_parts)


def _parts(folder: Path) -> tuple[CogVLM2VisionConfig, Any, dict[str, Any]]:
    """Return the parts of both processors; the last one holds their keyword arguments."""
    config = CogVLM2Config.from_pretrained(folder)
    seen: Any = config.vision_config
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    begin, end, place = tokenizer.convert_ids_to_tokens(
        [config.bos_token_id, config.eos_token_id, config.image_token_id]
    )
    if place not in tokenizer.get_added_vocab():
        raise ValueError(f"the tokenizer has no token {config.image_token_id} for images")
    tokenizer.bos_token, tokenizer.eos_token = begin, end
    # Published files use the placeholder as padding token; padding would then look like images.
    tokenizer.pad_token = end
    template = TEMPLATE.format(begin=begin, place=place)
    prompt_parts = {"chat_template": template, "place": place, "tokens": seen.tokens_per_image}
    return seen, tokenizer, prompt_parts
