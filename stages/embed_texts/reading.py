"""Turns texts into the inputs of a text half, by the checkpoint's own processor. Knows no family.

Models were trained on texts of one length, filled up behind. Most give the same vector without what
fills up; some read the last place, whatever stands there, and are silently wrong without. Which it
is is tried: where one text's vector depends on what fills it up, all are filled up.
"""

from collections.abc import Sequence
from typing import Any

import torch

from stages.models.halves.vectors import most_tokens, text_vectors

ALIKE = 0.999
"""Least cosine of two vectors that count as those of one text."""
TRIED = "a photo of a cat"


class TextReader:
    """The inputs of texts for one half."""

    def __init__(self, processor: Any, half: Any) -> None:
        self._processor = processor
        self.most = most_tokens(processor, half)
        """Most tokens of a text; 0: no limit is known."""
        self.filled = self._depends_on_filling(half)
        """Whether texts are filled up to that."""

    def inputs(self, texts: Sequence[str], *, filled: bool | None = None) -> dict[str, Any]:
        """Return what the half is given for these texts. Those that are too long are cut."""
        filled = self.filled if filled is None else filled
        options: dict[str, Any] = {"padding": "max_length" if filled else True}
        if self.most:
            options |= {"truncation": True, "max_length": self.most}
        made = self._processor(text=list(texts), return_tensors="pt", **options)
        return {name: value for name, value in made.items() if value is not None}

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts that are longer than the half reads."""
        if not self.most:
            return []
        whole = self._processor.tokenizer(list(texts), truncation=False)["input_ids"]
        return [at for at, ids in enumerate(whole) if len(ids) > self.most]

    def _depends_on_filling(self, half: Any) -> bool:
        if not self.most:
            return False
        bare, filled = (
            text_vectors(half, self.inputs([TRIED], filled=each)).float() for each in (False, True)
        )
        return bool(torch.cosine_similarity(bare, filled).item() < ALIKE)
