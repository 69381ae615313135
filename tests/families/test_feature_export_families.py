"""Batches of an exported folder, by its own loader where no Penstock is, are those of the collator
in all keys and bits; a shard that was cut is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from penstock.training import FeatureCollator, captions, export_features, processor_of
from tests.support.trainable_runs import run_of
from tests.support.waves import folder_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "llava_onevision", "internvl")
QUICK = FAMILIES[1:3]
CUTS = 20
ALONE = """
import sys

sys.path += [sys.argv[1], "."]  # no file of site-packages runs, so no Penstock is found
import importlib.util
import json
from pathlib import Path

assert not any(map(importlib.util.find_spec, ("penstock", "flows", "stages", "artifacts")))
import torch
from load_features import FeatureDataset

data = FeatureDataset(".")
groups = json.loads(sys.argv[2])
torch.save([data.collate([data[at] for at in rows]) for rows in groups], "batches.pt")
(shard,) = {row["file"] for row in data.rows}
content, refused = Path(shard).read_bytes(), []
for part in range(int(sys.argv[3])):
    Path(shard).write_bytes(content[: len(content) * part // int(sys.argv[3])])
    try:
        data[0]
    except ValueError as error:
        refused.append(str(error))
Path(shard).unlink()
try:
    data[0]
except ValueError as error:
    refused.append(str(error))
Path(shard).write_bytes(content)
if len(sys.argv) > 4:
    from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

    model = AutoModelForImageTextToText.from_pretrained(sys.argv[4], dtype=torch.float32)
    arguments = TrainingArguments(
        "steps", max_steps=1, logging_steps=1, per_device_train_batch_size=len(data),
        remove_unused_columns=False, use_cpu=True, report_to="none", save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=data.collate)
    trainer.train()
    Path("loss").write_text(str(trainer.state.log_history[0]["loss"]))
print(json.dumps(refused))
"""


def alone(folder: Path, *words: str) -> str:
    """Run the loader of a folder in a Python that finds no Penstock."""
    packages = str(Path(safetensors.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", ALONE, packages, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(one: Any, other: Any, where: str = "batch") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert [*one] == [*other], where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for at, (part, its) in enumerate(zip(one, other, strict=True)):
            assert_same(part, its, f"{where}.{at}")
    else:
        assert one == other, where


def check(tmp_path: Path, family: str) -> None:
    out, folder = run_of(tmp_path, family), tmp_path / "data"
    exported = export_features(out, folder, license="cc0-1.0")
    assert (exported.captions, exported.chunks, exported.shards) == (6, 5, 1)
    rows, collate = captions(out, lambda _: None), FeatureCollator(out, processor_of(out))
    groups = [[0], [1, 0], [2, 3, 4], [5, 4], [0, 1, 2, 3, 4, 5]]
    refused = json.loads(alone(folder, json.dumps(groups), str(CUTS)).splitlines()[-1])
    assert len(refused) == CUTS + 1
    assert all("features-00000.safetensors is cut or missing" in text for text in refused)
    batches = torch.load(folder / "batches.pt", weights_only=False)
    for batch, numbers in zip(batches, groups, strict=True):
        assert_same(batch, collate([rows[number] for number in numbers]))


@pytest.mark.parametrize("family", QUICK)
def test_a_folder_gives_the_batches_of_the_collator(family: str, tmp_path: Path) -> None:
    check(tmp_path, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in QUICK])
def test_a_folder_of_more_families_gives_the_batches_of_the_collator(
    family: str, tmp_path: Path
) -> None:
    check(tmp_path, family)


@pytest.mark.slow
def test_a_stock_trainer_takes_a_step_from_a_folder_alone(tmp_path: Path) -> None:
    out, folder = run_of(tmp_path, "qwen3_vl"), tmp_path / "data"
    export_features(out, folder, license="cc0-1.0")
    alone(folder, "[[0]]", "1", str(folder_of("qwen3_vl")))
    from penstock.training import language_half

    half = language_half(out, dtype=torch.float32)
    batch = FeatureCollator(out, processor_of(out))(captions(out, lambda _: None))
    with torch.no_grad():
        loss = float(half(**batch).loss)
    assert float((folder / "loss").read_text()) == pytest.approx(loss, rel=1e-6)
