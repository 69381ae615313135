"""The flow that makes vectors: its parameters, and runs that are those of the plain command."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import UsageError
from flows.deployments.caption import caption_videos
from flows.deployments.embed import embed_media
from flows.deployments.index import index_folder
from flows.deployments.label import label_images
from flows.deployments.rebuild import rebuild_features
from flows.deployments.sweep import SWEPT
from flows.job.command_config import COMMANDS, EmbedConfig, IndexConfig, RebuildConfig
from flows.job.config import PICTURES_A_BATCH, CaptionConfig
from flows.job.label_config import LabelConfig
from tests.support.dual_encoders import save_clip
from tests.support.embedding import SIZES, embed, vectors, write_pictures


def schema() -> dict[str, Any]:
    return embed_media.parameters.model_dump()


@pytest.mark.parametrize(
    "config",
    [
        {"sources": ["a.png"]},
        {"sources": [], "model": "a/clip"},
        {"sources": ["a.png"], "model": "a/clip", "fps": 0},
        {"sources": ["a.png"], "model": "a/clip", "colour": "red"},
        {"sources": ["a.png"], "model": "a/clip", "precision": "fp12"},
        {"sources": ["a.png"], "model": "a/clip", "prompt": "What is it?"},
        {"sources": ["a.png"], "model": "a/clip", "avoid": ["a"]},
    ],
    ids=json.dumps,
)
def test_the_server_refuses_bad_parameters_before_a_run(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate({"config": config}, schema(), raise_on_error=True)


def test_what_is_left_out_has_the_defaults_of_the_command() -> None:
    config = {"sources": ["a.png"], "model": "a/clip"}
    validate({"config": config}, schema(), raise_on_error=True)
    taken = embed_media.validate_parameters({"config": config})["config"]
    assert taken == EmbedConfig(sources=("a.png",), model="a/clip")
    assert taken.batch_size == PICTURES_A_BATCH
    fields = schema()["definitions"]["EmbedConfig"]["properties"]
    assert set(fields) == COMMANDS["embed"] and len(fields) == 17
    assert all(field["description"] for field in fields.values())


def test_a_refusal_of_the_server_names_field_and_command() -> None:
    config = {"sources": ["a.png"], "model": "a/clip"}
    with pytest.raises(ValidationError, match=r"config\.prompt.*embed does not have prompt"):
        validate({"config": {**config, "prompt": "Why?"}}, schema(), raise_on_error=True)
    with pytest.raises(ValidationError, match=r"config\.colour.*embed does not have this field"):
        validate({"config": {**config, "colour": "red"}}, schema(), raise_on_error=True)


@pytest.mark.parametrize(
    ("flow", "config"),
    [
        (embed_media, EmbedConfig(sources=("a.png",), model="a/clip")),
        (index_folder, IndexConfig(sources=("a.png",), model="a/clip")),
        (label_images, LabelConfig(sources=("a.png",), model="a/clip", labels="cat")),
        (rebuild_features, RebuildConfig(sources=("a.mp4",), model="demo")),
        (caption_videos, CaptionConfig(sources=("a.mp4",))),
    ],
    ids=["embed", "index", "label", "rebuild", "caption"],
)
def test_parameters_recorded_with_the_default_of_every_field_are_taken(
    flow: "Flow[..., Any]", config: CaptionConfig
) -> None:
    recorded = {"config": json.loads(json.dumps(asdict(config)))}
    assert len(recorded["config"]) >= 53
    validate(recorded, flow.parameters.model_dump(), raise_on_error=True)
    assert flow.validate_parameters(recorded)["config"] == config


@pytest.mark.parametrize(
    ("flow", "command", "name", "value"),
    [
        (embed_media, "embed", "prompt", "Why?"),
        (index_folder, "index build", "max_new_tokens", 64),
        (label_images, "label", "adapter", "lora"),
        (rebuild_features, "cache rebuild", "out", "elsewhere"),
        (caption_videos, "caption", "tiles", "2"),
    ],
    ids=["embed", "index", "label", "rebuild", "caption"],
)
def test_a_worker_refuses_fields_that_the_command_does_not_have(
    flow: "Flow[..., Any]", command: str, name: str, value: object
) -> None:
    config = {"sources": ["a.png"], "model": "a/clip"}
    config |= {"labels": "cat"} if command == "label" else {}
    with pytest.raises(UsageError, match=f"`penstock {command}` does not have `{name}`"):
        flow.validate_parameters({"config": {**config, name: value}})


def test_its_runs_are_started_again_when_they_crash() -> None:
    assert embed_media.name in SWEPT


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run_flow(config: EmbedConfig) -> tuple[Any, dict[str, Any]]:
    """The state that a flow run ends in, and what its artifacts hold."""
    state = embed_media(config, return_state=True)
    with get_client(sync_client=True) as client:
        found = [
            artifact
            for artifact in client.read_artifacts()
            if artifact.flow_run_id == state.state_details.flow_run_id
        ]
    return state, {str(artifact.key): artifact.data for artifact in found}


@pytest.mark.slow
def test_a_flow_makes_the_vectors_of_the_plain_command_and_makes_none_twice(
    server: None, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    sources, model = write_pictures(tmp_path / "pictures"), save_clip(tmp_path / "clip")
    assert embed(sources, model, tmp_path / "plain", "--quiet") == 0
    (sources / "bad.png").write_text("no picture")
    config = EmbedConfig(
        sources=(str(sources),),
        model=str(model),
        out=str(tmp_path / "flow" / "out"),
        store=str(tmp_path / "flow" / "store"),
    )
    state, artifacts = run_flow(config)
    assert state.is_completed() and f"{len(SIZES)} vectors" in state.message
    assert "1 of 7 files failed" in state.message
    assert vectors(tmp_path / "flow").tobytes() == vectors(tmp_path / "plain").tobytes()
    assert set(artifacts) == {
        "penstock-frames", "penstock-embed", "penstock-embeddings", "penstock-run",
    }  # fmt: skip
    assert artifacts["penstock-embed"] == 100
    assert [row["file"] for row in json.loads(artifacts["penstock-embeddings"])] == ["bad.png"]
    assert str(tmp_path / "flow" / "out" / "embeddings.npy") in artifacts["penstock-run"]

    (sources / "bad.png").unlink()
    state, artifacts = run_flow(config)
    assert state.is_completed() and "penstock-embed" not in artifacts
    (row,) = json.loads(artifacts["penstock-embeddings"])
    assert (row["files"], row["vectors"]) == (6, 6)


@pytest.mark.slow
def test_a_flow_of_nothing_that_can_be_used_fails_and_says_what_to_read(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    model = save_clip(tmp_path / "clip")
    config = EmbedConfig(sources=(str(bad),), model=str(model), out=str(tmp_path / "out"))
    state, _ = run_flow(config)
    assert state.is_failed() and "failures.jsonl" in state.message
    state = embed_media(asdict(config) | {"prompt": "What is it?"}, return_state=True)
    assert state.is_failed() and "`penstock embed` does not have `prompt`" in str(state.message)
    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(config)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message
