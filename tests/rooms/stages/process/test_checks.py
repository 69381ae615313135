"""A verdict on the user's hardware counts until the hardware, the software or the check changes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from artifacts.errors import HalfChecked
from artifacts.packages import version_of
from artifacts.records.store import Store, open_store
from flows.core.checkpoint.models import Model
from flows.core.job import prepare
from flows.core.job.prepare import prepare_without_media, with_vector_precision
from flows.core.machine import budget
from flows.core.options.vectors import EmbedConfig
from flows.core.pipelines import EMBED
from stages.decode.engines.inflight import slot_check
from stages.decode.engines.inflight.pool_shape import GPU_STEP_ROWS
from stages.embed import EmbedJob
from stages.embed import run as embed
from stages.models.encoding import batch
from stages.models.encoding.batch import PassChecks, PassRow, encode_passes
from stages.models.half_job import HalfJob
from stages.models.halves import boundary
from stages.models.halves.boundary import StoredWindows, group_windows
from stages.models.halves.features import encode
from stages.process import checks
from stages.process.checks import CHECKS, PASSES, Check, Verdicts
from tests.support import gpus
from tests.support.inside import InsideLauncher
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import greedy, prepared_rows

CARD = "cuda:0"
HALF = HalfJob(model="", device=CARD, dtype="float32", route="dual", digest="ab", title="the half")
Patch = pytest.MonkeyPatch
Runs = Callable[[Store, Patch], bool]
"""Asks for what a check decides, and returns whether the check ran for that."""


def counted(patch: Patch, module: Any, name: str) -> list[object]:
    """Results of a function of a module, from now on."""
    function, results = getattr(module, name), list[object]()

    def call(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    patch.setattr(module, name, call)
    return results


def passes(store: Store, patch: Patch) -> bool:
    results = counted(patch, batch, "_holds")
    model, rows = prepared_rows("llava", torch.float32)
    encode_passes(
        model, [PassRow(prepared=rows[0], rows=1)], PassChecks(Verdicts(store, CARD), HALF)
    )
    return bool(results)


def windows(store: Store, patch: Patch) -> bool:
    patch.setattr(boundary, "EQUAL", {})
    results = counted(patch, boundary, "same_bits")
    stored = StoredWindows(Verdicts(store, CARD))
    torch.manual_seed(0)
    model, inputs = FAMILIES["qwen2_5_vl:video"]()
    assert group_windows(greedy(model))
    encode(model, inputs)
    stored.keep(model)
    return bool(results)


def fp16(model: Model, store: Store, patch: Patch) -> bool:
    config = EmbedConfig(sources=(), precision="auto", model="demo", store=store.url)
    digest = with_vector_precision(config, model, store, CARD).fp16_check
    if digest:
        fields: dict[str, Any] = {"frames_namespace": "", "namespace": "", "batches": []}
        job = EmbedJob(half=HALF, store=store.url, fp16_check=digest, **fields)
        patch.setattr(embed, "_first_rows", lambda *_: ["a row"])
        patch.setattr(embed, "_vectors", lambda *_: torch.ones(6, 4))
        with pytest.raises(HalfChecked, match="runs in fp16"):
            embed.try_fp16(job, cast(Any, None))
    return bool(digest)


def rows(store: Store, patch: Patch) -> bool:
    verdicts = Verdicts(store, CARD)
    tried = slot_check.step_rows_to_check(verdicts, HALF)
    about = {"half": HALF.digest, "rows": min(GPU_STEP_ROWS)}
    verdicts.keep(vars(slot_check)["ROWS"], about, {"holds": True}, "")
    return tried == GPU_STEP_ROWS


def device(store: Store, patch: Patch) -> bool:
    patch.setattr(budget, "try_device", lambda _: {"expandable": True})
    results = counted(patch, budget, "try_device")
    budget.check_device(CARD, store)
    return bool(results)


@pytest.fixture(scope="module")
def dual_encoder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = str(tmp_path_factory.mktemp("store"))
    # Whatever this machine's processor computes by itself.
    config = EmbedConfig(sources=(), precision="fp32", model="demo", store=store)
    return prepare_without_media(config, InsideLauncher(), EMBED).model


READERS: dict[str, tuple[Runs | None, list[Any]]] = {
    "passes": (passes, [batch]),
    "windows": (windows, [boundary]),
    "fp16": (None, [embed, prepare]),
    "rows": (rows, [slot_check]),
    "device": (device, [budget]),
}
"""Check → what asks for its verdict, and the modules that name the check."""
CHANGES = ("driver", "GPU", "torch", "transformers", "version of the check")


def change(what: str, name: str, see: Callable[..., object], patch: Patch) -> None:
    if what == "driver":
        see(gpus.plain(driver_version="999.1"))
    elif what == "GPU":
        see(gpus.plain(gpus=(gpus.gpu(name="NVIDIA L4"),)))
    elif what == "version of the check":
        newer = Check(name, version=2)
        patch.setattr(checks, "CHECKS", {newer})
        for module in READERS[name][1]:
            patch.setattr(module, name.upper(), newer)
    else:
        patch.setattr(checks, "version_of", lambda of: "99" if of == what else version_of(of))


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", sorted(READERS))
def test_a_verdict_counts_until_something_changes(
    name: str, what: str, tmp_path: Path, dual_encoder: Model, monkeypatch: Patch
) -> None:
    see = partial(gpus.see, folder=tmp_path / "gpu", patch=monkeypatch)
    monkeypatch.setenv("PENSTOCK_LOCKS", str(tmp_path))
    see(gpus.plain())
    store = open_store(str(tmp_path / "store"))
    runs = partial(READERS[name][0] or partial(fp16, dual_encoder), store, monkeypatch)
    assert (runs(), runs()) == (True, False)
    change(what, name, see, monkeypatch)
    assert (runs(), runs()) == (True, False)
    assert Verdicts(store, CARD).void == 1


def test_every_check_is_in_the_table() -> None:
    assert {check.name for check in CHECKS} == set(READERS)


def test_the_verdict_that_is_stored_first_counts_for_both_processes(tmp_path: Path) -> None:
    store, about = open_store(str(tmp_path)), {"half": "ab", "rows": 8}
    first, second = Verdicts(store, "cpu"), Verdicts(store, "cpu")
    first.keep(PASSES, about, {"holds": True}, "")
    second.keep(PASSES, about, {"holds": False}, "")
    for verdicts in (first, second, Verdicts(store, "cpu")):
        assert verdicts.outcome(PASSES, about) == {"holds": True}
    assert first.outcome(PASSES, {**about, "rows": 1}) is None
    assert [v.about for v in first.of(PASSES, {"half": "ab"})] == [about]
    assert first.of(PASSES, {"half": "cd"}) == first.of(Check("rows"), {"half": "ab"}) == []
    first.drop(PASSES, about)
    assert first.outcome(PASSES, about) is Verdicts(store, "cpu").outcome(PASSES, about) is None
