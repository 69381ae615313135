"""Finds the line by which a dual encoder makes logits of cosines. Knows no family.

Every one that is known multiplies the cosine with a scale and adds a bias, under names of its own.
So both are measured: the model's own `forward` is given vectors of which the cosines are known, and
a line is fitted to its logits. A model of another formula does not lie on a line, and is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from artifacts.errors import UsageError
from stages.models.halves.vectors import logits

PROBES = 6
"""Vectors for which logits are asked."""
EXACT, ROUNDED = 1e-5, 8.0
"""Residual that counts as none: as a share of the largest logit, and in units of a dtype's last
place where that is more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitLine:
    """The logit of a picture and a text is `scale * cosine + bias`."""

    scale: float
    bias: float


def line_of(half: Any, inputs: Mapping[str, Any], vectors: torch.Tensor) -> LogitLine:
    """Return the line of a model; `vectors` are those of the texts in `inputs`. Raises UsageError
    for a model without one."""
    texts = vectors.double().cpu()
    drawn = torch.randn(PROBES, texts.shape[1], generator=torch.Generator().manual_seed(0))
    # Part of each goes the way of a text, so that cosines of every size are among them.
    share = torch.linspace(-1, 1, PROBES)[:, None]
    towards = texts[torch.arange(PROBES) % len(texts)].float()
    length = towards.norm(dim=1, keepdim=True)
    probes = share * towards + (1 - share.abs()) * length * drawn / drawn.norm(dim=1, keepdim=True)
    found = logits(half, inputs, probes).double().cpu()
    given = probes.to(half.dtype).double()
    cosines = torch.cosine_similarity(given[:, None], texts[None], dim=2).flatten()
    table = torch.stack([cosines, torch.ones_like(cosines)], dim=1)
    values = found.flatten()
    fitted = torch.linalg.lstsq(table, values[:, None]).solution[:, 0]
    residual = (table @ fitted - values).abs().max().item()
    allowed = max(EXACT, ROUNDED * torch.finfo(half.dtype).eps) * max(
        1.0, values.abs().max().item()
    )
    if not residual <= allowed:  # nor where it is no number
        raise UsageError(
            f"{type(half).__name__} makes its scores by another formula than a scale and a bias "
            f"(off by {residual:.2g})",
            hint="Choose a model of the CLIP kind: docs/embed.md lists them",
        )
    scale, bias = fitted.tolist()
    return LogitLine(scale=scale, bias=bias if abs(bias) > allowed else 0.0)
