"""Weights in few bits: each linear of a half is handed out once, with the Hessian of all that it
was given; checkpoints are to the bit what transformers saves, and need no model in memory."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from torch import nn

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.export import ExportJob
from stages.export import calibrate as calibration
from stages.export.calibrate import NOT_SHARED, OUTSIDE, UNSEEN, calibrate
from stages.export.export_plan import plan_export
from stages.export.quant_formats import Int8, Nf4, write_file
from stages.export.run import run
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.placement import outermost_layers, placement
from stages.models.hub.checkpoint import INDEX
from stages.models.precision.quantize import keep_to_dtype, plan, quantizable
from stages.models.streaming.load import load_streamed, streamed_layers
from stages.process.job import job_fields
from tests.support.adapters import source_of
from tests.support.families import checkpoint
from tests.support.pickled import tensors_of, write_along
from tests.support.waves import told_by


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    yield
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)


def exported(source: Path, folder: Path, kind: str, **changes: Any) -> Path:
    given: Any = {"parts": ("language",), "shard_bytes": 1 << 18, "kind": kind, **changes}
    given |= {"model": str(source), "folder": str(folder), "recipe": {"kind": kind}}
    told_by(run, job_fields(ExportJob(**given)))
    return folder


MORE = ("llava", "qwen2_5_vl", "smolvlm")


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["demo", *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
def test_every_tensor_is_as_transformers_saves_it(tmp_path: Path, name: str, kind: str) -> None:
    source = source_of(name)
    made = exported(source, tmp_path / "made", kind)
    config, cls = config_and_class(source, False)
    planned = plan(skeleton_of(config, cls), "language", kind, config.dtype or torch.float32)
    whole: Any = cls.from_pretrained(source, dtype="auto", **planned.options).eval()
    whole.save_pretrained(tmp_path / "saved")
    found, expected = tensors_of(made), tensors_of(tmp_path / "saved")
    assert expected.keys() <= found.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    configs = [(each / "config.json").read_text() for each in (made, tmp_path / "saved")]
    settings = [json.loads(text)["quantization_config"] for text in configs]
    assert settings[0] == settings[1]
    ids = torch.arange(5, 40)[None]
    models = [whole, cls.from_pretrained(made).eval(), load_half(made, "language")]
    with torch.inference_mode():
        for model in models:
            keep_to_dtype(model)
        text, *others = (model(input_ids=ids).logits for model in models)
    assert all(torch.equal(logits, text) for logits in others)


def test_licence_and_templates_go_along(tmp_path: Path) -> None:
    shutil.copytree(source_of("demo"), tmp_path / "source")
    along = write_along(tmp_path / "source")
    made = exported(tmp_path / "source", tmp_path / "made", "int8")
    assert {name for name in along if (made / name).is_file()} == along.keys()
    assert {name: (made / name).read_text() for name in along} == along


@pytest.mark.slow
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


@pytest.mark.slow
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

    monkeypatch.setattr("stages.export.quant_formats.write_file", failing)
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
    options: Any = {"blocksize": 64, "compress_statistics": True, "quant_type": "nf4"}
    packed, state = functional.quantize_4bit(weight, **options)
    stock = {f"x.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    for form, expected in whole.items():
        found = form.tensors("x.weight", weight)
        assert found.keys() == expected.keys() == set(form.names("x.weight"))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        if isinstance(form, Nf4):
            assert all(torch.equal(found[k], v) for k, v in {"x.weight": packed, **stock}.items())


PLENTY = 1 << 30
Calls = Sequence[Callable[[], object]]


class Taken:
    """Has what it was given, and how many Hessians were there at once."""

    def __init__(self) -> None:
        self.hessians: dict[str, torch.Tensor | None] = {}
        self.reasons: dict[str, str] = {}
        self.weights: dict[str, torch.Tensor] = {}

    def __call__(
        self, path: str, weight: torch.Tensor, hessian: torch.Tensor | None, reason: str
    ) -> None:
        assert path not in self.hessians
        assert (hessian is None) == bool(reason)
        self.hessians[path], self.reasons[path] = hessian, reason
        self.weights[path] = weight.detach().clone()


def taken_of(
    model: nn.Module,
    layers: Sequence[tuple[str, nn.Module]],
    calls: Calls,
    expected: Sequence[str],
    room: int = PLENTY,
    done: Sequence[str] = (),
) -> Taken:
    taken = Taken()
    calibrate(model, layers, calls, expected, room, taken, done)
    return taken


def linear() -> nn.Linear:
    return nn.Linear(8, 8, bias=False)


class Layer(nn.Module):
    """Attention, an MLP, and experts of which only the first is ever asked."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = linear(), linear(), linear()
        self.gate, self.up, self.down = linear(), linear(), linear()
        self.experts = nn.ModuleList([linear(), linear()])
        self.split = 0
        """Tokens of the samples of which `k` is given a copy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = x.clone() if len(x) == self.split else x
        x = x + self.q(x) * self.k(apart) + self.v(x)
        normed = nn.functional.layer_norm(x, (8,))
        x = x + self.down(self.gate(normed).relu() * self.up(normed))
        found: torch.Tensor = x + self.experts[0](x[:1])
        return found


class Model(nn.Module):
    """Two layers, and linears before and after them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(8, 8)
        self.heard = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        self.heard += 1
        found: torch.Tensor = self.head(x)
        return found


