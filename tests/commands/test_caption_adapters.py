"""`--adapter`: what it adds to keys and plans, what is refused of it before any stage starts; and
whole runs and exports: one that adds nothing says what the model says, another one what the model
says that it was merged into."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.keys import ContentDigests
from flows.commands.export.options import ExportConfig
from flows.commands.export.run import export
from flows.core.checkpoint.adapters import AdapterUse, adapter_for, read_noted_adapter
from flows.core.checkpoint.model_digests import ModelDigests
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import resolve_settings, with_adapter
from flows.core.console.display import Display
from flows.core.ledger.namespaces import variant_of
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION
from flows.core.plan.costs.decode import rungs
from flows.core.plan.ladder import Rung
from flows.core.plan.terms import weights
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT, CLIPS
from penstock_demo.clips import write_clips
from stages.export.parity import PARITY
from stages.models import describe
from stages.models.adapter_modules import modules_of, read_adapter
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile
from tests.support.adapters import (
    PREFIX,
    RANK,
    adapter_of,
    linears_of,
    loaded,
    matrices,
    merged,
    write_adapter,
)
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of
from tests.support.described import demo_profile, spare_processes
from tests.support.families import checkpoint
from tests.support.inside import Ran, run_inside
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import Place

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
    return adapter_for(read_noted_adapter(config.adapter, files), config, profile, files)


def model_with(profile: ModelProfile, adapter: AdapterUse | None, **options: Any) -> Model:
    config = CaptionConfig(sources=("a.mp4",), **options)
    found = resolve_settings(config, profile, "cpu")
    settings = found if adapter is None else with_adapter(found, adapter)
    given: dict[str, Any] = {"profile": profile, "settings": settings}
    given |= {"checkpoint": Checkpoint(name="any", folder=Path("any"))}
    return Model(name="any", digests={"vision": "v", "language": "l"}, **given)


def namespaces(profile: ModelProfile, adapter: AdapterUse | None) -> Any:
    model = model_with(profile, adapter)
    config = CaptionConfig(sources=("a.mp4",))
    best = {part: model.best(part) for part in profile.parts}
    return variant_of(config, model, model.sampling(config), CAPTION, best)


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


Misfit = tuple[Callable[[ModelProfile], dict[str, torch.Tensor]], str]
TABLE = f"{PREFIX}model.embed_tokens.lora_embedding"
MISFITS: dict[str, Misfit] = {
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
        lambda _: {f"{TABLE}_A": torch.ones(RANK, 9), f"{TABLE}_B": torch.ones(9, RANK)},
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


def test_settings_that_are_no_file_or_no_json_are_told_apart(tmp_path: Path) -> None:
    settings = tmp_path / "adapter_config.json"
    os.mkfifo(settings)
    for why in ("it is a FIFO, not a file", "it is not UTF-8 text", "cannot be read as JSON"):
        with pytest.raises(EnvironmentFault) as caught:
            read_adapter(tmp_path)
        assert f"{settings}" in caught.value.message and why in caught.value.message
        settings.unlink()
        settings.write_bytes(b"{" if "UTF-8" in why else b"\xff")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_pieces_of_the_vision_half_stay_its_own(family: str) -> None:
    """What both halves load is of the one that makes features."""
    found = profile_of(checkpoint(family))
    paths = [{layer.path for layer in part.adaptable} for part in found.parts.values()]
    assert paths[0] and paths[1] and not paths[0] & paths[1]
    assert "lm_head" in paths[1] and not any("visi" in path for path in paths[1])


@pytest.mark.slow
def test_a_command_refuses_it_in_one_line_before_any_stage(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = spare_processes(monkeypatch)
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]

    def refused(folder: Path, model: str = "demo") -> str:
        messages = ["caption", str(CLIPS), "--model", model, "--adapter", str(folder), *where]
        assert main(messages) == 2
        printed = capsys.readouterr().err
        line = printed.splitlines()[-1]
        assert line.startswith("penstock: ") and "Traceback" not in printed
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
    expected = sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
    assert use.parameters == expected and use.bytes == 4 * expected
    rung = Rung(stage="decode", batch=1)
    models = model_with(profile, use, language_precision="auto"), model_with(profile, None)
    terms, plain = (
        [*weights(profile.language, model.best("language"), rung, "cpu")] for model in models
    )
    assert sum(t.bytes for t in terms) - sum(t.bytes for t in plain) == use.bytes
    assert any("the adapter" in term.why for term in terms)


def test_layers_of_a_half_with_an_adapter_do_not_come_one_by_one(
    profile: ModelProfile, adapter: Path, tmp_path: Path
) -> None:
    model = model_with(profile, None, language_precision="auto")
    config = CaptionConfig(sources=("a.mp4",), language_precision="auto")
    assert any(rung.offload for rung in rungs(model, config, "cpu", "decode"))
    message = replace(config, adapter=str(adapter))
    assert not any(rung.offload for rung in rungs(model, message, "cpu", "decode"))


def test_what_makes_vectors_takes_none(
    profile: ModelProfile, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a dual encoder"):
        used(adapter, replace(profile, route="dual"), tmp_path)


TOKENS = 16
STRENGTH = 0.14
"""Of random matrices that change what the demo says."""


@pytest.fixture
def place(here: Path) -> Place:
    return Place(clips=here / "videos", out=here / "out", store=here / "store")


def captions_of(place: Place, **options: Any) -> tuple[list[dict[str, Any]], Ran]:
    ran = run_inside(place, max_new_tokens=TOKENS, **{"precision": "fp32", **options})
    return place.captions(), ran


def words(captions: list[dict[str, Any]]) -> list[str]:
    return [caption["caption"] for caption in captions]


@pytest.mark.slow
def test_one_that_adds_nothing_says_the_same_and_another_what_the_merged_model_says(
    place: Place, tmp_path: Path
) -> None:
    profile = profile_of(CHECKPOINT)
    zero = adapter_of(tmp_path / "zero", profile, zero=True)
    random = adapter_of(tmp_path / "random", profile, STRENGTH)
    plain, _ = captions_of(place)
    same, ran = captions_of(place, adapter=str(zero))
    assert ran.started == ["decode"], "features are not made anew"
    assert words(same) == words(plain)
    assert len(place.stored("captions")) == 2 * len(plain), "under keys of their own"
    other, _ = captions_of(place, adapter=str(random))
    assert words(other) != words(plain)
    values = json.loads((place.out / "run.json").read_text())
    assert values["plan"]["halves"]["language"]["adapter"]["folder"] == str(random)
    assert values["plan"]["halves"]["vision"]["adapter"] is None
    assert values["stages"][-1]["notes"]["adapted_modules"] == 28
    assert other[0]["precision"]["language"].startswith("fp32 with adapter ")
    assert other[0]["precision"]["vision"] == "fp32"
    again, ran = captions_of(place, adapter=str(random))
    assert ran.started == [] and words(again) == words(other)
    back, ran = captions_of(place)
    assert ran.started == [] and back == plain
    whole = replace(place, model=str(merged(CHECKPOINT, random, tmp_path / "merged")))
    assert words(captions_of(whole)[0]) == words(other)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "engine"), [("nf4", "inflight"), ("int8", "transformers")])
def test_it_goes_with_every_precision_and_engine(
    place: Place, tmp_path: Path, precision: str, engine: str
) -> None:
    profile = profile_of(CHECKPOINT)
    requests = {"language_precision": precision, "engine": engine}
    nothing = str(adapter_of(tmp_path / "0", profile, zero=True))
    random = str(adapter_of(tmp_path / "1", profile, STRENGTH))
    plain, zero, other = (
        words(captions_of(place, **requests, adapter=adapter)[0])
        for adapter in (None, nothing, random)
    )
    assert zero == plain != other


@pytest.mark.slow
@pytest.mark.parametrize("family", ["blip", "florence2", "gemma3", "mllama"])
def test_it_goes_with_every_route(place: Place, tmp_path: Path, family: str) -> None:
    for path in place.clips.iterdir():
        path.unlink()
    write_numbered(place.clips, 2)
    place = replace(place, model=str(whole_checkpoint(family)))
    profile = describe(place.model)
    plain, _ = captions_of(place)
    zero, ran = captions_of(place, adapter=str(adapter_of(tmp_path / "zero", profile, zero=True)))
    other, _ = captions_of(place, adapter=str(adapter_of(tmp_path / "random", profile, 1.0)))
    assert ran.started == ["decode"]
    assert words(zero) == words(plain) != words(other)


@pytest.fixture(scope="module")
def babbling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what the demo says, without which it makes no sense any more."""
    shapes = {p: s for p, s in linears_of(loaded(CHECKPOINT)).items() if "language_model" in p}
    return write_adapter(tmp_path_factory.mktemp("adapter"), matrices(shapes, strength=STRENGTH))


