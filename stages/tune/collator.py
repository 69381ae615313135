"""Makes batches of stored features and captions for a loop that calls `model(**batch)`.

How a batch is made, in the process of a data loader's worker:

1. The features of each row are read from the store.
2. The processor writes the prompt of each row with their placeholders, as in captioning.
3. The tokens of the caption and an end token follow. `labels` hide the prompt.
4. Rows are padded on the right. What the processor says of pictures and videos is joined.
5. The encoder's output records of the rows are joined by modality, as `mm_encoder_outputs`, which
   `forward` of transformers takes in place of pixels. Pictures and videos may share a batch.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.records.packs import RecordUnion, stored_features
from artifacts.records.store import open_store
from artifacts.records.tensors import make_record
from stages.decode.prompts import append_tokens
from stages.decode.protocol import read_features
from stages.models.halves.records import FeatureRecord
from stages.models.processors.prepare import answer_ids, full_answer_ids, rebuild, without_last
from stages.models.protocols import Half, Processor, Tree
from stages.tune.load_features import join_inputs, join_outputs
from stages.tune.training import IGNORED, end_token_of, make_example

PREFIXED = ("PaliGemmaProcessor",)
"""Processors of models in which tokens of type 0, the prompt, see one another, and those of type 1,
the answer, see none behind them."""
TYPES = "token_type_ids"
FEATURES = "mm_encoder_outputs"
"""The last key of a batch: programs that look for its size take the first tensor."""


class FeatureBatches:
    """Makes batches of the rows of one run."""

    def __init__(
        self,
        store: str,
        folder: str,
        processor: Processor,
        end: int | None = None,
        dtype: torch.dtype | None = None,
        form: str = "",
    ) -> None:
        """`store` is the URL of the store, `folder` the checkpoint's, `form` that in which the run
        stored features. `end` is the token after a caption; None: the tokenizer's own, or the
        checkpoint's if that is another. `dtype` is that of the features in a batch; None: as they
        are stored."""
        self._store, self._form = store, form
        self._processor = processor
        self._ends = _ends(folder, processor)
        self._end = self._ends[0] if end is None else end
        self._dtype = dtype
        self._features: RecordUnion | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_features": None}  # each worker opens the store itself

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tree]:
        """Return a batch of these rows. Raises UsageError, and DamagedRecord for features that are
        gone."""
        if any("features" not in row or "caption" not in row for row in rows):
            raise UsageError(
                "a row has no features or no caption, because the trainer removed or packed them",
                hint="Set remove_unused_columns=False and packing=False; of TRL, also "
                'max_length=None and dataset_kwargs={"skip_prepare_dataset": True}',
            )
        records = [self.read(row["features"]) for row in rows]
        inputs = [self.inputs(record, row) for record, row in zip(records, rows, strict=True)]
        pad = self._processor.tokenizer.pad_token_id or 0
        return {**join_inputs(inputs, pad), FEATURES: self.outputs(records)}

    def outputs(self, records: Sequence[FeatureRecord]) -> dict[str, Tree]:
        """Return the encoder's output records of these rows by modality. Raises UsageError if they
        cannot be joined."""
        try:
            outputs = join_outputs([(record.features, record.rules) for record in records])
        except ValueError as error:
            raise UsageError(str(error), hint="Trainers accumulate gradients over them") from error
        return outputs if self._dtype is None else _cast(outputs, self._dtype)

    def read(self, key: str) -> FeatureRecord:
        """Return the features with a key. Raises DamagedRecord."""
        if self._features is None:
            self._features = stored_features(open_store(self._store), self._form)
        return read_features(self._features, key)

    def inputs(self, record: FeatureRecord, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of one row besides its features, and its labels. Raises UsageError."""
        tokens = answer_ids if row.get("is_cut") else full_answer_ids
        end = [] if row.get("is_cut") else [self._end]
        answer = torch.tensor([[*tokens(self._processor, row["caption"]), *end]])
        inputs = rebuild(self._processor, [record], [row["prompt"]])
        present = {name: part for name, part in inputs.items() if part is not None}
        if missing := sorted({*record.needs} - present.keys()):
            raise UsageError(
                f"the processor makes no {', '.join(missing)}, which the features need",
                hint="Load it with processor_of, and with the transformers of that run",
            )
        prompt = without_last(present, self._ends)
        hidden = torch.full_like(prompt["input_ids"], IGNORED)
        inputs = append_tokens(prompt, answer)
        if type(self._processor).__name__ in PREFIXED:
            inputs[TYPES][:, -answer.shape[1] :] = 1
        return {**inputs, "labels": torch.cat([hidden, answer], 1)}


def likeliest_end(
    collate: FeatureBatches, half: Half, processor: Processor, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Return the end token of captions as training does: if the half stops at several, the one that
    it finds most likely after these captions."""
    examples = []
    for number, row in enumerate(rows):
        read = partial(collate.read, row["features"])
        parts = row["prompt"], row["caption"], row["is_cut"]
        examples.append(make_example(half, processor, read, *parts, number=number))
    return end_token_of(half, processor, examples)


def _ends(folder: str, processor: Processor) -> list[int]:
    """Return the tokens that end the texts of a model, the tokenizer's own first."""
    from transformers import GenerationConfig

    own = processor.tokenizer.eos_token_id
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # a checkpoint need not have one
        ends = None
    every = [ends] if isinstance(ends, int) else [*(ends or (own,))]
    return sorted(every, key=lambda token: token != own)


def _cast(features: Any, dtype: torch.dtype) -> Any:
    """Return an encoder's output in another floating-point type."""
    if isinstance(features, torch.Tensor):
        return features.to(dtype) if features.is_floating_point() else features
    if isinstance(features, Mapping):
        parts = {name: _cast(part, dtype) for name, part in features.items()}
        return make_record(type(features), parts)
    if isinstance(features, list | tuple):
        return type(features)(_cast(part, dtype) for part in features)
    return features
