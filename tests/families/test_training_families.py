"""Stock trainers on stored features take the steps that they take from pixels through the whole
model: every loss and every trained tensor is equal to the bit, where this machine computes the same
bits of two pictures at once as of each alone."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments, set_seed

from penstock.training import FeatureCollator, language_half, lora_targets, processor_of
from stages.models.halves.features import encode
from stages.models.processors.blank_clips import Clip
from stages.tune.training import loss_of, make_example, with_end_token
from tests.support.clips import clips, joint_inputs
from tests.support.processors import KINDS, plain_call
from tests.support.trainable_runs import record_run
from tests.support.trees import tensors_in
from tests.support.waves import encoded_wave, folder_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

QUICK = (("qwen2_5_vl", "video", False), ("gemma3", "image", True))
SLOW = (
    ("qwen2_5_vl", "video", True),
    ("qwen2_5_vl", "image", True),
    ("qwen3_vl", "video", False),
    ("qwen3_vl", "video", True),
    ("gemma3", "image", False),
    ("smolvlm", "image", False),
    ("smolvlm", "image", True),
    ("glm4v", "video", True),
    ("internvl", "image", True),
    ("llava", "image", True),
    ("llava_next", "image", True),
    ("llava_onevision", "video", True),
    ("paligemma", "image", True),
    ("perception_lm", "video", True),
)
TEXTS = (
    "A star.",
    "A blue ring moves to the left, slowly.",
    "Two.",
    "There is a cross on a grey wall.",
    "A red circle grows",
)
PROMPTS = ("Describe.", "What happens in it?")


class Data(NamedTuple):
    """Rows of a run, and their clips."""

    out: Path
    rows: list[dict[str, Any]]
    clips: Sequence[Clip]
    family: str
    folder: Path


def data_of(folder: Path, family: str, kind: str) -> Data:
    """Store the features of clips, with a run that states where they are."""
    path, batch = folder_of(family), clips(kind, len(TEXTS))
    encoded_wave(folder, path, *([clip] for clip in batch))
    rows = [
        {
            "features": f"features-{at}",
            "prompt": PROMPTS[at % 2],
            "caption": text,
            "is_cut": at == len(TEXTS) - 1,
        }
        for at, text in enumerate(TEXTS)
    ]
    out = folder / "out"
    record_run(out, path, folder)
    return Data(out, rows, batch, family, path)


class PixelCollator:
    """The same rows from pixels, by the processor alone."""

    def __init__(self, data: Data, processor: Any) -> None:
        self.data, self.processor = data, processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return joined([self._inputs(row) for row in rows], self.processor.tokenizer)

    def _inputs(self, row: dict[str, Any]) -> dict[str, Any]:
        clip = [self.data.clips[int(row["features"].rpartition("-")[2])]]
        if self.data.family in KINDS:
            inputs = plain_call(self.data.family, self.processor, clip, [row["prompt"]])
        else:
            inputs = joint_inputs(self.processor, clip, [row["prompt"]])
        tokenizer = self.processor.tokenizer
        answer = tokenizer(row["caption"], add_special_tokens=False)["input_ids"]
        answer = torch.tensor([answer + [tokenizer.eos_token_id] * (not row["is_cut"])])
        ids = inputs["input_ids"]
        more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        for name in [n for n, part in inputs.items() if getattr(part, "shape", 0) == ids.shape]:
            rest = more.get(name, torch.zeros_like(answer))
            inputs[name] = torch.cat([inputs[name], rest], 1)
        if self.data.family == "paligemma":  # as its processor does with a suffix
            suffix = self.processor(
                text=[f"<image>{row['prompt']}"], images=[clip[0].frames[0]], suffix=["x y"]
            )
            types = suffix["token_type_ids"][0]
            assert types[-1] == 1 and types[0] == 0
            inputs["token_type_ids"][:, -answer.shape[1] :] = 1
        inputs["labels"] = torch.cat([torch.full_like(ids, -100), answer], 1)
        return inputs


def joined(rows: Sequence[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Pad what has a number per token on the right, and join the rest."""
    length = max(row["labels"].shape[1] for row in rows)
    batch: dict[str, Any] = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if parts[0].shape == rows[0]["labels"].shape:
            fill = {"input_ids": tokenizer.pad_token_id or 0, "labels": -100}.get(name, 0)
            parts = [pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        batch[name] = torch.cat(parts)
    return batch


def trained(model: Any, rows: Any, collate: Any, folder: Path) -> tuple[list[float], Any]:
    """Take three steps of Trainer; returns losses and trained tensors."""
    set_seed(0)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tensors = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return losses, tensors


def check(folder: Path, family: str, kind: str, lora: bool) -> None:
    data = data_of(folder, family, kind)
    half, processor = language_half(data.out, dtype=torch.float32), processor_of(data.out)
    whole = AutoModelForImageTextToText.from_pretrained(data.folder, dtype=torch.float32)
    names = {name for name, _ in half.named_parameters()}
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in names)
    assert 0 < len(names) < len(dict(whole.named_parameters())), "the tower is not there"
    models: list[Any] = [half, whole]
    if lora:
        config = peft.LoraConfig(r=4, target_modules=lora_targets(half), task_type="CAUSAL_LM")
        models = []
        for model in (half, whole):
            set_seed(1)
            models.append(peft.get_peft_model(model, copy.deepcopy(config)))
    collate = FeatureCollator(data.out, processor)
    if family != "paligemma":  # which tune refuses
        check_tune(half, processor, collate, data.rows[0])
    of_features = trained(models[0], data.rows, collate, folder / "a")
    of_pixels = trained(models[1], data.rows, PixelCollator(data, processor), folder / "b")
    assert len(of_features[0]) == 3
    if of_features[0] != of_pixels[0] and not encodes_alike(whole, data, processor):
        assert of_features[0] == pytest.approx(of_pixels[0], rel=1e-5)
        return
    assert of_features[0] == of_pixels[0]
    assert of_features[1].keys() == of_pixels[1].keys()
    for name, tensor in of_features[1].items():
        assert torch.equal(tensor, of_pixels[1][name]), name


