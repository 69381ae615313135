"""Runs a model's halves on the meta device and measures the cost of computing them. Reads no
weights.

The model's own processor makes the inputs. While a half runs on tensors without data, an observer
records when layers and MLPs compute, and where prefill ends. The observer counts nothing itself.
"""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from artifacts.schema import MediaKind, Part, Route
from stages.memory.live_bytes import FLOAT32_BYTES, MetaMemoryCounter, RepeatedLayers
from stages.memory.meta_device import give_data, on_meta_device, tensors, without_data
from stages.models.cache_memory import LayerMemory, RowMemory
from stages.models.context_length import context_tokens
from stages.models.footprint import ITEM_BYTES, BatchCost
from stages.models.halves.features import (
    Features,
    encode,
    image_vectors,
    is_pixels,
    max_text_tokens,
    text_vectors,
)
from stages.models.halves.generate import UNDIVIDED, generate
from stages.models.halves.model_class import one_line
from stages.models.halves.placement import outermost_layers
from stages.models.processors.blank_clips import black_clip
from stages.models.processors.images import prepare_images
from stages.models.processors.input_sizes import bytes_of
from stages.models.processors.loading import is_image_output, takes_videos
from stages.models.processors.prepare import (
    channel_of,
    drop_end_token,
    prepare,
    rebuild,
    text_inputs,
)
from stages.models.processors.processor_calls import TEXT_IDS, joined, text_ids
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Processor, Tree, as_half
from stages.process.exit_diagnosis import out_of_memory

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

NEW_TOKENS = 2
"""Tokens to generate: prefill gives the first one, and a regular decode step the second."""


def decoder_of(model: "PreTrainedModel") -> torch.nn.Module:
    """Return the innermost module that is called once per token."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model if inner is None or inner is model else decoder_of(inner)


class PromptWatch:
    """Separates prefill from the next decode step, at the decoder's second call."""

    def __init__(self, live: MetaMemoryCounter) -> None:
        self._live = live
        self._calls = 0
        self._prompt: dict[str, int] = {}
        self.kept: tuple[LayerMemory, ...] = ()
        """Cache memory per row by layer; empty if the layers do not cache all tokens of a row."""

    def of(self, decoder: torch.nn.Module) -> RemovableHandle:
        return decoder.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, module: Any, args: Any, kwargs: Any) -> None:
        self._calls += 1
        if self._calls == NEW_TOKENS:
            cache = kwargs.get("past_key_values")
            self._prompt, self.kept = self._so_far(cache_bytes(cache)), kept_of(cache)
            self._live.reset_peak()

    def _so_far(self, cache: int) -> dict[str, int]:
        return {**_counted(self._live), "kept_bytes": cache}

    def found(self) -> dict[str, int]:
        if not self._prompt:
            return self._so_far(0)
        step = self._live.flops - self._prompt["flops"]
        return {**self._prompt, "step_bytes": self._live.peak, "step_flops": step}


def _counted(live: MetaMemoryCounter) -> dict[str, int]:
    """Return what was counted, by the fields of BatchCost."""
    return {
        "peak_bytes": live.peak,
        "peak_bytes_32": live.peak_32,
        "mlp_bytes": live.inside,
        "outside_bytes": live.outside,
        "outside_bytes_32": live.outside_32,
        "positions": live.positions,
        "scores_bytes": live.scores,
        "mask_bytes": live.mask,
        "flops": live.flops,
    }


def cache_bytes(cache: Any) -> int:
    """Return the bytes that a KV cache of any kind holds."""
    if isinstance(cache, torch.Tensor):
        return cache.numel() * cache.element_size()
    if isinstance(cache, list | tuple):
        return sum(map(cache_bytes, cache))
    if isinstance(cache, dict):
        return cache_bytes(list(cache.values()))
    parts = ("layers", "self_attention_cache", "cross_attention_cache")
    held = [getattr(cache, name) for name in parts if hasattr(cache, name)]
    if not held and type(cache).__name__.endswith(("Layer", "Cache")):
        held = list(vars(cache).values())
    return cache_bytes(held)


def kept_of(cache: "Cache") -> tuple[LayerMemory, ...]:
    """Return what a cache's layers hold per row, with equal layers counted together. Return nothing
    for an unknown kind of cache, or if its layers saw different numbers of tokens."""
    layers = [_layer_memory(layer) for layer in getattr(cache, "layers", None) or ()]
    if len({tokens for memory, tokens in layers if tokens and not memory.window}) > 1:
        return ()
    counts = Counter(memory for memory, _ in layers)
    return tuple(replace(memory, layers=count) for memory, count in counts.items())


