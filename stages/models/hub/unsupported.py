"""Refuses unsupported checkpoint formats by their configuration, with the reason and a form that
works."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from stages.models.hub.checkpoint import class_names, read_config

Config = Mapping[str, Any]
FIRST_COGVLM_VOCABULARY = 32000
"""Vocabulary size of the first CogVLM; the second one's is four times as large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsupportedForm:
    """A published checkpoint format that cannot be read."""

    name: str
    """Short name, for the table in the documentation."""
    found: Callable[[Config], bool]
    """Function that returns whether a configuration has this form."""
    reason: str
    alternative: str
    """A form that works."""
    own_code: bool = False
    """Whether code from the checkpoint may be tried if it is trusted."""


def _is(*types: str) -> Callable[[Config], bool]:
    return lambda config: config.get("model_type") in types


def _names(*classes: str) -> Callable[[Config], bool]:
    return lambda config: bool({*classes} & {*class_names(config)})


def _is_first_cogvlm(config: Config) -> bool:
    size = config.get("vocab_size")
    small = isinstance(size, int) and size <= FIRST_COGVLM_VOCABULARY
    return _names("CogVLMForCausalLM")(config) and small and "num_multi_query_heads" not in config


def _is_first_florence(config: Config) -> bool:
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    return _is("florence2")(config) and (kind == "florence2_language" or "auto_map" in config)


UNSUPPORTED: tuple[UnsupportedForm, ...] = (
    UnsupportedForm(
        name="Phi-4-multimodal",
        found=_is("phi4_multimodal", "phi4mm"),
        reason="it reads pictures inside its text embedding, with adapters that it switches by "
        "itself, and transformers has it as no class of the image-text-to-text kind",
        alternative="Take Qwen/Qwen2.5-VL-7B-Instruct or Qwen/Qwen2.5-VL-3B-Instruct, of about its "
        "size",
        own_code=True,
    ),
    UnsupportedForm(
        name="Florence-2 of Microsoft",
        found=_is_first_florence,
        reason="its files are in the form of the original code, which transformers 5 neither reads "
        "nor runs",
        alternative="Take the same weights as transformers reads them: "
        "florence-community/Florence-2-base or florence-community/Florence-2-large",
    ),
    UnsupportedForm(
        name="CogVLM, the first",
        found=_is_first_cogvlm,
        reason="it is the first CogVLM, of which only the second is computed here",
        alternative="Take zai-org/cogvlm2-llama3-chat-19B, or zai-org/cogvlm2-llama3-caption for "
        "videos",
    ),
    UnsupportedForm(
        name="MiniCPM-V and MiniCPM-o up to 4.5",
        found=_is("minicpmv", "minicpmo"),
        reason="it runs only by its own code, of which no half can be loaded",
        alternative="Take openbmb/MiniCPM-V-4.6, which transformers reads",
        own_code=True,
    ),
    UnsupportedForm(
        name="InternVL in the form of its own code",
        found=_is("internvl_chat"),
        reason="its files are in the form of the original code, which transformers does not read",
        alternative="Take the same weights under an id that ends in -hf, such as "
        "OpenGVLab/InternVL3-1B-hf",
        own_code=True,
    ),
    UnsupportedForm(
        name="Moondream",
        found=lambda config: (
            _is("moondream1", "moondream")(config) or _names("HfMoondream", "Moondream")(config)
        ),
        reason="it runs only by its own code, of which no half can be loaded",
        alternative="Take HuggingFaceTB/SmolVLM2-2.2B-Instruct, of about its size",
        own_code=True,
    ),
)
"""Checkpoint forms that users often try."""


def refuse_unsupported(folder: Path, trusted: bool) -> None:
    """Refuse a checkpoint in one of these forms. If it is `trusted` and has its own code, that code
    may be tried. Raises UsageError."""
    config = read_config(folder)
    form = next((form for form in UNSUPPORTED if form.found(config)), None)
    if form is None or (trusted and form.own_code and "auto_map" in config):
        return
    raise UsageError(f"{folder} cannot be read: {form.reason}", hint=form.alternative)
