"""Families that take several tiles a picture with a mask, in tiny sizes."""

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    NONE,
    PINPOINTS,
    Built,
    both,
    decisive,
    finish,
    hf,
    images,
    llama,
    noise,
    siglip,
    small,
    text,
    tower,
)
from tests.support.tiny_families.shared import qformer, tiles


@both("smolvlm")
def smolvlm(rows: int, video: bool) -> Built:
    """Its processor gives it the frames of a video as tiles of a picture."""
    count = 4 if video else 2
    config = hf.SmolVLMConfig(
        vision_config=tower("smolvlm_vision"),
        text_config=llama(),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return finish(
        hf.SmolVLMForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32, count),
            pixel_attention_mask=torch.ones(rows, count, 32, 32, dtype=torch.bool),
        ),
        rows,
        wrap=False,
        middle=lambda n: [IMAGE] * (n // 2) + [3] + [IMAGE] * (n // 2),
    )


@images("idefics3")
def idefics3(rows: int) -> Built:
    config = hf.Idefics3Config(
        vision_config=tower("idefics3_vision"),
        text_config=llama(),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return finish(
        hf.Idefics3ForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32, 2),
            pixel_attention_mask=torch.ones(rows, 2, 32, 32, dtype=torch.bool),
        ),
        rows,
        wrap=False,
        middle=lambda n: [IMAGE] * (n // 2) + [3] + [IMAGE] * (n // 2),
    )


@images("idefics2")
def idefics2(rows: int) -> Built:
    config = hf.Idefics2Config(
        vision_config=tower("idefics2_vision"),
        text_config=text("mistral", sliding_window=None),
        image_token_id=IMAGE,
        perceiver_config=dict(
            model_type="idefics2_perceiver",
            hidden_size=32,
            resampler_n_latents=4,
            resampler_depth=2,
            resampler_n_heads=4,
            resampler_head_dim=8,
            num_key_value_heads=2,
        ),
    )
    return finish(
        hf.Idefics2ForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32, 2),
            pixel_attention_mask=torch.ones(rows, 2, 32, 32, dtype=torch.bool),
        ),
        rows,
        wrap=False,
        middle=lambda n: [IMAGE] * (n // 2) + [3] + [IMAGE] * (n // 2),
    )


@images("granite_docling")
def granite_docling(rows: int) -> Built:
    config = hf.GraniteDoclingConfig(
        text_config=text(num_hidden_layers=4),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            out_hidden_size=32,
            scale_factor=4,
            deepstack_visual_indexes=[0, 1],
            use_fine_route=True,
        ),
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    return finish(
        hf.GraniteDoclingForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32, 2),
            pixel_attention_mask=torch.ones(rows, 2, dtype=torch.bool),
        ),
        rows,
        wrap=False,
    )


@images("granite4_vision")
def granite4_vision(rows: int) -> Built:
    config = hf.Granite4VisionConfig(
        vision_config=siglip(num_hidden_layers=4, hidden_size=64),
        text_config=text(num_hidden_layers=4, head_dim=NONE),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        downsample_rate="2/4",
        deepstack_layer_map=[[-3, 0], [-2, 1]],
        spatial_vision_layer=-1,
        spatial_target_layers=[2, 3],
        projector_dropout=0.0,
        qformer_config=qformer(
            "blip_2_qformer", hidden_size=64, num_attention_heads=1, encoder_hidden_size=64
        ),
    )
    inputs = tiles(rows)
    model = hf.Granite4VisionForConditionalGeneration(config)
    with torch.no_grad():
        o = decisive(model).eval().model.get_image_features(**inputs)
    return finish(
        model, inputs, rows, wrap=False, total=sum(x.shape[0] for x in o.deepstack_features[0][1])
    )


@images("step3p7")
def step3p7(rows: int) -> Built:
    config = hf.Step3p7Config(
        vision_config=small(image_size=32, patch_size=4, mlp_ratio=2.0, max_position_embeddings=64),
        text_config=text(
            layer_types=["full_attention", "sliding_attention"],
            sliding_window=16,
            num_sliding_attention_heads=4,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            share_expert_dim=16,
            mlp_layer_types=["dense", "sparse"],
            num_local_experts=4,
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.Step3p7ForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32),
            pixel_values_local=noise(rows, 16),
            num_local_patches=[1] * rows,
        ),
        rows,
        wrap=False,
    )
