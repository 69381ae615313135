"""Estimates the memory of decoding in slots, using the engine's cost function."""

from collections.abc import Iterator
from pkgutil import resolve_name

from artifacts.plurals import counted
from flows.checkpoint.precision import PartSettings
from flows.planning.estimate import Term
from flows.planning.workloads import Workload
from stages.decode.engines.slot_load import SlotLoad
from stages.models.prefetch import PREFETCH_BATCHES
from stages.models.profile import PartProfile

WAITING_BATCHES = 2
"""Batches that are claimed but not started, besides prefetched ones."""


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


def slot_terms(load: SlotLoad) -> Iterator[Term]:
    """Yield the memory of an engine's slots without the weights."""
    for part, size, why in resolve_name(load.engine.costs)(load):
        yield Term(part=part, bytes=size, why=why)


def prefetched_term(workload: Workload, slots: int) -> Term:
    """Return the features of running and waiting sequences, which are kept to restart sequences
    after an out-of-memory error."""
    rows = min(workload.chunks, slots * (1 + WAITING_BATCHES + PREFETCH_BATCHES))
    why = f"features of {counted(rows, 'row')}, running and waiting"
    return Term(part="workspace", bytes=rows * workload.feature_bytes, why=why)
