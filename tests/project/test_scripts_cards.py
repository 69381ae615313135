"""`docs/cards.md` is what `python -m scripts.pages.cards` makes; weights and KV caches are those of
a calculation by hand."""

import json
from pathlib import Path

import pytest

from flows.core.machine.budget import Budget
from flows.core.plan.view import TABLE, largest_models_line
from scripts.pages.cards import (
    MODELS,
    OPENING,
    PAGE,
    TABLES,
    PlannedModel,
    page,
    plan_all,
    plan_model,
    rows_of,
    table,
)
from tests.support.builders.card_models import CardModel, card_models, write_checkpoint

AGAIN = "run `python -m scripts.pages.cards`"
QWEN_7B = 7_615_616_512
"""Parameters of Qwen2.5-7B, as published: a vocabulary of 152,064 words, each of 3,584 numbers, in
the embedding and once more in the head."""
WORD = 2 * 3584
BY_HAND = {
    # Parameters of the language model as published alone; 2 x layers x KV heads x head x 2 bytes.
    "Qwen/Qwen2.5-VL-3B-Instruct": (3_085_938_688, 36_864),  # 2 x 36 x 2 x 128 x 2
    "Qwen/Qwen2.5-VL-7B-Instruct": (QWEN_7B, 57_344),  # 2 x 28 x 4 x 128 x 2
    "Qwen/Qwen3-VL-2B-Instruct": (1_720_574_976, 114_688),  # 2 x 28 x 8 x 128 x 2
    "Qwen/Qwen3-VL-4B-Instruct": (4_022_468_096, 147_456),  # 2 x 36 x 8 x 128 x 2
    "Qwen/Qwen3-VL-8B-Instruct": (8_190_735_360, 147_456),  # 2 x 36 x 8 x 128 x 2
    "OpenGVLab/InternVL3-8B-hf": (QWEN_7B - 390 * WORD, 57_344),  # 151,674 words
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (QWEN_7B + 64 * WORD, 57_344),  # 152,128 words
    "llava-hf/llava-1.5-7b-hf": (6_738_415_616 + 64 * 2 * 4096, 524_288),  # 2 x 32 x 32 x 128 x 2
}
"""Model → parameters of its language half, and bytes of its KV cache for a token in 16 bit."""


@pytest.fixture(scope="module")
def planned() -> list[PlannedModel]:
    return plan_all()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_and_the_table_are_what_the_script_makes(planned: list[PlannedModel]) -> None:
    assert page(planned) == PAGE.read_text(encoding="utf-8"), AGAIN
    assert table(planned) == TABLE.read_text(encoding="utf-8"), AGAIN


@pytest.mark.slow
def test_a_model_that_is_planned_again_has_the_rows_of_the_page(tmp_path: Path) -> None:
    """One of them all, so that an old page is seen without planning for minutes."""
    (model,) = (each for each in card_models() if each.name == "llava-hf/llava-1.5-7b-hf")
    text = PAGE.read_text(encoding="utf-8")
    assert all(part in text for part in (OPENING, MODELS, TABLES)), AGAIN
    lines = text.splitlines()
    rows = rows_of(plan_model(model, tmp_path))
    assert len(rows) == 6 and not set(rows) - set(lines), AGAIN


def test_the_page_tells_the_kv_cache_that_was_calculated_by_hand() -> None:
    rows = {
        row.split(" | ")[0][2:]: row.split(" | ") for row in PAGE.read_text().splitlines()[::-1]
    }
    for name, (parameters, token_bytes) in BY_HAND.items():
        assert rows[name][3:5] == [f"{2 * parameters / 2**30:.2f}", f"{token_bytes:,}"], name


@pytest.mark.slow
def test_every_class_has_the_parameters_that_are_noted_and_another_count_is_refused(
    tmp_path: Path,
) -> None:
    models = card_models()
    assert len(models) == len({model.name for model in models}) == 16
    for model in models:
        assert model.source
        write_checkpoint(model, tmp_path / model.processor / model.name.replace("/", "--"))
    wrong = json.loads(json.dumps(models[0].config))
    wrong["text_config"]["num_hidden_layers"] += 1
    other = CardModel(
        **{name: getattr(models[0], name) for name in CardModel.__slots__ if name != "config"},
        config=wrong,
    )
    with pytest.raises(ValueError, match="has 3,83"):
        write_checkpoint(other, tmp_path / "wrong")


def line_for(gib: float, device: str = "cuda:0") -> str:
    size = int(gib * 2**30)
    return largest_models_line(
        Budget(
            device=device,
            bytes=size,
            given=False,
            free_bytes=size,
            total_bytes=size,
            host_bytes=size,
        )
    )


def test_a_plan_names_the_largest_models_for_its_memory() -> None:
    values = json.loads(TABLE.read_text(encoding="utf-8"))["gpu"]
    first, second = values[0], values[1]
    assert line_for(100).startswith(f"{first['unquantized']} unquantized")
    assert line_for(14.5).startswith(
        f"{second['unquantized']} unquantized, {second['quantized']} with --precision auto"
    )
    assert line_for(14) != line_for(14.5)  # a card of 16 GB gives 14.16
    assert line_for(3) == ""
    assert "in 32 bit" in line_for(16, "cpu")
