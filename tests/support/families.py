"""Tiny checkpoints of real families with random weights and real processors; needs no network."""

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.builders.processors import llava_processor
from tests.support.builders.words import (
    LLAVA_TEMPLATE,
    QWEN_MARKS,
    QWEN_TEMPLATE,
    SMOL_TEMPLATE,
    VOCABULARY,
    tokenizer,
)
from tests.support.tiny_families import parts
from tests.support.tiny_families.parts import (
    INTERLEAVED,
    MROPE,
    NONE,
    PINPOINTS,
    clip,
    config_of,
    model_of,
    patches,
    siglip,
    text,
    tower,
)

hf: Any = parts.hf
hf.utils.logging.disable_progress_bar()
# Models this small are slower on more threads, several times so on a busy machine.
torch.set_num_threads(1)

QWEN_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}


def text_config(**changes: Any) -> dict[str, Any]:
    sizes = {"head_dim": NONE, "vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    return text(**{**sizes, "bos_token_id": None, "eos_token_id": 1, **changes})


def decisive(model: Any) -> Any:
    """Weights of unit gain, also of tied embeddings."""
    return parts.decisive(model, ("embed_tokens", "position_embedding"), tied_spread=1.0)


def save(folder: Path, model: Any, processor: Any) -> None:
    """Save both as one checkpoint, whose model ends with the processor's `<eos>`."""
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def qwen_ids(words: Any) -> dict[str, int]:
    """What the configuration of a Qwen-VL says of its tokenizer."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: words.convert_tokens_to_ids(word) for name, word in names.items()}


def _qwen(folder: Path, prefix: str, text: Any, vision: Any, video: Any, size: Any) -> None:
    words = tokenizer(QWEN_MARKS, QWEN_TEMPLATE)
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    sampling = {"min_frames": 2, "max_frames": 16, "cap_pixels_per_frame": False}
    processor = getattr(hf, f"{prefix}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(size=QWEN_SIZE, **common),
        tokenizer=words,
        video_processor=video(size=size, **common, **sampling),
        chat_template=QWEN_TEMPLATE,
    )
    model = model_of(config_of(prefix, text, vision, **qwen_ids(words)))
    save(folder, decisive(model), processor)


def qwen2_5_vl(folder: Path) -> None:
    text = text_config(rope_parameters=MROPE)
    vision = patches(window_size=16, fullatt_block_indexes=[1])
    _qwen(folder, "Qwen2_5_VL", text, vision, hf.Qwen2VLVideoProcessor, QWEN_SIZE)


def qwen3_vl(folder: Path, width: int = 32) -> None:
    sizes = {"hidden_size": width, "num_hidden_layers": 3, "head_dim": 8}
    text = text_config(rope_parameters=INTERLEAVED, **sizes)
    levels = {"out_hidden_size": width, "deepstack_visual_indexes": [0, 1]}
    vision = patches(num_position_embeddings=16, **levels)
    size = {"shortest_edge": 2 * 16 * 16, "longest_edge": 64 * 32 * 32}
    _qwen(folder, "Qwen3VL", text, vision, hf.Qwen3VLVideoProcessor, size)


def llava(folder: Path) -> None:
    words = tokenizer(("<image>", "<s>"), LLAVA_TEMPLATE, bos="<s>")
    place = words.convert_tokens_to_ids("<image>")
    config = config_of("Llava", text_config(model_type="llama"), clip(), image_token_index=place)
    save(folder, decisive(model_of(config)), llava_processor(words, 32, 8))


def llava_onevision(folder: Path) -> None:
    words = tokenizer(("<image>", "<video>"), LLAVA_TEMPLATE)
    config = config_of(
        "LlavaOnevision",
        text_config(model_type="qwen2"),
        siglip(),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
    )
    square = {"height": 32, "width": 32}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size=square, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=words,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    save(folder, decisive(model_of(config)), processor)


def smolvlm(folder: Path) -> None:
    marks = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>")
    tiles = tuple(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))
    words = tokenizer((*marks, "<video>", "<global-img>", *tiles), SMOL_TEMPLATE)
    config = config_of(
        "SmolVLM",
        text_config(model_type="llama"),
        tower("smolvlm_vision"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    sampling = {"fps": 1, "max_frames": 16, "video_size": {"longest_edge": 64}}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**sizes),
        tokenizer=words,
        video_processor=hf.SmolVLMVideoProcessor(**sizes, video_sampling=sampling),
        image_seq_len=4,
        chat_template=SMOL_TEMPLATE,
    )
    save(folder, decisive(model_of(config)), processor)


def copy_of(family: str, to: Path, **changes: Any) -> Path:
    """A copy of a tiny checkpoint that may be written to, with these fields in its config.json; one
    of None is left out."""
    shutil.copytree(checkpoint(family), to)
    return change_config(to, **changes) if changes else to


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write its one file of weights anew, as `change` leaves them or gives them back."""
    weights = load_file(folder / "model.safetensors")
    given = change(weights)
    made = given if isinstance(given, dict) else weights
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})


BUILDERS: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}
"""Family -> writes its tiny checkpoint, weights and processor, to a folder."""


def made_once(build: Callable[..., object]) -> Callable[..., Path]:
    """Have what `build(folder, ...)` writes made once a process, which takes a tenth of a second;
    not to be written to."""

    @functools.cache
    def folder_of(*given: Any) -> Path:
        root = tempfile.TemporaryDirectory()
        atexit.register(root.cleanup)
        folder = Path(root.name) / str(given[0] if given else "made")
        build(folder, *given)
        return folder

    return folder_of


@made_once
def checkpoint(folder: Path, family: str) -> None:
    """The family's tiny checkpoint."""
    BUILDERS[family](folder)
