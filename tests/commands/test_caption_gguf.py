"""Captions from language halves in GGUF files. Needs `make gguf`."""

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

from artifacts.errors import UsageError
from flows.core.console.display import Display
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from tests.support.checkpoints import whole_checkpoint
from tests.support.dying import ABORTING, VARIABLE
from tests.support.media import write_numbered
from tests.support.pipeline import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.gguf]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 16, seed=5)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language half of the demo model in 8 bits."""
    from tests.support.builders.gguf_writer import write_gguf

    return write_gguf(CHECKPOINT, tmp_path_factory.mktemp("file") / "model.gguf", "q8_0")


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_lines(out / "captions.jsonl")


def config_in(clips: Path, file: Path | None, work: Path, **options: Any) -> CaptionConfig:
    where = {"out": str(work / "out"), "store": str(work / "store")}
    given = {"model": "demo", "language_gguf": str(file or ""), **where, **options}
    return CaptionConfig(sources=(str(clips),), **given)


def captioned(clips: Path, file: Path | None, work: Path, **options: Any) -> list[dict[str, Any]]:
    config = config_in(clips, file, work, **options)
    assert caption(config, Display(quiet=True)).exit_code == 0
    return rows_of(work / "out")


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["caption"] for row in rows]


def tied(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose output head is its embedding table, as published ones have."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folder


def test_captions_do_not_depend_on_slots_prompts_or_kills(
    tmp_path: Path, clips: Path, file: Path
) -> None:
    alone = captioned(clips, file, tmp_path / "alone", batch_size=1)
    assert alone == captioned(clips, file, tmp_path / "together", batch_size=8)
    prompts = {"a": "What moves?", "b": alone[0]["prompt"]}
    several = captioned(clips, file, tmp_path / "several", prompts=prompts)
    assert texts([row for row in several if row["name"] == "b"]) == texts(alone)
    out, store = tmp_path / "killed", tmp_path / "killed-store"
    command = [sys.executable, "-m", "penstock", "caption", str(clips), "--model", "demo"]
    command += ["--language-gguf", str(file), "--out", str(out), "--store", str(store), "--quiet"]
    for seconds in (2.5, 3.0, 3.5):
        run = subprocess.Popen(command, start_new_session=True)
        time.sleep(seconds)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run(command, check=True)
    assert rows_of(out) == alone


def test_memory_that_runs_out_between_captions_costs_a_rung(
    tmp_path: Path, clips: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = captioned(clips, file, tmp_path / "undisturbed")
    once = tmp_path / "once"
    once.touch()
    monkeypatch.setenv(VARIABLE, str(once))
    out, config = tmp_path / "out", config_in(clips, file, tmp_path)
    made = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, ABORTING))
    assert made.exit_code == 0 and not once.exists() and rows_of(out) == undisturbed
    record = json.loads((out / "run.json").read_text())
    assert [move["stage"] for move in record["rungs"]] == ["decode"]
    items = [stage["items"] for stage in record["stages"] if stage["name"] == "decode"]
    assert sum(items) <= len(undisturbed)  # what the first process published stays


def test_it_says_what_the_original_says(tmp_path: Path, clips: Path, file: Path) -> None:
    original = captioned(clips, None, tmp_path / "demo", language_precision="fp32")
    found = captioned(clips, file, tmp_path / "gguf")
    same = sum(a == b for a, b in zip(texts(original), texts(found), strict=True))
    assert same >= len(found) - 1
    assert found[0]["precision"]["language"] == "gguf-q8_0"


def test_schemas_and_sampling_hold(tmp_path: Path, clips: Path, file: Path) -> None:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    schema |= {"properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]}
    found = captioned(clips, file, tmp_path / "schema", schema=json.dumps(schema))
    assert {json.loads(row["caption"])["color"] for row in found} <= {"red", "blue"}
    chance = {"temperature": 0.9, "seed": 3}
    sampled = captioned(clips, file, tmp_path / "8", batch_size=8, **chance)
    assert captioned(clips, file, tmp_path / "2", batch_size=2, **chance) == sampled


def test_it_summarizes_from_text_alone(tmp_path: Path, clips: Path, file: Path) -> None:
    captions = captioned(clips, file, tmp_path, summary=True)
    message = read_lines(tmp_path / "out" / "summaries.jsonl")
    assert len(message) == len(captions) and all(row["summary"] for row in message)


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "glm4v"])
def test_a_file_of_another_family_says_what_the_checkpoint_says(
    tmp_path: Path, family: str
) -> None:
    from tests.support.builders.gguf_writer import write_gguf

    write_numbered(tmp_path / "clips", 6)
    checkpoint = whole_checkpoint(family)
    if family == "paligemma":
        checkpoint = tied(checkpoint, tmp_path / "tied")
    file = write_gguf(checkpoint, tmp_path / "model.gguf")
    more: dict[str, Any] = {"model": str(checkpoint), "max_new_tokens": 12}
    more["prompts"] = {"a": "What moves?", "b": "And what color does it have?"}
    of, place = tmp_path / "clips", tmp_path / "made"
    expected = captioned(of, None, place / "a", language_precision="fp32", **more)
    found = captioned(of, file, place / "b", **more)
    assert texts(found) == texts(expected)


def test_a_head_for_which_there_is_no_place_fails(tmp_path: Path) -> None:
    from tests.support.builders.gguf_writer import write_gguf

    checkpoint = whole_checkpoint("paligemma")  # not tied
    file = write_gguf(checkpoint, tmp_path / "model.gguf")
    write_numbered(tmp_path / "clips", 1)
    with pytest.raises(UsageError, match=r"its token_embd\.weight has other values"):
        captioned(tmp_path / "clips", file, tmp_path, model=str(checkpoint))
