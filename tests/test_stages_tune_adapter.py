"""An adapter that is trained here is one of PEFT, and can be gone on with."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import UsageError
from artifacts.keys import ContentDigests
from flows.checkpoint.adapters import adapter_digest
from flows.checkpoint.model_files import ModelDigests
from flows.cli.main import main
from stages.models import load_half
from stages.models.adapters.reading import read_adapter
from stages.tune.adapter import add_adapter, linear_paths, load_adapter_weights, write_adapter
from stages.tune.layout import layout_in
from tests.support.adapters import loaded, matrices, source_of
from tests.support.adapters import write_adapter as write_foreign

BEFORE = Path(__file__).parent / "data" / "adapter_before"
"""An adapter that an earlier version trained of the demo model, and what it said of a picture."""


def trained(source: Path, folder: Path, rank: int = 3) -> Path:
    """An adapter of a half as a training writes it, with numbers in B."""
    folder.mkdir()
    half = load_half(source, "language", dtype=torch.float32)
    for parameter in add_adapter(half, rank, 0):
        parameter.data.normal_(std=0.1)
    write_adapter(half, folder, "somebody/model")
    return folder


MORE = ("llava", "qwen2_5_vl", "smolvlm")


@pytest.mark.parametrize("name", ["demo", *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
def test_peft_loads_exactly_its_tensors(tmp_path: Path, name: str) -> None:
    from peft import PeftModel

    source = source_of(name)
    folder = trained(source, tmp_path / "adapter")
    model = loaded(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        whole: Any = PeftModel.from_pretrained(model, str(folder))
    numbers = load_file(folder / "adapter_model.safetensors")
    tensors = whole.state_dict().items()
    found = {key.replace(".default.", "."): value for key, value in tensors if ".lora_" in key}
    assert found.keys() == numbers.keys()
    assert all(torch.equal(found[key].float(), numbers[key]) for key in numbers)


def test_an_adapter_of_before_is_read_under_its_key(tmp_path: Path) -> None:
    adapter = read_adapter(BEFORE)
    (line,) = (BEFORE / "captions.jsonl").read_text().splitlines()
    known = json.loads(line)["precision"]["language"]
    digest = adapter_digest(adapter, ModelDigests(ContentDigests(tmp_path / "digests.jsonl")))
    assert known == f"fp32 with adapter {digest[:12]}"
    assert {of.scale for of in adapter.low_rank.values()} == {2.0}


@pytest.mark.slow
def test_an_adapter_of_before_says_what_it_said(tmp_path: Path) -> None:
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--quiet"]
    model = ["--model", "demo", "--adapter", str(BEFORE), "--precision", "fp32"]
    model += ["--encode-way", "batches"]
    assert main(["caption", str(BEFORE / "red.png"), *model, *where]) == 0
    said = json.loads((tmp_path / "out" / "captions.jsonl").read_text())
    known = json.loads((BEFORE / "captions.jsonl").read_text())
    for name in ("caption", "precision", "features"):
        assert said[name] == known[name]


def demo_layers() -> dict[str, tuple[int, ...]]:
    half = load_half(source_of("demo"), "language", dtype=torch.float32)
    return {path: tuple(half.get_submodule(path).weight.shape) for path in linear_paths(half)}


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 1},
        {"lora_alpha": 6, "use_rslora": True},
        {"alpha_pattern": {r"layers\.1\..*": 32}},
        {"lora_alpha": 2.5, "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    ],
    ids=["alpha 1", "rank-stabilized", "alphas by layer", "ranks by layer"],
)
def test_who_goes_on_with_an_adapter_adds_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    some = {path: s for path, s in demo_layers().items() if path.endswith(("q_proj", "v_proj"))}
    odd = next((path for path in some if path.endswith("layers.0.self_attn.q_proj")), "")
    ranks = {odd: 2} if "rank_pattern" in changes else {}
    folder = write_foreign(tmp_path / "adapter", matrices(some, ranks), **changes)
    before = read_adapter(folder)
    half = load_half(source_of("demo"), "language", dtype=torch.float32)
    add_adapter(half, 4, 0, layout_in(folder, 4))
    load_adapter_weights(half, folder)
    (tmp_path / "again").mkdir()
    write_adapter(half, tmp_path / "again", "demo")
    after = read_adapter(tmp_path / "again")
    assert before.low_rank.keys() == after.low_rank.keys()
    for path, of in before.low_rank.items():
        assert after.low_rank[path].shape == of.shape
        assert after.low_rank[path].scale == pytest.approx(of.scale)
    numbers = load_file(folder / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert numbers.keys() == again.keys()
    assert all(torch.equal(numbers[key], again[key]) for key in numbers)


def test_a_rank_that_contradicts_the_adapter_is_refused(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "adapter", matrices(demo_layers()))
    with pytest.raises(UsageError, match=r"--lora-rank is 16, but the adapter .* has rank 4"):
        layout_in(folder, 16)


@pytest.mark.slow
def test_a_training_goes_on_from_an_adapter_with_its_rank_and_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "red.png").write_bytes((BEFORE / "red.png").read_bytes())
    (tmp_path / "data" / "red.txt").write_text("red")
    folder = write_foreign(tmp_path / "adapter", matrices(demo_layers()), lora_alpha=1)
    ask = ["tune", str(tmp_path / "data"), "--model", "demo", "--out", str(folder), "--steps", "1"]
    ask += ["--store", str(tmp_path / "store"), "--validate", "0", "--resume", "--quiet"]
    assert main(ask) == 2
    err = capsys.readouterr().err
    assert "--lora-rank is 16" in err and "Give --lora-rank 4" in err
    assert main([*ask, "--lora-rank", "4"]) == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 1)
