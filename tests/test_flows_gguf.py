"""Checkpoints with a GGUF language half: what options they take, and captions from them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from artifacts import packages
from artifacts.errors import EnvironmentFault, UsageError
from flows.checkpoint.gguf import gguf_for, gguf_note
from flows.console.display import Display
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportConfig
from flows.pipelines import EXPORTS, GRAPHS, TUNE, Pipeline
from flows.running.export import export
from flows.running.run import caption
from penstock_demo.clips import write_clips
from stages.models.gguf import FILE, FORMAT, MANIFEST
from tests.support.checkpoints import whole_checkpoint
from tests.support.dying import ABORTING, VARIABLE
from tests.support.media import write_numbered
from tests.support.pipeline import read_lines

NEEDS_BUILD = [pytest.mark.slow, pytest.mark.gguf]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks exported, on a machine that looks as if the extra were installed."""
    monkeypatch.setattr(packages, "is_installed", lambda module: True)
    (tmp_path / FILE).write_bytes(b"GGUF")
    noted = {"kind": "gguf-q8_0", "sha256": "a" * 64, "bytes": 4, "parameters": 2}
    noted |= {"width": 8, "inner": 16, "heads": 2, "whole": 0}
    (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT, **noted}))
    return tmp_path


def found(folder: Path, digest: str = "a" * 64, **options: Any) -> Any:
    config = CaptionConfig(sources=("clip.mp4",), model="MODEL", **options)
    return gguf_for(config, folder, lambda path: digest)


def test_an_exported_folder_takes_the_engine_by_itself(folder: Path) -> None:
    use = found(folder)
    assert use == found(folder, engine="gguf")
    assert (use.kind, use.digest, use.bytes, use.parameters) == ("gguf-q8_0", "a" * 64, 4, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engine": "transformers"}, "--engine transformers: the language half of MODEL is a GGUF"),
        ({"engine": "inflight"}, "--engine inflight: the language half of MODEL is a GGUF file"),
        ({"adapter": "A"}, "--adapter: the language half of MODEL is a GGUF file"),
    ],
)
def test_options_that_it_does_not_have_are_refused(
    folder: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError) as raised:
        found(folder, **options)
    assert raised.value.message.startswith(text) and raised.value.hint


