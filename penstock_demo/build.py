"""Builds the untrained checkpoint of the demo: config, weights, tokenizer, processors, template.
Holds the prompts with which it is trained."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from penstock_demo.world import caption, sample_clip, sample_still

VIDEO_PROMPT: Final = "Describe this video in detail."
"""The program's own prompt for clips."""
IMAGE_PROMPT: Final = "Describe this image in detail."
"""The program's own prompt for images."""
WORDINGS: Final = (
    "Describe the video.",
    "Describe this video.",
    "Describe this clip.",
    "Describe the clip in detail.",
    "Describe the video in detail.",
    "Caption the video.",
    "Caption this.",
    "Write a caption for this clip.",
    "Write one sentence about this video.",
    "What happens in the video?",
    "What happens in this clip?",
    "What is happening?",
    "What do you see?",
    "Tell me what you see.",
    "Summarize this video.",
    "Give a short description.",
    "Explain what is shown here.",
    "Describe what moves, and how.",
    "Which shapes are there, and what do they do?",
    "Describe the scene.",
    "Describe the image.",
    "Describe this picture.",
)
"""Other prompts, so that the answer does not depend on one."""


SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's own special tokens."""
TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of the model."""

    vision_width: int = 128
    """Channels in the vision encoder."""
    vision_layers: int = 4
    """Number of layers, all with full attention over the two frames of a temporal patch."""
    vision_inner: int = 320
    """Channels inside the vision encoder's MLPs."""
    text_width: int = 192
    """Channels in the language model."""
    text_layers: int = 4
    """Decoder layers."""
    text_inner: int = 512
    """Channels inside the decoder's MLPs."""
    vocabulary: int = 512
    """Byte-level BPE tokens, including the special ones."""
    patch: int = 8
    """Side length of a patch in pixels; two by two patches are one token."""
    pixels: int = 64 * 64
    """Maximum pixels of a resized frame; the minimum is three quarters of it."""
    rope_theta: float = 16.0
    """Base of the rotary positions. The usual million would hide height and width on a grid this
    small."""
    tokens_per_second: int = 2
    """Temporal positions per second."""


def train_tokenizer(
    corpus: Iterable[str], vocabulary: int, special: list[str], *, add_prefix_space: bool
) -> Tokenizer:
    """Return a byte-level tokenizer in which frequent words of a corpus are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer in which the demo's words are single tokens."""
    rng = random.Random(1)
    corpus = [caption(sample_clip(rng, "any")) for _ in range(4000)]
    corpus += [caption(sample_still(rng, "any")) for _ in range(500)]
    corpus += [VIDEO_PROMPT, IMAGE_PROMPT, *WORDINGS] * 30 + ["user\nassistant\nsystem\n"] * 200
    tokenizer = train_tokenizer(corpus, vocabulary, list(SPECIAL), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = TEMPLATE
    return fast


def build_processor(shape: Shape) -> Qwen2_5_VLProcessor:
    """Build the processor; its video part states how to sample clips."""
    common: dict[str, Any] = {
        "patch_size": shape.patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": shape.pixels * 3 // 4, "longest_edge": shape.pixels},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    video = Qwen2VLVideoProcessor(
        **common,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        fps=2.0,
        min_frames=4,
        max_frames=16,
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=build_tokenizer(shape.vocabulary),
        video_processor=video,
        chat_template=TEMPLATE,
    )


def build_config(shape: Shape, processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLConfig:
    """Build the config of an untrained model of this shape."""
    ids = processor.tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.text_width,
            "intermediate_size": shape.text_inner,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": shape.rope_theta,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_inner,
            "num_heads": 4,
            "patch_size": shape.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": shape.tokens_per_second,
            "window_size": 128,
            "out_hidden_size": shape.text_width,
            "fullatt_block_indexes": list(range(shape.vision_layers)),
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build(
    shape: Shape | None = None, seed: int = 0
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    shape = shape or Shape()
    processor = build_processor(shape)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(shape, processor))
    ids = processor.tokenizer.convert_tokens_to_ids
    model.generation_config.update(
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        max_new_tokens=64,
        do_sample=False,
    )
    return model, processor
