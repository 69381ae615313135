"""Makes batches of exported vision features and captions for `model(**batch)`. It needs torch,
safetensors and transformers.

    data = FeatureDataset("FOLDER")
    arguments = TrainingArguments("steps", remove_unused_columns=False)
    Trainer(model, arguments, train_dataset=data, data_collator=data.collate).train()
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.generic import ModelOutput


class FeatureDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The captions of a folder, each with its tokens and the features that it was made from."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError if the folder is not whole."""
        self.folder = Path(folder)
        about, index = (self.folder / name for name in ("features.json", "index.jsonl"))
        self.about: dict[str, Any] = json.loads(about.read_text("utf-8"))
        with index.open(encoding="utf-8") as lines:
            self.rows = [json.loads(line) for line in lines]
        if len(self.rows) != self.about["captions"]:
            raise ValueError(f"{index} has {len(self.rows)} of {self.about['captions']} captions")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        """Return the inputs of a row, the encoder's outputs by modality, and the rules that join
        them with those of other rows. Raises ValueError for a shard that is cut or missing."""
        row = self.rows[at]
        path, layout = self.folder / row["file"], self.about["layouts"][row["layout"]]
        try:
            with safe_open(path, "pt") as shard:

                def take(of: str, name: str) -> torch.Tensor:
                    tensor: torch.Tensor = shard.get_tensor(f"{of}.{name}")
                    return tensor

                inputs = _built(layout["inputs"], partial(take, row["row"]))
                outputs = _built(layout["outputs"], partial(take, row["features"]))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is cut or missing: copy or export it again") from error
        return {"inputs": inputs, "outputs": outputs, "rules": layout["rules"]}

    def verify(self) -> None:
        """Read all shards. Raises ValueError for one whose bytes are not those of the export."""
        for name, digest in self.about["sha256"].items():
            with (self.folder / name).open("rb") as shard:
                if hashlib.file_digest(shard, "sha256").hexdigest() != digest:
                    raise ValueError(f"{shard.name} is damaged: copy or export it again")

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch of rows, which are padded on the right. Raises ValueError if their
        features cannot be joined."""
        inputs = join_inputs([row["inputs"] for row in rows], self.about["pad"])
        outputs = join_outputs([(row["outputs"], row["rules"]) for row in rows])
        # Last: programs that look for a batch's size take the first tensor.
        return {**inputs, "mm_encoder_outputs": outputs}


def join_inputs(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """Return the inputs of a batch, in which those with a number per token are padded on the right.
    `pad`: the token that pads prompts."""
    length = max(row["labels"].shape[1] for row in rows)
    fill, batch = {"input_ids": pad, "labels": -100}, dict[str, Any]()
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = []
        for row in (row for row in rows if name in row):
            part, shape = row[name], row["labels"].shape
            if getattr(part, "shape", None) == shape:  # a number per token
                more = (0, length - shape[1])
                part = torch.nn.functional.pad(part, more, value=fill.get(name, 0))
            parts.append(part)
        is_list = isinstance(parts[0], list | tuple)
        rule = "cat" if isinstance(parts[0], torch.Tensor) else "join" if is_list else "same"
        batch[name] = _joined(parts, rule)
    return batch


def join_outputs(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the encoder's outputs of a batch by modality, from those of each row and its rules.
    Raises ValueError if they cannot be joined."""
    outputs: dict[str, Any] = {}
    for name in dict.fromkeys(name for features, _ in rows for name in features):
        having = [(features[name], rules[name]) for features, rules in rows if name in features]
        rule = having[0][1]
        if any(other != rule for _, other in having):
            raise ValueError(f"these {name} features cannot share a batch: take batches of 1")
        outputs[name] = _joined([features for features, _ in having], rule)
    return outputs


def _built(node: Mapping[str, Any], take: Callable[[str], torch.Tensor]) -> Any:
    """Return a nested value whose tensors `take` returns by name."""
    kind, content = node["is"], node.get("v")
    if kind in ("plain", "float"):
        return float(str(content)) if kind == "float" else content
    if kind == "tensor":
        return take(node["name"])
    assert isinstance(content, list)
    if kind in ("list", "tuple"):
        return (tuple if kind == "tuple" else list)(_built(part, take) for part in content)
    fields = {name: _built(part, take) for name, part in content}
    if kind == "dict":
        return fields
    module, _, name = node["class"].partition(":")
    record = getattr(import_module(module), name) if module.startswith("transformers.") else None
    if not (isinstance(record, type) and issubclass(record, ModelOutput)):
        raise ValueError(f"{node['class']} is not an output of transformers")
    return _record(record, fields)


def _record(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """Return an output record; fields without a default that are not given are None."""
    declared = getattr(cls, "__dataclass_fields__", {}).values()
    needed = [f for f in declared if f.default is f.default_factory is dataclasses.MISSING]
    return cls(**{**{f.name: None for f in needed}, **fields})


def _joined(parts: Sequence[Any], rule: Any) -> Any:
    """Join a part of some rows by its rule, which `features.json` states."""
    first = parts[0]
    if len(parts) == 1 or rule == "same":
        return first
    if rule == "cat":
        return torch.cat(list(parts))
    if rule == "join":
        return type(first)(one for part in parts for one in part)
    if rule == "whole":
        raise ValueError("features of unknown structure cannot be joined: take batches of 1")
    if "fields" in rule:
        names = {
            name: _joined([part[name] for part in parts], r) for name, r in rule["fields"].items()
        }
        return _record(type(first), names)
    pairs = zip(zip(*parts, strict=True), rule["each"], strict=True)
    return type(first)(_joined(members, r) for members, r in pairs)
