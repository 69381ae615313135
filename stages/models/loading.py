"""Loads the half that a job names, on the device it names; knows nothing of stores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import UsageError
from stages.models.boundary import Half
from stages.models.halves import load_half
from stages.models.prepare import load_processor
from stages.models.resolve import resolve_model


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelJob:
    """What every job that runs half a model says about it."""

    model: str
    """Folder or hub id."""
    revision: str | None = None
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    dtype: str = "auto"
    """Name of a torch dtype; `auto` is the checkpoint's own."""
    attention: str | None = None
    """Attention implementation; None is the model's default."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise UsageError(
                f"dtype is {self.dtype}, which is no precision of torch",
                hint="Use auto, float32, bfloat16 or float16",
            )

    @classmethod
    def of(cls, job: dict[str, Any]) -> "ModelJob":
        names = cls.__dataclass_fields__
        return cls(**{name: job[name] for name in names if name in job})

    def load(self, keep: Half) -> tuple[Any, Any]:
        """The half, on its device, and the processor."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = resolve_model(Path(self.model), self.revision)
        processor = load_processor(folder, self.trust_remote_code)
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        options["dtype"] = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.attention is not None:
            options["attn_implementation"] = self.attention
        if self.device != "cpu":
            options["device_map"] = {"": self.device}
        return load_half(folder, keep, **options), processor
