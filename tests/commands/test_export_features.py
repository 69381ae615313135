"""`penstock export --features` writes a data set, says what it will be, refuses what it cannot
write in one line, and goes on after a kill with the same bytes."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import artifacts.disk.files
from artifacts.records.eight_bits import INT8_64, form_of
from artifacts.records.packs import RecordSet, stored_namespaces
from artifacts.records.store import FolderStore
from artifacts.records.tensors import name_tensors
from flows.commands.cache.pack import pack_store
from flows.commands.export.features import job_of
from flows.interfaces.cli.main import main
from stages.decode.protocol import read_features
from stages.process.job import job_fields
from stages.tune.feature_export import run
from stages.tune.load_features import FeatureDataset
from tests.support.families import made_once
from tests.support.pipeline import ROOT, read_lines
from tests.support.trainable_runs import run_of
from tests.support.waves import noted, told_by

trainable = made_once(lambda folder: run_of(folder, "demo"))
KILLED = """
import json, os, signal, sys
import artifacts.disk.files as files
from stages.process.events import EventReporter
from stages.tune.feature_export import run
from stages.tune.load_features import FeatureDataset

replace, left = files.replace_file, int(sys.argv[2])

def kill(half, path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(half, path)

files.replace_file = kill
run(json.loads(sys.argv[1]), EventReporter(os.open(os.devnull, os.O_WRONLY)))
"""


@pytest.fixture
def out() -> Path:
    return trainable() / "out"


def export(*words: str | Path) -> int:
    return main(["export", *map(str, words)])


def fields_of(out: Path, folder: Path) -> dict[str, Any]:
    """The job of an export with a shard per chunk."""
    job, _ = job_of(out, folder, "cc0-1.0", print)
    fields: dict[str, Any] = json.loads(json.dumps(job_fields(replace(job, shard_bytes=1))))
    return fields


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_becomes_a_data_set_with_each_chunk_once(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ("--features", out, "--out", tmp_path / "data", "--license", "cc-by-4.0")
    assert export(*to, "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "6 captions, features of 5 chunks, " in planned and not (tmp_path / "data").exists()
    assert export(*to) == 0 == export(*to)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{planned.strip()}, in 1 file" and second.endswith("1 of them from before")
    card = (tmp_path / "data" / "README.md").read_text()
    assert card.startswith('---\nlicense: "cc-by-4.0"\ntags: ')
    assert "# 6 captions" in card and "Features show what the media show" in card
    rows = read_lines(tmp_path / "data" / "index.jsonl")
    lines = read_lines(out / "captions.jsonl")
    for name in ("caption", "features", "prompt"):
        assert [row[name] for row in rows] == [line[name] for line in lines]
    with safe_open(tmp_path / "data" / rows[0]["file"], "pt") as shard:
        names = [*shard.keys()]
    held = Counter(name.partition(".")[0] for name in names if ".pooler" in name)
    assert held == dict.fromkeys((line["features"] for line in lines), 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--features", "OUT"], "--features needs a licence for the data set's card"),
        (["--features", "OUT", "--license", "x", "--to", "nf4"], "--features and --to exclude"),
        (["demo", "--features", "OUT", "--license", "x"], "--features and MODEL exclude"),
        (["--features", "OUT", "--license", "x", "--samples", "3"], "--features and --samples"),
        (["--to", "nf4"], "export needs MODEL and --to KIND, or --features RUN"),
        (["demo", "--to", "nf4", "--license", "x"], "export needs MODEL and --to KIND"),
        (["--features", "gone", "--license", "x"], "no run has written to"),
        (["--features", "NO CAPTIONS", "--license", "x"], "has no captions.jsonl. Name the --out"),
    ],
)
def test_a_command_that_is_incomplete_or_contradicts_itself_is_refused(
    words: list[str], says: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (other := tmp_path / "other").mkdir()
    shutil.copy(out / "run.json", other)
    places = {"OUT": str(out), "NO CAPTIONS": str(other)}
    assert export(*(places.get(word, word) for word in words), "--out", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_folder_with_other_content_is_refused(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ("--features", out, "--out", tmp_path, "--license")
    (tmp_path / "mine.txt").write_text("x")
    assert export(*to, "mit") == 2 and "holds other files (mine.txt)" in capsys.readouterr().err
    (tmp_path / "mine.txt").unlink()
    assert export(*to, "mit") == 0
    before = contents_of(tmp_path)
    assert export(*to, "other") == 2
    assert "made from another source or with other settings" in capsys.readouterr().err
    assert export("demo", "--to", "nf4", "--out", tmp_path) == 2
    assert "holds other files" in capsys.readouterr().err
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize(("form", "replace"), [("", False), (INT8_64, False), ("", True)])
def test_packed_features_are_exported_as_what_they_are(
    form: str, replace: bool, tmp_path: Path
) -> None:
    out = run_of(tmp_path / "run", "demo")
    record = json.loads((out / "run.json").read_text())
    label = f"bf16 as published as {form}" if form else "bf16 as published"
    record["plan"] |= {"features_as": form, "precision": {"vision": label}}
    (out / "run.json").write_text(json.dumps(record))
    store = FolderStore(Path(record["plan"]["store"]))
    before = job_of(out, tmp_path / "before", "mit", print)[1].bytes
    pack_store(store, replace=replace, announce=print)
    job, exported = job_of(out, tmp_path / "data", "mit", print)
    is_packed = bool(form or replace)
    assert job.about["precision"] == "bf16 as published" + " as int8-64" * is_packed
    assert f"({job.about['precision']})" in job.card
    told_by(run, json.loads(json.dumps(job_fields(job))))
    shard = tmp_path / "data" / "features-00000.safetensors"
    with safe_open(shard, "pt") as tensors:
        held = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    written = sum(t.nbytes for name, t in held.items() if name.startswith("features-"))
    assert written <= exported.bytes < 1.05 * written and exported.bytes < 1.05 * before
    names = stored_namespaces(store, "features")
    (namespace,) = (name for name in names if bool(form_of(name)) == is_packed)
    stored = RecordSet(store, "features", namespace)
    for key in sorted(stored.keys()):
        _, tensors = name_tensors(read_features(stored, key).features)
        assert all(torch.equal(held[f"{key}.{name}"], t) for name, t in tensors.items())


@pytest.mark.parametrize(
    ("model", "commit", "named"),
    [("Qwen/Qwen2.5-VL-3B", "66285546", True), ("/home/me/models/mine", None, False)],
)
def test_a_card_names_models_of_the_hub_and_no_path(
    model: str, commit: str | None, named: bool, tmp_path: Path
) -> None:
    out = run_of(tmp_path / "run", "demo")
    record = json.loads((out / "run.json").read_text())
    record["plan"] |= {"model": model, "commit": commit}
    (out / "run.json").write_text(json.dumps(record))
    job, _ = job_of(out, tmp_path / "data", "mit", print)
    assert (f'\nbase_model: "{model}"\n' in job.card) == named
    assert job.about["model"] == (model if named else "mine")
    assert "/home/me" not in job.card + json.dumps(job.about)


SHARDS, FILES = 5, 18
"""Shards of a folder, and writes of whole files: the note; for each shard itself, `features.json`
and the index; at last the card and the loader."""


def whole_shards(replaced: int) -> int:
    """How many shards an index names after so many files."""
    return min(SHARDS, max(0, replaced - 1) // 3)


def test_an_interrupted_export_goes_on_at_any_file_with_the_same_bytes(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by(run, fields_of(out, tmp_path / "whole"))
    expected = contents_of(tmp_path / "whole")
    assert sum(name.endswith(".safetensors") for name in expected) == SHARDS
    original, replaced = artifacts.disk.files.replace_file, list[Path]()

    def stop(half: str | Path, path: Path) -> None:
        if len(replaced) == most:
            raise KeyboardInterrupt
        replaced.append(path)
        original(half, path)

    for most in range(FILES):
        folder = tmp_path / f"{most}"
        replaced.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(artifacts.disk.files, "replace_file", stop)
            told_by(run, fields_of(out, folder))
        notes = noted(told_by(run, fields_of(out, folder)))
        assert (notes["there"], notes["files"]) == (whole_shards(most), SHARDS)
        assert contents_of(folder) == expected, most


def test_a_shard_that_was_cut_is_written_again(out: Path, tmp_path: Path) -> None:
    told_by(run, fields_of(out, tmp_path))
    expected = contents_of(tmp_path)
    shard = tmp_path / "features-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    told_by(run, fields_of(out, tmp_path))
    assert contents_of(tmp_path) == expected


def test_the_loader_names_the_shard_in_which_a_bit_flipped(out: Path, tmp_path: Path) -> None:
    told_by(run, fields_of(out, tmp_path))
    FeatureDataset(tmp_path).verify()
    shard = tmp_path / "features-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"features-00002\.safetensors is damaged"):
        FeatureDataset(tmp_path).verify()


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [1, 6, 17])
def test_a_killed_export_goes_on(replaced: int, out: Path, tmp_path: Path) -> None:
    told_by(run, fields_of(out, tmp_path / "whole"))
    folder = tmp_path / "killed"
    job = json.dumps(fields_of(out, folder))
    command = [sys.executable, "-c", KILLED, job, str(replaced)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    notes = noted(told_by(run, fields_of(out, folder)))
    assert (notes["there"], notes["files"]) == (whole_shards(replaced), SHARDS)
    assert contents_of(folder) == contents_of(tmp_path / "whole")
