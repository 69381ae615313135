"""Tokenizers whose words are bytes, and chat templates of real families."""

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

hf: Any = transformers

QWEN_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
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
TEMPLATE = (
    "{% for m in messages %}User: {% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}{{ MEDIA[c['type']] }}{% endif %}{% endfor %}\n"
    "{% endfor %}Assistant:"
)
VOCABULARY = 288
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(vocabulary: dict[str, int], unknown: str | None = None, **special: Any) -> Any:
    """A tokenizer whose words are bytes; `special` says what its special tokens are for."""
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **special)


def numbered(*names: str) -> dict[str, int]:
    """The ids of special tokens, and of all bytes after them."""
    return {name: index for index, name in enumerate([*names, *ALPHABET])}


def tokenizer(special: tuple[str, ...], template: str, bos: str | None = None) -> Any:
    """Bytes as tokens, and the family's own special tokens."""
    vocabulary = numbered("<pad>", "<eos>", *special)
    assert len(vocabulary) <= VOCABULARY
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": bos}
    made = byte_tokenizer(vocabulary, **marks, additional_special_tokens=list(special))
    made.chat_template = template
    return made


def words(*special: str, image: str = "", video: str = "", **named: str) -> Any:
    """Bytes as tokens, and the family's own; `named` ones are attributes of the tokenizer."""
    known = ("<pad>", "</s>", "<s>", "<unk>", *special, image, video, *named.values())
    names = dict.fromkeys(name for name in known if name)
    made = byte_tokenizer(
        numbered(*names),
        "<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        **({"extra_special_tokens": named} if named else {}),
    )
    made.add_tokens(list(names), special_tokens=True)
    return made


def template(image: str, video: str = "") -> str:
    return "{% set MEDIA = " + repr({"image": image, "video": video}) + " %}" + TEMPLATE
