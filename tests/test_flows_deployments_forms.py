"""The parameters of the flows: what a server refuses before a run, what its form says, and which
defaults a run has."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import UsageError
from flows.deployments.caption import caption_videos
from flows.deployments.embed import embed_media
from flows.deployments.export import export_model
from flows.deployments.index import index_folder
from flows.deployments.label import label_images
from flows.deployments.rebuild import rebuild_features
from flows.deployments.sweep import sweep_crashed
from flows.deployments.tune import tune_captions
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportConfig
from flows.options.rebuild import RebuildConfig
from flows.options.tune import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig

CLIP = {"sources": ["a.mp4"]}
EMBED = {"sources": ["a.png"], "model": "a/clip"}
LABEL = {**EMBED, "labels": "cat,dog"}
EXPORT = {"model": "demo", "to": "nf4", "out": "there"}
TUNE: dict[str, Any] = {"data": "captions.jsonl", "model": "demo", "out": "there"}
BAD: list[tuple[Any, dict[str, Any]]] = [
    (caption_videos, {}),
    (caption_videos, {"sources": []}),
    (caption_videos, {"sources": "a.mp4"}),
    (caption_videos, {**CLIP, "fsp": 2}),
    (caption_videos, {**CLIP, "fps": 0}),
    (caption_videos, {**CLIP, "chunk": "long"}),
    (caption_videos, {**CLIP, "batch_size": 1.5}),
    (caption_videos, {**CLIP, "limit": -1}),
    (caption_videos, {**CLIP, "memory": "8 apples"}),
    (caption_videos, {**CLIP, "format": ["docx"]}),
    (caption_videos, {**CLIP, "prompt": " "}),
    (caption_videos, {**CLIP, "out": ""}),
    (caption_videos, {**CLIP, "tiles": "2"}),
    (embed_media, {"sources": ["a.png"]}),
    (embed_media, {**EMBED, "precision": "fp12"}),
    (label_images, EMBED),
    (label_images, {**LABEL, "format": ["webdataset"]}),
    (label_images, {**LABEL, "threshold": 2}),
    (label_images, {**LABEL, "summary": True}),
    (export_model, {**EXPORT, "half": "left"}),
    (export_model, {**EXPORT, "group": 48}),
    (export_model, {**EXPORT, "samples": 1}),
    (export_model, {**EXPORT, "calibrate": "a.mp4"}),
    (export_model, {**EXPORT, "chunk": 3.0}),
    (tune_captions, {**TUNE, "optimizer": "sgd"}),
    (tune_captions, {**TUNE, "validate": 1}),
    (tune_captions, {**TUNE, "full": True}),
]


def check(flow: "Flow[..., Any]", config: dict[str, Any]) -> None:
    """Look at a configuration as the server does."""
    validate({"config": config}, flow.parameters.model_dump(), raise_on_error=True)


@pytest.mark.parametrize(("flow", "config"), BAD)
def test_the_server_refuses_bad_parameters_before_a_run(flow: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        check(flow, config)


def test_the_server_refuses_a_bad_sweep() -> None:
    for parameters in ({"max_retries": -1}, {"older_than_seconds": "soon"}):
        with pytest.raises(ValidationError):
            validate(parameters, sweep_crashed.parameters.model_dump(), raise_on_error=True)


def test_the_form_says_images_where_a_command_takes_no_videos() -> None:
    for flow, kind in ((label_images, "LabelConfig"), (index_folder, "IndexConfig")):
        fields = flow.parameters.model_dump()["definitions"][kind]["properties"]
        assert fields["batch_size"]["description"] == "Images per batch."


def test_a_refusal_of_the_server_names_field_and_command() -> None:
    with pytest.raises(ValidationError, match=r"config\.prompt.*embed does not have prompt"):
        check(embed_media, {**EMBED, "prompt": "Why?"})
    with pytest.raises(ValidationError, match=r"config\.colour.*embed does not have this field"):
        check(embed_media, {**EMBED, "colour": "red"})


def test_what_is_left_out_has_the_defaults_of_the_command() -> None:
    def taken(flow: Any, config: dict[str, Any]) -> Any:
        check(flow, config)
        return flow.validate_parameters({"config": config})["config"]

    given = {**CLIP, "fps": 0.5, "frames": None, "limit": 3, "format": ["txt"]}
    clips = CaptionConfig(sources=("a.mp4",), fps=0.5, limit=3, format=("txt",))
    assert taken(caption_videos, given) == clips
    assert taken(embed_media, EMBED) == EmbedConfig(sources=("a.png",), model="a/clip")
    labels = taken(label_images, LABEL)
    assert labels == LabelConfig(sources=("a.png",), model="a/clip", labels="cat,dog")
    assert taken(index_folder, EMBED) == IndexConfig(sources=("a.png",), model="a/clip")
    assert taken(tune_captions, TUNE) == TuneConfig(**TUNE)
    assert taken(export_model, EXPORT) == ExportConfig(model="demo", to="nf4", out="there")


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
def test_recorded_parameters_are_taken(flow: "Flow[..., Any]", config: CaptionConfig) -> None:
    # Earlier versions recorded every field of every command.
    every = {**asdict(CaptionConfig(sources=())), "tiles": "off", **asdict(config)}
    recorded = {"config": json.loads(json.dumps(every))}
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
    config = LABEL if command == "label" else EMBED
    with pytest.raises(UsageError, match=f"`penstock {command}` does not have `{name}`"):
        flow.validate_parameters({"config": {**config, name: value}})


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"calibrate": ("a.mp4",), "calibrate_store": "s"}, "--calibrate-store"),
        ({"calibrate_store": "s", "store": "t"}, "--store"),
        ({"out": "a\0b"}, "--out"),
    ],
)
def test_what_only_the_whole_can_tell_is_refused_by_name(more: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        ExportConfig(**{**EXPORT, **more})
    assert "\n" not in str(caught.value)


def test_what_no_schema_can_say_is_refused_by_the_configuration() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        caption_videos.validate_parameters({"config": {"sources": ["a"], "fps": 1, "frames": 2}})
    with pytest.raises(UsageError, match="unknown --format webdataset"):
        LabelConfig(sources=("a",), model="a/clip", labels="a", format=("webdataset",))
