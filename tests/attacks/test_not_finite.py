"""A number that is not finite is never a result: what a run makes of weights and features of NaN.

The faulty weights are written here into copies of the demo's models."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from artifacts.errors import StageDied
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from stages.models.finite import damaged_weight, is_finite
from tests.support.inside import run_inside, stages_inside
from tests.support.media import picture
from tests.support.pipeline import Place

Change = Callable[[torch.Tensor], torch.Tensor]


def changed(source: Path, folder: Path, name: str, change: Change) -> Path:
    """Copy a checkpoint, with another tensor in place of one."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)
    return folder


def half_of_nan(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.clone()
    made.view(-1)[: made.numel() // 2] = math.nan
    return made


def one_infinity(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.clone()
    made.view(-1)[-1] = math.inf
    return made


def huge(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, torch.finfo(tensor.dtype).max)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (folder := tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


def place_of(pictures: Path, model: Path) -> Place:
    root = pictures.parent
    return Place(clips=pictures, out=root / "out", store=root / "store", model=str(model))


LANGUAGE = "model.norm.weight"
VISION = "visual.merger.mlp.2.weight"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_language_half_of_nan_ends_the_run(pictures: Path, tmp_path: Path, engine: str) -> None:
    model = changed(CHECKPOINT, tmp_path / "model", LANGUAGE, half_of_nan)
    place = place_of(pictures, model)
    with pytest.raises(StageDied) as error:
        run_inside(place, engine=engine, max_new_tokens=4)
    assert f"{LANGUAGE} in the weights of {model} holds NaN" in error.value.message
    assert "Download the checkpoint again" in error.value.hint
    assert place.stored("failures") == {}, "another try computes all of them"


@pytest.mark.slow
@pytest.mark.parametrize("change", [half_of_nan, one_infinity])
def test_a_vision_half_of_nan_ends_the_run_before_a_feature_is_stored(
    pictures: Path, tmp_path: Path, change: Change
) -> None:
    place = place_of(pictures, changed(CHECKPOINT, tmp_path / "model", VISION, change))
    with pytest.raises(StageDied, match=VISION):
        run_inside(place, max_new_tokens=4)
    assert place.stored("features") == {} == place.stored("failures")


@pytest.mark.slow
def test_numbers_that_overflow_name_a_wider_precision(pictures: Path, tmp_path: Path) -> None:
    model = changed(CHECKPOINT, tmp_path / "model", VISION, huge)
    with pytest.raises(StageDied) as error:
        run_inside(place_of(pictures, model), max_new_tokens=4, precision="bf16")
    assert error.value.message == "the vision half computes NaN or infinity"
    assert "--precision fp32" in error.value.hint


def test_one_picture_of_many_fails_by_name_and_the_others_are_captioned(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.models.encoding import run as encoding

    seen = 0

    def second_is_nan(row: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen != 2

    monkeypatch.setattr(encoding, "_is_finite", second_is_nan)
    place = place_of(pictures, CHECKPOINT)
    assert run_inside(place, max_new_tokens=4).result.exit_code == 1
    (failure,) = place.failures()
    assert (failure["stage"], failure["error"]) == ("encode", "not-finite")
    assert len(place.captions()) == 2


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(d, v) for d in (torch.float16, torch.bfloat16, torch.float32) for v in (math.nan, math.inf)],
)
def test_one_number_in_many_is_found(dtype: torch.dtype, value: float) -> None:
    numbers = torch.zeros(7, 300, dtype=dtype)
    assert is_finite(numbers) and is_finite(torch.empty(0, dtype=dtype))
    numbers[5, 299] = value
    assert not is_finite(numbers)
    numbers[5, 299] = -value
    assert not is_finite(numbers)


def weights(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    named = {name.replace("__", "."): each for name, each in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def test_scales_and_eight_bit_weights_count_and_masks_do_not(tmp_path: Path) -> None:
    mask = torch.full((4, 4), -math.inf).triu(1)
    whole = torch.ones(4, 4)
    codes = torch.randint(0, 255, (4, 4), dtype=torch.uint8)
    fine = weights(tmp_path / "fine", attn__bias=mask, fc__weight=whole, fc__codes=codes)
    assert damaged_weight(fine) == ""
    scales = torch.ones(4, dtype=torch.float16)
    scales[3] = math.nan
    awq = weights(tmp_path / "awq", fc__qweight=codes, fc__scales=scales)
    assert damaged_weight(awq) == "fc.scales"
    nan_of_fp8 = torch.tensor([0, 0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert damaged_weight(weights(tmp_path / "fp8", fc__weight=nan_of_fp8)) == "fc.weight"
    lost = torch.full((2, 2), -math.inf)
    assert damaged_weight(weights(tmp_path / "lost", fc__weight=lost)) == "fc.weight"


DUAL_VISION, DUAL_TEXT = "vision_model.head.mlp.fc2.weight", "text_model.head.weight"


LABEL = ["label", "--labels", "a cat,a dog"]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    stages_inside(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name", "change"),
    [
        (["embed"], DUAL_VISION, half_of_nan),
        (LABEL, DUAL_VISION, half_of_nan),
        (LABEL, DUAL_TEXT, half_of_nan),
        (LABEL, "logit_scale", one_infinity),
    ],
)
@pytest.mark.usefixtures("inside")
def test_a_dual_encoder_of_nan_gives_no_vectors_and_no_labels(
    words: list[str], name: str, change: Change, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed(DUAL_CHECKPOINT, pictures.with_name("model"), name, change)
    place = place_of(pictures, model)
    where = ["--model", str(model), "--out", str(place.out), "--store", str(place.store)]
    assert main([*words, str(pictures), *where]) == 5
    printed = capsys.readouterr().err
    assert f"{name} in the weights of {model} holds NaN" in printed and "Traceback" not in printed
    assert name != DUAL_VISION or place.stored("embeddings") == {}


INFINITE = {"x": math.inf}
ROW: dict[str, Any] = {"name": "a", "score": math.nan, "best": -math.inf, "all": [1.0, INFINITE]}
RIGHT = {"name": "a", "score": None, "best": None, "all": [1.0, {"x": None}]}


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_no_writer_of_rows_writes_what_json_and_tables_cannot_hold(tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    from artifacts.disk.files import encoded, write_json
    from artifacts.texts.captions import write_jsonl
    from artifacts.texts.tables import write_csv, write_parquet

    @dataclass(kw_only=True, slots=True)
    class Row:
        name: str
        score: float
        best: float
        all: list[Any]

    write_json(tmp_path / "a.json", ROW)
    write_jsonl(tmp_path / "a.jsonl", [Row(**ROW)])
    texts = [(tmp_path / name).read_text() for name in ("a.json", "a.jsonl")]
    texts += [encoded(ROW), encoded(ROW, indent=1, ensure_ascii=True)]
    assert [strict(text) for text in texts] == [RIGHT] * 4
    kinds = {"name": "text", "score": "number", "best": "number"}
    write_csv(tmp_path / "a.csv", [ROW, Row(**ROW)], kinds)
    assert [*csv.reader((tmp_path / "a.csv").read_text().splitlines())][1:] == [["a", "", ""]] * 2
    write_parquet(tmp_path / "a.parquet", [ROW], kinds)
    assert read_table(tmp_path / "a.parquet")["score"].null_count == 1


NO_SCORES = {
    "artifacts/disk/files.py": "the one writer",
    "artifacts/index/shard.py": "numbers of identities",
    "artifacts/digests.py": "keys",
    "artifacts/records/keys.py": "digests of files",
    "artifacts/records/packs.py": "descriptions of records",
    "artifacts/disk/patterns.py": "texts",
    "artifacts/remote/media_cache.py": "addresses and sizes",
    "artifacts/records/stores/bucket_store.py": "sizes",
    "artifacts/texts/tables.py": "cells whose numbers were looked at",
    "artifacts/texts/trainers.py": "texts and folders",
    "flows/outputs/captions.py": "values of a caption's schema",
    "flows/outputs/marker.py": "the command",
}
"""Modules that write JSON by another function, and what they write in it."""


def test_rows_and_tables_are_written_by_one_function() -> None:
    root = Path(__file__).parents[2]
    paths = [*(root / "artifacts").rglob("*.py"), *(root / "flows" / "outputs").rglob("*.py")]
    words = re.compile(r"json\.dumps?\(|\bENCODER\.|JSONEncoder\(")
    own = {str(p.relative_to(root)) for p in paths if words.search(p.read_text(encoding="utf-8"))}
    assert own == {*NO_SCORES}
