"""What attention takes on a GPU, by what a run without data saw of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.job.precision import PartSettings
from flows.planning.estimate import Term
from flows.planning.terms import attention_terms
from stages.models.profile import PartProfile
from tests.support import gpus
from tests.support.by_hand import images
from tests.support.described import demo_profile
from tests.support.fake_gpu.state import Machine

HEADS = 6
"""Of the demo model's decoder."""
TOKENS = 500


@pytest.fixture(scope="module")
def decoder() -> PartProfile:
    return demo_profile().language


def terms(
    half: PartProfile, dtype: str, *, rows: int = 1, tokens: int = TOKENS, device: str = "cuda:0"
) -> list[Term]:
    settings = PartSettings(precision="", dtype=dtype, attention="sdpa", weight_bytes=0)
    workload = replace(images(), kind="video")
    return list(attention_terms(half, settings, workload, rows, tokens, device))


def see(machine: Machine, folder: Path, patch: pytest.MonkeyPatch) -> None:
    gpus.see(machine, folder / "gpu", patch)


def test_before_ampere_bf16_takes_memory_with_the_square_of_the_tokens(
    decoder: PartProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(gpus.turing(), tmp_path, monkeypatch)
    for rows in (1, 4):
        [found] = terms(decoder, "bfloat16", rows=rows)
        scores = rows * HEADS * TOKENS**2 * 4  # in 32 bit, and once more as weights
        assert found.bytes == pytest.approx(2 * scores, rel=0.01)
        assert found.part == "workspace" and "7.5" in found.why
    assert not terms(decoder, "float16") and not terms(decoder, "float32")


def test_a_fused_kernel_of_a_gpu_copies_the_mask_of_a_padded_batch(
    decoder: PartProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(gpus.plain(), tmp_path, monkeypatch)
    assert not terms(decoder, "bfloat16"), "one row is not padded"
    [found] = terms(decoder, "bfloat16", rows=4)
    assert found.bytes == pytest.approx(2 * 4 * TOKENS**2 * 2, rel=0.01)


def test_on_a_cpu_it_takes_what_was_counted(decoder: PartProfile) -> None:
    assert not terms(decoder, "bfloat16", rows=4, device="cpu")
