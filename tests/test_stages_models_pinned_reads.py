"""Weights that are read through pinned memory: the same bits as from the files, on a GPU that
copies late, and in a half that is loaded on a card that is stood in for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from penstock_demo import CHECKPOINT
from stages.models.halves import pinned_reads
from stages.models.halves.pinned_reads import PinnedBuffer, PinnedReader
from stages.models.halves.ranged_reads import WholeTensorFile
from tests.support import gpus
from tests.test_stages_models_streaming_order import SEEDS, LateDevice, on_device

BUFFER_BYTES = 256


def wrong_tensors(file: Path, patch: pytest.MonkeyPatch, seed: int, hasty: str) -> list[str]:
    """The tensors that have other bits than those of the file, once the device has done all."""
    shapes = {"matrix": (37, 11), "vector": (640,), "number": (), "nothing": (0, 3)}
    drawn = torch.Generator().manual_seed(seed)
    given = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    given |= {f"{name} bf16": each.bfloat16() for name, each in given.items()}
    save_file({**given, "long": torch.arange(99)}, file)
    kept, device = load_file(file), LateDevice(seed, hasty)
    with patch.context() as late:
        on_device(late, device)
        reader = PinnedReader(BUFFER_BYTES)
        whole = WholeTensorFile(safe_open(file, "pt", backend="pread"), file)
        made = {
            (name, dtype): reader.read(whole.get_slice(name), "cuda:0", dtype)
            for name in kept
            for dtype in (None, torch.bfloat16, torch.float32)
        }
        device.finish()
    expected = {(name, dtype): kept[name].to(dtype or kept[name].dtype) for name, dtype in made}
    same = {at: each.dtype == made[at].dtype for at, each in expected.items()}
    return [at[0] for at in made if not same[at] or not torch.equal(made[at], expected[at])]


@pytest.mark.parametrize("hasty", ["none", "copies"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_buffer_is_not_filled_before_it_was_copied(
    seed: int, hasty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong_tensors(tmp_path / "a.safetensors", monkeypatch, seed, hasty) == []


def test_without_waiting_a_copy_would_read_the_next_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the test above."""
    monkeypatch.setattr(PinnedBuffer, "wait", lambda self: None)
    assert wrong_tensors(tmp_path / "a.safetensors", monkeypatch, 0, "copies")


LOADS = """
import hashlib, json, sys
import torch
from stages.models.halves import pinned_reads
from stages.models.halves.load import load_half
if sys.argv[2] == "unpinned":
    def refuse(self, size):
        raise RuntimeError("CUDA error: OS call failed")
    pinned_reads.PinnedBuffer.__init__ = refuse
found = {}
for keep in ("vision", "language"):
    for dtype in (torch.float32, torch.bfloat16):
        for device in ("cpu", "cuda:0"):
            half = load_half(sys.argv[1], keep, dtype=dtype, device_map={"": device})
            digest = hashlib.sha256()
            for name, value in half.state_dict().items():
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
            note = half.__dict__.get(pinned_reads.NOTE, "")
            found.setdefault(f"{keep} {dtype}", []).append([device, digest.hexdigest(), note])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pinned", "unpinned"])
def test_a_half_on_a_gpu_has_the_weights_of_one_on_the_cpu(how: str, tmp_path: Path) -> None:
    cards = gpus.plain().write(tmp_path / "gpu")
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(CHECKPOINT), how],
        env=gpus.environment(cards),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    for (_, on_cpu, silent), (_, on_gpu, note) in found.values():
        assert on_gpu == on_cpu and not silent
        assert ("OS call failed" in note) == (how == "unpinned")
    pins = [call for call in gpus.calls(cards) if call.name == "pin"]
    assert len(pins) == (0 if how == "unpinned" else 4 * pinned_reads.BUFFERS)
