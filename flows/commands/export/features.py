"""Exports the stored features and captions of a run as a data set that trains without Penstock.
Runs no model: a process of its own writes the shards."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import refuse_foreign
from artifacts.disk.paths import folder_named, user_cache
from artifacts.errors import UsageError, plain
from artifacts.records.eight_bits import form_of
from artifacts.records.keys import hash_file
from artifacts.records.model_files import small_names
from artifacts.records.packs import Place
from artifacts.records.store import open_store
from artifacts.records.tensors import restored_bytes
from artifacts.schema import values_of
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.commands.tune.stored_captions import stored_captions
from flows.core.checkpoint.models import digests_in
from flows.core.console.display import Display
from flows.core.console.lines import size
from flows.core.machine.launch import DirectLauncher, StageCall, run_with_restarts
from flows.outputs.record.run_record import RunRecord
from stages.models.shards import NOTE
from stages.tune import CaptionToExport, FeatureExportJob

FORM = 1
"""Version of the layout of the folder, in `features.json`."""
RULES = {
    "cat": "tensors, along their first dimension",
    "join": "sequences with one part per picture",
    "each": "the members of a sequence, one by one",
    "same": "one value for all rows",
    "whole": "never joined",
}
"""How an encoder's outputs are joined in a batch, as `features.json` explains it."""
CARD = """---
license: {license}
{base}tags: [penstock, vision-features]
task_categories: [image-text-to-text]
configs: [{{config_name: default, data_files: index.jsonl}}]
---
# {captions} with the vision features that they were made from

Features of {chunks} by {model} ({precision}), {size}. They train the model's language half: the
vision encoder is not computed, and no medium is needed. They were made with transformers {version},
which the loader needs besides torch and safetensors.

```python
from load_features import FeatureDataset  # in this folder
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

data = FeatureDataset(".")
model = AutoModelForImageTextToText.from_pretrained({model})
arguments = TrainingArguments("steps", remove_unused_columns=False)
Trainer(model, arguments, train_dataset=data, data_collator=data.collate).train()
```

- Features show what the media show: publish them only where you may publish the media.
- They are of one vision encoder and one processor, whose digests are in `features.json`. A tuned
  encoder, or another model, needs features of its own.
- Prompts and captions are tokens in the shards; `index.jsonl` has their texts.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesExported:
    """A data set of features, or what it will be."""

    out: Path
    """Its folder."""
    captions: int
    """Number of rows."""
    chunks: int
    """Number of chunks whose features it has."""
    bytes: int
    """Bytes of the features."""
    shards: int = 0
    """Number of its shards; 0: not written yet."""
    before: int = 0
    """Number of shards that were there before this export."""

    @property
    def failures(self) -> list[Failure]:
        return []

    @property
    def exit_code(self) -> int:
        return 0

    def line(self) -> str:
        there = f", {self.before} of them from before" if self.before else ""
        shards = f", in {counted(self.shards, 'file')}{there}" if self.shards else ""
        captions = counted(self.captions, "caption")
        of_chunks = f"features of {counted(self.chunks, 'chunk')}"
        return f"{self.out}: {captions}, {of_chunks}, {size(self.bytes)}{shards}"

    __repr__ = line

    def to_json(self) -> dict[str, Any]:
        return {**values_of(self), "out": str(self.out), "exit_code": self.exit_code}


def export_features(
    run: str,
    out: str,
    license_name: str,
    display: Display,
    *,
    trust_remote_code: bool = False,
    dry_run: bool = False,
) -> FeaturesExported:
    """Write the features of a run's folder into the folder `out`, or only measure them. Raises
    PenstockError."""
    if not license_name.strip():
        raise UsageError(
            "--features needs a licence for the data set's card",
            hint="Give --license NAME, such as cc-by-4.0, or other",
        )
    folder = folder_named(out, "out")
    refuse_foreign(folder, (), (NOTE,))
    source = folder_named(run, "features")
    job, exported = job_of(source, folder, license_name, display.print_line)
    if dry_run:
        return exported
    call = StageCall(
        name="export_features",
        job=replace(job, trust_remote_code=trust_remote_code),
        device="cpu",
        log=user_cache() / "logs" / "export-features.log",
    )
    try:
        notes = run_with_restarts(DirectLauncher(display.on_event), call).notes
    finally:
        display.close()
    return replace(exported, shards=notes["files"], before=notes["there"])


def job_of(
    source: Path, folder: Path, license_name: str, announce: Callable[[str], None]
) -> tuple[FeatureExportJob, FeaturesExported]:
    """Return the job for a run's folder, and what it will write. Raises PenstockError."""
    run, examples, features = stored_captions(source, announce)
    plan, keys = run.plan, {example.features for example in examples}
    places = [features.place(key) for key in keys]
    exported = FeaturesExported(
        out=folder,
        captions=len(examples),
        chunks=len(keys),
        bytes=sum(restored_bytes(place.meta["tree"], place.length) for place in places),
    )
    # The hub refuses a card whose base model is none of its own, and a path is nobody's business.
    name = plan.model if plan.commit else Path(plan.model).name
    about = {**_about(run, len(examples)), "model": name, "precision": _precision(run, places)}
    card = CARD.format(
        license=json.dumps(license_name.strip()),
        base=f"base_model: {json.dumps(name)}\n" if plan.commit else "",
        model=json.dumps(name),
        captions=counted(exported.captions, "caption"),
        chunks=counted(exported.chunks, "chunk"),
        precision=about["precision"],
        size=size(exported.bytes),
        version=about["transformers"],
    )
    job = FeatureExportJob(
        store=plan.store,
        model=plan.folder,
        folder=str(folder),
        rows=[CaptionToExport(*e.target, plain(e.path.name), e.start, e.end) for e in examples],
        bytes=exported.bytes,
        about=about,
        card=card,
        form=plan.features_as,
        max_pixels=plan.max_pixels or 0,
        max_video_pixels=plan.max_video_pixels or 0,
        as_published=plan.as_published,
    )
    return job, exported


def _precision(run: RunRecord, places: Sequence[Place]) -> str:
    """Return the precision of features, and the form of those that are read in one: `cache pack
    --replace` leaves no others of a run that stored them as computed."""
    computed = run.plan.precision.get("vision", "").removesuffix(f" as {run.plan.features_as}")
    forms = Counter(form_of(place.pack.split("/")[2]) for place in places)
    packed = " and ".join(
        f"{form} ({counted(count, 'chunk')})" if len(forms) > 1 else form
        for form, count in sorted(forms.items())
        if form
    )
    return f"{computed} as {packed}" if packed else computed


def _about(run: RunRecord, captions: int) -> dict[str, Any]:
    """Return what `features.json` says of the model and of the run. Raises EnvironmentFault."""
    plan, folder = run.plan, Path(run.plan.folder)
    digests = digests_in(open_store(plan.store))
    with disk_faults(folder):
        files = {name: hash_file(folder / name) for name in small_names(folder)}
        weights = {path.name: digests.known_of_model(path) for path in folder.glob("*.safetensors")}
    return {
        "form": FORM,
        "commit": plan.commit,
        "vision_half": plan.decided_by.get("weights of the vision half"),
        "weights": {name: known.digest for name, known in sorted(weights.items()) if known},
        "processor": files,
        "sampling": values_of(plan.sampling) if plan.sampling else None,
        "transformers": run.versions.get("transformers", ""),
        "captions": captions,
        "joined": RULES,
    }
