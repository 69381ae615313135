"""Tiny tokenizers with the special words of a family, and chat templates that use them; no family's
own."""

from typing import Any

from tests.support.families import byte_tokenizer, numbered

TEMPLATE = (
    "{% for m in messages %}User: {% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}{{ MEDIA[c['type']] }}{% endif %}{% endfor %}\n"
    "{% endfor %}Assistant:"
)


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
