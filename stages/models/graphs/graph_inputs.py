"""Turns an encoder call into its graph's inputs.

Values that the encoder would compute from its data, such as grids, are computed outside the graph.
transformers provides this for the families that need it.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from stages.models.graphs.packed import LONGEST, attending_packed, pack

MEANINGS = {
    "attention_mask": "1 where a token counts, 0 where it is padding",
    "cu_seqlens": "start of each image or frame in the sequence of patches, and its end",
    "cu_window_seqlens": "start of each window in the sequence of patches, and the end of the last",
    "grid_thw": "frames, rows and columns of patches of each image or video",
    "hidden_states": "patches of all images in one sequence, `pixel_values` of the processor",
    "input_ids": "tokens of the text",
    "max_seqlen": "zeros, as many as the longest image or frame has patches",
    "max_window_seqlen": "zeros, as many as the largest window has patches",
    "patch_attention_mask": "true where a patch is part of the image, false where it is padding",
    "pixel_attention_mask": "1 where a pixel is part of the image, 0 where it is padding",
    "pixel_values": "images or video frames, `pixel_values` of the processor",
    "position_ids": "position of each patch or token, of a patch its row and column",
    "spatial_shapes": "rows and columns of patches of each image",
    "window_index": "order of the groups of merged patches in which each window is contiguous",
}
"""Input of a graph → its meaning. Others are described by the argument that they come from."""


class GraphInputs(NamedTuple):
    """One encoder call in the form that a graph takes."""

    tensors: dict[str, torch.Tensor]
    """Tensors by name, or by their place in an argument, such as `masks.0`."""
    fixed: dict[str, Any]
    """Arguments that are not tensors. They are fixed in a graph."""


def is_packed(encoder: nn.Module, given: Mapping[str, Any]) -> bool:
    """Return whether an encoder takes all images in one row and accepts segment lengths."""
    with attending_packed(encoder):
        return LONGEST[0] in prepared(encoder, given)


def prepared(encoder: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with all values that are derived from them. `encoder` may be a
    skeleton: its weights are not used."""
    from transformers.exporters.utils import precompute_export_inputs

    inputs = {name: value for name, value in given.items() if value is not None}
    with torch.no_grad():
        precompute_export_inputs(encoder, inputs)
    return {name: value for name, value in inputs.items() if value is not None}


def graph_inputs(encoder: nn.Module, given: Mapping[str, Any], packed: bool) -> GraphInputs:
    """Return the inputs of an encoder's graph for a call."""
    with attending_packed(encoder) if packed else contextlib.nullcontext():
        inputs = prepared(encoder, given)
    if packed:
        pack(inputs)
    tensors: dict[str, torch.Tensor] = {}
    fixed: dict[str, Any] = {}
    for name, value in inputs.items():
        _sort(name, value, tensors, fixed)
    return GraphInputs(tensors, {name: value for name, value in fixed.items() if value is not None})


def _sort(name: str, value: Any, tensors: dict[str, torch.Tensor], fixed: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, list | tuple):
        for at, part in enumerate(value):
            _sort(f"{name}.{at}", part, tensors, fixed)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _sort(f"{name}.{key}", part, tensors, fixed)
    else:
        fixed[name] = value if isinstance(value, bool | int | float | str) else repr(value)


def described(tower: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """Return the type and the meaning of each input tensor of an encoder's graph."""
    source = f"of {type(tower).__name__}.forward in transformers"
    return {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "meaning": MEANINGS.get(name.partition(".")[0], f"argument {name} {source}"),
        }
        for name, tensor in tensors.items()
    }