def test_a_folder_that_is_not_as_it_was_exported_is_refused(folder: Path) -> None:
    with pytest.raises(EnvironmentFault, match="differs from the exported file"):
        found(folder, "b" * 64)
    exported = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "kind": 3}))
    with pytest.raises(EnvironmentFault, match=r"gguf\.json"):
        found(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(EnvironmentFault, match=f"has {FILE}, but lacks {MANIFEST}"):
        found(folder)
    (folder / MANIFEST).write_text(exported)
    (folder / FILE).unlink()
    with pytest.raises(EnvironmentFault, match=f"lacks {FILE}"):
        found(folder)


@pytest.mark.parametrize("pipelines", [(TUNE,), EXPORTS, GRAPHS])
def test_it_is_neither_trained_nor_exported_again(
    folder: Path, pipelines: tuple[Pipeline, ...]
) -> None:
    config = CaptionConfig(sources=("clip.mp4",), model="MODEL")
    with pytest.raises(UsageError, match="cannot be trained or exported again"):
        gguf_for(config, folder, lambda path: "a" * 64, *pipelines)


def test_an_export_says_which_programs_can_use_its_file(folder: Path, tmp_path: Path) -> None:
    noted = json.loads((folder / MANIFEST).read_text())
    assert gguf_note(folder) == "language.gguf is for Penstock only: it has no tokenizer"
    for why, text in (("no words", "for Penstock only: no words"), ("", "llama.cpp can chat")):
        (folder / MANIFEST).write_text(json.dumps({**noted, "penstock_only": why}))
        assert text in gguf_note(folder)
    (folder / MANIFEST).unlink()
    assert gguf_note(folder) == ""


def test_another_checkpoint_is_never_turned_into_gguf(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    with pytest.raises(UsageError, match="is no GGUF file") as raised:
        found(tmp_path, engine="gguf")
    assert "penstock export MODEL --to gguf-q8_0" in str(raised.value.hint)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 16, seed=5)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """The demo model with its language half in 8 bits."""
    folder = tmp_path_factory.mktemp("exported")
    message = CaptionConfig(sources=(str(clips),), model="demo", store=str(folder / "store"))
    request = ExportConfig(model="demo", to="gguf-q8_0", out=str(folder / "model"), samples=16)
    assert export(message, request, Display(quiet=True)).accepted
    return folder / "model"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_lines(out / "captions.jsonl")


def captioned(clips: Path, model: Path, work: Path, **options: Any) -> list[dict[str, Any]]:
    config = CaptionConfig(
        sources=(str(clips),), model=str(model), out=str(work / "out"), store=str(work / "store"),
        **options,
    )  # fmt: skip
    assert caption(config, Display(quiet=True)).exit_code == 0
    return rows_of(work / "out")


def tied(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose output head is its embedding table, as published ones have."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folder


class TestDecoding:
    pytestmark = NEEDS_BUILD

    def test_captions_do_not_depend_on_slots_prompts_or_kills(
        self, tmp_path: Path, clips: Path, model: Path
    ) -> None:
        alone = captioned(clips, model, tmp_path / "alone", batch_size=1)
        assert alone == captioned(clips, model, tmp_path / "together", batch_size=8)
        prompts = {"a": "What moves?", "b": alone[0]["prompt"]}
        several = captioned(clips, model, tmp_path / "several", prompts=prompts)
        assert [row["caption"] for row in several if row["name"] == "b"] == [
            row["caption"] for row in alone
        ]
        out, store = tmp_path / "killed", tmp_path / "killed-store"
        command = [sys.executable, "-m", "penstock", "caption", str(clips), "--model", str(model)]
        command += ["--out", str(out), "--store", str(store), "--quiet"]
        for seconds in (2.5, 3.0, 3.5):
            run = subprocess.Popen(command, start_new_session=True)
            time.sleep(seconds)
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        subprocess.run(command, check=True)
        assert rows_of(out) == alone

    def test_memory_that_runs_out_between_captions_costs_a_rung(
        self, tmp_path: Path, clips: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        undisturbed = captioned(clips, model, tmp_path / "undisturbed")
        once = tmp_path / "once"
        once.touch()
        monkeypatch.setenv(VARIABLE, str(once))
        out = tmp_path / "out"
        config = CaptionConfig(sources=(str(clips),), model=str(model), out=str(out))
        made = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, ABORTING))
        assert made.exit_code == 0
        assert not once.exists()
        assert rows_of(out) == undisturbed
        record = json.loads((out / "run.json").read_text())
        assert [move["stage"] for move in record["rungs"]] == ["decode"]
        items = [stage["items"] for stage in record["stages"] if stage["name"] == "decode"]
        assert sum(items) <= len(undisturbed)  # what the first process published stays

    def test_it_says_what_the_original_says(self, tmp_path: Path, clips: Path, model: Path) -> None:
        original = captioned(clips, Path("demo"), tmp_path / "demo", language_precision="fp32")
        found = captioned(clips, model, tmp_path / "gguf")
        same = sum(a["caption"] == b["caption"] for a, b in zip(original, found, strict=True))
        assert same >= len(found) - 1
        assert found[0]["precision"]["language"] == "gguf-q8_0"

    def test_schemas_and_sampling_hold(self, tmp_path: Path, clips: Path, model: Path) -> None:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
        schema |= {"properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}
        found = captioned(clips, model, tmp_path / "schema", schema=json.dumps(schema))
        assert {json.loads(row["caption"])["color"] for row in found} <= {"red", "blue"}
        sampled = [
            captioned(clips, model, tmp_path / str(size), temperature=0.9, seed=3, batch_size=size)
            for size in (8, 2)
        ]
        assert sampled[0] == sampled[1]

    def test_it_summarizes_from_text_alone(self, tmp_path: Path, clips: Path, model: Path) -> None:
        captions = captioned(clips, model, tmp_path, summary=True)
        message = read_lines(tmp_path / "out" / "summaries.jsonl")
        assert len(message) == len(captions) and all(row["summary"] for row in message)

    @pytest.mark.parametrize("family", ["gemma3", "paligemma", "glm4v"])
    def test_an_export_of_another_family_says_what_the_original_says(
        self, tmp_path: Path, family: str
    ) -> None:
        write_numbered(tmp_path / "clips", 6)
        original, media = whole_checkpoint(family), (str(tmp_path / "clips"),)
        if family == "paligemma":
            original = tied(original, tmp_path / "tied")
        message = CaptionConfig(
            sources=media, model=str(original), store=str(tmp_path / "store"), max_new_tokens=12
        )
        request = ExportConfig(
            model="demo", to="gguf-f32", out=str(tmp_path / "model"), samples=4, accept=True
        )  # of fewer frames than it takes to pass
        made = export(message, request, Display(quiet=True))
        assert made.parity["text"]["token_agreement"] == 1.0
        more: dict[str, Any] = {
            "prompts": {"a": "What moves?", "b": "And what color does it have?"},
            "max_new_tokens": 12,
        }
        of, place = tmp_path / "clips", tmp_path / "made"
        expected = captioned(of, original, place / "a", language_precision="fp32", **more)
        found = captioned(of, tmp_path / "model", place / "b", **more)
        assert [row["caption"] for row in found] == [row["caption"] for row in expected]

    def test_a_head_for_which_there_is_no_place_fails(self, tmp_path: Path) -> None:
        from stages.export.gguf import plan_gguf

        plan_gguf(tied(whole_checkpoint("paligemma"), tmp_path / "tied"), False)
        with pytest.raises(UsageError, match="its output head is not its embedding table"):
            plan_gguf(whole_checkpoint("paligemma"), False)
