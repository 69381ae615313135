"""Chat templates in the manner of published ones, for the words of tiny processors, and the form in
which each is properly asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GLM = (
    "[gMASK]<sop>{%- for msg in messages %}{%- if msg.role == 'system' %}<|system|>\n"
    "{{ msg.content }}{%- elif msg.role == 'user' %}<|user|>\n{%- if msg.content is string %}"
    "{{ msg.content }}{%- else %}{%- for item in msg.content %}"
    "{%- if item.type == 'video' %}VIDEO{%- elif item.type == 'image' %}IMAGE"
    "{%- elif item.type == 'text' %}{{ item.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{%- endif %}{%- endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""GLM-4.1V's: what a system says is printed as it is."""
PIXTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}<s>"
    "{%- for m in rest %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and said is defined %}{{- '[INST]' + said + '\n\n' }}{%- else %}"
    "{{- '[INST]' }}{%- endif %}{%- if m['content'] is not string %}"
    "{%- for c in m['content'] %}{%- if c['type'] == 'text' %}{{- c['text'] }}"
    "{%- elif c['type'] == 'image' %}IMAGE{%- else %}{{- raise_exception('text and images') }}"
    "{%- endif %}{%- endfor %}{%- else %}{{- m['content'] }}{%- endif %}{{- '[/INST]' }}"
    "{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}"
)
"""Pixtral's: what a system says is put behind a string, and no role is known but two."""
TRIMMED = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] | trim }}\n"
    "{% else %}USER: IMAGE\n{{ m['content'] | trim }} {% endif %}{% endfor %}ASSISTANT:"
)
"""One in LLaVA's manner that places the picture itself, and prints what it is given."""
LLAVA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] | trim }}\n"
    "{% else %}USER: {{ m['content'] | trim }} {% endif %}{% endfor %}ASSISTANT:"
)
"""LLaVA's for language models: the words for pictures stand in the string."""
QWEN = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' or 'image' in c %}IMAGE"
    "{% elif c['type'] == 'video' or 'video' in c %}VIDEO{% elif 'text' in c %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's: takes strings and lists of parts alike."""
STRINGS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] + '\n' }}{% endfor %}assistant:"
"""One that puts strings together, and refuses all else."""
PARTS_ALONE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% elif c['type'] == 'video' %}VIDEO{% else %}"
    "IMAGE{% endif %}{% endfor %}\n{% endfor %}assistant:"
)
"""One that goes through the parts, and finds none in a string."""
AS_JSON = (
    "{% for m in messages %}{{ m['role'] }}: IMAGE{{ m['content'] | tojson }}\n{% endfor %}"
    "assistant:"
)
"""One that prints a string in quotation marks: no form comes out of it to the letter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """A template, and how its user and its system are given to it by who knows it."""

    template: str
    question: str
    """`parts`, `words` (those of the pictures in the string) or `prompt` (the string alone)."""
    system: str
    """`parts`, `words`, or empty where there is no place for it."""

    def of(self, image: str, video: str = "") -> str:
        return self.template.replace("IMAGE", image).replace("VIDEO", video or image)

    def turns(
        self, image: str, prompt: str, system: str = "", video: bool = False
    ) -> Sequence[dict[str, Any]]:
        """The turns as its model's card gives them to `apply_chat_template`."""
        content: Any = [{"type": "video" if video else "image"}, {"type": "text", "text": prompt}]
        if self.question != "parts":
            content = prompt if self.question == "prompt" else f"{image}\n{prompt}"
        texts: Any = [{"type": "text", "text": system}] if self.system == "parts" else system
        before = [{"role": "system", "content": texts}] if system else []
        return [*before, {"role": "user", "content": content}]


STYLES = {
    "glm": Style(template=GLM, question="parts", system="words"),
    "pixtral": Style(template=PIXTRAL, question="parts", system="words"),
    "trimmed": Style(template=TRIMMED, question="prompt", system="words"),
    "llava": Style(template=LLAVA, question="words", system="words"),
    "qwen": Style(template=QWEN, question="parts", system="parts"),
    "strings": Style(template=STRINGS, question="words", system="words"),
    "parts": Style(template=PARTS_ALONE, question="parts", system="parts"),
}
