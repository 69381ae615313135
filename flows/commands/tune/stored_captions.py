"""Selects the captions of a run that train with the stored features of the run alone."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.json_records import read_jsonl_file
from artifacts.errors import NoFeatures, UsageError
from artifacts.records.packs import RecordUnion, stored_features
from artifacts.records.store import open_store
from artifacts.wording import counted
from flows.commands.tune.training_data import Example, examples_in
from flows.core.media.output_rows import CaptionRow
from flows.core.options.formats import CAPTIONS
from flows.outputs.record.run_read import CAPTION_FOLDER, load_record
from flows.outputs.record.run_record import RunRecord


class StoredCaptions(NamedTuple):
    """The captions of a run that are to be trained, and the features that they need."""

    run: RunRecord
    examples: list[Example]
    features: RecordUnion
    """The features in the store of the run; no example is without."""


def trainable_run(out: str | Path) -> RunRecord:
    """Return the record of a run whose features a stock trainer can take. Raises UsageError."""
    run = load_record(Path(out).expanduser())
    if not (Path(out).expanduser() / CAPTIONS).exists():
        raise UsageError(f"{out} has no {CAPTIONS}", hint=CAPTION_FOLDER)
    if run.plan.route != "protocol":
        raise UsageError(
            f"{run.plan.model or out}: its class takes no outputs of an encoder in place of pixels "
            f"(route: {run.plan.route or 'none'})",
            hint="Train it with penstock tune; docs/models.md has the route of each model",
        )
    return run


def stored_captions(out: str | Path, announce: Callable[[str], None]) -> StoredCaptions:
    """Return the captions of a run as `penstock tune` selects them, with their features. `announce`
    is called with notes. Raises UsageError, EnvironmentFault."""
    run, path = trainable_run(out), Path(out).expanduser() / CAPTIONS
    if any(row.heard for row in read_jsonl_file(CaptionRow, path, "Caption again")):
        raise UsageError(
            f"{path}: captions of what is heard, too, and stock trainers get no sound from here",
            hint="Train them with penstock tune, or caption with --sound off",
        )
    store = open_store(run.plan.store)
    examples = examples_in(str(path), announce, store)
    features = stored_features(store, run.plan.features_as)
    if gone := [example for example in examples if example.features not in features]:
        raise NoFeatures(
            f"{path}: {counted(len(gone), 'caption')} of {len(examples):,} without features in "
            f"{run.plan.store} ({gone[0].place})",
            hint="Encode them again with penstock cache rebuild and the options of that run",
        )
    return StoredCaptions(run, examples, features)
