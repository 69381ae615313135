"""Maps the class name in a checkpoint's files to an in-tree model. Imports a model's code only when
it is used.

It is consulted before transformers. Such a checkpoint's config.json may state no type, or that of
another model, whose missing weights transformers would then initialize at random.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from artifacts.errors import UsageError
from stages.models.hub.checkpoint import class_names, read_config
from stages.models.protocols import Processor

CONFIG_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Errors raised for a configuration with invalid values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InTreeFamily:
    """The code of one family, each entry as `package.module:name`."""

    config: str
    """Class of the configuration, which reads the published config.json."""
    model: str
    """Class of the model, which takes the tensors under their published names."""
    processor: str
    """Function that makes the processor, tokenizer included, from a folder."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Field of the configuration → value with which our code repeats deviations of the published
    code from the formulas."""

    def load_config(self, folder: Path, as_published: bool = False) -> Any:
        """Load the configuration in a folder, `as_published` with the published code's deviations:
        only the comparison with that code does so. Raises UsageError for an invalid one."""
        from huggingface_hub.errors import StrictDataclassError

        try:
            config = resolve_name(self.config).from_pretrained(folder)
        except (StrictDataclassError, *CONFIG_ERRORS) as error:
            message = " ".join(str(error).split())[:200] or type(error).__name__
            raise UsageError(
                f"{folder}/config.json cannot be used: {message}",
                hint="Download the checkpoint again, or choose another",
            ) from error
        for name, value in (self.published if as_published else {}).items():
            setattr(config, name, value)
        return config

    def model_class(self) -> type[Any]:
        cls: type[Any] = resolve_name(self.model)
        return cls

    def load_processor(self, folder: Path) -> Processor:
        """Load the processor. Raises OSError or ValueError if a required file is missing."""
        load: Callable[[Path], Processor] = resolve_name(self.processor)
        return load(folder)


COGVLM2 = "stages.models.in_tree.cogvlm2"
EVACLIP = "stages.models.in_tree.evaclip"
ROPE = {"rope_rounding": "bfloat16"}
"""Frequencies of the rotary positions are rounded, as the published files hold them."""
NATIVES: Mapping[str, InTreeFamily] = {
    "CogVLMVideoForCausalLM": InTreeFamily(
        config=f"{COGVLM2}.config:CogVLM2Config",
        model=f"{COGVLM2}.model:CogVLMVideoForCausalLM",
        processor=f"{COGVLM2}.processor:load_video_processor",
        published=ROPE,
    ),
    "CogVLMForCausalLM": InTreeFamily(
        config=f"{COGVLM2}.config:CogVLM2Config",
        model=f"{COGVLM2}.model:CogVLMForCausalLM",
        processor=f"{COGVLM2}.processor:load_image_processor",
        published=ROPE,
    ),
    "EvaCLIPModel": InTreeFamily(
        config=f"{EVACLIP}.config:EvaCLIPConfig",
        model=f"{EVACLIP}.model:EvaCLIPModel",
        processor=f"{EVACLIP}.processor:load_processor",
    ),
}
"""Class name among a config.json's `architectures` → our code for it."""

ORIGINALS: Mapping[str, str] = {"an EVA-CLIP of the original code": f"{EVACLIP}.original"}
"""What files of a family's original code are, from before it was on the hub → module that converts
them. Its functions: `recognises` the names of tensors, `config` gives a config.json for their
shapes, and `rename` the tensors that one becomes. Names come without the `module.` of multi-GPU
training."""


def native_of(folder: Path) -> InTreeFamily | None:
    """Return the in-tree model family of the checkpoint in a folder; None for all others."""
    classes = class_names(read_config(folder))
    return next((NATIVES[name] for name in classes if name in NATIVES), None)
