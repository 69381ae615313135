"""Prompts of text, pictures and videos, and the positions that transformers counts for them: its
method is called with a stub in place of the model, so there are no weights and no pixels."""

import __future__

import ast
import itertools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from stages.models.halves.text_positions import place_behind
from tests.support.first_releases import RELEASES, release, source

METHOD, HELPER = "get_rope_index", "get_vision_position_ids"
IMAGE, VIDEO, START, WORD = 1001, 1002, 1003, 7
"""Token of a picture's place, of a video's, of the mark before either, and of text."""
MERGE = 2
INSTALLED = {
    "qwen2_vl": "Qwen2VLModel",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeModel",
    "qwen3_vl": "Qwen3VLModel",
    "qwen3_vl_moe": "Qwen3VLMoeModel",
    "qwen3_5": "Qwen3_5Model",
    "glm4v": "Glm4vModel",
    "glm4v_moe": "Glm4vMoeModel",
}
"""Family -> the class of the installed transformers that counts its positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """Places of a picture or a video in a prompt."""

    steps: int
    height: int
    """In patches."""
    width: int
    video: bool = False
    seconds: float = 1.0
    """Between two steps of a video."""

    @property
    def grid(self) -> list[int]:
        return [self.steps, self.height, self.width]


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """What a release counts for a prompt."""

    ids: torch.Tensor
    """[3, tokens], of the tokens that are attended to."""
    next: int
    """Position of the first generated token."""

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Positions) and torch.equal(self.ids, other.ids)
        return same and self.next == typing.cast(Positions, other).next

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Numbers of words, and media between them."""

    family: str
    parts: tuple[int | Medium, ...]
    padding: int = 0
    """Tokens on the left that are not attended to."""
    temporal_merge: int = 1
    """Steps that share their places."""

    def starts(self) -> list[int]:
        """Return the index of the first token of each part, without padding."""
        return [0, *itertools.accumulate(map(self._places, self.parts))][:-1]

    def length(self) -> int:
        return sum(map(self._places, self.parts))

    def _places(self, part: int | Medium) -> int:
        if isinstance(part, int):
            return part
        steps = part.steps // self.temporal_merge if part.video else part.steps
        return steps * part.height * part.width // MERGE**2

    def ids(self) -> torch.Tensor:
        found = [WORD] * self.padding
        for part in self.parts:
            if isinstance(part, int):
                found += [WORD] * part
            else:
                found[-1] = START
                found += [VIDEO if part.video else IMAGE] * self._places(part)
        return torch.tensor([found])

    def types(self) -> torch.Tensor:
        """Return 0 for text, 1 for pictures, 2 for videos."""
        ids = self.ids()
        return (ids == IMAGE) * 1 + (ids == VIDEO) * 2

    def attended(self) -> torch.Tensor:
        ones = torch.ones(1, self.padding + self.length(), dtype=torch.long)
        ones[:, : self.padding] = 0
        return ones

    def arguments(self) -> dict[str, Any]:
        media = [part for part in self.parts if isinstance(part, Medium)]
        grids = {
            f"{name}_grid_thw": torch.tensor([m.grid for m in media if m.video == video])
            for name, video in (("image", False), ("video", True))
            if any(m.video == video for m in media)
        }
        more: dict[str, Any] = {}
        if self.family == "qwen2_5_vl" and any(m.video for m in media):
            more["second_per_grid_ts"] = torch.tensor([m.seconds for m in media if m.video])
        return {"attention_mask": self.attended(), **grids, **more}

    def read(
        self, found: tuple[torch.Tensor, torch.Tensor], counts_padding: bool = False
    ) -> Positions:
        """Return what `get_rope_index` gave for this prompt, in one form for all releases: the
        earlier ones give by how much a position exceeds an index that `counts_padding`."""
        ids, delta = found
        length = self.length() + (self.padding if counts_padding else 0)
        return Positions(ids=ids[:, 0, self.padding :], next=length + int(delta.flatten()[0]))


@cache
def stub(functions: tuple[Callable[..., Any], ...], temporal_merge: int = 1) -> Any:
    """Return what stands for a model: methods that count positions, and the configuration that
    they read."""
    tower = {"spatial_merge_size": MERGE, "temporal_merge_size": temporal_merge}
    config = SimpleNamespace(
        vision_config=SimpleNamespace(tokens_per_second=2, **tower),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    return type("Stub", (), {each.__name__: each for each in functions} | {"config": config})()


@cache
def installed(family: str) -> tuple[Callable[..., Any], ...]:
    """Return the methods of the installed transformers."""
    name = f"transformers.models.{family}.modeling_{family}"
    model = getattr(import_module(name), INSTALLED[family])
    return tuple(getattr(model, method) for method in (METHOD, HELPER))


@cache
def lifted(family: str) -> tuple[Callable[..., Any], ...]:
    """Return the methods of a family's first release: the text of these functions alone is
    compiled, nothing of the release is imported."""
    path = source(RELEASES[family], family)
    names = {"torch": torch, "Optional": typing.Optional, "Tuple": tuple}
    flags = __future__.annotations.compiler_flag
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == METHOD:
            alone = ast.Module([node], [])
            exec(compile(alone, str(path), "exec", flags, dont_inherit=True), names)
            return (typing.cast(Callable[..., Any], names[METHOD]),)
    raise AssertionError(f"{path} has no {METHOD}")


def stock_tensors(prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the installed transformers gives, padding included."""
    model = stub(installed(prompt.family), prompt.temporal_merge)
    found: tuple[torch.Tensor, torch.Tensor] = model.get_rope_index(
        prompt.ids(), mm_token_type_ids=prompt.types(), **prompt.arguments()
    )
    return found


def stock(prompt: Prompt) -> Positions:
    """Return what the installed transformers counts."""
    return prompt.read(stock_tensors(prompt))


def as_published(prompt: Prompt) -> Positions:
    """Return what the installed transformers counts, placed behind media."""
    positions, _ = stock_tensors(prompt)
    return prompt.read(place_behind(positions, prompt.types(), prompt.attended()))


def first_release(prompt: Prompt) -> Positions:
    """Return what the family's first release counts."""
    model = stub(lifted(prompt.family))
    found = model.get_rope_index(prompt.ids(), **prompt.arguments())
    return prompt.read(found, counts_padding=True)


def why_not(*families: str) -> str:
    """Return why the first releases of families are not here; empty: they are."""
    return next(filter(None, (release(RELEASES[family])[1] for family in families)), "")
