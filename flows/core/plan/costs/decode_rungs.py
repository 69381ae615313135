"""The rungs of decoding: batches, slots and placements, from fast to small."""

from collections.abc import Container, Sequence
from dataclasses import replace

from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import PartSettings
from flows.core.options.commands import RunOptions
from flows.core.plan.costs.part import free_settings, with_packed
from flows.core.plan.ladder import MLP_CHUNKS, Rung, sizes
from stages.models.gguf import ROWS
from stages.models.profile import PartProfile


def supports_slots(half: PartProfile, settings: PartSettings) -> bool:
    """Return whether a half may run in slots by its profile. The engine check decides later."""
    engine = settings.choice[0] if settings.choice else None
    if engine is None or not engine.slots or settings.kv or half.row_memory is None:
        return False
    if settings.precision in engine.refused_precisions:
        return False
    kept, layers = half.row_memory.kept, engine.cache_layers
    if layers is None:
        return True
    windows = {kind.window for kind in kept if kind.window}
    known = all(kind.kind in layers for kind in kept)
    return known and len(windows) < 2 and any(kind.token_bytes for kind in kept)


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: fewer slots or smaller batches, chunked prefill, KV cache in host memory,
    quantized weights, layers loaded one by one. Where no engine generates text, one prompt at a
    time is read, and its cache stays as it is."""
    half, free = model.profile.language, free_settings(model, config, "language")
    options = config.groups.engine
    best = model.best("language")
    has_states = half.row_memory is not None and half.row_memory.has_states
    first = next(iter(best.choice), None)
    more = first.gpu_slots if first and device.startswith("cuda") and not has_states else 0
    batch = config.batch_size if first else 1
    most = max(batch, more)
    candidates = decode_rungs(
        batch,
        [(s.precision, s.kv) for s in free if first or not s.kv],
        kv_offload=device.startswith("cuda") and any(engine.kv for engine in best.choice),
        # PEFT replaces the layers that would be loaded one by one.
        offload=config.may_fall_back("language")
        and not (half.stored_as or best.gguf)
        and not config.groups.adapter.adapter,
        in_slots=[s.precision for s in free if supports_slots(half, s)],
        slots=min(ROWS, batch) if best.gguf else options.slots or most,
        chunked=not best.gguf,
    )
    candidates = [replace(rung, stage=stage) for rung in candidates]
    return candidates if best.gguf else with_packed(half, candidates)


def decode_rungs(
    batch: int,
    variants: Sequence[tuple[str, str]],
    *,
    kv_offload: bool,
    offload: bool,
    in_slots: Container[str] = (),
    slots: int = 0,
    chunked: bool = True,
) -> list[Rung]:
    """Return the rungs of each variant: smaller batches, chunked prefill, and KV cache offload.

    `variants`: pairs of precision and KV cache, which is `quantized` or empty. `kv_offload`:
    whether the KV cache may be in host memory. `offload`: whether weights may be loaded layer by
    layer. `in_slots`: precisions with slots instead of batches. `slots`: maximum number of slots;
    0: the batch size. `chunked`: whether a prompt may be prefilled in chunks.
    """
    candidates: list[Rung] = []
    for precision, kv in variants:
        single = Rung(
            stage="decode",
            batch=1,
            prefill=MLP_CHUNKS[-1],
            precision=precision,
            kv=kv,
            in_slots=not kv and precision in in_slots,
        )
        if kv:  # a quantized cache is the last resort of its precision
            candidates.append(single)
            continue
        largest = slots or batch if single.in_slots else batch
        candidates += [replace(single, batch=size, prefill=0) for size in sizes(largest)]
        candidates += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS if chunked]
        if kv_offload:
            candidates.append(replace(single, kv="offloaded", in_slots=False))
    if not offload or not variants:
        return candidates
    # Layers are loaded one by one, so a batch costs hardly more than one item.
    last = Rung(
        stage="decode",
        batch=1,
        prefill=MLP_CHUNKS[-1],
        precision=variants[0][0],
        offload=True,
        in_slots=variants[0][0] in in_slots,
    )
    largest = slots or batch if last.in_slots else batch
    return candidates + [replace(last, batch=size) for size in sizes(largest)]