def _layer_memory(layer: Any) -> tuple[LayerMemory, int]:
    """Return what one layer's cache holds per row, and how many tokens it saw."""
    parts = (getattr(layer, name, None) for name in ("keys", "values", "indexer_keys"))
    seen: list[torch.Tensor] = [part for part in parts if part is not None and part.numel()]
    states: list[torch.Tensor] = [
        part
        for name in ("conv_states", "recurrent_states")
        for part in (getattr(layer, name, None) or {}).values()
        if part is not None
    ]
    of_row = LayerMemory(
        kind=type(layer).__name__,
        token_bytes=sum(part.nbytes // (len(part) * part.shape[-2]) for part in seen),
        window=int(getattr(layer, "sliding_window", None) or 0),
        state_bytes=sum(part.nbytes // len(part) for part in states),
        state_bytes_32=sum(part[0].numel() * FLOAT32_BYTES for part in states),
    )
    return of_row, int(seen[0].shape[-2]) if seen else 0


@contextlib.contextmanager
def watch_mlps(skeleton: "PreTrainedModel", live: MetaMemoryCounter) -> Iterator[None]:
    """Notify the counter when an MLP starts and ends."""

    def starts(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        live.enter(given[0].shape[:-1].numel() if given else 0)

    with contextlib.ExitStack() as hooks:
        for module in _mlps(skeleton):
            hooks.enter_context(module.register_forward_pre_hook(starts))
            hooks.enter_context(module.register_forward_hook(lambda *_: live.leave()))
        yield


@contextlib.contextmanager
def watch_layers(skeleton: "PreTrainedModel", live: MetaMemoryCounter) -> Iterator[list[int]]:
    """Yield the peak bytes at the start of a layer, in 16 and in 32 bit."""
    peaks = [0, 0]

    def begins(*_: Any) -> None:
        peaks[:] = max(peaks[0], live.bytes), max(peaks[1], live.bytes_32)

    with contextlib.ExitStack() as hooks:
        for layer in outermost_layers(skeleton):
            hooks.enter_context(layer.register_forward_pre_hook(begins))
        yield peaks


def _mlps(model: "PreTrainedModel") -> Iterator[torch.nn.Module]:
    """Yield modules of linear layers that widen and narrow again, without other modules that have
    weights."""
    for module in model.modules():
        parts = [part for part in module.children() if any(True for _ in part.parameters())]
        linears = [part for part in parts if isinstance(part, torch.nn.Linear)]
        if 1 < len(linears) == len(parts) and linears[0].out_features >= 2 * linears[0].in_features:
            yield module


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Silence warnings of libraries, such as those about tensors without data, and logs up to this
    level."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(level)
        try:
            yield
        finally:
            logging.disable(before)


TRIED = "What happens, and when? [00:00-00:30] A ball rolls to the left."


def text_only_refusal(skeleton: "PreTrainedModel", processor: Processor) -> str:
    """Return why the model over `skeleton` cannot generate from text alone; empty if it can. The
    skeleton must be prepared for dry runs."""
    try:
        inputs = text_inputs(processor, skeleton, TRIED)
        with on_meta_device(MetaMemoryCounter(_weights(skeleton)).computed):
            generate(
                as_half(skeleton), without_data(inputs), Features({}), max_new_tokens=NEW_TOKENS
            )
    except Exception as error:  # a model family may fail in any way on unusual input
        if out_of_memory(error):
            raise
        return one_line(error)
    return ""


ROWS = (1, 2, 8)
"""Batch sizes, in texts, of the dry runs."""
ASSUMED_TOKENS = 300
"""Text length in tokens if the model states no limit."""


def text_costs(
    skeleton: "PreTrainedModel", processor: Processor, repeated: RepeatedLayers
) -> Iterator[BatchCost]:
    """Yield the costs of a text half for a few batch sizes. Every text has the maximum length."""
    length = max_text_tokens(processor, as_half(skeleton)) or ASSUMED_TOKENS
    for rows in ROWS:
        inputs = {"input_ids": torch.ones(rows, length, dtype=torch.long)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        live = MetaMemoryCounter(_weights(skeleton))
        with on_meta_device(live.computed), repeated.layers(skeleton, live):
            vectors = text_vectors(as_half(skeleton), without_data(inputs))
        yield BatchCost(
            kind="image",
            rows=rows,
            units=length,
            peak_bytes=live.peak,
            peak_bytes_32=live.peak_32,
            kept_bytes=vectors.nbytes,
            flops=live.flops,
        )


EDGES = (224, 448)
"""Side lengths in pixels of the test images."""
FRAME_COUNTS = (2, 6)
"""Frame counts of the test videos."""
IMAGE_COUNT = 2
"""Number of images used to measure the width of a vector."""
TOKENS = (300, 900)
"""Approximate token counts of the longer test prompts."""
WORD_COUNTS = (8, 40)
"""Word counts of the prompts that measure how many words make a token."""
PROMPT = "describe "
PIXEL_BYTES = 4


class DryRun(NamedTuple):
    """The results of a model's dry runs."""

    batch_costs: Mapping[Part, tuple[BatchCost, ...]]
    """Computing costs of each half at a few sizes."""
    row_memory: RowMemory | None = None
    """Cache memory per row of the language half; None if unknown."""
    stored_widths: Mapping[MediaKind, float] = {}
    """Kind of media → numbers that are stored for each placeholder, as far as they were counted."""
    why: str = ""
    """Why the dry run failed; empty if it succeeded."""
    profile_fields: Mapping[str, Any] = {}
    """Results that are fields of a captioner's profile, by field name."""


def dry_run(
    skeleton: "PreTrainedModel", processor: Processor, route: Route, frames_per_video: int = 0
) -> DryRun:
    """Return the computing costs of the halves of the model over `skeleton`. The skeleton cannot be
    used for anything else afterwards."""
    with quiet():
        costs = _costs_of(skeleton, processor, route, frames_per_video)
        if route == "dual":
            return costs
        config = skeleton.config
        fields = {
            "context_tokens": context_tokens(config),
            "is_encoder_decoder": bool(config.is_encoder_decoder),
            "needs_pictures": "" if costs.why else text_only_refusal(skeleton, processor),
            "batch_costs_unknown": costs.why,
            "stored_widths": {kind: width for kind, width in costs.stored_widths.items() if width},
        }
        return costs._replace(profile_fields=fields)


def _costs_of(
    skeleton: "PreTrainedModel", processor: Processor, route: Route, frames_per_video: int
) -> DryRun:
    try:
        _begin(skeleton)
        way = prepare_images if route == "dual" else prepare
        rows = {k: _rows(processor, k, frames_per_video, way) for k in _kinds(processor)}
        repeated = RepeatedLayers()
        encoded = () if route == "joint" else tuple(_encoders(skeleton, rows, repeated))
        widths = {
            kind: _stored_width(kind, few_many[1], encoded) for kind, few_many in rows.items()
        }
        if route == "dual":
            read = tuple(text_costs(skeleton, processor, repeated))
            return DryRun({"vision": encoded, "language": read})
        kind = next(reversed(rows))
        decoded = [*_decoders(skeleton, processor, route, kind, rows[kind][0], repeated)]
        costs = tuple(cost for cost, _ in decoded)
        memory = _row_memory(skeleton, decoded[-1][1])
        return DryRun({"vision": encoded, "language": costs}, memory, stored_widths=widths)
    except Exception as error:  # a model family may use its tensors in any way
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        nothing: dict[Part, tuple[BatchCost, ...]] = {"vision": (), "language": ()}
        return DryRun(nothing, why=f"{type(error).__name__}: {message}")


def _row_memory(skeleton: "PreTrainedModel", kept: tuple[LayerMemory, ...]) -> RowMemory | None:
    """Return the cache memory per row, for a model that consists of a decoder only."""
    says = skeleton.get_output_embeddings()
    if not kept or says is None or skeleton.config.is_encoder_decoder:
        return None
    return RowMemory(kept=kept, words=says.weight.shape[0])


def vector_width(skeleton: "PreTrainedModel", processor: Processor) -> int:
    """Return the width of the image vectors of the model over `skeleton`.

    The skeleton is in the state after `dry_run`. Raises UsageError unless the model makes one
    vector per image."""
    with quiet():
        _begin(skeleton)
        row = prepare_images(processor, black_clip("image", IMAGE_COUNT, EDGES[0], EDGES[0]))
        with on_meta_device(MetaMemoryCounter(_weights(skeleton)).computed):
            return int(image_vectors(as_half(skeleton), without_data(row.inputs)).shape[1])


def _begin(skeleton: "PreTrainedModel") -> None:
    nn.Module.to(skeleton, torch.bfloat16)
    give_data(skeleton)
    skeleton.eval()


def _kinds(processor: Processor) -> list[MediaKind]:
    """Return the media kinds that the model computes differently."""
    same = channel_of(processor, "image") == channel_of(processor, "video")
    return ["image"] if same and not takes_videos(processor) else ["image", "video"]


def _rows(processor: Processor, kind: MediaKind, frames_per_video: int, way: Any) -> list[Prepared]:
    """Make a small and a large row as encoder inputs."""
    if kind == "image":
        clips = [black_clip(kind, frames_per_video or 1, edge, edge) for edge in EDGES]
    else:
        counts = [frames_per_video or count for count in FRAME_COUNTS]
        clips = [black_clip(kind, count, EDGES[0], EDGES[0]) for count in counts]
    return [way(processor, clip, PROMPT.strip()) for clip in clips]


def _encoders(
    skeleton: "PreTrainedModel", rows: dict[MediaKind, list[Prepared]], repeated: RepeatedLayers
) -> Iterator[BatchCost]:
    for kind, (few, many) in rows.items():
        sizes = {(count, _units(row)): row for count, row in ((1, few), (1, many), (2, few))}
        for (count, units), row in sizes.items():
            inputs = {name: joined([value] * count) for name, value in row.inputs.items()}
            live = MetaMemoryCounter(_weights(skeleton))
            with (
                on_meta_device(live.computed),
                watch_mlps(skeleton, live),
                watch_layers(skeleton, live) as waiting,
                repeated.layers(skeleton, live),
            ):
                features = encode(as_half(skeleton), without_data(inputs))
                yield BatchCost(
                    kind=kind,
                    rows=count,
                    units=units,
                    kept_bytes=sum(tensor.nbytes for tensor in tensors(features)),
                    waiting_bytes=waiting[0],
                    waiting_bytes_32=waiting[1],
                    **_counted(live),
                )


def _stored_width(kind: MediaKind, row: Prepared, encoded: Iterable[BatchCost]) -> float:
    """Return the numbers that are stored for each placeholder of a row alone; 0 if unknown."""
    units = _units(row)
    widths = (c.kept_bytes for c in encoded if (c.kind, c.rows, c.units) == (kind, 1, units))
    return next(widths, 0) / ITEM_BYTES / row.count.tokens if row.count.tokens else 0.0


def _decoders(
    skeleton: "PreTrainedModel",
    processor: Processor,
    route: Route,
    kind: MediaKind,
    row: Prepared,
    repeated: RepeatedLayers,
) -> Iterator[tuple[BatchCost, tuple[LayerMemory, ...]]]:
    skeleton.generation_config.eos_token_id = None
    skeleton.generation_config.pad_token_id = 0
    greedy: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    for (count, units), inputs in _decoder_inputs(skeleton, processor, row).items():
        features = _features(skeleton, route, row, count, repeated)
        live = MetaMemoryCounter(_weights(skeleton))
        live.hold(*features.values())
        reading = PromptWatch(live)
        with (
            on_meta_device(live.computed),
            watch_mlps(skeleton, live),
            reading.of(decoder_of(skeleton)),
            repeated.layers(skeleton, live),
        ):
            generate(as_half(skeleton), without_data(inputs), features, **greedy)
        yield BatchCost(kind=kind, rows=count, units=units, **reading.found()), reading.kept


def _decoder_inputs(
    skeleton: "PreTrainedModel", processor: Processor, row: Prepared
) -> dict[tuple[int, int], dict[str, Any]]:
    """Return (rows, tokens) → decoder inputs."""

    def inputs_of(*message: int) -> dict[str, Tree]:
        prompts = [PROMPT * count for count in message]
        return drop_end_token(skeleton, rebuild(processor, [row] * len(message), prompts))

    few, more = (_tokens(inputs_of(count)) for count in WORD_COUNTS)
    per_word = max(1.0, (more - few) / (WORD_COUNTS[1] - WORD_COUNTS[0]))
    some, many = (max(1, round(tokens / per_word)) for tokens in TOKENS)
    # Rows of different lengths, because the mask of a padded batch needs memory.
    batches = [(WORD_COUNTS[0],), (some,), (many,), (some, WORD_COUNTS[0]), (many, some)]
    inputs_of_prompts = [inputs_of(*message) for message in batches]
    return {
        (len(w), _tokens(i)): i
        for w, i in reversed(list(zip(batches, inputs_of_prompts, strict=True)))
    }


def _features(
    skeleton: "PreTrainedModel", route: Route, row: Prepared, count: int, repeated: RepeatedLayers
) -> Features:
    """Compute the features for the language half, without counting memory."""
    inputs = without_data({n: joined([value] * count) for n, value in row.inputs.items()})
    if route == "joint":
        return Features({UNDIVIDED: {n: v for n, v in inputs.items() if is_pixels(n)}})
    live = MetaMemoryCounter(_weights(skeleton))
    with on_meta_device(live.computed), repeated.layers(skeleton, live):
        return encode(as_half(skeleton), inputs)


def _weights(skeleton: "PreTrainedModel") -> list[torch.Tensor]:
    return [*skeleton.parameters(), *skeleton.buffers()]


def _units(row: Prepared) -> int:
    """Return the profile's unit count: bytes of pixels and their masks, as 32-bit numbers."""
    return sum(bytes_of(v) for n, v in row.inputs.items() if is_image_output(n)) // PIXEL_BYTES


def _tokens(inputs: Mapping[str, Tree]) -> int:
    """Return the tokens per row; 1 for a decoder without prompt, which has a start token."""
    return int(text_ids(inputs).shape[1]) if set(TEXT_IDS) & set(inputs) else 1
