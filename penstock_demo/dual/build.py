"""Builds the untrained dual encoder of the demo: config, weights, tokenizer, processor."""

import math
import random
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from penstock_demo.build import train_tokenizer
from penstock_demo.dual.batches import PATCH, SIDE
from penstock_demo.dual.phrases import sample_phrases

END: Final = "</s>"
"""The token that ends and pads a text, as in the published models."""
SCALE, BIAS = 12.0, -6.0
"""Initial scale and bias: logit = scale * cosine + bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DualShape:
    """Sizes of the model."""

    vision_width: int = 128
    """Channels in the vision encoder, and in the vectors."""
    vision_layers: int = 4
    vision_inner: int = 320
    """Channels inside the vision encoder's MLPs."""
    text_width: int = 64
    """Channels in the text encoder."""
    text_layers: int = 2
    text_inner: int = 192
    """Channels inside the text encoder's MLPs."""
    vocabulary: int = 352
    """Byte-level BPE tokens: 256 bytes, the end, and the demo's words."""
    length: int = 16
    """Tokens of every text, padded."""


def build_text_reader(shape: DualShape) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer in which the words of the phrases are single tokens."""
    rng = random.Random(1)
    corpus = [text for _ in range(60) for text in sample_phrases(rng).texts[:-4]]
    tokenizer = train_tokenizer(corpus, shape.vocabulary, [END], add_prefix_space=True)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=shape.length,
        # The published models get no mask: padding is part of the text.
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def build_dual(
    shape: DualShape | None = None, seed: int = 0
) -> tuple[SiglipModel, SiglipProcessor]:
    shape = shape or DualShape()
    tokenizer = build_text_reader(shape)
    end = tokenizer.convert_tokens_to_ids(END)
    config = SiglipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.text_width,
            "intermediate_size": shape.text_inner,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": 4,
            "max_position_embeddings": shape.length,
            "projection_size": shape.vision_width,
            "pad_token_id": end,
            "bos_token_id": None,
            "eos_token_id": end,
        },
        vision_config={
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_inner,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
    )
    torch.manual_seed(seed)
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
        model.logit_bias.fill_(BIAS)
    images = SiglipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return model, SiglipProcessor(image_processor=images, tokenizer=tokenizer)
