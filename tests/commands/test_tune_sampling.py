"""Training reads the stored features of a run, in whatever way it cut its media."""

import shutil
from pathlib import Path

import pytest

from artifacts.records.store import FolderStore
from flows.commands.tune.run import resolve_run
from flows.core.options.training import TuneConfig
from flows.interfaces.cli.main import main

WAYS = {
    "frames": ["--frames", "2"],
    "chunks": ["--chunk", "1.5", "--fps", "2", "--max-frames", "3"],
    "shots": ["--shots", "--max-pixels", "20000"],
    "whole": ["--whole"],
    "clips": ["--clip-frames", "9", "--trainer", "musubi:wan", "--clip-rest", "overlap"],
    "combs": ["--deinterlace", "off"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [w if w == "chunks" else pytest.param(w, marks=pytest.mark.slow) for w in WAYS]
)
def test_features_of_any_sampling_are_trained_on(here: Path, way: str) -> None:
    words = ["--model", "demo", "--store", "store", "--quiet"]
    assert main(["caption", "videos", *words, "--out", "out", *WAYS[way]]) == 0
    stored = {*FolderStore(here / "store").list("features")}
    shutil.rmtree(here / "videos")
    data = ["out/captions.jsonl", "--steps", "1", "--validate", "0"]
    assert main(["tune", *data, *words, "--out", "adapter"]) == 0
    assert {*FolderStore(here / "store").list("features")} == stored


@pytest.mark.slow
def test_a_run_of_another_model_says_where_chunks_begin_and_no_more(here: Path) -> None:
    words = ["--store", "store", "--quiet", "--out", "out", "--chunk", "2", "--frames", "3"]
    assert main(["caption", "videos", "--model", "demo", *words]) == 0
    runs = [
        resolve_run(TuneConfig(data="out/captions.jsonl", model=model, out="adapter"))[1]
        for model in ("demo", "of/others")
    ]
    assert [(run.chunk, run.frames) for run in runs] == [(2.0, 3), (2.0, None)]
