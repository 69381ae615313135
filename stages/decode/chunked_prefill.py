"""Chooses how a language half prefills a long prompt, and where it keeps the KV cache.

Chunked prefill by `generate` itself is best, because it bounds the memory of every layer. Some
models would silently compute something else: those whose images attend to later tokens, and those
that place features differently in the prompt. So chunked prefill is first tested on a short prompt.
Where its result differs, only position-wise modules run in chunks.
"""

from collections.abc import Mapping
from typing import Any

import torch

from artifacts.errors import CannotFit, UsageError
from artifacts.records.tensors import make_record
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.chunked_mlps import chunk_position_wise
from stages.models.halves.features import Features, count_tokens
from stages.models.halves.generate import UNDIVIDED, generate, offloaded_bytes
from stages.models.halves.records import FeatureRecord
from stages.models.halves.split_route import choose_route
from stages.models.processors.input_layout import noise
from stages.models.processors.prepare import drop_end_token, prepare, rebuild
from stages.models.protocols import Half, Processor, Tree
from stages.process.exit_diagnosis import out_of_memory

CHUNKED_FIELDS = {"pooler_output", "deepstack_features"}
"""Fields of a feature record that chunked prefill of `generate` passes on."""
PROBE = "Describe this in detail."
KV_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "offloaded": {"cache_implementation": "offloaded"},
    # The one backend within transformers. With other backends the bytes would depend on the
    # installed packages.
    "quantized": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
}
"""Place of the KV cache → keyword arguments of `generate`."""
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Dtype → maximum relative difference between chunked and whole prefill."""
COARSE_TOLERANCE = 0.04
"""Maximum relative difference for dtypes of lower precision."""


class PrefillOptions:
    """The `generate` options of one job: `prefill` tokens of a prompt per chunk (0: all at once),
    and the place of the KV cache. Raises UsageError for an impossible combination."""

    def __init__(self, prefill: int = 0, kv: str = "", device: str = "cpu") -> None:
        if kv not in KV_OPTIONS:
            raise UsageError(f"kv is {kv}", hint=f"Use one of {', '.join(KV_OPTIONS)[2:]}")
        if kv == "offloaded" and device == "cpu":
            raise UsageError(
                "kv offloaded: not supported on a CPU (the KV cache is in host memory already)",
                hint="Leave kv out",
            )
        self._prefill = prefill
        self._kv = kv
        self._half: Half | None = None
        self.mode = ""
        """Prefill of the last half: `whole`, `generate` or `mlp`; empty before the first."""

    def options(self, half: Half, processor: Processor, row: FeatureRecord) -> dict[str, Any]:
        """Return keyword arguments of `generate` for a batch with rows like this one. Selects the
        prefill mode when the half is a new one."""
        if half is not self._half:
            self._half = half
            self._select_mode(half, processor, row)
        if self._kv == "quantized":
            _refuse_other_attention(half)
        # A model places all of a sound's features in the first chunk that has places for some.
        in_chunks = self.mode == "generate" and row.heard is None
        read = {"prefill_chunk_size": self._prefill} if in_chunks else {}
        return {**KV_OPTIONS[self._kv], **read}

    def _select_mode(self, half: Half, processor: Processor, row: FeatureRecord) -> None:
        # Chunked prefill would load offloaded layers once per chunk.
        if not self._prefill:
            self.mode = "whole"
        elif not offloaded_bytes(half) and chunked_prefill_works(half, processor, row):
            self.mode = "generate"
        else:
            self.mode = "mlp" if chunk_position_wise(half, self._prefill) else "whole"


def chunked_prefill_works(half: Half, processor: Processor, row: FeatureRecord) -> bool:
    """Return whether chunked prefill by `generate` gives the same result as whole prefill, for a
    short prompt with features of this kind."""
    if UNDIVIDED in row.features or choose_route(half).route != "protocol":
        return False
    probe = prepare(processor, noise(row.channel))
    inputs = drop_end_token(half, rebuild(processor, [probe], [PROBE]))
    try:
        features = Features(_like(row.features, probe.count.tokens), row.needs)
        return chunked_prefill_matches(half, inputs, features)
    except ValueError:
        return False


def chunked_prefill_matches(half: Half, inputs: Mapping[str, Any], features: Features) -> bool:
    """Return whether a prompt that is split inside an image gives the result of the whole one."""
    try:
        cut: dict[str, Any] = {
            "prefill_chunk_size": _within_an_image(half, inputs["input_ids"], features)
        }
        undivided, chunked = (
            generate(half, inputs, features, **o, **_ONE_TOKEN) for o in ({}, cut)
        )
    except Exception as error:  # a model family may raise any error on unsupported input
        if out_of_memory(error) or isinstance(error, NeedsWeights):
            raise
        return False
    return relative_difference(_computed(undivided), _computed(chunked)) <= tolerance(half.dtype)


_ONE_TOKEN: dict[str, Any] = {
    "max_new_tokens": 1,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def _like(features: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return feature records of the same structure with `tokens` rows. Raises ValueError for
    records that `generate` does not split."""
    parts = {}
    for modality, record in features.items():
        if not set(record) <= CHUNKED_FIELDS or record.get("pooler_output") is None:
            raise ValueError("the features have fields that generate would drop")
        fields = {name: _resized(value, tokens) for name, value in record.items()}
        parts[modality] = make_record(type(record), fields)
    return parts


