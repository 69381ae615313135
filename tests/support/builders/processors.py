"""Processors that cut pictures as the published ones of the plan cases do and number the special
tokens alike; their words are bytes."""

from collections.abc import Callable
from typing import Any

from tests.support.builders.words import ALPHABET, LLAVA_TEMPLATE, QWEN_TEMPLATE, byte_tokenizer, hf

QWEN_TOKENS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
LLAMA3_TOKENS = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|reserved_special_token_0|>": 128002,
}
LLAVA_TOKENS = {"<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}


def _tokenizer(special: dict[str, int], template: str, *, pad: str, eos: str) -> Any:
    """Bytes as tokens, from id 1000 on, and special tokens of these ids."""
    vocabulary = special | {letter: 1000 + index for index, letter in enumerate(ALPHABET)}
    made = byte_tokenizer(
        vocabulary, pad_token=pad, eos_token=eos, additional_special_tokens=list(special)
    )
    made.chat_template = template
    return made


def llava_processor(words: Any, edge: int, patch: int) -> Any:
    """LLaVA's, for pictures of that edge, cut in patches of that edge."""
    square = {"height": edge, "width": edge}
    return hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=square),
        tokenizer=words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )


def llava(words: Any = None, edge: int = 336, patch: int = 14) -> Any:
    words = words or _tokenizer(LLAVA_TOKENS, LLAVA_TEMPLATE, pad="<pad>", eos="</s>")
    return llava_processor(words, edge, patch)


def qwen2_5_vl(words: Any = None) -> Any:
    common = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    words = words or _tokenizer(QWEN_TOKENS, QWEN_TEMPLATE, pad="<|endoftext|>", eos="<|im_end|>")
    return hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        tokenizer=words,
        video_processor=hf.Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, **common),
        chat_template=QWEN_TEMPLATE,
    )


def llama3() -> Any:
    """The tokenizer alone: our own processor needs no other file."""
    made = _tokenizer(LLAMA3_TOKENS, "", pad="<|end_of_text|>", eos="<|end_of_text|>")
    made.chat_template = None
    return made


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
    "llama3": llama3,
}