def small() -> tuple[Model, list[tuple[str, nn.Module]], Calls, list[str]]:
    torch.manual_seed(0)
    model = Model()
    layers = [(f"layers.{n}", layer) for n, layer in enumerate(model.layers)]
    calls = [partial(model, torch.randn(tokens, 8)) for tokens in (5, 3, 7)]
    expected = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return model, layers, calls, expected


def plain(model: nn.Module, expected: Sequence[str], calls: Calls) -> dict[str, torch.Tensor]:
    """Sum up what linears are given while calls run whole, one after the other."""
    found: dict[str, torch.Tensor] = {}

    def see(path: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).double()
        found[path] = found.get(path, 0) + x.t() @ x

    hooks = [model.get_submodule(p).register_forward_pre_hook(partial(see, p)) for p in expected]
    with torch.inference_mode():
        for call in calls:
            call()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "family",
    ["llava", *(pytest.param(x, marks=pytest.mark.slow) for x in ("qwen2_5_vl", "smolvlm"))],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["held", "streamed"])
def test_hessians_are_those_of_whole_passes(family: str, streamed: bool) -> None:
    folder = checkpoint(family)
    skeleton = skeleton_of(*config_and_class(folder, False))
    whole: Any = load_half(folder, "language")
    half = whole
    if streamed:
        load = partial(load_half, folder, "language", extra_modules=())
        place = partial(placement, skeleton, "language", (), "cpu")
        half = load_streamed(load, place, "cpu")
    named = {module: path for path, module in half.named_modules()}
    layers = [(named[layer], layer) for layer in outermost_layers(half)]
    expected = sorted(quantizable(skeleton, "language"))
    ids = [torch.arange(20, 20 + count)[None] for count in (7, 12, 3)]
    taken = taken_of(half, layers, [partial(half, input_ids=i) for i in ids], expected)
    in_layers = [p for p in expected if any(p.startswith(f"{path}.") for path, _ in layers)]
    wants = plain(whole, in_layers, [partial(whole, input_ids=i) for i in ids])
    assert len(in_layers) >= 14 and taken.hessians.keys() == set(expected)
    for path in in_layers:
        hessian = taken.hessians[path]
        assert hessian is not None and hessian.dtype == torch.float32
        torch.testing.assert_close(hessian.double(), wants[path], rtol=1e-4, atol=1e-5)
        assert torch.equal(taken.weights[path], whole.get_submodule(path).weight)
    if streamed:
        found = streamed_layers(half)
        assert found is not None and found.buffers.fetched <= len(found.layers) + 1
        assert all(p.is_meta for _, layer in layers for p in layer.parameters())