def _resized(value: Any, tokens: int) -> Any:
    """Return `tokens` rows, repeated from the start, in a container of the same type."""
    if isinstance(value, list | tuple) and not isinstance(value[0], torch.Tensor):
        return type(value)(_resized(part, tokens) for part in value)
    if isinstance(value, list | tuple) and value[0].ndim > 2:
        raise ValueError("unknown feature layout")
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in value])
    taken = rows[torch.arange(tokens) % len(rows)]
    return taken.unsqueeze(0) if isinstance(value, torch.Tensor) else type(value)([taken])


def _within_an_image(half: Half, ids: torch.Tensor, features: Mapping[str, Tree]) -> int:
    """Return a chunk length that ends inside an image's tokens. Raises ValueError if `generate`
    would not find those tokens."""
    places: list[int] = []
    for modality, record in features.items():
        where = (ids[0] == getattr(half.config, f"{modality}_token_id")).nonzero().flatten()
        if len(where) != count_tokens(record):
            raise ValueError(f"{modality} features have no placeholder token")
        places += where.tolist()
    return max(1, sorted(places)[len(places) // 2] if places else ids.shape[1] // 2)


def _computed(output: Any) -> list[torch.Tensor]:
    """Return the logits of the next token, and the keys of every layer that has some."""
    keys = [getattr(layer, "keys", None) for layer in output.past_key_values.layers]
    return [output.logits[0], *(part for part in keys if part is not None)]


def tolerance(dtype: torch.dtype) -> float:
    """Return the maximum `relative_difference` of two equivalent computations in this dtype."""
    return TOLERANCES.get(dtype, COARSE_TOLERANCE)


def relative_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Return the largest relative difference of two lists of tensors; infinite if shapes differ."""
    if len(first) != len(second):
        return float("inf")
    pairs = [(left.float(), right.float()) for left, right in zip(first, second, strict=True)]
    if any(left.shape != right.shape for left, right in pairs):
        return float("inf")
    tiny = torch.finfo(torch.float32).tiny
    return max(float((a - b).abs().mean() / (a.abs().mean() + tiny)) for a, b in pairs)


def _refuse_other_attention(half: Half) -> None:
    """Raise CannotFit for a half whose KV cache cannot be quantized; another rung may work."""
    text = half.config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    if half.config.is_encoder_decoder or others:
        obstacle = ", ".join(others) or "an encoder of its own"
        raise CannotFit(
            f"{type(half).__name__} cannot quantize its KV cache (it has {obstacle})",
            hint="Try a smaller batch, or --language-precision int8",
        )
