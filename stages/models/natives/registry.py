"""Maps the class name in a checkpoint's files to an in-tree model. Imports a model's code only when
it is used.

It is consulted before transformers. Such a checkpoint's config.json may state no type, or that of
another model, whose missing weights transformers would then initialize at random.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from artifacts.errors import UsageError
from artifacts.regular import read_text
from artifacts.schema import Part
from stages.models.hub.checkpoint import JSON_BYTES

if TYPE_CHECKING:
    import torch

CONFIG_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Errors of a configuration whose values make no sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AsPublished:
    """The published code's deviations from a family's formulas."""

    part: Part
    """Part of the checkpoint that is concerned."""
    description: str
    """What is otherwise, for people."""
    settings: Mapping[str, Any]
    """Field of the configuration → value with which our code computes it so too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InTreeFamily:
    """The code of one family, each entry as `package.module:name`."""

    config: str
    """Configuration class of transformers' kind, which takes the published config.json."""
    model: str
    """Model class, which takes the tensors under their published names."""
    processor: str
    """Function of a folder that makes the processor, tokenizer and all."""
    as_published: AsPublished | None = None
    """None where the published code computes what its formulas say."""

    def load_config(self, folder: Path, as_published: bool = False) -> Any:
        """Load the configuration in a folder. Raises UsageError for one that makes no sense, and
        where there is nothing that the published code computes otherwise."""
        if as_published and self.as_published is None:
            raise no_published_difference(folder)
        from huggingface_hub.errors import StrictDataclassError

        try:
            config = resolve_name(self.config).from_pretrained(folder)
        except (StrictDataclassError, *CONFIG_ERRORS) as error:
            message = " ".join(str(error).split())[:200] or type(error).__name__
            raise UsageError(
                f"{folder}/config.json cannot be used: {message}",
                hint="Download the checkpoint again, or choose another",
            ) from error
        settings = self.as_published.settings if as_published and self.as_published else {}
        for name, value in settings.items():
            setattr(config, name, value)
        return config

    def model_class(self) -> type[Any]:
        """Return the model's class."""
        found: type[Any] = resolve_name(self.model)
        return found

    def load_processor(self, folder: Path) -> Any:
        """Load the processor. Raises OSError or ValueError when a file that it needs is missing."""
        return resolve_name(self.processor)(folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalLayout:
    """The tensor layout of files that a family's original code saved, before they were on the hub.
    Names are those of its tensors, without the `module.` prefix that multi-GPU training adds."""

    description: str
    """What such a file is, for people."""
    module: str
    """The module that knows it, with a function for each method here."""

    def recognises(self, names: Collection[str]) -> bool:
        """Tell whether a file with tensors of these names is in this layout."""
        found: bool = resolve_name(f"{self.module}:recognises")(names)
        return found

    def config(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
        """Return the config.json of the converted file, all but the type of its numbers; `shapes`
        are those of the original one."""
        found: dict[str, object] = resolve_name(f"{self.module}:config")(shapes)
        return found

    def rename(self, name: str, tensor: "torch.Tensor") -> "Iterable[tuple[str, torch.Tensor]]":
        """Return the tensors that one of the original file becomes, views of it: several of one
        that is fused, none of one that is computed."""
        found: Iterable[tuple[str, torch.Tensor]] = resolve_name(f"{self.module}:rename")(
            name, tensor
        )
        return found


COGVLM2 = "stages.models.natives.cogvlm2"
EVACLIP = "stages.models.natives.evaclip"
ROPE = AsPublished(
    part="language",
    description="frequencies of its rotary positions rounded to bfloat16, as its files hold them",
    settings={"rope_rounding": "bfloat16"},
)
NATIVES: Mapping[str, InTreeFamily] = {
    "CogVLMVideoForCausalLM": InTreeFamily(
        config=f"{COGVLM2}.config:CogVLM2Config",
        model=f"{COGVLM2}.model:CogVLMVideoForCausalLM",
        processor=f"{COGVLM2}.processor:load_video_processor",
        as_published=ROPE,
    ),
    "CogVLMForCausalLM": InTreeFamily(
        config=f"{COGVLM2}.config:CogVLM2Config",
        model=f"{COGVLM2}.model:CogVLMForCausalLM",
        processor=f"{COGVLM2}.processor:load_image_processor",
        as_published=ROPE,
    ),
    "EvaCLIPModel": InTreeFamily(
        config=f"{EVACLIP}.config:EvaCLIPConfig",
        model=f"{EVACLIP}.model:EvaCLIPModel",
        processor=f"{EVACLIP}.processor:load_processor",
    ),
}
"""Class that a checkpoint's config.json names among its `architectures` → our code for it."""

ORIGINALS: tuple[OriginalLayout, ...] = (
    OriginalLayout(description="an EVA-CLIP of the original code", module=f"{EVACLIP}.original"),
)
"""Layouts of files that `penstock convert` brings to the one that is read here."""


def native_of(folder: Path) -> InTreeFamily | None:
    """Return the code of ours for the checkpoint in a folder; None for all others."""
    try:
        config = json.loads(read_text(folder / "config.json", JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return None  # whoever needs it will tell
    named = config.get("architectures") if isinstance(config, dict) else None
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return next((NATIVES[name] for name in classes if name in NATIVES), None)


def no_published_difference(model: object) -> UsageError:
    """Make the error for a checkpoint that is computed in one way alone."""
    return UsageError(
        f"--as-published is given, and nothing is known that the published code of {model} "
        "computes otherwise",
        hint="Leave it out",
    )
