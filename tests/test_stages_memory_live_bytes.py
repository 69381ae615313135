"""What is counted without data is what is counted with it, and operations that want data are
answered."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.memory.live_bytes import LiveBytes
from stages.memory.meta_device import give_data, on_meta_device, without_data
from stages.models.halves.classes import skeleton_of
from stages.models.halves.delivery import generate
from stages.models.halves.features import encode
from tests.support.tiny_families import FAMILIES

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 2}


class Counting(TorchDispatchMode):
    """Counts what is computed with data."""

    def __init__(self, live: LiveBytes) -> None:
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


def peaks(model: Any, inputs: dict[str, Any], live: LiveBytes) -> tuple[int, int, int]:
    """Bytes of the encoder, of the decoder, and operations."""
    features = encode(model, inputs)
    encoding = live.peak
    live.begin()
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
    real = LiveBytes([*model.parameters(), *model.buffers(), *inputs.values()])
    with torch.inference_mode(), Counting(real):
        expected = peaks(model, inputs, real)
    given = without_data(inputs)
    live = LiveBytes([*skeleton.parameters(), *skeleton.buffers(), *given.values()])
    with on_meta_device(live):
        found = peaks(skeleton, given, live)
    assert found[2] == expected[2]
    assert found[:2] == pytest.approx(expected[:2], rel=0.02)


def test_shapes_that_data_decide_are_found() -> None:
    floats = torch.ones(4, 3, device="meta")
    mask = torch.tensor([True, False, True, True])
    with on_meta_device(LiveBytes()):
        assert floats[mask].shape == (3, 3)
        assert not (floats.sum() > 0)
        ids = floats.argmax(-1)
        assert ids.tolist() == [0, 0, 0, 0]
        assert torch.arange(3, device="meta").tolist() == [0, 1, 2]
        assert torch.tensor([1, 2], device="meta").tolist() == [1, 2]
        floats[mask] = 0.0
        assert floats.masked_fill(mask[:, None], 1.0).is_meta


def test_views_and_casts_are_counted_once() -> None:
    with on_meta_device(live := LiveBytes()):
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
