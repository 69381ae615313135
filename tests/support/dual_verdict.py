"""Compares the halves of a saved tiny dual encoder with the whole, vectors going through the form
that they have in the store, and says whether all is equal to the last bit."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import PenstockError
from artifacts.packs import Record
from artifacts.vectors import vector_record, vectors_in
from stages.models.halves.boundary import absent_paths
from stages.models.halves.classes import config_and_class, one_line
from stages.models.halves.load import load_half
from stages.models.halves.routes import choose_route
from stages.models.halves.vectors import image_vectors, logits, text_vectors
from tests.support import dual_encoders
from tests.support.families import hf

OF = ("pictures", "texts", "logits")


@dataclass(frozen=True, kw_only=True, slots=True)
class DualVerdict:
    """What came of one class in one precision."""

    name: str
    class_name: str
    results: dict[str, str]
    """Pictures, texts and logits → `exact`, `differs`, or `fails: …` where the whole model does;
    empty when it is refused."""
    width: int = 0
    """Numbers of a vector."""
    shares: tuple[float, float] = (0.0, 0.0)
    """Numbers of the vision half and of the text half, of all."""
    refused: str = ""
    """Why it is refused."""

    @property
    def exact(self) -> bool:
        return bool(self.results) and set(self.results.values()) == {"exact"}


def judge(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> DualVerdict:
    """Build the class, save it to `folder`, and compare."""
    class_name = dual_encoders.names()[name]
    if (refused := refusal(class_name)) is not None:
        return DualVerdict(name=name, class_name=class_name, results={}, refused=refused)
    model = dual_encoders.tiny(name)
    model.save_pretrained(folder)
    torch.manual_seed(1)
    pictures, texts = dual_encoders.pictures(name), dual_encoders.texts()
    whole = type(model).from_pretrained(folder, dtype=dtype).eval()
    halves = [load_half(folder, half, dtype=dtype) for half in ("vision", "language")]
    assert config_and_class(folder, trusted=False)[1] is type(model)
    made = image_vectors(halves[0], pictures)
    kept = through_store(made)
    taken = inspect.signature(type(model).get_text_features).parameters
    asked = {n: v for n, v in texts.items() if n in taken}
    shown = {n: v.to(dtype) if v.is_floating_point() else v for n, v in pictures.items()}
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "pictures": (lambda: kept, lambda: whole.get_image_features(**shown)),
        "texts": (
            lambda: text_vectors(halves[1], texts),
            lambda: whole.get_text_features(**asked),
        ),
        "logits": (
            lambda: logits(halves[1], texts, kept),
            lambda: whole(**shown, **asked).logits_per_image,
        ),
    }
    numbers = [sum(weight.numel() for weight in half.parameters()) for half in (*halves, whole)]
    return DualVerdict(
        name=name,
        class_name=class_name,
        results={of: _compared(*pair) for of, pair in pairs.items()},
        width=made.shape[1],
        shares=(numbers[0] / numbers[2], numbers[1] / numbers[2]),
    )


def through_store(vectors: torch.Tensor) -> torch.Tensor:
    """The vectors as they come from a record of them, in what they were computed in."""
    record = vector_record("key", vectors.float().numpy())
    meta = json.loads(json.dumps(record.meta))
    again = vectors_in(Record(key="key", meta=meta, payload=record.payload))
    return torch.from_numpy(again.copy()).to(vectors.dtype)


def refusal(class_name: str) -> str | None:
    cls = getattr(hf, class_name)
    with torch.device("meta"):
        skeleton = cls(cls.config_class())
    try:
        choose_route(skeleton)
    except PenstockError as error:
        return error.message
    return None


def _compared(found: Callable[[], Any], wanted: Callable[[], Any]) -> str:
    with torch.inference_mode():
        try:
            whole = wanted()
        except (TypeError, ValueError, RuntimeError) as error:
            return f"fails: {one_line(error)}"
        pooled = whole if isinstance(whole, torch.Tensor) else whole.pooler_output
        return "exact" if torch.equal(found(), pooled) else "differs"


def reached_by_running(name: str) -> set[str]:
    """The model's own parts that compute when a vector of a picture is made."""
    model, seen = dual_encoders.tiny(name), set[str]()
    for part, module in model.named_children():
        for inner in module.modules():
            inner.register_forward_pre_hook(lambda *_, part=part: seen.add(part))
    with torch.inference_mode():
        model.get_image_features(**dual_encoders.pictures(name))
    return seen


def kept_by_vision(name: str) -> set[str]:
    """The same as the cut has it."""
    model = dual_encoders.tiny(name)
    return {part for part, _ in model.named_children()} - set(absent_paths(model, "vision"))
