"""Stores features in 8 bits: a whole number for each channel, and a scale for each 64 of them.

A packed vector depends on itself alone: no statistics of a batch or of a file enter it, so the
bytes of a chunk still depend on the chunk. What is restored has the dtype of the original. Records
in this form are in a namespace of their own, under the keys of the same features as computed:
decisions, answers and rows of trainers, which name features by key, hold for both.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # plans ask for bytes without torch
    import torch

INT8_64: Final = "int8-64"
FORMS: Final = (INT8_64,)
"""Forms in which features may be stored."""
GROUP: Final = 64
"""Channels that share a scale. One channel 50 times larger than the others costs those of its group
2.7 % of their size; with one scale for 2,560 channels, it costs all of them 15 %."""
LARGEST: Final = 127
SMALLEST_SCALE: Final = 2.0**-126
"""The smallest normal number of bfloat16, in which scales are stored: it has the range of 32 bits,
so no feature is too large or too small for one."""
FEATURES: Final = "features."
"""Beginning of the paths of features in the tree of a record."""
UNPACKED: Final = ("mask", "pixel")
"""Parts of names of tensors that are no features."""


def namespace_in(form: str, namespace: str) -> str:
    """Return the namespace of features in a form; without one, as they are computed."""
    return f"{namespace}-{form}" if form else namespace


def computed_namespace(namespace: str) -> str:
    """Return the namespace of the same features as they are computed."""
    return namespace.partition("-")[0]


def form_of(namespace: str) -> str:
    """Return the form of the features in a namespace; empty: as they are computed."""
    return namespace.partition("-")[2]


def packed_bytes(width: int) -> int:
    """Return the bytes of a vector in 8 bits, with its scales."""
    return width + 2 * math.ceil(width / GROUP)


def scales_shape(shape: Sequence[int]) -> list[int]:
    """Return the shape of the scales of vectors of this shape."""
    return [*shape[:-1], math.ceil(shape[-1] / GROUP)]


def is_packed(tensor: "torch.Tensor", path: str) -> bool:
    """Return whether a tensor of a record is stored in 8 bits: vectors of features, of at least a
    group. Grids, masks, pixels and whole numbers are stored as they are."""
    name = path.removeprefix(FEATURES)
    is_feature = name != path and not any(part in name for part in UNPACKED)
    is_float = tensor.is_floating_point() and tensor.element_size() in (2, 4)
    return is_feature and is_float and tensor.ndim > 1 and tensor.shape[-1] >= GROUP


def pack_vectors(vectors: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the codes (int8, of the shape of the vectors) and the scales (bfloat16, one for each
    group) of finite vectors."""
    import torch

    grouped = _grouped(vectors.float())
    # At most what keeps 127 times the scale finite in the dtype of the vectors.
    most = torch.finfo(vectors.dtype).max / (LARGEST + 1)
    exact = grouped.abs().amax(-1, keepdim=True).div_(LARGEST).clamp_(SMALLEST_SCALE, most)
    # Rounded up, so that no code of a smaller number exceeds 127.
    scales = ((exact.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    codes = (grouped / scales.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return codes.flatten(-2)[..., : vectors.shape[-1]], scales.squeeze(-1)


def unpack_vectors(
    codes: "torch.Tensor", scales: "torch.Tensor", dtype: "torch.dtype"
) -> "torch.Tensor":
    """Return the vectors of codes and scales."""
    import torch

    # Codes and scales are exact in bfloat16, so that the product is rounded once.
    exact = dtype if dtype == torch.bfloat16 else torch.float32
    grouped = _grouped(codes).to(exact) * scales[..., None].to(exact)
    vectors: torch.Tensor = grouped.to(dtype).flatten(-2)[..., : codes.shape[-1]]
    return vectors


def _grouped(vectors: "torch.Tensor") -> "torch.Tensor":
    """Return vectors as [..., groups, 64]; the last group is filled up with zeros."""
    from torch.nn.functional import pad

    if more := -vectors.shape[-1] % GROUP:
        vectors = pad(vectors, (0, more))
    return vectors.reshape(*vectors.shape[:-1], vectors.shape[-1] // GROUP, GROUP)
