"""What the stages use of the objects that transformers loads: the half of a model, its processor.

Each family's classes have more. What only some of them have is read with `getattr`, where it is
used.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from artifacts.records.tensors import Tree as Tree

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


class Half(Protocol):
    """A loaded half of a model, or a model that cannot be split: a `PreTrainedModel`."""

    config: Any
    generation_config: Any
    peft_config: dict[str, Any]
    """Name → configuration of an adapter that PEFT has put into it."""
    hf_device_map: dict[str, Any]
    """Module → place, of a half that accelerate has distributed."""
    input_modalities: tuple[str, ...]
    main_input_name: str

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> "torch.dtype": ...

    @property
    def base_model(self) -> "nn.Module": ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def generate(self, **kwargs: Any) -> Any: ...

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...

    def get_experts_implementation(self) -> dict[str, str]: ...

    def set_experts_implementation(self, experts_implementation: dict[str, str]) -> None: ...

    def _get_dtype_plan(self, dtype: "torch.dtype") -> "dict[str, torch.dtype]": ...

    def _prefill(self, *args: Any) -> Any: ...

    def _sample(self, *args: Any, **kwargs: Any) -> Any: ...

    def get_decoder(self) -> "nn.Module": ...

    def get_input_embeddings(self) -> "nn.Module": ...

    def get_output_embeddings(self) -> "nn.Module": ...

    def get_submodule(self, target: str) -> "nn.Module": ...

    def set_submodule(self, target: str, module: "nn.Module") -> None: ...

    def modules(self) -> "Iterator[nn.Module]": ...

    def named_modules(self) -> "Iterator[tuple[str, nn.Module]]": ...

    def parameters(self) -> "Iterator[nn.Parameter]": ...

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]": ...

    def requires_grad_(self, requires_grad: bool = True) -> "Half": ...

    def train(self) -> "Half": ...

    def eval(self) -> "Half": ...

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any]
    ) -> None: ...


ModelOrHalf: TypeAlias = "Half | PreTrainedModel"
"""A half, or a model that is not divided, such as a skeleton."""


def module_of(half: ModelOrHalf) -> "nn.Module":
    """Return a half or a model as the module that functions of torch and of PEFT take."""
    from torch import nn

    assert isinstance(half, nn.Module)
    return half


def as_half(model: "PreTrainedModel") -> Half:
    """Return a model that was not divided as a half from which nothing is missing."""
    loaded: Any = model  # its class decides what of a half it has
    half: Half = loaded
    return half


class Processor(Protocol):
    """A processor of texts, pictures and sound, or a tokenizer alone. The parts for a medium, and
    what concerns its tokens, stand only in processors that take the medium."""

    tokenizer: Any
    chat_template: Any
    image_processor: Any
    video_processor: Any
    _audio_processor: Any
    video_token: str
    vision_start_token: str
    vision_end_token: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def replace_video_token(self, video_inputs: Any, video_idx: int, **kwargs: Any) -> str: ...

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any: ...

    def decode(self, token_ids: Any, /, **kwargs: Any) -> str: ...

    def batch_decode(self, sequences: Any, /, **kwargs: Any) -> list[str]: ...