def test_linears_come_once_in_the_order_of_layers_with_the_hessians_that_they_share() -> None:
    model, layers, calls, expected = small()
    taken = taken_of(model, layers, calls, expected)
    inside = [path for path in expected if path.startswith("layers")]
    assert list(taken.hessians) == [*inside, "first", "head"]
    assert taken.reasons["first"] == taken.reasons["head"] == OUTSIDE
    assert taken.reasons["layers.0.experts.1"] == UNSEEN
    assert taken.reasons["layers.0.experts.0"] == ""
    assert model.heard == 0  # of what comes after the last layer nothing is wanted
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    calls[0]()
    assert model.heard == 1
    # Linears that are given one tensor share a Hessian, and others do not.
    at = {name.removeprefix("layers.1."): hessian for name, hessian in taken.hessians.items()}
    assert at["q"] is at["k"] is at["v"] and at["gate"] is at["up"]
    assert len({id(at[name]) for name in ("q", "gate", "down", "experts.0")}) == 4
    for path, wants in plain(model, expected, calls).items():
        if (hessian := taken.hessians[path]) is not None:
            torch.testing.assert_close(hessian.double(), wants, rtol=1e-4, atol=1e-5)


def test_a_linear_whose_sharing_ends_gets_no_hessian_that_is_not_its_own() -> None:
    model, layers, calls, _ = small()
    model.layers[0].split = 3  # type: ignore[assignment]
    taken = taken_of(model, layers, calls, ["layers.0.q", "layers.0.k", "layers.0.v"])
    assert taken.reasons == {"layers.0.q": "", "layers.0.k": NOT_SHARED, "layers.0.v": ""}


def test_hessians_beyond_the_room_for_them_are_not_made_and_that_is_told() -> None:
    model, layers, calls, expected = small()
    taken = taken_of(model, layers, calls, expected, 2 * 8 * 8 * 4)
    for layer in ("layers.0", "layers.1"):  # each has all of the room
        got = [n for n in ("q", "k", "v", "gate", "up") if not taken.reasons[f"{layer}.{n}"]]
        assert got == ["q", "k", "v", "gate", "up"]
        for name in ("down", "experts.0"):
            assert "no room" in taken.reasons[f"{layer}.{name}"]


def test_what_is_done_is_passed_over_and_its_layers_are_not_waited_for() -> None:
    model, layers, calls, expected = small()
    whole = taken_of(model, layers, calls, expected)
    done = [path for path in expected if path.startswith("layers.0") or path == "layers.1.q"]
    rest = taken_of(model, layers, calls, expected, PLENTY, done)
    assert set(rest.hessians) == set(expected) - set(done)
    for path, hessian in rest.hessians.items():  # as if all of it had been made at once
        other = whole.hessians[path]
        assert (hessian is None) == (other is None)
        assert hessian is None or (other is not None and torch.equal(hessian, other))
    assert not taken_of(model, layers, calls, expected, PLENTY, expected).hessians


def test_layers_that_no_call_passes_are_handed_out_all_the_same() -> None:
    model, layers, _, expected = small()
    taken = taken_of(model, layers, [partial(layers[0][1], torch.randn(3, 8))], expected)
    assert set(taken.hessians) == set(expected)
    assert taken.reasons["layers.0.q"] == "" and taken.reasons["layers.1.q"] == UNSEEN


def test_an_error_of_a_call_is_raised_and_leaves_no_hook() -> None:
    model, layers, calls, expected = small()

    def broken() -> object:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        taken_of(model, layers, [*calls, broken], expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_many_tokens_are_summed_up_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers, calls, expected = small()
    whole = taken_of(model, layers, calls, expected)
    monkeypatch.setattr(calibration, "ROWS", 2)
    pieces = taken_of(model, layers, calls, expected)
    torch.testing.assert_close(pieces.hessians["layers.1.q"], whole.hessians["layers.1.q"])
