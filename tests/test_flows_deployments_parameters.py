"""The parameters of the flows: what a server refuses before a run, what its form says, and which
defaults a run has; what a worker allows them: where runs write, whose servers they use, and whether
they run foreign code."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.endpoints import LISTED
from artifacts.errors import UsageError
from flows.deployments.caption import caption_videos
from flows.deployments.commands import (
    embed_media,
    export_model,
    index_folder,
    label_images,
    rebuild_features,
    tune_captions,
)
from flows.deployments.config_checks import REMOTE_CODE, VARIABLE, confine
from flows.deployments.sweep import sweep_crashed
from flows.options.commands import CaptionConfig, RebuildConfig
from flows.options.export_config import ExportConfig
from flows.options.training import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig
from tests.support.pipeline import ROOT

CLIP = {"sources": ["a.mp4"]}
EMBED = {"sources": ["a.png"], "model": "a/clip"}
LABEL = {**EMBED, "labels": "cat,dog"}
EXPORT = {"model": "demo", "to": "nf4", "out": "there"}
TUNE: dict[str, Any] = {"data": "captions.jsonl", "model": "demo", "out": "there"}
ODD_CLIPS: list[dict[str, Any]] = [
    *({"fsp": 2}, {"fps": 0}, {"chunk": "long"}, {"batch_size": 1.5}, {"limit": -1}),
    *({"memory": "8 apples"}, {"format": ["docx"]}, {"prompt": " "}, {"out": ""}, {"tiles": "2"}),
]
ODD_LABELS: list[dict[str, Any]] = [{"format": ["webdataset"]}, {"threshold": 2}, {"summary": True}]
ODD_EXPORTS: list[dict[str, Any]] = [
    *({"half": "left"}, {"group": 48}, {"samples": 1}, {"calibrate": "a.mp4"}, {"chunk": 3.0}),
]
ODD_TUNES: list[dict[str, Any]] = [{"optimizer": "sgd"}, {"validate": 1}, {"full": True}]
BAD: list[tuple[Any, dict[str, Any]]] = [
    (caption_videos, {}),
    (caption_videos, {"sources": []}),
    (caption_videos, {"sources": "a.mp4"}),
    *((caption_videos, CLIP | odd) for odd in ODD_CLIPS),
    *((embed_media, given) for given in ({"sources": ["a.png"]}, {**EMBED, "precision": "fp12"})),
    *((label_images, given) for given in (EMBED, *(LABEL | odd for odd in ODD_LABELS))),
    *((export_model, EXPORT | odd) for odd in ODD_EXPORTS),
    *((tune_captions, TUNE | odd) for odd in ODD_TUNES),
]


def check(flow: Any, config: dict[str, Any]) -> None:
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


def test_a_refusal_of_the_server_names_the_field() -> None:
    with pytest.raises(ValidationError, match=r"config.*'prompt' was unexpected"):
        check(embed_media, {**EMBED, "prompt": "Why?"})


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


IMAGES: dict[str, Any] = {"sources": ("a.png",), "model": "a/clip"}
COMMANDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "embed": (embed_media, EmbedConfig(**IMAGES), {"prompt": "Why?"}),
    "index build": (index_folder, IndexConfig(**IMAGES), {"max_new_tokens": 64}),
    "label": (label_images, LabelConfig(**IMAGES, labels="cat"), {"adapter": "lora"}),
    "cache rebuild": (rebuild_features, RebuildConfig(**IMAGES), {"out": "elsewhere"}),
    "caption": (caption_videos, CaptionConfig(sources=("a.mp4",)), {"tiles": "2"}),
}
"""Command → its flow, what it is given, and what it does not have."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_worker_refuses_fields_that_the_command_does_not_have(command: str) -> None:
    flow, _, odd = COMMANDS[command]
    config = {**(LABEL if command == "label" else EMBED), **odd}
    with pytest.raises(UsageError, match=f"`penstock {command}` does not have `{next(iter(odd))}`"):
        flow.validate_parameters({"config": config})


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


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run into the only folder that the worker allows."""
    root = tmp_path / "allowed"
    root.mkdir()
    monkeypatch.setenv(VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)
    return CaptionConfig(sources=("a.mp4",), out=str(root / "new" / "run"))


def test_folders_below_the_root_are_taken_or_made(config: CaptionConfig, tmp_path: Path) -> None:
    confine(config)
    confine(replace(config, out="allowed/x/../y", store=str(tmp_path / "allowed")))
    confine(replace(config, store=f"file://{tmp_path}/allowed/store"))


AWAY = ("/etc", "allowed/../elsewhere", "allowed-too", "~/captions", "allowed/link")
ADDRESSES = ("file://~", "file:////etc")
ANOTHER_READING = ("file:///../..{0}/allowed/x", "file:{0}/allowed/x", "{0}/new/../allowed/x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("out", text) for text in (*AWAY, *ANOTHER_READING)),
        *(("store", text) for text in (*AWAY, *ADDRESSES)),
    ],
)
def test_no_parameter_leads_out_of_it(
    config: CaptionConfig, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "allowed" / "link").symlink_to(tmp_path)
    given: dict[str, Any] = {name: text.format(tmp_path)}
    with pytest.raises(UsageError, match=f"`{name}` leads to .*{VARIABLE}"):
        confine(replace(config, **given))
    assert [path.name for path in tmp_path.iterdir()] == ["allowed"]


def test_an_address_without_a_path_is_refused(config: CaptionConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^empty store"):
        confine(replace(config, store="file://"))
    assert [path.name for path in tmp_path.iterdir()] == ["allowed"]


@pytest.mark.parametrize("name", ["out", "store"])
@pytest.mark.parametrize("value", ["a\0b", "~nobody-of-this-name/x", "\ud800"])
def test_what_is_no_path_fails_in_one_line(config: CaptionConfig, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}.* not (a valid path|valid UTF-8)") as caught:
        confine(replace(config, out=value) if name == "out" else replace(config, store=value))
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_root_that_is_not_there_yet_can_be_made(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "later" / "allowed"))
    confine(replace(config, out="later/allowed/x"))
    with pytest.raises(UsageError, match="later/else, which is not in"):
        confine(replace(config, out="later/else/../allowed/x"))


def test_there_can_be_several_roots_and_a_root_can_be_a_link(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/allowed:{tmp_path}/store")
    confine(replace(config, store=str(tmp_path / "disk" / "here")))


def test_code_of_a_checkpoint_runs_only_if_the_worker_allows_it_and_outputs_are_anywhere(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = replace(config, trust_remote_code=True)
    monkeypatch.setenv(REMOTE_CODE, "1")
    with pytest.raises(UsageError, match=f"trust_remote_code.*{VARIABLE}"):
        confine(trusting)
    monkeypatch.delenv(VARIABLE)
    confine(trusting)
    monkeypatch.delenv(REMOTE_CODE)
    for value in (None, "", "0", "true"):
        if value is not None:
            monkeypatch.setenv(REMOTE_CODE, value)
        for out in (True, False):
            with pytest.raises(UsageError, match=f"trust_remote_code.*{REMOTE_CODE}=1"):
                confine(trusting, out=out)


def test_without_the_variable_and_without_outputs_nothing_is_confined(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    confine(replace(config, out="/etc"), out=False)
    beside = replace(config, beside=True, format=("txt",))
    with pytest.raises(UsageError, match="beside"):
        confine(beside)
    monkeypatch.delenv(VARIABLE)
    confine(replace(beside, out="/etc", store="/"))


def test_a_deployment_may_use_listed_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ("http://127.0.0.1:8000/v1/",)
    config = CaptionConfig(sources=("a",), model="openai:m", endpoint=address, out="out")
    with pytest.raises(UsageError, match=r"127.0.0.1:8000/v1 is not allowed on this worker"):
        confine(config)
    monkeypatch.setenv(LISTED, "https://models.example/v1, http://127.0.0.1:8000/v1")
    confine(config)
    with pytest.raises(UsageError, match="not allowed"):
        confine(replace(config, endpoint=("http://127.0.0.1:8001/v1",)))


def test_the_job_template_for_kubernetes_fills_all_of_its_places() -> None:
    from jsonschema import Draft202012Validator

    path = ROOT / "docs" / "recipes" / "kubernetes.json"
    template = json.loads(path.read_text(encoding="utf-8"))
    variables = template["variables"]
    Draft202012Validator.check_schema(variables)
    properties = variables["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    Draft202012Validator(variables).validate(defaults)
    places = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert places == properties.keys()
