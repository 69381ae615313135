"""Training: adapters that PEFT reads and that can be gone on with, checkpoints that come back as
they were, order of examples, rates and gradients, also in fp16."""

import importlib
import json
import os
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from artifacts.disk.files import HALF, whole_file
from artifacts.errors import UsageError
from artifacts.records.keys import ContentDigests
from flows.core.checkpoint.adapters import adapter_digest
from flows.core.checkpoint.model_digests import ModelDigests
from flows.interfaces.cli.main import main
from stages.models import load_half
from stages.models.adapter_modules import ADAPTER_WEIGHTS, BASE, read_adapter
from stages.tune import ADAMW, ADAMW8, PAGED_ADAMW8, RECORD, training
from stages.tune.adapter import (
    add_adapter,
    linear_paths,
    load_adapter_weights,
    numbers_of,
    write_adapter,
)
from stages.tune.layout import layout_in
from stages.tune.progress import TrainingProgress, resume, save_checkpoint
from stages.tune.run import EpochBatchOrder, run
from stages.tune.training import (
    MAX_SKIPPED,
    WARMUP,
    Trainer,
    keep_differentiable,
    learning_rate_at,
    optimizer_of,
)
from tests.support.adapters import loaded, matrices, source_of
from tests.support.adapters import write_adapter as write_foreign
from tests.support.waves import events, told_by

TRAINED = Path(__file__).parents[3] / "data" / "adapter"
"""An adapter trained on the demo model, and its caption of a picture."""


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


def test_an_adapter_has_its_key(tmp_path: Path) -> None:
    adapter = read_adapter(TRAINED)
    known = json.loads((TRAINED / "captions.jsonl").read_text())["precision"]["language"]
    digest = adapter_digest(adapter, ModelDigests(ContentDigests(tmp_path / "digests.jsonl")))
    assert known == f"fp32 with adapter {digest[:12]}"
    assert {of.scale for of in adapter.low_rank.values()} == {2.0}


@pytest.mark.slow
def test_an_adapter_captions_as_recorded(tmp_path: Path) -> None:
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--quiet"]
    model = ["--model", "demo", "--adapter", str(TRAINED), "--precision", "fp32"]
    assert main(["caption", str(TRAINED / "red.png"), *model, *where]) == 0
    files = (tmp_path / "out" / "captions.jsonl", TRAINED / "captions.jsonl")
    record, known = (json.loads(file.read_text()) for file in files)
    assert (record["caption"], record["precision"]) == (known["caption"], known["precision"])


def demo_layers() -> dict[str, tuple[int, ...]]:
    half: Any = load_half(source_of("demo"), "language", dtype=torch.float32)
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


def test_an_adapter_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    half = load_half(source_of("demo"), "language", dtype=torch.float32)
    add_adapter(half, 2, 0)
    found = set()
    for _ in range(12):
        write_adapter(half, tmp_path, "demo", base="d" * 64)
        found.add((tmp_path / "adapter_model.safetensors").read_bytes())
    assert len(found) == 1, f"{len(found)} files of one adapter"
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", BASE: "d" * 64}
        assert all(torch.equal(file.get_tensor(k), v) for k, v in numbers_of(half).items())


def test_a_rank_that_contradicts_the_adapter_is_refused(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "adapter", matrices(demo_layers()))
    with pytest.raises(UsageError, match=r"--lora-rank is 16, but the adapter .* has rank 4"):
        layout_in(folder, 16)


@pytest.mark.slow
def test_a_training_goes_on_from_an_adapter_with_its_rank_and_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "red.png").write_bytes((TRAINED / "red.png").read_bytes())
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


RECIPE = {"rank": 4}
COUNTS = ("steps", "batch", "rows")
SHAPES = ((64, 128), (96, 64), (8,))
"""Of which the last is too small for moments in 8 bit."""


