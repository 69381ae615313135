"""Checkpoints in few bits are to the bit what transformers saves, and need no model in memory."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.export.export_plan import plan_export
from stages.export.jobs import ExportJob
from stages.export.quant_formats import Int8, Nf4
from stages.export.run import run
from stages.export.write import write_file
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.load import load_half
from stages.models.hub.checkpoint import INDEX
from stages.models.precision.quantize import keep_to_dtype, plan
from stages.process.job import job_fields
from tests.support.adapters import source_of
from tests.support.pickled import tensors_of
from tests.support.waves import told_by

SMALL_SHARDS = 1 << 18


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    yield
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)


def exported(source: Path, folder: Path, kind: str, **changes: Any) -> Path:
    job = ExportJob(
        model=str(source),
        recipe={"kind": kind},
        folder=str(folder),
        kind=kind,
        **{"parts": ("language",), "shard_bytes": SMALL_SHARDS, **changes},
    )
    told_by(run, job_fields(job))
    return folder


MORE = ("llava", "qwen2_5_vl", "smolvlm")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["demo", *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
def test_every_tensor_is_as_transformers_saves_it(tmp_path: Path, name: str, kind: str) -> None:
    source = source_of(name)
    made = exported(source, tmp_path / "made", kind)
    config, cls = config_and_class(source, False)
    planned = plan(skeleton_of(config, cls), "language", kind, config.dtype or torch.float32)
    whole: Any = cls.from_pretrained(source, dtype="auto", **planned.options).eval()
    whole.save_pretrained(tmp_path / "saved")
    found, wanted = tensors_of(made), tensors_of(tmp_path / "saved")
    assert wanted.keys() <= found.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    settings = [
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (made, tmp_path / "saved")
    ]
    assert settings[0] == settings[1]
    ids = torch.arange(5, 40)[None]
    models = [whole, cls.from_pretrained(made).eval(), load_half(made, "language")]
    with torch.inference_mode():
        for model in models:
            keep_to_dtype(model)
        said, *others = (model(input_ids=ids).logits for model in models)
    assert all(torch.equal(logits, said) for logits in others)


@pytest.mark.parametrize("parts", [("vision",), ("vision", "language")])
def test_either_half_or_both_are_quantized(tmp_path: Path, parts: tuple[Any, ...]) -> None:
    source = source_of("llava")
    outline = plan_export(source, parts, trusted=False)
    made = exported(source, tmp_path / "made", "nf4", parts=parts)
    states = [name for name in tensors_of(made) if "bitsandbytes__nf4" in name]
    assert len(states) == len(outline.modules) > 0
    assert any("vision" in path for path in outline.modules)
    assert any("language_model" in path for path in outline.modules) == ("language" in parts)
    for part in parts:
        assert load_half(made, part) is not None


def test_what_was_ended_goes_on_and_becomes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exported(CHECKPOINT, tmp_path / "whole", "nf4")
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(files) > 3 and (whole / INDEX).exists()
    written: list[str] = []

    def failing(folder: Path, file: Any, *rest: Any) -> None:
        if len(written) % 3 == 2:
            written.append("ended")
            raise KeyboardInterrupt
        write_file(folder, file, *rest)
        written.append(file.name)

    monkeypatch.setattr("stages.export.write.write_file", failing)
    while not (tmp_path / "made" / "config.json").exists():
        with contextlib.suppress(KeyboardInterrupt):
            exported(CHECKPOINT, tmp_path / "made", "nf4")
    assert sorted(name for name in written if name != "ended") == files
    for path in whole.iterdir():
        assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes()


def test_a_truncated_file_of_an_interrupted_export_is_written_again(tmp_path: Path) -> None:
    made = exported(CHECKPOINT, tmp_path / "made", "nf4")
    (made / "config.json").unlink()
    damaged, *_ = sorted(made.glob("*.safetensors"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    exported(CHECKPOINT, made, "nf4")
    assert damaged.read_bytes() == whole


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    made = exported(CHECKPOINT, tmp_path / "made", "nf4")
    with pytest.raises(UsageError, match="already quantized"):
        exported(made, tmp_path / "again", "int8")
    with pytest.raises(UsageError, match="made from another source or with other settings"):
        exported(CHECKPOINT, made, "int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_may_go_in_pieces(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(3)).to(dtype)
    whole = {form: form.tensors("x.weight", weight) for form in (Nf4(), Int8())}
    monkeypatch.setattr("stages.export.quant_formats.PIECE", 640)
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    stock = {f"x.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    for form, wanted in whole.items():
        found = form.tensors("x.weight", weight)
        assert found.keys() == wanted.keys() == set(form.names("x.weight"))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        if isinstance(form, Nf4):
            assert all(torch.equal(found[k], v) for k, v in {"x.weight": packed, **stock}.items())
