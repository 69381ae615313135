"""Families whose pictures become codes of a vocabulary or take unusual towers, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    INDEX,
    NONE,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    images,
    llama,
    noise,
    pictures,
    small,
    text,
)
from tests.support.tiny_families.shared import HYBRID, PERCEIVING, timm_tower


def sliced(name: str, prefix: str) -> None:
    """Register a family that takes slices of a picture one after the other."""

    def build(rows: int, video: bool) -> Built:
        config = getattr(hf, f"{prefix}Config")(
            text_config=text("qwen3_5_text", **HYBRID),
            vision_config=small(num_hidden_layers=3, image_size=32, patch_size=4),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            insert_layer_id=1,
            tie_word_embeddings=False,
        )
        suffix = "_videos" if video else ""
        inputs = {
            f"pixel_values{suffix}": torch.randn(1, 3, 4, rows * 64 * 4),
            f"target_sizes{suffix}": torch.tensor([[8, 8]] * rows, dtype=torch.int32),
        }
        model = getattr(hf, f"{prefix}ForConditionalGeneration")(config)
        types = "mm_token_type_ids" if name == "minicpmv4_7" else None
        return finish(model, inputs, rows, video, wrap=False, types=types)

    both(name)(build)


VOCABULARY = {f"<|visual token {code:06d}|>": 20 + code for code in range(16)}

sliced("minicpmv4_6", "MiniCPMV4_6")

sliced("minicpmv4_7", "MiniCPMV4_7")

sliced("minicpm_ocr", "MiniCPMOcr")


@images("emu3")
def emu3(rows: int) -> Built:
    config = hf.Emu3Config(
        text_config=text(head_dim=NONE),
        vq_config=dict(
            codebook_size=16,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[1],
            hidden_size=64,
            num_attention_heads=1,
            temporal_downsample_factor=1,
        ),
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 98, **VOCABULARY},
    )
    inputs = dict(pixel_values=noise(rows, 16), image_sizes=torch.tensor([[16, 16]] * rows))
    return finish(hf.Emu3ForConditionalGeneration(config), inputs, rows, wrap=False)


pictures(
    "chameleon",
    "ChameleonForConditionalGeneration",
    lambda: hf.ChameleonConfig(
        **text(head_dim=NONE),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            resolution=16,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
        ),
        vocabulary_map={
            "<image>": IMAGE,
            **{
                "IMGIMG" + "".join(chr(65 + int(d)) for d in str(inputs)) + "Z": 20 + inputs
                for inputs in range(16)
            },
        },
    ),
    size=16,
)


@images("fuyu")
def fuyu(rows: int) -> Built:
    config = hf.FuyuConfig(
        text_config=small(
            model_type="persimmon",
            vocab_size=120,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_size=32,
        patch_size=8,
        image_token_id=IMAGE,
    )
    return finish(
        hf.FuyuForCausalLM(config),
        dict(pixel_values=torch.randn(rows, 16, 192)),
        rows,
        wrap=False,
        total=16 * rows,
    )


@images("fast_vlm")
def fast_vlm(rows: int) -> Built:
    config = hf.FastVlmConfig(
        vision_config=timm_tower(
            "fastvit_mci0",
            do_pooling=True,
            hidden_size=64,
            model_args=dict(inference_mode=True, embed_dims=[32, 32, 32, 32], layers=[1, 1, 1, 1]),
        ),
        text_config=text("qwen2", head_dim=NONE),
        **INDEX,
    )
    return finish(
        hf.FastVlmForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


def perceiving() -> Any:
    return hf.PerceptionLMConfig(
        vision_config=PERCEIVING,
        text_config=llama(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )


@both("perception_lm")
def perception_lm(rows: int, video: bool) -> Built:
    frames = 3 if video else 1
    return finish(
        hf.PerceptionLMForConditionalGeneration(perceiving()),
        {"pixel_values_videos" if video else "pixel_values": noise(rows, 32, frames)},
        rows,
        video,
        total=rows * frames * 4,
        wrap=False,
    )
