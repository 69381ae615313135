"""Tiny checkpoints of real families with random weights and real processors; needs no network."""

import atexit
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support.tiny_families.parts import MROPE, PINPOINTS, patches, tower

hf: Any = transformers
hf.utils.logging.disable_progress_bar()
# Models this small are slower on more threads, several times so on a busy machine.
torch.set_num_threads(1)

VISION_MARKS = ("<|vision_start|>", "<|vision_end|>")
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
    "<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}<{{ c['type'] }}>\n{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
SMOL_TEMPLATE = (
    "<|im_start|>{% for m in messages %}User:{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<{{ c['type'] }}>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:"
)
VOCABULARY = 288


def tokenizer(special: tuple[str, ...], template: str, bos: str | None = None) -> Any:
    """Bytes as tokens, and the family's own special tokens."""
    names = ["<pad>", "<eos>", *special]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*names, *alphabet])}
    assert len(vocabulary) <= VOCABULARY
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made: Any = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token=bos,
        additional_special_tokens=list(special),
        padding_side="left",
    )
    made.chat_template = template
    return made


def text_config(**changes: Any) -> dict[str, Any]:
    base = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return {**base, **changes}


def decisive(model: Any, seed: int = 1) -> Any:
    """Weights of unit gain, so that what a model says depends on what it sees."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                embeds = "embed_tokens" in name or "position_embedding" in name
                fan = max(1, weight[0].numel() if weight.ndim != 3 else min(weight.shape[-2:]))
                std = 1.0 if embeds else 1.5 / math.sqrt(fan)
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def _qwen(folder: Path, config: Any, model: Any, processor: Any, image: Any, video: Any) -> None:
    marks = ("<|im_start|>", "<|im_end|>", *VISION_MARKS, "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(marks, QWEN_TEMPLATE)
    token = words.convert_tokens_to_ids
    settings = config(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    frames = {"shortest_edge": 2 * 16 * 16, "longest_edge": 64 * 32 * 32}
    many = size if video is hf.Qwen2VLVideoProcessor else frames
    extra = {"cap_pixels_per_frame": False}
    _save(
        folder,
        decisive(model(settings)),
        processor(
            image_processor=image(size=size, **common),
            tokenizer=words,
            video_processor=video(size=many, min_frames=2, max_frames=16, **common, **extra),
            chat_template=QWEN_TEMPLATE,
        ),
    )


def qwen2_5_vl(folder: Path) -> None:
    def config(**tokens: int) -> Any:
        return hf.Qwen2_5_VLConfig(
            text_config=text_config(rope_parameters=MROPE),
            vision_config=patches(window_size=16, fullatt_block_indexes=[1]),
            **tokens,
        )

    parts = (hf.Qwen2_5_VLProcessor, hf.Qwen2VLImageProcessor, hf.Qwen2VLVideoProcessor)
    _qwen(folder, config, hf.Qwen2_5_VLForConditionalGeneration, *parts)


def qwen3_vl(folder: Path) -> None:
    def config(**tokens: int) -> Any:
        rope = {**MROPE, "mrope_interleaved": True}
        layers = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        return hf.Qwen3VLConfig(
            text_config=text_config(rope_parameters=rope, num_hidden_layers=3, head_dim=8),
            vision_config=patches(**layers),
            **tokens,
        )

    parts = (hf.Qwen3VLProcessor, hf.Qwen2VLImageProcessor, hf.Qwen3VLVideoProcessor)
    _qwen(folder, config, hf.Qwen3VLForConditionalGeneration, *parts)


def llava(folder: Path) -> None:
    words = tokenizer(("<image>", "<s>"), LLAVA_TEMPLATE, bos="<s>")
    config = hf.LlavaConfig(
        vision_config=tower("clip_vision_model", projection_dim=32),
        text_config=text_config(model_type="llama"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    image = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        image_processor=image,
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    _save(folder, decisive(hf.LlavaForConditionalGeneration(config)), processor)


def llava_onevision(folder: Path) -> None:
    words = tokenizer(("<image>", "<video>"), LLAVA_TEMPLATE)
    config = hf.LlavaOnevisionConfig(
        vision_config=tower("siglip_vision_model", vision_use_head=False),
        text_config=text_config(model_type="qwen2"),
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
    _save(folder, decisive(hf.LlavaOnevisionForConditionalGeneration(config)), processor)


def smolvlm(folder: Path) -> None:
    marks = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>")
    tiles = tuple(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))
    words = tokenizer((*marks, "<video>", "<global-img>", *tiles), SMOL_TEMPLATE)
    config = hf.SmolVLMConfig(
        vision_config=tower("smolvlm_vision"),
        text_config=text_config(model_type="llama"),
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
    _save(folder, decisive(hf.SmolVLMForConditionalGeneration(config)), processor)


def copy_of(family: str, to: Path, **changes: Any) -> Path:
    """A copy of a tiny checkpoint that may be written to, with these fields in its config.json; one
    of None is left out."""
    shutil.copytree(checkpoint(family), to)
    return change_config(to, **changes) if changes else to


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write its one file of weights anew, as `change` leaves them or gives them back."""
    weights = load_file(folder / "model.safetensors")
    given = change(weights)
    made = given if isinstance(given, dict) else weights
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}
"""Family -> writes its tiny checkpoint, weights and processor, to a folder."""


def made_once(build: Callable[..., object]) -> Callable[..., Path]:
    """Have what `build(folder, name, ...)` writes made once a process, which takes a tenth of a
    second; not to be written to."""

    @functools.cache
    def folder_of(name: str, *rest: Any) -> Path:
        root = tempfile.TemporaryDirectory()
        atexit.register(root.cleanup)
        folder = Path(root.name) / name
        build(folder, name, *rest)
        return folder

    return folder_of


@made_once
def checkpoint(folder: Path, family: str) -> None:
    """The family's tiny checkpoint."""
    BUILDERS[family](folder)
