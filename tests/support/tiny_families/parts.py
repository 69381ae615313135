"""What the builders of tiny random-weight models share: sizes, weights that make a model decisive,
and prompts that have as many placeholders as the model makes features.

A builder is called with a number of rows and gives a model and the inputs that `generate` takes.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers

hf: Any = transformers

Built = tuple[Any, dict[str, Any]]
Builder = Callable[..., Built]
IMAGE, VIDEO, START, END, AUDIO = 99, 98, 97, 96, 95
"""Ids of the tokens that stand for a picture or frame it."""
NONE = object()
"""A size that a config does not have."""
FAMILIES: dict[str, Builder] = {}
"""`family`, `family:video`, `family:b2` (two rows), `family:mixed`… -> its builder."""
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
INTERLEAVED: dict[str, Any] = {**MROPE, "mrope_interleaved": True}
SEEN: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}
TOKENS: dict[str, Any] = {**SEEN, "vision_start_token_id": START, "vision_end_token_id": END}
MARKED: dict[str, Any] = {**SEEN, "image_start_token_id": START, "image_end_token_id": END}
MARKED |= {"video_start_token_id": 94, "video_end_token_id": 93}
INDEX: dict[str, Any] = {"image_token_index": IMAGE}
INDICES: dict[str, Any] = {**INDEX, "video_token_index": VIDEO}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
EMBEDS = ("embed_tokens", "shared.weight", "position_embedding")


def small(**changes: Any) -> dict[str, Any]:
    """The sizes that nearly every part has; without those that are said to be NONE."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return {name: size for name, size in {**sizes, **changes}.items() if size is not NONE}


