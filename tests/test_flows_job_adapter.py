"""`--adapter`: what it adds to keys and plans, and what is refused of it in one line before any
stage starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import UsageError
from artifacts.keys import ContentDigests
from flows.checkpoint.adapters import AdapterUse, adapter_for, parse_adapter
from flows.checkpoint.model_files import ModelDigests
from flows.checkpoint.models import Model
from flows.checkpoint.precision import resolve_settings, with_adapter
from flows.cli.main import main
from flows.ledger.namespaces import namespaces_of
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.costs.decode import rungs
from flows.planning.rungs import Rung
from flows.planning.terms import weights
from penstock_demo import CLIPS
from stages.models.adapters.fitting import modules_of
from stages.models.adapters.reading import read_adapter
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile
from tests.support.adapters import PREFIX, RANK, adapter_of, matrices, write_adapter
from tests.support.clips import profile_of
from tests.support.described import demo_profile, spare_processes
from tests.support.families import checkpoint

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"
AS_STORED = "model.layers.0.self_attn.q_proj"
WIDE = (192, 192)
"""Rows and columns of these."""


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    return demo_profile()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", matrices({Q_PROJ: WIDE}))


def used(folder: Path, profile: ModelProfile, digests: Path) -> AdapterUse:
    config = CaptionConfig(sources=("a.mp4",), model="demo", adapter=str(folder))
    files = ModelDigests(ContentDigests(digests / "digests.jsonl"))
    found = parse_adapter(config, files)
    assert found is not None
    return adapter_for(found, config, profile, files)


def model_with(profile: ModelProfile, adapter: AdapterUse | None, **options: Any) -> Model:
    config = CaptionConfig(sources=("a.mp4",), **options)
    found = resolve_settings(config, profile, "cpu")
    return Model(
        name="any",
        checkpoint=Checkpoint(name="any", folder=Path("any")),
        profile=profile,
        digests={"vision": "v", "language": "l"},
        settings=found if adapter is None else with_adapter(found, adapter),
    )


def namespaces(profile: ModelProfile, adapter: AdapterUse | None) -> Any:
    model = model_with(profile, adapter)
    config = CaptionConfig(sources=("a.mp4",))
    best = {part: model.best(part) for part in profile.parts}
    return namespaces_of(config, model, model.sampling(config), CAPTION, best)


def test_an_adapter_is_in_captions_keys(
    profile: ModelProfile, adapter: Path, tmp_path: Path
) -> None:
    plain = namespaces(profile, None)
    with_it = namespaces(profile, used(adapter, profile, tmp_path))
    changed = {kind for kind in plain.of if plain[kind] != with_it[kind]}
    assert changed == {"captions"}
    same = write_adapter(tmp_path / "elsewhere", matrices({Q_PROJ: WIDE}))
    other = write_adapter(tmp_path / "other", matrices({Q_PROJ: WIDE}, strength=0.2))
    louder = write_adapter(tmp_path / "louder", matrices({Q_PROJ: WIDE}), lora_alpha=9.0)
    keys = [
        namespaces(profile, used(folder, profile, tmp_path))["captions"]
        for folder in (adapter, same, other, louder)
    ]
    assert keys[0] == keys[1] and len({*keys}) == 3


def test_modules_are_found_by_names_of_both_kinds(profile: ModelProfile, tmp_path: Path) -> None:
    for name in (Q_PROJ, AS_STORED):
        folder = write_adapter(tmp_path / name, matrices({name: WIDE}))
        assert modules_of(read_adapter(folder), profile) == {name: Q_PROJ}


MISFITS: dict[str, tuple[Callable[[ModelProfile], dict[str, torch.Tensor]], str]] = {
    "another model": (
        lambda _: matrices({"model.layers.99.q_proj": WIDE}),
        "changes model.layers.99.q_proj, which .* does not have: it belongs to another model",
    ),
    "another shape": (
        lambda _: matrices({Q_PROJ: (64, 192)}),
        f"changes {Q_PROJ} of 64 x 192, which is 192 x 192 in",
    ),
    "vision": (
        lambda p: matrices({Q_PROJ: WIDE, p.vision.adaptable[0].path: WIDE}),
        "which belongs to the vision half",
    ),
    "twice": (lambda _: matrices({Q_PROJ: WIDE, AS_STORED: WIDE}), "twice"),
    "whole": (
        lambda _: {f"{PREFIX}lm_head.weight": torch.ones(4, 4)},
        "holds lm_head.weight, which was trained whole",
    ),
    "words": (
        lambda _: {
            f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(RANK, 9),
            f"{PREFIX}model.embed_tokens.lora_embedding_B": torch.ones(9, RANK),
        },
        "an embedding table",
    ),
}


@pytest.mark.parametrize("why", MISFITS)
def test_what_does_not_fit_is_refused(profile: ModelProfile, tmp_path: Path, why: str) -> None:
    make, match = MISFITS[why]
    folder = write_adapter(tmp_path / "adapter", make(profile))
    with pytest.raises(UsageError, match=match) as caught:
        modules_of(read_adapter(folder), profile)
    assert caught.value.hint and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [pytest.param("llava", marks=pytest.mark.slow), "qwen2_5_vl"])
def test_pieces_of_the_vision_half_stay_its_own(family: str) -> None:
    """What both halves load is of the one that makes features."""
    found = profile_of(checkpoint(family))
    paths = [{layer.path for layer in part.adaptable} for part in found.parts.values()]
    assert paths[0] and paths[1] and not paths[0] & paths[1]
    assert "lm_head" in paths[1] and not any("visi" in path for path in paths[1])


def test_a_command_refuses_it_in_one_line_before_any_stage(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = spare_processes(monkeypatch)
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]

    def refused(folder: Path, model: str = "demo") -> str:
        told = ["caption", str(CLIPS), "--model", model, "--adapter", str(folder), *where]
        assert main(told) == 2
        said = capsys.readouterr().err
        line = said.splitlines()[-1]
        assert line.startswith("penstock: ") and "Traceback" not in said
        return line

    assert "has no adapter_config.json" in refused(tmp_path / "nowhere")
    assert "is not a valid path" in refused(tmp_path / "a\0b")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "a pickle, which can run code" in refused(adapter)
    dora = write_adapter(tmp_path / "dora", matrices({Q_PROJ: WIDE}), use_dora=True)
    assert "uses DoRA" in refused(dora)
    other = write_adapter(tmp_path / "other", matrices({"a.b": WIDE}))
    assert "changes a.b, which" in refused(other)
    assert inside.started == ["describe"]


def test_the_plan_counts_it(profile: ModelProfile, tmp_path: Path) -> None:
    folder = adapter_of(tmp_path / "adapter", profile)
    use = used(folder, profile, tmp_path)
    wanted = sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
    assert use.parameters == wanted and use.bytes == 4 * wanted
    model = model_with(profile, use, language_precision="auto")
    rung = Rung(stage="decode", batch=1)
    terms = [*weights(profile.language, model.best("language"), rung, "cpu")]
    plain = [*weights(profile.language, model_with(profile, None).best("language"), rung, "cpu")]
    assert sum(t.bytes for t in terms) - sum(t.bytes for t in plain) == use.bytes
    assert any("the adapter" in term.why for term in terms)


def test_layers_of_a_half_with_an_adapter_do_not_come_one_by_one(
    profile: ModelProfile, adapter: Path, tmp_path: Path
) -> None:
    model = model_with(profile, None, language_precision="auto")
    config = CaptionConfig(sources=("a.mp4",), language_precision="auto")
    assert any(rung.offload for rung in rungs(model, config, "cpu"))
    told = replace(config, adapter=str(adapter))
    assert not any(rung.offload for rung in rungs(model, told, "cpu"))


def test_what_makes_vectors_takes_none(
    profile: ModelProfile, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a dual encoder"):
        used(adapter, replace(profile, route="dual"), tmp_path)
