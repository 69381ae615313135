"""What a half expects at each word is what it would say, and the same however its layers come."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flows.console.display import Display
from flows.job.prepare import prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.export.jobs import CaptionedItem, ExportJob, JudgeJob
from stages.export.logit_agreement import run as judge
from stages.export.run import run as write
from stages.models.half_job import HalfJob
from stages.models.loading import ModelJob
from stages.process.job import job_fields
from tests.support.waves import events, noted

CLIPS = 3
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fields of a job that is asked about captions of the demo model, in 32 bit."""
    folder = tmp_path_factory.mktemp("words")
    write_clips(folder / "clips", CLIPS, seed=4)
    config = CaptionConfig(
        sources=(str(folder / "clips"),),
        model="demo",
        out=str(folder / "out"),
        store=str(folder / "store"),
        precision="fp32",
        engine="transformers",
    )
    caption(config, Display(quiet=True))
    job = prepare(config, DirectLauncher(lambda *_: None))
    tasks = job.ledger.tasks(job.media)
    return {
        "half": HalfJob(model=str(CHECKPOINT), dtype="float32"),
        "store": job.store.url,
        "features_namespace": tasks[0].namespaces["features"],
        "members": [
            CaptionedItem(
                task["captions"],
                task["features"],
                task.medium.prompt,
                job.ledger["captions"].meta(task["captions"])["caption"],
            )
            for task in tasks
        ],
    }


def asked(
    words: dict[str, Any], folder: Path, *, offload: bool = False, **changes: Any
) -> dict[str, Any]:
    """The last notes of the stage."""
    changes["half"] = replace(words["half"], offload=offload)
    job = JudgeJob(**{**words, "folder": str(folder), **changes})
    with events() as (report, told):
        judge(json.loads(json.dumps(job_fields(job))), report)
    return noted(told)


def test_it_expects_the_words_that_it_says_also_streamed(
    words: dict[str, Any], tmp_path: Path
) -> None:
    asked(words, tmp_path)
    tokenizer = ModelJob.of(words["half"]).processor().tokenizer
    for member in words["members"]:
        said = tokenizer(member.caption, add_special_tokens=False)["input_ids"]
        likely = load_file(tmp_path / member.key)["logits"].argmax(-1).tolist()
        assert likely[:-1] == said and len(likely) == len(said) + 1
    agreement = asked(words, tmp_path, compared=True)["agreement"]
    assert agreement["token_agreement"] == agreement["captions_as_native"] == 1
    assert agreement["divergence"] == 0
    agreement = asked(words, tmp_path, compared=True, offload=True)["agreement"]
    assert agreement["divergence"] < 1e-9 and agreement["token_agreement"] == 1


def test_rounded_weights_are_put_in_also_streamed(words: dict[str, Any], tmp_path: Path) -> None:
    packed = ExportJob(
        model=words["half"].model,
        recipe={},
        folder=str(tmp_path / "packed"),
        kind="w4a16",
        parts=("language",),
        group=32,
    )
    with events() as (report, _):
        write(job_fields(packed), report)
    asked(words, tmp_path / "expected")
    rounded = {"rounded": str(tmp_path / "packed"), "parts": ("language",), "bits": 4, "group": 32}
    found = [
        asked(words, tmp_path / "expected", compared=True, offload=offload, **rounded)["agreement"]
        for offload in (False, True)
    ]
    assert found[0]["divergence"] > 1e-6
    assert found[1]["divergence"] == pytest.approx(found[0]["divergence"], rel=1e-4)
