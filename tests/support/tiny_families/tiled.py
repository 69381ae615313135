"""Families of the LLaVA line, in tiny sizes."""

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    INDEX,
    NONE,
    PINPOINTS,
    VIDEO,
    Built,
    both,
    clip,
    count,
    finish,
    hf,
    images,
    llama,
    noise,
    pictures,
    siglip,
    text,
)
from tests.support.tiny_families.shared import pixtral, sized, tiles

pictures(
    "llava",
    "LlavaForConditionalGeneration",
    lambda: hf.LlavaConfig(vision_config=clip(), text_config=llama(), **INDEX),
)

pictures(
    "llava:siglip",
    "LlavaForConditionalGeneration",
    lambda: hf.LlavaConfig(
        vision_config=siglip(),
        text_config=llama(tie_word_embeddings=True),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **INDEX,
    ),
)

pictures(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    lambda: hf.VipLlavaConfig(
        vision_config=clip(num_hidden_layers=4),
        text_config=llama(),
        vision_feature_layers=[-1, -2, 1],
        vision_feature_layer=[-1, -2, 1],
        **INDEX,
    ),
)


@images("llava:pixtral")
def llava_pixtral(rows: int) -> Built:
    return sized(
        "LlavaForConditionalGeneration",
        hf.LlavaConfig(
            vision_config=pixtral(),
            text_config=text("mistral", sliding_window=None),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **INDEX,
        ),
        rows,
    )


@images("llava_next")
def llava_next(rows: int) -> Built:
    return finish(
        hf.LlavaNextForConditionalGeneration(
            hf.LlavaNextConfig(
                vision_config=clip(), text_config=llama(), image_grid_pinpoints=PINPOINTS, **INDEX
            )
        ),
        tiles(rows),
        rows,
        wrap=False,
    )


@both("llava_next_video")
def llava_next_video(rows: int, video: bool) -> Built:
    model = hf.LlavaNextVideoForConditionalGeneration(
        hf.LlavaNextVideoConfig(
            vision_config=clip(),
            text_config=llama(),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 3, 3, 32, 32)) if video else tiles(rows),
        rows,
        video,
        wrap=False,
    )


@both("llava_onevision")
def llava_onevision(rows: int, video: bool) -> Built:
    model = hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            vision_config=siglip(),
            text_config=text("qwen2", head_dim=NONE),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    total = None
    if video:
        with torch.no_grad():
            n = count(
                model.model.get_video_features(
                    pixel_values_videos=torch.randn(rows, 3, 3, 32, 32), return_dict=True
                )
            )
            total = n
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 3, 3, 32, 32)) if video else tiles(rows),
        rows,
        video,
        wrap=False,
        total=total,
    )


@both("video_llava")
def video_llava(rows: int, video: bool) -> Built:
    model = hf.VideoLlavaForConditionalGeneration(
        hf.VideoLlavaConfig(
            vision_config=clip(),
            text_config=llama(),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 8, 3, 32, 32))
        if video
        else dict(pixel_values_images=noise(rows)),
        rows,
        video,
        wrap=False,
    )
