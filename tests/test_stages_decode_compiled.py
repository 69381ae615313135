"""Steps that are compiled: captions are those of steps that are not, and hang on their own row.

A compiler of C++ is needed, and takes its time."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.engines.inflight.compiled import CompiledStep
from stages.decode.engines.inflight.pool import Pool
from stages.decode.engines.inflight.reading import read_row
from stages.decode.engines.inflight.shape import PoolShape
from stages.decode.engines.inflight.trial import _same, _trace, reference_of
from tests.support.clips import PROMPTS, clips
from tests.support.tiny_families.in_slots import rows_of_variant
from tests.support.waves import CAPTIONS, Wave, keys_told

OTHER, THIRD = "dd" * 32, "ee" * 32
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
compiling = pytest.mark.skipif(COMPILER is None, reason="there is no compiler of C++")


def wave_of(folder: Path, size: int = 6, dtype: str = "float32") -> Wave:
    """Clips of three lengths in batches of so many, encoded."""
    every = [*clips("video", 2, frames=8), *clips("video", 2), *clips("image", 2)]
    batches = [every[at : at + size] for at in range(0, len(every), size)]
    wave = Wave(folder / "store", CHECKPOINT, batches, dtype=dtype)
    wave.encode()
    return wave


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captions_of_compiled_steps_hang_on_their_own_row(dtype: str, tmp_path: Path) -> None:
    wave = wave_of(tmp_path, dtype=dtype)
    wave.settings["engine"] = "inflight-compiled"
    told = wave.decode(PROMPTS, tokens=24)
    whole = wave.captions()
    assert {one["engine"] for one in whole} == {"inflight-compiled"}
    assert any(event.get("engine") == "inflight-compiled" for event in told)
    for scope, at in ((OTHER, 1), (THIRD, 5)):
        one = wave.batches[0][at]
        alone = Wave(tmp_path / "store", CHECKPOINT, [], **wave.settings)
        alone.batches = [[one]]
        alone.decode(PROMPTS, scope, tokens=24)
        assert alone.captions(scope) == [whole[at]]


@compiling
@pytest.mark.slow
def test_compiled_steps_say_in_32_bit_what_others_say(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, size=4)
    wave.settings["engine"] = "inflight"
    wave.decode(PROMPTS, tokens=24)
    wave.settings["engine"] = "inflight-compiled"
    kept = [wave.record_set("captions", CAPTIONS).read("caption-2")]
    wave.record_set("captions", OTHER).publish(kept)
    told = wave.decode(PROMPTS, OTHER, tokens=24)
    assert sorted(keys_told(told)) == [f"caption-{n}" for n in (0, 1, 3, 4, 5)]
    words = [[one["caption"] for one in wave.captions(scope)] for scope in (CAPTIONS, OTHER)]
    assert words[0] == words[1]


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["qwen2_5_vl", "gemma3"])
def test_a_shape_is_compiled_once_however_many_pools_have_it(variant: str) -> None:
    torch.compiler.reset()
    counters["stats"].clear()
    model, items = rows_of_variant(variant)
    reference, step = reference_of(model, *items[0]), CompiledStep("cpu")
    row, other = (read_row(model, *items[at], max_new_tokens=8) for at in (0, 3))
    row, other = (replace(each, step=step.of(each.model)) for each in (row, other))
    shapes = [PoolShape(rows=8, slots=8, columns=columns) for columns in (64, 64, 128, 64)]
    alone = _trace(row, reference, Pool(row, shapes[0]), 0)
    for shape in shapes:
        assert _same(alone, _trace(row, reference, Pool(row, shape), 3, other))
    pool = Pool(row, shapes[0])
    pool.put(1, row, torch.full_like(row.ids[:1, :1], reference.tokens[0]))
    seen = [row.logits[0]]
    for columns, token in zip((128, 64, 128, 64), reference.tokens[1:], strict=True):
        pool.resize(columns)
        seen.append(pool.step()[1].clone())
        pool.feed(torch.full((8,), token))
    assert _same(alone, seen)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_who_has_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "none"),))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    wave = wave_of(tmp_path)
    wave.settings["engine"] = "inflight-compiled"
    with pytest.raises(UsageError, match="cannot be compiled") as caught:
        wave.decode(PROMPTS, tokens=24)
    assert "--engine" in caught.value.hint
    assert "\n" not in caught.value.message
    torch.compiler.reset()


def test_a_half_that_was_loaded_again_is_compiled_again() -> None:
    step = CompiledStep("cpu")
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    step.of(first)
    before = step._step
    step.of(first)
    assert step._step is before
    step.of(second)
    assert step._step is not before


class Raising:
    """A compiler that says this."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, **_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("cause", "kind", "says"),
    [
        (MemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError, "out of memory"),
        (OSError(28, "No space left on device", "/cache/a.so"), UsageError, "No space left"),
        (TorchDynamoException("graph break\nand more"), UsageError, "cannot be compiled"),
        (ValueError("of the model"), ValueError, "of the model"),
    ],
)
def test_what_goes_wrong_at_a_step_is_told_as_what_it_is(
    cause: Exception, kind: type[Exception], says: str
) -> None:
    step = CompiledStep("cpu")
    called = step.of(torch.nn.Linear(2, 2))
    step._step = Raising(cause)
    with pytest.raises(kind, match=says) as caught:
        called()
    if isinstance(caught.value, UsageError):
        assert "--engine inflight" in caught.value.hint
        assert ("TORCHINDUCTOR_CACHE_DIR" in caught.value.hint) == isinstance(cause, OSError)
        assert "\n" not in caught.value.message