def text(model_type: str | None = None, **changes: Any) -> dict[str, Any]:
    """Sizes of a tiny language model."""
    sizes: dict[str, Any] = dict(num_key_value_heads=2, head_dim=8, vocab_size=120)
    sizes |= dict(max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return small(**{**sizes, **({"model_type": model_type} if model_type else {}), **changes})


def tower(model_type: str, **changes: Any) -> dict[str, Any]:
    """Sizes of a tiny vision tower for pictures of 32 by 32."""
    sizes = {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8, "num_channels": 3}
    return small(model_type=model_type, **{**sizes, **changes})


def patches(**changes: Any) -> dict[str, Any]:
    """Sizes of a tiny tower that takes a stream of patches."""
    sizes: dict[str, Any] = dict(num_hidden_layers=NONE, num_attention_heads=NONE, depth=3)
    sizes |= dict(num_heads=4, out_hidden_size=32, patch_size=4, spatial_merge_size=2)
    return small(**{**sizes, "temporal_patch_size": 2, **changes})


def clip(**changes: Any) -> dict[str, Any]:
    return tower("clip_vision_model", projection_dim=32, **changes)


def siglip(**changes: Any) -> dict[str, Any]:
    return tower("siglip_vision_model", vision_use_head=False, **changes)


def llama(**changes: Any) -> dict[str, Any]:
    return text("llama", **changes)


def noise(rows: int, size: int = 32, tiles: int | None = None) -> torch.Tensor:
    """Pixels of `rows` pictures, or of `tiles` pictures a row."""
    return torch.randn((rows, *([] if tiles is None else [tiles]), 3, size, size))


def images(name: str) -> Callable[[Builder], Builder]:
    """Register a builder that takes `rows`."""

    def register(builder: Builder) -> Builder:
        FAMILIES[name] = functools.partial(builder, 1)
        FAMILIES[f"{name}:b2"] = functools.partial(builder, 2)
        return builder

    return register


def both(name: str) -> Callable[[Builder], Builder]:
    """Register a builder that takes `rows` and whether it is a video."""

    def register(builder: Builder) -> Builder:
        for suffix, video in (("", False), (":video", True)):
            FAMILIES[f"{name}{suffix}"] = functools.partial(builder, 1, video)
            FAMILIES[f"{name}{suffix}:b2"] = functools.partial(builder, 2, video)
        return builder

    return register


def config_of(prefix: str, text: Any = NONE, vision: Any = NONE, **config: Any) -> Any:
    """The configuration of a family, of copies: transformers changes what it is given."""
    given = {"text_config": text, "vision_config": vision, **config}
    given = {name: part for name, part in given.items() if part is not NONE}
    return getattr(hf, f"{prefix}Config")(**copy.deepcopy(given))


def model_of(config: Any, cls: str = "") -> Any:
    """The model that a configuration is of, by its name."""
    prefix = type(config).__name__.removesuffix("Config")
    return getattr(hf, cls or f"{prefix}ForConditionalGeneration")(config)


def family(
    name: str,
    prefix: str,
    *given: Any,
    inputs: Callable[..., dict[str, Any]],
    video: bool = False,
    finishing: Mapping[str, Any] | None = None,
    **config: Any,
) -> None:
    """Register a family. `inputs(rows)` makes its inputs, `inputs(rows, is_video)` if it supports
    `video`. `finishing`: keyword arguments of `finish`; None: no marks around placeholders."""

    def build(rows: int, *is_video: bool) -> Built:
        model = model_of(config_of(prefix, *given, **config))
        messages = {"wrap": False} if finishing is None else finishing
        return finish(model, inputs(rows, *is_video), rows, *is_video, **messages)

    (both if video else images)(name)(build)


def pictures(
    name: str,
    prefix: str,
    *given: Any,
    size: int = 32,
    frames: int = 0,
    cls: str = "",
    wrap: bool = False,
    types: str | None = None,
    **config: Any,
) -> None:
    """Register a family that takes a tensor a picture and nothing else; with `frames`, one whose
    processor gives it those of a video as so many pictures."""

    def build(rows: int, video: bool = False) -> Built:
        pixels = {"pixel_values": noise(rows * frames if video else rows, size)}
        model = model_of(config_of(prefix, *given, **config), cls)
        return finish(model, pixels, rows, wrap=wrap, types=types)

    (both if frames else images)(name)(build)


def decisive(model: Any, embeds: Sequence[str] = EMBEDS, tied_spread: float = 0.15) -> Any:
    """Weights of unit gain, so that what a model says depends on what it sees. `embeds`: what names
    of embeddings contain; `tied_spread`: of those that the head shares."""
    generator = torch.Generator().manual_seed(1)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(head, "weight", 0) is getattr(embedding, "weight", 1)
    spread = tied_spread if tied else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.is_floating_point():
                continue
            if weight.ndim >= 2:
                fan = max(1, min(weight.shape[-2:]) if weight.ndim == 3 else weight[0].numel())
                std = spread if any(word in name for word in embeds) else 1.5 / math.sqrt(fan)
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def count(output: Any) -> int:
    """For how many placeholders an output record has features."""
    pooled = getattr(output, "pooler_output", None)
    parts = output.last_hidden_state if pooled is None else pooled
    parts = [parts] if isinstance(parts, torch.Tensor) else parts
    return sum(part.numel() // part.shape[-1] for part in parts)


def features_of(model: Any, kind: str, pixels: Mapping[str, Any]) -> Any:
    """What the model itself makes of the pixels."""
    function = getattr(model.base_model, f"get_{kind}_features")
    taken = inspect.signature(function).parameters
    with torch.no_grad():
        return function(**{n: v for n, v in pixels.items() if n in taken}, return_dict=True)


def finish(
    model: Any,
    pixels: dict[str, Any],
    rows: int = 1,
    video: bool = False,
    *,
    total: int | None = None,
    place: int | None = None,
    wrap: bool = True,
    types: str | None = None,
    extra: Callable[[torch.Tensor], dict[str, Any]] | None = None,
    frames: int = 0,
    middle: Callable[[int], list[int]] | None = None,
) -> Built:
    """The model, decisive, and inputs with a prompt for each row.

    `total` placeholders of token `place`, asked of the model itself when not given; `wrap` frames
    them by marks, `frames` in so many groups, `middle` writes them some other way. `types` names
    the input that tells the kind of each token, `extra` makes more inputs of the ids.
    """
    model = decisive(model)
    if total is None:
        total = count(features_of(model, "video" if video else "image", pixels))
    each, place = total // rows, place or (VIDEO if video else IMAGE)
    assert each * rows == total, (total, rows)
    body = [START, *[place] * each, END] if wrap else [place] * each
    if frames:
        body = [START, *[place] * (each // frames), END] * frames
    if middle:
        body = middle(each)
    prompts = [[1, *body, *([5, 6, 7] if row == 0 else [11, 12, 13, 14])] for row in range(rows)]
    inputs = {**prompt_inputs(prompts), **pixels}
    ids = inputs["input_ids"]
    if types:
        kind = 2 if video and types == "mm_token_type_ids" else 1
        inputs[types] = (ids == place).long() * kind
    return model, {**inputs, **(extra(ids) if extra else {})}


def prompt_inputs(prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Token ids and their mask, padded on the left."""
    length = max(map(len, prompts))
    pads = [length - len(prompt) for prompt in prompts]
    ids = [[0] * pad + [*prompt] for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * len(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