def numbers(seed: int) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def stepped(trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for each in trained:
        each.grad = torch.randn_like(each)
    optimizer.step()


def saved(
    folder: Path, kind: str, progress: TrainingProgress
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Numbers after a step and their optimizer, of which there is a checkpoint."""
    one = numbers(0)
    optimizer = optimizer_of(kind, one, 0.1)
    stepped(one, optimizer, 1)
    save_checkpoint(folder, RECIPE, progress, one, optimizer)
    return one, optimizer


@pytest.mark.parametrize("kind", [ADAMW, ADAMW8])
def test_who_goes_on_makes_the_next_step_to_the_same_numbers(tmp_path: Path, kind: str) -> None:
    progress = TrainingProgress(step=1, losses=[2.0], memory=[7], held_out=[(1, 3.0)])
    progress.best = [each.detach() for each in numbers(8)]
    one, first = saved(tmp_path, kind, progress)
    other = numbers(5)
    second = optimizer_of(kind, other, 0.1)
    found = resume(tmp_path, RECIPE, other, second)
    assert found is not None
    assert (found.step, found.losses, found.memory, found.best_step) == (1, [2.0], [7], 1)
    assert all(map(torch.equal, found.best, progress.best))
    assert all(map(torch.equal, one, other))
    stepped(one, first, 2)
    stepped(other, second, 2)
    assert all(map(torch.equal, one, other))


def test_another_optimizer_keeps_the_numbers_and_not_the_moments(tmp_path: Path) -> None:
    one, _ = saved(tmp_path, ADAMW, TrainingProgress(step=1))
    other = numbers(5)
    second = optimizer_of(ADAMW8, other, 0.1)
    found = resume(tmp_path, RECIPE, other, second)
    assert found is not None and found.step == 1
    assert all(map(torch.equal, one, other)) and not second.state


def test_of_another_recipe_or_of_none_nothing_is_taken(tmp_path: Path) -> None:
    other = numbers(5)
    optimizer = optimizer_of(ADAMW, other, 0.1)
    assert resume(tmp_path, RECIPE, other, optimizer) is None
    saved(tmp_path, ADAMW, TrainingProgress(step=1))
    assert resume(tmp_path, {"rank": 8}, other, optimizer) is None
    assert all(map(torch.equal, other, numbers(5)))


def test_a_training_that_goes_on_sweeps_what_a_killed_one_left_half_written(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"recipe": RECIPE, "finished": True}))
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    (left := tmp_path / f"{HALF}x7f3k_1a").write_bytes(b"half")
    with pytest.raises(RuntimeError, match="killed"), whole_file(tmp_path / "new") as file:
        file.write(b"x")
        (own,) = {*tmp_path.glob(f"{HALF}*")} - {left}
        os.link(own, tmp_path / f"{HALF}abcdefgh")
        raise RuntimeError("killed")
    assert len(list(tmp_path.glob(f"{HALF}*"))) == 2
    job = {"half": {"model": "demo"}, "folder": str(tmp_path), "recipe": RECIPE, "rate": 0.1}
    job |= {"store": "", "features_namespace": "", "held_out": [], **dict.fromkeys(COUNTS, 1)}
    told_by(run, {**job, "examples": [["k", "p", "c", False]]})
    assert list(tmp_path.glob(f"{HALF}*")) == []
    assert (tmp_path / ADAPTER_WEIGHTS).exists()


def test_the_rate_rises_and_falls_to_nothing() -> None:
    steps = 200
    rates = [learning_rate_at(step, steps, 1.0) for step in range(steps)]
    warm = round(WARMUP * steps)
    assert rates[:warm] == sorted(rates[:warm]) and max(rates) == 1.0
    assert rates[warm:] == sorted(rates[warm:], reverse=True) and 0 < rates[-1] < 0.01
    assert learning_rate_at(0, 1, 1.0) == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_a_layer_in_4_bit_that_was_only_asked_before(bias: bool) -> None:
    kind: Any = importlib.import_module("bitsandbytes.nn").Linear4bit
    torch.manual_seed(0)
    layer = kind(128, 128, bias=bias, quant_type="nf4", compute_dtype=torch.bfloat16)
    plain = layer.weight.data.clone()
    layer = layer.to("cpu").requires_grad_(False)
    keep_differentiable(layer)
    layer.eval()
    request = torch.randn(4, 128, dtype=torch.bfloat16)
    with torch.inference_mode():
        layer(request)
    layer.train()
    given = request.clone().requires_grad_(True)
    layer(given).float().sum().backward()
    assert given.grad is not None
    expected = plain.sum(0).expand(4, -1)
    assert torch.cosine_similarity(given.grad.float(), expected).min() > 0.95


COUNT, BATCH = 50, 4
ALIKE = [at % 3 for at in range(COUNT)]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_each_once_most_of_them_with_examples_that_are_alike(epoch: int) -> None:
    order = EpochBatchOrder(ALIKE, BATCH, seed=1)
    steps = [order.batch_at(epoch * order.epoch_steps + at) for at in range(order.epoch_steps)]
    assert Counter(at for step in steps for at in step) == Counter(range(COUNT))
    assert max(map(len, steps)) == BATCH
    kinds = [len({ALIKE[at] for at in step}) for step in steps]
    assert kinds.count(1) >= 0.7 * len(kinds)


def test_it_hangs_on_seed_and_step_alone() -> None:
    one, other = EpochBatchOrder(ALIKE, BATCH, seed=1), EpochBatchOrder(ALIKE, BATCH, seed=1)
    later = [one.batch_at(step) for step in range(40)]
    assert other.batch_at(31) == later[31] and other.batch_at(2) == later[2]
    assert [EpochBatchOrder(ALIKE, BATCH, seed=2).batch_at(step) for step in range(40)] != later
    epoch = one.epoch_steps
    assert later[:epoch] != later[epoch : 2 * epoch]


def test_few_examples_make_short_steps() -> None:
    order = EpochBatchOrder(["a"], BATCH, seed=0)
    assert order.epoch_steps == 1 and order.batch_at(7) == [0]


SMALL = 1e-8
"""Less than half of the smallest number in fp16."""


def weight_with(factors: list[float], patch: pytest.MonkeyPatch) -> nn.Parameter:
    """A weight. The loss of each step is the weight in fp16 times a factor."""
    left, weight = iter(factors), nn.Parameter(torch.ones(4))

    def loss_of(*_: Any) -> torch.Tensor:
        return (weight.to(torch.float16).float() * next(left)).sum()

    patch.setattr(training, "loss_of", loss_of)
    patch.setattr(training, "group_batches", lambda examples, rows: [examples])
    return weight


def changing_steps(
    weight: nn.Parameter, steps: int, dtype: torch.dtype = torch.float16
) -> list[bool]:
    """Take steps; return which of them changed the weight."""
    half, example = SimpleNamespace(dtype=dtype), SimpleNamespace(ids=[1])
    found = []
    no_processor: Any = None
    with events() as (report, _):
        trainer = Trainer(
            half, no_processor, [weight], optimizer_of(ADAMW, [weight], 0.1), report, 1
        )
        for _ in range(steps):
            before = weight.detach().clone()
            trainer.step([example], 0.1, 1)  # type: ignore[list-item]
            found.append(not torch.equal(before, weight))
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_too_small_for_fp16_are_scaled_there(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = weight_with([SMALL], monkeypatch)
    assert changing_steps(weight, 1, dtype) == [dtype == torch.float16]
    assert weight.grad is not None
    expected = torch.full((4,), SMALL if dtype == torch.float16 else 0.0)
    assert torch.allclose(weight.grad, expected, rtol=1e-2, atol=0)


def test_a_step_with_an_infinite_gradient_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_with([1.0, 1e4, 1.0], monkeypatch)
    assert changing_steps(weight, 3) == [True, False, True]
    assert bool(weight.isfinite().all())


def test_many_of_them_in_a_row_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_with([1e4] * MAX_SKIPPED, monkeypatch)
    with pytest.raises(UsageError, match="infinite in 10 steps") as caught:
        changing_steps(weight, MAX_SKIPPED)
    assert "--precision" in caught.value.hint


def test_moments_are_paged_only_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    made, names = [], ("AdamW8bit", "PagedAdamW8bit")
    kinds = {n: (lambda *_, n=n, **__: made.append(n)) for n in names}
    monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(**kinds))
    on_gpu: Any = [SimpleNamespace(device=torch.device("cuda:0"))]
    for name in (ADAMW8, PAGED_ADAMW8):
        optimizer_of(name, on_gpu, 0.1)
    assert made == [*names]