def encodes_alike(whole: Any, data: Data, processor: Any) -> bool:
    """Whether a picture has the same features beside another one, as the trainer encodes it, as
    alone: products of larger matrices may be rounded otherwise."""
    collate, rows = PixelCollator(data, processor), data.rows
    with torch.no_grad():
        both, first, second = (
            tensors_in(encode(whole, collate(some))) for some in (rows[:2], rows[:1], rows[1:2])
        )
    return all(
        torch.equal(together, torch.cat(parts))
        for together, *parts in zip(both, first, second, strict=True)
    )


def check_tune(half: Any, processor: Any, collate: FeatureCollator, row: dict[str, Any]) -> None:
    """The loss of `penstock tune` is that of `forward` itself."""
    read = partial(collate.read, row["features"])
    example = make_example(half, processor, read, row["prompt"], row["caption"], number=0)
    example = with_end_token(example, processor.tokenizer.eos_token_id)
    with torch.no_grad():
        own, stock = loss_of(half, processor, [example]), half(**collate([row])).loss
    assert float(own) / len(example.ids) == pytest.approx(float(stock), rel=1e-6)


@pytest.mark.parametrize(("family", "kind", "lora"), QUICK)
def test_training_on_features_equals_training_on_pixels(
    family: str, kind: str, lora: bool, tmp_path: Path
) -> None:
    check(tmp_path, family, kind, lora)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "lora"), SLOW)
def test_training_on_features_of_more_families_equals_training_on_pixels(
    family: str, kind: str, lora: bool, tmp_path: Path
) -> None:
    check(tmp_path, family, kind, lora)
