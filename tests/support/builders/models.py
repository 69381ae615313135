"""The checkpoints that the benchmarks of decoding run on, and clips for them.

The demo model is trained and tiny. The large one has random weights and the proportions of a small
captioning model, and never ends a caption by itself, so that every mode makes as many tokens.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.records.keys import item_key
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from penstock_demo import CHECKPOINT

FRAMES = digest_of("frames")
PROMPT = "Describe this video in detail."
WINDOW_PATCHES = 8
"""Patches along the edge of a window of the vision half."""
SIDE = 64
"""Pixels of a frame's edge: 64 placeholders for eight frames, with the processor of the demo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a random-weight model is made of."""

    layers: int
    width: int
    tower_layers: int
    tower_width: int
    vocabulary: int = 32000


LARGE = Shape(layers=24, width=1024, tower_layers=14, tower_width=832)
"""0.4 billion parameters of language and 0.13 of vision, about as SmolVLM2-500M has them."""
TINY = Shape(layers=2, width=128, tower_layers=2, tower_width=128, vocabulary=512)


def build(folder: Path, shape: Shape, tokens: int) -> Path:
    """Write a checkpoint of that shape in 16 bit, each half in a file of its own; `tokens` is how
    many a caption has."""
    import torch
    import transformers
    from safetensors.torch import save_file

    hf: Any = transformers
    torch.manual_seed(0)
    # Made in 16 bit at once: twice the memory is not there on every machine.
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = hf.Qwen2_5_VLForConditionalGeneration(_config(hf, shape))
    finally:
        torch.set_default_dtype(default)
    folder.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {"vision": {}, "language": {}}
    for name, weight in model.state_dict().items():
        half = "vision" if ".visual." in name else "language"
        if name != "lm_head.weight":  # tied
            files[half][name] = weight
    places: dict[str, str] = {}
    total = 0
    for half, weights in files.items():
        shard = f"model-{half}.safetensors"
        save_file(weights, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, shard)
        total += sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(folder)
    hf.AutoProcessor.from_pretrained(CHECKPOINT).save_pretrained(folder)
    ending = {"eos_token_id": 2, "pad_token_id": 0, "min_new_tokens": tokens}
    (folder / "generation_config.json").write_text(json.dumps(ending))
    return folder


def _config(hf: Any, shape: Shape) -> Any:
    demo = json.loads((CHECKPOINT / "config.json").read_text())
    head = 64
    text = {
        **demo["text_config"],
        "hidden_size": shape.width,
        "intermediate_size": 4 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // head,
        "num_key_value_heads": max(1, shape.width // head // 4),
        "vocab_size": shape.vocabulary,
        "layer_types": ["full_attention"] * shape.layers,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [8, 12, 12],
        },
        "dtype": "bfloat16",
    }
    last = shape.tower_layers - 1
    tower = {
        **demo["vision_config"],
        "depth": shape.tower_layers,
        "hidden_size": shape.tower_width,
        "intermediate_size": 3 * shape.tower_width,
        "num_heads": shape.tower_width // head,
        "out_hidden_size": shape.width,
        # As published: windows of 8 x 8 patches, except in every eighth layer and the last.
        "window_size": WINDOW_PATCHES * demo["vision_config"]["patch_size"],
        "fullatt_block_indexes": [at for at in range(last + 1) if at % 8 == 7 or at == last],
        "dtype": "bfloat16",
    }
    ids = {name: value for name, value in demo.items() if name.endswith("_token_id")}
    return hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=tower, tie_word_embeddings=True, dtype="bfloat16", **ids
    )


def half_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each half's weights in a checkpoint."""
    from stages.models.inspection import describe

    profile = describe(folder)
    return {"vision": profile.vision.stored_bytes, "language": profile.language.stored_bytes}


def publish_clips(store: str, frame_counts: list[int]) -> list[dict[str, str]]:
    """Put the frames of a clip for each count into the store, as the frames stage would; returns
    what a job says of each."""
    from penstock_demo.render import render_frames
    from penstock_demo.world import sample_clip

    rng = random.Random(11)
    record_set = RecordSet(open_store(store), "frames", FRAMES)
    members = []
    for number, count in enumerate(frame_counts):
        spec = sample_clip(rng, "trained")
        pixels = render_frames(spec, [at / count for at in range(count)], SIDE, SIDE)
        times = [at / 2 for at in range(count)]
        chunk = {"index": number, "start": 0.0, "end": count / 2, "times": times}
        key = item_key(FRAMES, f"clip-{number}", 0)
        meta = {**chunk, "height": SIDE, "width": SIDE}
        record_set.publish([Record(key=key, meta=meta, payload=pixels.tobytes())])
        members.append({"frames": key, "kind": "video", "prompt": PROMPT})
    return members
