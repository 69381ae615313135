"""Reads what the prompts of one chunk have in common once, and each of them from there. Knows
neither slots nor families.

A prompt begins with its pictures, and those are nearly all of its tokens. So the beginning, up to
the last token of a picture, is read by itself and kept; each prompt goes on from a copy of what was
kept. Rounding is that of two pieces then, and not of one: so all prompts are read so, also one that
is alone, and the bytes of a caption hang on its own row. Whether a half can go on from there, with
its positions and masks, is found out by the trial that slots have anyway.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from stages.decode.engines.inflight.layers import CannotSeat
from stages.decode.engines.inflight.reading import ReadRow, positions_of, read_row
from stages.models.halves.features import Features, placeholder_ids
from stages.models.halves.routes import choose_route

ONE = {"max_new_tokens": 1, "min_new_tokens": 0}
"""What is asked of a beginning, of which no word is taken."""


class SharedPrefix:
    """The beginning of the prompts of the chunk that was read last."""

    def __init__(self) -> None:
        self._of = ""
        self._ids: list[int] = []
        self._cache: Any = None

    def read(
        self, half: Any, of: str, inputs: Mapping[str, Any], features: Features, **options: Any
    ) -> ReadRow:
        """Return a row, its prompt read; `of` names the chunk. Raises CannotSeat for a half or a
        prompt that has nothing to share."""
        length = _shared_tokens(half, inputs)
        # Of a beginning alone, or of an end, some families would count other positions.
        positions = positions_of(half, inputs, features)
        ids = inputs["input_ids"][0, :length].tolist()
        if (of, ids) != (self._of, self._ids):
            self.forget()
            # What chooses words has nothing to choose of a beginning.
            reading = {n: v for n, v in options.items() if n == "prefill_chunk_size"}
            begun = {**_beginning(inputs, length), "position_ids": positions[..., :length]}
            self._cache = read_row(half, begun, features, **ONE, **reading).cache
            self._of, self._ids = of, ids
        cache = copy.deepcopy(self._cache)
        rest = Features({}, features.needs, already_read=True)
        whole = {**inputs, "position_ids": positions}
        return read_row(half, whole, rest, past_key_values=cache, **options)

    def forget(self) -> None:
        """Give back what is kept."""
        self._of, self._ids, self._cache = "", [], None


def _shared_tokens(half: Any, inputs: Mapping[str, Any]) -> int:
    """Return how many tokens there are up to the last one of a picture."""
    if half.config.is_encoder_decoder:
        raise CannotSeat("its prompt goes to an encoder")
    if choose_route(half).route != "protocol":
        raise CannotSeat("its pictures are not handed to generate")
    ids = inputs["input_ids"][0]
    wanted = torch.tensor(sorted(placeholder_ids(half.config)), device=ids.device)
    standing = torch.isin(ids, wanted).nonzero().flatten().tolist()
    if not standing or standing[-1] + 1 >= len(ids):
        raise CannotSeat("its prompts do not begin with their pictures")
    return int(standing[-1]) + 1


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the inputs of so many tokens; what is not of tokens, such as grids, stays whole."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if getattr(value, "shape", ())[:2] == shape else value
        for name, value in inputs.items()
    }
