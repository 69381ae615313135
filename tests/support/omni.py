"""Tiny checkpoints that see and hear, with their processors; needs no network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.builders.words import TEMPLATE as WORDS
from tests.support.builders.words import hf, words
from tests.support.families import decisive, made_once, save
from tests.support.tiny_families.grids import DEEP, ROUTING, TALL, WINDOWS
from tests.support.tiny_families.parts import MROPE, NONE, config_of, model_of, patches, text

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}<|vision_bos|><|{{ c['type'] | upper }}|><|vision_eos|>"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = {
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
EAR = {
    "num_mel_bins": 20,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "max_source_positions": 1500,
    "output_dim": 32,
}
OMNI = ("Qwen2_5Omni", "Qwen3OmniMoe")
"""Prefixes of their classes."""
PATCH = 14
"""Side of a patch in pixels. The processors make every video at least 100,352 pixels large, which
were 6,400 patches a frame of the side that other tiny models have."""
HEARD_SECONDS = 10
"""Length to which the first one's processor pads sound."""


@made_once
def omni_checkpoint(folder: Path, prefix: str, patch: int = PATCH) -> None:
    """The thinker of one of OMNI; `patch`: the side of a patch in pixels."""
    tokenizer = words("<|im_start|>", "<|im_end|>", **NAMED)
    first = prefix == OMNI[0]
    common = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    frames = size if first else {**size, "longest_edge": 8 * (8 * patch) ** 2}
    video = hf.Qwen2VLVideoProcessor if first else hf.Qwen3VLVideoProcessor
    processor = getattr(hf, f"{prefix}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        video_processor=video(size=frames, cap_pixels_per_frame=False, **common),
        feature_extractor=hf.WhisperFeatureExtractor(
            feature_size=20, chunk_length=HEARD_SECONDS, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    save(folder, decisive(_model(prefix, tokenizer, patch)), processor)


TALKER_BYTES = 32 << 20
"""Bytes of each of what a whole model has beside its thinker."""


@made_once
def omni_whole(folder: Path, prefix: str) -> None:
    """The whole model of a thinker of OMNI, as transformers names its weights, with other parts in
    the same file and in one of their own."""
    whole, thinker = getattr(hf, f"{prefix}Config"), omni_checkpoint(prefix)
    model = getattr(hf, f"{prefix}ThinkerForConditionalGeneration").from_pretrained(thinker)
    made = getattr(hf, f"{prefix}ForConditionalGeneration")(
        whole(thinker_config=model.config.to_dict(), enable_audio_output=False)
    )
    made.thinker.load_state_dict(model.state_dict())
    made.config.dtype = model.dtype
    made.save_pretrained(folder)
    for path in thinker.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    weights = load_file(file := folder / "model.safetensors")
    weights["talker.model.embed_tokens.weight"] = torch.zeros(TALKER_BYTES // 4)
    save_file(weights, file, metadata={"format": "pt"})
    others = {"token2wav.weight": torch.zeros(TALKER_BYTES // 4)}
    save_file(others, folder / "model-2.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(weights, file.name) | dict.fromkeys(others, "model-2.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _model(prefix: str, tokenizer: Any, patch: int) -> Any:
    ids = {name: tokenizer.convert_tokens_to_ids(word) for name, word in NAMED.items()}
    kinds = ("image", "video", "audio")
    known = {
        f"{kind}_token_{end}": ids[f"{kind}_token"] for kind in kinds for end in ("id", "index")
    }
    known |= {
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "audio_start_token_id": ids["audio_bos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
        "user_token_id": 5,
    }
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    if prefix == OMNI[0]:
        turned = text(rope_parameters=MROPE, head_dim=NONE, **sizes)
        ear, seconds = (
            {**EAR, "n_window": 100},
            {"position_id_per_seconds": 25, "seconds_per_chunk": 2},
        )
        vision: Any = patches(**{**WINDOWS, "patch_size": patch, "window_size": 4 * patch})
    else:
        turned = text(**TALL, **ROUTING, **sizes)
        ear = {**EAR, "n_window": 50, "downsample_hidden_size": 8}
        seconds, vision = {"position_id_per_seconds": 13}, {**DEEP, "patch_size": patch}
    return model_of(
        config_of(f"{prefix}Thinker", turned, vision, audio_config=ear, **known, **seconds)
    )


def _heard_template(image: str, video: str, audio: str) -> str:
    """A chat template with these placeholders, media first."""
    media = {"image": image, "video": video, "audio": audio}
    return f"{{% set MEDIA = {media} %}}" + WORDS


def gemma3n() -> Any:
    named = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    named |= {"audio_token": "<aud>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
    return hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessor(size={"height": 32, "width": 32}),
        words(**named),
        chat_template=_heard_template("<img>", "", "<aud>"),
        audio_seq_length=6,
        image_seq_length=4,
    )


def gemma4(prefix: str = "Gemma4") -> Any:
    named = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    named |= {"audio_token": "<aud>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
    return getattr(hf, f"{prefix}Processor")(
        getattr(hf, f"{prefix}AudioFeatureExtractor")(),
        getattr(hf, f"{prefix}ImageProcessor")(max_soft_tokens=70),
        words("<|video|>", **named),
        getattr(hf, f"{prefix}VideoProcessor")(max_soft_tokens=70),
        chat_template=_heard_template("<img>", "<|video|>", "<aud>"),
    )


def dots3_note() -> Any:
    marks = ("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>")
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    return hf.Dots3NoteProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        tokenizer=words(*marks),
        video_processor=hf.Qwen2VLVideoProcessor(size=size, **common),
        feature_extractor=hf.Dots3NoteFeatureExtractor(),
        chat_template=_heard_template(*marks),
    )


def inkling() -> Any:
    named = {"image_token": "<img>", "audio_token": "<aud>"}
    return hf.InklingProcessor(
        hf.InklingFeatureExtractor(),
        hf.InklingImageProcessor(),
        words("<|content_image|>", "<|content_audio_input|>", **named),
        chat_template=_heard_template("<img>", "", "<aud>"),
    )


def muse_spark() -> Any:
    named = {"image_token": "<|patch|>", "video_token": "<|video|>", "audio_token": "<|audio|>"}
    ends = [
        f"<|{what}_{end}|>" for what in ("image", "vid", "soft_audio") for end in ("start", "end")
    ]
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    return hf.MuseSparkProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        video_processor=hf.MuseGlimmerVideoProcessor(size=size, **common),
        tokenizer=words("<|vid_frame_separator|>", *ends, **named),
        feature_extractor=hf.MuseSparkFeatureExtractor(),
        chat_template=_heard_template(*named.values()),
    )


HEARING: dict[str, Callable[[], Any]] = {
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "gemma4_unified": lambda: gemma4("Gemma4Unified"),
    "dots3_note": dots3_note,
    "inkling": inkling,
    "muse_spark": muse_spark,
}
"""Family → its processor of pictures and sound."""


@made_once
def hearing_processor(folder: Path, family: str) -> None:
    """The folder of one of HEARING."""
    HEARING[family]().save_pretrained(folder)
