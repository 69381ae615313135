"""Families that ask a picture by learnt queries, and encoder-decoders, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import IMAGE, VIDEO, Built, finish, hf, images, noise, tower
from tests.support.tiny_families.shared import qformer

OPT: dict[str, Any] = dict(
    model_type="opt",
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    num_attention_heads=4,
    max_position_embeddings=512,
    word_embed_proj_dim=32,
    vocab_size=120,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

T5: dict[str, Any] = dict(
    model_type="t5",
    vocab_size=120,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    pad_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=0,
)


def blip_2(rows: int, text: Any) -> Built:
    config = hf.Blip2Config(
        vision_config=tower("blip_2_vision_model", qkv_bias=True),
        qformer_config=qformer("blip_2_qformer"),
        text_config=text,
        num_query_tokens=4,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
    )
    return finish(
        hf.Blip2ForConditionalGeneration(config),
        dict(pixel_values=noise(rows)),
        rows,
        wrap=False,
        total=4 * rows,
    )


def instructblip(rows: int, text: Any, video: bool = False) -> Built:
    prefix, kind = ("InstructBlipVideo", "video") if video else ("InstructBlip", "image")
    place = VIDEO if video else IMAGE
    config = getattr(hf, f"{prefix}Config")(
        vision_config=tower(f"{prefix.lower()}_vision_model", qkv_bias=True),
        qformer_config=qformer(f"{prefix.lower()}_qformer"),
        text_config=text,
        num_query_tokens=4,
        **{f"{kind}_token_index": place, f"{kind}_token_id": place},
    )
    inputs = {
        "pixel_values": noise(rows, 32, 4) if video else noise(rows),
        "qformer_input_ids": torch.tensor([[1, 5, 6, 7]] * rows),
        "qformer_attention_mask": torch.ones(rows, 4, dtype=torch.long),
    }
    model = getattr(hf, f"{prefix}ForConditionalGeneration")(config)
    total = 4 * rows * (4 if video else 1)
    return finish(model, inputs, rows, video, wrap=False, total=total)


def florence2(rows: int) -> Built:
    config = hf.Florence2Config(
        text_config=dict(
            model_type="bart",
            vocab_size=120,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        vision_config=dict(
            depths=[1, 1, 1, 1],
            patch_size=[7, 3, 3, 3],
            patch_stride=[4, 2, 2, 2],
            patch_padding=[3, 1, 1, 1],
            patch_prenorm=[False, True, True, True],
            embed_dim=[8, 8, 16, 32],
            num_heads=[2, 2, 2, 2],
            num_groups=[2, 2, 2, 2],
            window_size=4,
            projection_dim=32,
            max_temporal_embeddings=4,
            max_position_embeddings=8,
            drop_path_rate=0.0,
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.Florence2ForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


images("blip_2")(lambda rows: blip_2(rows, dict(OPT)))

images("blip_2:t5")(lambda rows: blip_2(rows, dict(T5)))

images("instructblip")(lambda rows: instructblip(rows, dict(OPT)))

images("instructblip:t5")(lambda rows: instructblip(rows, dict(T5)))

images("instructblipvideo")(lambda rows: instructblip(rows, dict(OPT), True))

images("instructblipvideo:t5")(lambda rows: instructblip(rows, dict(T5), True))

images("florence2")(florence2)
