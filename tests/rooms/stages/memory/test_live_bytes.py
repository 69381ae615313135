"""What is counted without data, or of few of many like layers, is what is counted with all; what is
freed while a half is loaded does not count any more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.memory import live_bytes
from stages.memory.live_bytes import MetaMemoryCounter
from stages.memory.meta_device import give_data, on_meta_device, without_data
from stages.models.dry_run import dry_run
from stages.models.footprint import BatchCost
from stages.models.halves.features import encode
from stages.models.halves.generate import generate
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.split_route import choose_route
from stages.models.processors.loading import load_processor
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint
from tests.support.tiny_families import FAMILIES

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 2}


class Counting(TorchDispatchMode):
    """Counts what is computed with data."""

    def __init__(self, live: MetaMemoryCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        out = func(*args, **(kwargs or {}))
        self._live.computed(func, args, kwargs or {}, out)
        return out


def peaks(model: Any, inputs: dict[str, Any], live: MetaMemoryCounter) -> tuple[int, int, int]:
    """Bytes of the encoder, of the decoder, and operations."""
    features = encode(model, inputs)
    encoding = live.peak
    live.reset_peak()
    generate(model, inputs, features, **GREEDY)
    return encoding, live.peak, live.flops


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm", "gemma3"])
def test_a_run_without_data_holds_what_a_real_one_does(family: str) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    model.generation_config.eos_token_id = None
    model.eval()
    skeleton = skeleton_of(model.config, type(model)).eval()
    skeleton.generation_config.eos_token_id = None
    give_data(skeleton)
    real = MetaMemoryCounter([*model.parameters(), *model.buffers(), *inputs.values()])
    with torch.inference_mode(), Counting(real):
        expected = peaks(model, inputs, real)
    given = without_data(inputs)
    live = MetaMemoryCounter([*skeleton.parameters(), *skeleton.buffers(), *given.values()])
    with on_meta_device(live.computed):
        found = peaks(skeleton, given, live)
    assert found[2] == expected[2]
    assert found[:2] == pytest.approx(expected[:2], rel=0.02)


def test_shapes_that_data_decide_are_found() -> None:
    floats = torch.ones(4, 3, device="meta")
    mask = torch.tensor([True, False, True, True])
    with on_meta_device(MetaMemoryCounter().computed):
        assert floats[mask].shape == (3, 3)
        assert not (floats.sum() > 0)
        ids = floats.argmax(-1)
        assert ids.tolist() == [0, 0, 0, 0]
        assert torch.arange(3, device="meta").tolist() == [0, 1, 2]
        assert torch.tensor([1, 2], device="meta").tolist() == [1, 2]
        floats[mask] = 0.0
        assert floats.masked_fill(mask[:, None], 1.0).is_meta


def test_views_and_casts_are_counted_once() -> None:
    with on_meta_device((live := MetaMemoryCounter()).computed):
        made = torch.zeros(1 << 16, dtype=torch.bfloat16, device="meta")
        view = made.view(2, -1)
        assert (live.bytes, live.bytes_32) == (2 << 16, 4 << 16)
        cast = view.float()
        assert (live.bytes, live.bytes_32) == (6 << 16, 4 << 16)
        del made, view
        assert (live.bytes, live.bytes_32) == (4 << 16, 4 << 16)
        del cast
        assert (live.bytes, live.bytes_32) == (0, 0)
        assert (live.peak, live.peak_32) == (6 << 16, 4 << 16)


def test_a_layer_that_comes_again_takes_what_it_took_itself() -> None:
    def layer() -> Any:
        return torch.zeros(1 << 16, device="meta")

    with on_meta_device((live := MetaMemoryCounter()).computed):
        torch.zeros(1 << 18, device="meta")  # is gone when the layer computes
        made, taken = live.measure(layer)
        live.reset_peak()
        again = live.repeat(taken, layer)
        assert live.peak == live.peak_32 == live.outside == live.bytes == 8 << 16
        del made, again


LAYERS = 7
COUNTS = ("num_hidden_layers", "depth", "encoder_layers", "decoder_layers")


def deep(config: Any) -> Any:
    """The configuration with more layers, whose kinds take turns as they did."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in filter(None, parts):
        for name in COUNTS:
            if hasattr(part, name):
                setattr(part, name, LAYERS)
        if kinds := getattr(part, "layer_types", None):
            part.layer_types = (list(kinds) * LAYERS)[:LAYERS]
    return config


def batch_costs(folder: Path) -> dict[Any, tuple[BatchCost, ...]]:
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(deep(config), cls)
    route = choose_route(skeleton).route
    found = dry_run(skeleton, load_processor(folder, False), route)
    assert found.why == ""
    return {str(half): of_half for half, of_half in found.batch_costs.items()}


KNOWN = ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "florence2", "blip_2", *KNOWN])
def test_what_is_counted_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(checkpoint(family) if family in KNOWN else whole_checkpoint(family))
    again, skipped = MetaMemoryCounter.repeat, []

    def counted(live: MetaMemoryCounter, *given: Any) -> Any:
        skipped.append(given)
        return again(live, *given)

    monkeypatch.setattr(MetaMemoryCounter, "repeat", counted)
    short = batch_costs(folder)
    assert skipped
    monkeypatch.setattr(live_bytes, "MIN_LAYERS", 1000)
    assert batch_costs(folder) == short


BLOCKS = """
import contextlib, ctypes, json, sys
from stages.memory.oom_retry import trim_freed_blocks
from stages.process.memory_limit import enforce
from stages.process.memory import process_memory

def block(size):
    made = ctypes.create_string_buffer(size)
    ctypes.memset(made, 1, size)
    return made
"""
LOADING = """
before = process_memory().data
with trim_freed_blocks() if sys.argv[1] == "given" else contextlib.nullcontext():
    del (first := [block(24 << 20)])[:]  # after which blocks up to that size stay with glibc
    held = []
    for _ in range(20):
        large, small = block(8 << 20), block(1000)
        held.append(small)
        del large
print(json.dumps((process_memory().data - before) / (1 << 20)))
"""
AFTERWARDS = """
enforce("cpu", int(sys.argv[1]) << 20)
with trim_freed_blocks():
    pass
before = process_memory().data
pairs = [[block(8 << 20), block(200_000)] for _ in range(10)]
for pair in pairs:
    del pair[0]
print(json.dumps((process_memory().data - before) / (1 << 20)))
"""


def kept(program: str, given: str) -> float:
    """Mebibytes that still count after they were freed."""
    command = [sys.executable, "-c", BLOCKS + program, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def test_freed_blocks_go_back_to_the_system() -> None:
    assert kept(LOADING, "given") < 2 < kept(LOADING, "kept")


def test_they_go_on_doing_so_within_any_limit() -> None:
    for budget in ("200", "0"):
        assert kept(AFTERWARDS, budget) < 4
