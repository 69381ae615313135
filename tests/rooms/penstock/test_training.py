"""`penstock.training` on the demo: rows of a run, batches of photos and videos, an adapter by a
stock trainer, and what is refused by name."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from artifacts.errors import NoFeatures, UsageError
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.tune.training_data import examples_in
from flows.interfaces.cli.main import main
from penstock.training import (
    FeatureCollator,
    captions,
    end_token,
    language_half,
    lora_targets,
    processor_of,
)
from penstock_demo.clips import write_clips
from tests.commands.test_ask import made
from tests.support.families import made_once
from tests.support.pipeline import Place, read_lines

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def caption(folder: Path) -> None:
    """Caption three videos and two photos in a folder."""
    write_clips(folder / "media", 3, seed=3)
    for at, colour in enumerate(("red", "blue")):
        Image.new("RGB", (96, 64), colour).save(folder / "media" / f"photo-{at}.png")
    place = Place(clips=folder / "media", out=folder / "out", store=folder / "store")
    words = ["--model", "demo", "--precision", "fp32", "--prefix", "ohwx, "]
    assert main(["caption", str(place.clips), *where(place), *words]) == 0


captioned = made_once(caption)


def where(place: Place) -> list[str]:
    return ["--out", str(place.out), "--store", str(place.store), "--quiet"]


def place_of(folder: Path) -> Place:
    return Place(clips=folder / "media", out=folder / "out", store=folder / "store")


@pytest.fixture
def place() -> Place:
    return place_of(captioned())


def test_rows_are_those_that_tune_trains(place: Place) -> None:
    rows, lines = captions(place.out), read_lines(place.out / "captions.jsonl")
    assert [row["features"] for row in rows] == [line["features"] for line in lines]
    assert [f"ohwx, {row['caption']}" for row in rows] == [line["caption"] for line in lines]
    assert [row["prompt"] for row in rows] == [line["prompt"] for line in lines]
    examples = examples_in(str(place.out / "captions.jsonl"))
    assert [row["caption"] for row in rows] == [example.caption for example in examples]


def test_a_batch_of_photos_and_videos_is_that_of_workers_too(place: Place) -> None:
    rows, collate = captions(place.out), FeatureCollator(place.out, processor_of(place.out))
    batch = collate(rows)
    names = [*batch]
    assert (names[0], names[-1]) == ("input_ids", "mm_encoder_outputs")
    assert batch["mm_encoder_outputs"].keys() == {"image", "video"}
    assert batch["image_grid_thw"].shape == (2, 3) and batch["video_grid_thw"].shape == (3, 3)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        tokenizer = processor_of(place.out).tokenizer
        answer = tokenizer(row["caption"], add_special_tokens=False)["input_ids"]
        assert labels[labels >= 0].tolist() == [*answer, tokenizer.eos_token_id]
        assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    data: Any = rows
    (other,) = DataLoader(data, 5, collate_fn=collate, num_workers=1)
    same = {name: torch.equal(other[name], batch[name]) for name in names[:-1]}
    assert all(same.values()), same
    half = FeatureCollator(place.out, processor_of(place.out), dtype=torch.bfloat16)(rows)
    assert half["mm_encoder_outputs"]["video"].pooler_output[0].dtype == torch.bfloat16


def test_the_end_token_is_the_one_that_the_half_finds_likeliest(place: Place) -> None:
    half, processor = language_half(place.out, dtype=torch.float32), processor_of(place.out)
    own = processor.tokenizer.eos_token_id
    assert end_token(place.out, half, processor) == own
    half.generation_config.eos_token_id = [own + 1, own]
    assert end_token(place.out, half, processor) == own


@pytest.mark.slow
def test_an_adapter_of_a_stock_trainer_captions_and_encodes_nothing(
    place: Place, tmp_path: Path, capsys: Any
) -> None:
    half, processor = language_half(place.out, dtype=torch.float32), processor_of(place.out)
    assert not any("visual" in name for name, _ in half.named_parameters())
    targets = lora_targets(half)
    model: Any = peft.get_peft_model(half, peft.LoraConfig(r=4, target_modules=targets))
    rows: Any = [{**row, "caption": "Nothing at all."} for row in captions(place.out)]
    arguments = TrainingArguments(
        str(tmp_path / "steps"),
        max_steps=30,
        per_device_train_batch_size=5,
        learning_rate=2e-2,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    collate = FeatureCollator(place.out, processor)
    Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert len(targets.split("|")) >= 20 and saved["target_modules"] == targets, "PEFT keeps paths"
    out = place_of(tmp_path).out
    words = ["--model", "demo", "--precision", "fp32", "--adapter", str(tmp_path / "adapter")]
    to = ["--out", str(out), "--store", str(place.store), "--json"]
    capsys.readouterr()
    assert main(["caption", str(place.clips), *to, *words]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made(events) == {"decode": 5}
    assert {row["caption"] for row in read_lines(out / "captions.jsonl")} == {"Nothing at all."}


def test_corrected_captions_alone_are_rows(tmp_path: Path) -> None:
    caption(tmp_path)
    place = place_of(tmp_path)
    notes: list[str] = []
    with closing(ReviewedCaptions(place.out)) as review:
        key = next(iter(review.folder.rows))
        change = {"of": key, "caption": "Mine.", "review": "accepted"}
        review.apply({"id": "1", "does": "correct", "changes": [change]})
    with pytest.raises(UsageError, match="lacks corrections"):
        captions(place.out)
    words = ["--model", "demo", "--precision", "fp32"]
    assert main(["caption", str(place.clips), *where(place), *words]) == 0
    assert [row["caption"] for row in captions(place.out, notes.append)] == ["Mine."]
    assert any("1 of 5 captions: those accepted" in note for note in notes)


def test_what_cannot_be_trained_so_is_refused_by_name(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = json.loads((place.out / "run.json").read_text())
    lines = (place.out / "captions.jsonl").read_text()

    def write(changed: str = lines, **plan: Any) -> None:
        (out / "run.json").write_text(json.dumps({**run, "plan": {**run["plan"], **plan}}))
        (out / "captions.jsonl").write_text(changed)

    write(route="replay")
    for function in (captions, language_half, processor_of):
        with pytest.raises(UsageError, match=r"takes no outputs of an encoder.*route: replay"):
            function(out)
    write(lines.replace('"tokens":', '"heard": "aa", "tokens":'))
    with pytest.raises(UsageError, match="captions of what is heard"):
        captions(out)
    write(store=str(tmp_path / "empty"))
    with pytest.raises(NoFeatures, match="5 captions of 5 without features") as raised:
        captions(out)
    assert "penstock cache rebuild" in str(raised.value.hint)
    collate = FeatureCollator(place.out, processor_of(place.out))
    with pytest.raises(UsageError, match="removed or packed them"):
        collate([{"input_ids": [1]}])
    record = collate.read(captions(place.out)[0]["features"])
    alone = replace(record, rules=dict.fromkeys(record.rules, "whole"))
    for records in ([record, alone], [alone, alone]):
        with pytest.raises(UsageError, match="take batches of 1"):
            collate.outputs(records)
