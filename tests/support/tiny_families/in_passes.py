"""Runs the vision half of a tiny model in passes of a fixed number of rows, and says in which ways
the bytes of a row's features depend on nothing else."""

from pathlib import Path
from typing import Any

import torch

from artifacts.errors import HalfTried
from artifacts.packs import RecordSet
from artifacts.store import open_store
from stages.models.encoding.passes import PassRow, WayTrials, encode_passes
from stages.models.encoding.ways import ALONE, BATCHES, FIXED, FIXED_ROWS, KIND
from stages.models.halves.routes import encoders
from stages.models.processors.side_inputs import Prepared
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import rows_of

ROWS = 5


def judged_in_passes(variant: str, folder: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the ways that hold for a variant of a family with one row."""
    model, rows = rows_of_variant(variant, dtype)
    found = []
    for way, count in ((FIXED, FIXED_ROWS), (ALONE, 1)):
        trials = WayTrials(RecordSet(open_store(str(folder / way)), KIND, "0" * 32))
        try:
            encode_passes(model, [PassRow(prepared=row, rows=count) for row in rows], trials)
        except HalfTried:
            return [BATCHES]
        held = [trials.verdict(PassRow(prepared=row, rows=count)) for row in rows]
        found += [way] if all(each is True for each in held) else []
    return sorted(found)


def rows_of_variant(variant: str, dtype: torch.dtype) -> tuple[Any, list[Prepared]]:
    """The model of a variant, and rows with other pictures."""
    model: Any = None
    rows = []
    for seed in range(ROWS):
        torch.manual_seed(seed)
        built, inputs = FAMILIES[variant]()
        model = model or built.eval().to(dtype)
        taken = {name for encoder in encoders(model) for name in encoder.names}
        row = {name: value for name, value in inputs.items() if name in taken}
        (count,) = rows_of(variant, inputs, model.config)
        rows.append(Prepared(inputs=row, channel="images", side={}, replacements=(), count=count))
    return model, rows
