"""Runs in a process whose transformers is an earlier release: writes tiny checkpoints as that
release does, and answers questions by one joint `generate` each."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.builders.words import QWEN_MARKS, QWEN_TEMPLATE, hf, tokenizer
from tests.support.families import decisive, qwen_ids, save, text_config
from tests.support.tiny_families.parts import NONE, config_of, patches

PATCHES = {"temporal_patch_size": 2, "merge_size": 2}
PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}
"""Of the published checkpoints of Qwen2-VL and Qwen2.5-VL."""
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
"""Family -> how the names of its classes begin."""


def words() -> Any:
    """Bytes as tokens, in the class that the published ones have."""
    return hf.Qwen2TokenizerFast(
        tokenizer_object=tokenizer(QWEN_MARKS, QWEN_TEMPLATE).backend_tokenizer,
        unk_token=None,
        bos_token=None,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(QWEN_MARKS),
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def speaking_plainly(model: Any, vocabulary: dict[str, int]) -> Any:
    """Let a model say nothing but printed ASCII signs, each of which is a token: then a text and
    its tokens determine each other."""
    plain = {vocabulary[chr(code)] for code in range(33, 127)}
    with torch.no_grad():
        for token in set(range(model.lm_head.weight.shape[0])) - plain:
            model.lm_head.weight[token] = 0.0
    return model


TEXT = text_config(max_position_embeddings=32768, rope_theta=10000.0)


def qwen2_vl(tokens: dict[str, int]) -> tuple[Any, Any]:
    none = {"intermediate_size": NONE, "out_hidden_size": NONE}
    tower = patches(depth=2, embed_dim=32, mlp_ratio=2, patch_size=14, **none)
    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    config = hf.Qwen2VLConfig(vision_config=tower, rope_scaling=rope, **TEXT, **tokens)
    return config, hf.Qwen2VLProcessor(hf.Qwen2VLImageProcessor(**PIXELS, **PATCHES), words())


def qwen2_5_vl(tokens: dict[str, int]) -> tuple[Any, Any]:
    windows = {"window_size": 112, "fullatt_block_indexes": [1]}
    tower = patches(depth=2, patch_size=14, tokens_per_second=2, **windows)
    rope = {"type": "mrope", "mrope_section": [2, 1, 1]}
    config = hf.Qwen2_5_VLConfig(vision_config=tower, rope_scaling=rope, **TEXT, **tokens)
    return config, hf.Qwen2_5_VLProcessor(hf.Qwen2VLImageProcessor(**PIXELS, **PATCHES), words())


def qwen3_vl(tokens: dict[str, int]) -> tuple[Any, Any]:
    layers = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {**TEXT, "head_dim": 8, "rope_scaling": rope}
    config = config_of("Qwen3VL", text, patches(depth=2, patch_size=16, **layers), **tokens)
    image = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    video = {"patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorFast(**image, **PATCHES),
        tokenizer=words(),
        video_processor=hf.Qwen3VLVideoProcessor(**video, **PATCHES),
        chat_template=QWEN_TEMPLATE,
    )
    return config, processor


BUILDERS = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
"""Family -> its tiny configuration and its processor, given the ids of special tokens."""


def build(family: str, folder: Path) -> None:
    config, processor = BUILDERS[family](qwen_ids(words()))
    model = decisive(getattr(hf, f"{CLASSES[family]}ForConditionalGeneration")(config))
    processor.chat_template = QWEN_TEMPLATE
    save(folder, speaking_plainly(model, words().get_vocab()), processor)


def process(processor: Any, family: str, question: dict[str, Any], frames: Any) -> Any:
    """Call the release's processor with one prompt and frames that were taken before."""
    media = question["media"]
    kinds = ["image" if medium["fps"] is None else "video" for medium in media]
    parts = [*({"type": kind} for kind in kinds), {"type": "text", "text": question["prompt"]}]
    turn = [{"role": "user", "content": parts}]
    options: dict[str, Any] = {
        "text": [processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)]
    }
    pixels = [frames[medium["frames"]] for medium in media]
    rates = [medium["fps"] for medium in media if medium["fps"] is not None]
    images = [
        Image.fromarray(p[0]) for p, kind in zip(pixels, kinds, strict=True) if kind == "image"
    ]
    videos = [p for p, kind in zip(pixels, kinds, strict=True) if kind == "video"]
    if images:
        options["images"] = images
    if videos:
        options["videos"] = videos
    if videos and family == "qwen2_5_vl":
        options["videos_kwargs"] = {"fps": rates}
    if videos and family == "qwen3_vl":
        options["do_sample_frames"] = False
        options["video_metadata"] = [
            {
                "fps": rate,
                "total_num_frames": len(video),
                "duration": len(video) / rate,
                "frames_indices": list(range(len(video))),
            }
            for video, rate in zip(videos, rates, strict=True)
        ]
    return processor(return_tensors="pt", **options)


def answer(family: str, checkpoint: Path, job: Path) -> None:
    cls = getattr(hf, f"{CLASSES[family]}ForConditionalGeneration")
    model = cls.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    processor = hf.AutoProcessor.from_pretrained(checkpoint)
    frames = np.load(job / "frames.npz")
    found = []
    for question in json.loads((job / "questions.json").read_text()):
        inputs = dict(process(processor, family, question, frames))
        with torch.inference_mode():
            made = model.generate(
                **inputs, do_sample=False, max_new_tokens=question["max_new_tokens"]
            )
        tokens = made[0].tolist()[inputs["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(tokens, skip_special_tokens=True))
    (job / "answers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _, family, folder, job, *options = sys.argv
    if "--build" in options:
        build(family, Path(folder))
    answer(family, Path(folder), Path(job))
