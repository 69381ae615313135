"""Stored features for stock trainers: `transformers.Trainer`, TRL's `SFTTrainer`, PEFT, or any loop
that calls `model(**batch)`.

    half, processor = language_half("OUT"), processor_of("OUT")  # the vision tower is never read
    collate = FeatureCollator("OUT", processor)
    arguments = TrainingArguments("style", remove_unused_columns=False)
    Trainer(half, arguments, train_dataset=captions("OUT"), data_collator=collate).train()
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from flows.commands.export.features import FeaturesExported
from flows.commands.export.features import export_features as run_export
from flows.commands.tune.stored_captions import stored_captions, trainable_run
from penstock.arguments import Progress, display_for, path_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

__all__ = [
    "CaptionToTrain",
    "FeatureCollator",
    "captions",
    "end_token",
    "export_features",
    "language_half",
    "lora_targets",
    "processor_of",
]
EXAMPLES = 4
"""Captions after which `end_token` looks."""


class CaptionToTrain(TypedDict):
    """A row of a data set: a caption, with the key of what the model saw."""

    features: str
    """Key of the stored features."""
    prompt: str
    """The prompt as it was sent."""
    caption: str
    """The text to train, without what the run put around it."""
    is_cut: bool
    """Whether the token limit ended the caption. It is trained without an end token."""


def captions(out: str | Path, announce: Callable[[str], None] = print) -> list[CaptionToTrain]:
    """Return a row for each caption of a run, as `penstock tune` selects them: the accepted and
    corrected ones if there are any, else all that nobody rejected, without trigger, prefix and
    suffix. `announce` is called with notes. `datasets.Dataset.from_list` takes the rows. Raises
    UsageError, EnvironmentFault."""
    examples = stored_captions(out, announce).examples
    return [cast(CaptionToTrain, example.target._asdict()) for example in examples]


def language_half(out: str | Path, **options: Any) -> "PreTrainedModel":
    """Load the language half of a run's model. No weight of the vision tower is read. `options` are
    those of `from_pretrained`, such as `dtype` and `device_map`. Raises UsageError."""
    # It imports torch: by name, as in penstock/__init__.
    load: Callable[..., PreTrainedModel] = import_module("stages.models").load_half
    return load(trainable_run(out).plan.folder, "language", **options)


def processor_of(out: str | Path, *, trust_remote_code: bool = False) -> "ProcessorMixin":
    """Load the processor of a run with its limits of pixels, which decide how many placeholders a
    picture has. Raises UsageError."""
    plan, loading = trainable_run(out).plan, import_module("stages.models.processors.loading")
    load: Callable[..., ProcessorMixin] = loading.load_processor
    return load(
        Path(plan.folder),
        trust_remote_code,
        max_pixels=plan.max_pixels or 0,
        max_video_pixels=plan.max_video_pixels or 0,
        as_published=plan.as_published,
    )


def lora_targets(half: "PreTrainedModel") -> str:
    """Return a pattern of the full paths of a half's linear layers, for
    `LoraConfig(target_modules=…)`. PEFT shortens long lists of paths to the ends of names, by which
    an adapter would also land on the vision tower of the whole model; it keeps a pattern."""
    return "|".join(map(re.escape, sorted(import_module("stages.tune.adapter").linear_paths(half))))


def end_token(out: str | Path, half: "PreTrainedModel", processor: "ProcessorMixin") -> int:
    """Return the end token of captions as `penstock tune` does: if the half stops at several, the
    one that it finds most likely after some captions of the run."""
    rows = captions(out, lambda _: None)[:EXAMPLES]
    likeliest: Callable[..., int] = import_module("stages.tune.collator").likeliest_end
    return likeliest(FeatureCollator(out, processor), half, processor, rows)


def export_features(
    out: str | Path,
    folder: str | Path,
    *,
    license: str,
    trust_remote_code: bool = False,
    progress: Progress = "auto",
) -> FeaturesExported:
    """Write the captions of a run and their features into a new folder, with a loader that needs no
    Penstock, as `penstock export --features`. Raises PenstockError."""
    source, made = path_of("out", out), path_of("folder", folder)
    display = display_for(progress)
    return run_export(source, made, license, display, trust_remote_code=trust_remote_code)


class FeatureCollator:
    """Makes a batch of rows, as `captions` returns them."""

    def __init__(
        self,
        out: str | Path,
        processor: "ProcessorMixin",
        *,
        end: int | None = None,
        dtype: Any = None,
    ) -> None:
        """`end` is the token after a caption; None: the tokenizer's own, or the checkpoint's if
        that is another. `dtype` is the torch.dtype of the features in a batch; None: as they are
        stored. Raises UsageError."""
        plan, stage = trainable_run(out).plan, import_module("stages.tune.collator")
        parts = plan.store, plan.folder, processor, end, dtype, plan.features_as
        self._batches: Any = stage.FeatureBatches(*parts)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch of these rows. Raises UsageError, and DamagedRecord for features that are
        gone."""
        batch: dict[str, Any] = self._batches(rows)
        return batch

    def read(self, key: str) -> Any:
        """Return the stored record of the features with a key of `captions`. Raises
        DamagedRecord."""
        return self._batches.read(key)

    def outputs(self, records: Sequence[Any]) -> dict[str, Any]:
        """Return the encoder's output records of these rows by modality, as `forward` takes them.
        Raises UsageError if they cannot be joined."""
        outputs: dict[str, Any] = self._batches.outputs(records)
        return outputs