def captions(folder: Path, model: str, clips: Path, store: Path) -> list[str]:
    place = Place(clips=clips, out=folder, store=store, model=model)
    caption(place.config(precision="native"), Display(quiet=True))
    return words(place.captions())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_model_is_exported_with_its_adapter(
    tmp_path: Path, babbling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, store, out = tmp_path / "clips", tmp_path / "store", tmp_path / "made"
    write_clips(clips, 4, seed=5)
    words = ["export", "demo", "--to", "nf4", "--out", str(out), "--adapter", str(babbling)]
    words += ["--calibrate", str(clips), "--store", str(store), "--samples", "4"]
    assert main(words) == 1  # so it babbles, in few bits otherwise: all is kept
    merged = out / "parity" / "merged"
    kept = {path.name: path.stat().st_mtime_ns for path in merged.iterdir()}
    assert "config.json" in kept and not (out / "config.json").exists()
    assert main([*words, "--accept"]) == 0
    assert (out / "config.json").exists() and not merged.exists()
    parity = json.loads((out / PARITY).read_text())
    assert len(parity["recipe"]["adapter"]) == 64
    assert parity["text"]["token_agreement"] > 0.7
    text = captions(tmp_path / "said", str(out), clips, store)
    plain = captions(tmp_path / "plain", "demo", clips, store)
    assert any(a != b for a, b in zip(text, plain, strict=True))
    capsys.readouterr()
    assert main(words) == 0
    assert "already exported" in capsys.readouterr().out and not merged.exists()
    other = shutil.copytree(babbling, tmp_path / "other")
    settings = other / "adapter_config.json"
    settings.write_text(settings.read_text().replace("8.0", "9.0"))
    words[words.index(str(babbling))] = str(other)
    assert main(words) == 2
    assert "holds another checkpoint" in capsys.readouterr().err


def test_what_is_wrong_with_an_adapter_is_said_before_the_model_is_looked_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "a.mp4", ticks=range(3))
    source, store = str(tmp_path / "a.mp4"), str(tmp_path / "store")
    config = CaptionConfig(sources=(source,), model="demo", store=store)
    for name, match in (("empty", "has no adapter_config.json"), ("a\0b", "is not a valid path")):
        with pytest.raises(UsageError, match=match):
            path = str(tmp_path / name)
            request = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "made"), adapter=path)
            export(config, request, Display(quiet=True))
    assert not (tmp_path / "made").exists()
    # What a store has is not of the model with its adapter.
    with pytest.raises(UsageError, match="without this adapter"):
        ExportConfig(model="demo", to="nf4", out=str(tmp_path), adapter="a", calibrate_store="s")
