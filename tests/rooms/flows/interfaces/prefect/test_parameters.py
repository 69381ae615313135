"""The parameters of the flows: what a server refuses before a run, what its form says, and which
defaults a run has; what a worker allows them: where runs write, whose servers they use, and whether
they run foreign code."""

import argparse
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.store import open_store
from artifacts.remote.endpoints import LISTED
from flows.commands.export.options import ExportConfig
from flows.commands.shared.arguments import config_from
from flows.commands.shared.options import add_options
from flows.core.job.prepare import out_folder
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.store import MemoryOptions
from flows.core.options.training import TuneConfig
from flows.core.options.vectors import EmbedConfig, IndexConfig, LabelConfig
from flows.interfaces.prefect.commands import (
    caption_videos,
    embed_media,
    export_model,
    index_folder,
    label_images,
    rebuild_features,
    tune_captions,
)
from flows.interfaces.prefect.confinement import REMOTE_CODE, VARIABLE, confine
from flows.interfaces.prefect.sweep import sweep_crashed
from tests.support.pipeline import ROOT

CLIP = {"sources": ["a.mp4"]}
EMBED = {"sources": ["a.png"], "model": "a/clip"}
LABEL = {**EMBED, "labels": "cat,dog"}
EXPORT = {"model": "demo", "to": "nf4", "out": "there"}
TUNE: dict[str, Any] = {"data": "captions.jsonl", "model": "demo", "out": "there"}
ODD_CLIPS: list[tuple[str, Any]] = [
    *(("fsp", 2), ("fps", 0), ("chunk", "long"), ("batch_size", 1.5), ("limit", -1)),
    *(("memory", "8 apples"), ("max_store", "sixty"), ("format", ["docx"]), ("prompt", " ")),
    *(("out", ""), ("tiles", "2"), ("sources", []), ("sources", "a.mp4")),
]
ODD_LABELS = [("threshold", "often"), ("format", ["webdataset"]), ("threshold", 2)]
ODD_EXPORTS = [("half", "left"), ("group", 48), ("samples", 1), ("chunk", 3.0)]
ODD_TUNES = [("optimizer", "sgd"), ("validate", 1), ("full", True)]
BAD: list[tuple[Any, dict[str, Any]]] = [
    *((caption_videos, {}), (embed_media, {"sources": ["a.png"]})),
    *((caption_videos, {**CLIP, name: odd}) for name, odd in ODD_CLIPS),
    (embed_media, {**EMBED, "precision": "fp12"}),
    *((label_images, {**LABEL, "summary": True}), (export_model, {**EXPORT, "calibrate": "a.mp4"})),
    *((label_images, {**LABEL, name: odd}) for name, odd in ODD_LABELS),
    *((export_model, {**EXPORT, name: odd}) for name, odd in ODD_EXPORTS),
    *((tune_captions, {**TUNE, name: odd}) for name, odd in ODD_TUNES),
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


def taken(flow: Any, config: dict[str, Any]) -> Any:
    """What a flow makes of a configuration that the server takes."""
    check(flow, config)
    return flow.validate_parameters({"config": config})["config"]


def test_what_is_left_out_has_the_defaults_of_the_command() -> None:
    given = {**CLIP, "fps": 0.5, "frames": None, "limit": 3, "format": ["txt"]}
    clips = CaptionConfig(sources=("a.mp4",), fps=0.5, limit=3, format=("txt",))
    assert taken(caption_videos, given) == clips
    assert taken(embed_media, EMBED) == EmbedConfig(sources=("a.png",), model="a/clip")
    labels = taken(label_images, LABEL)
    assert labels == LabelConfig(sources=("a.png",), model="a/clip", labels="cat,dog")
    assert taken(index_folder, EMBED) == IndexConfig(sources=("a.png",), model="a/clip")
    assert taken(tune_captions, TUNE) == TuneConfig(**TUNE)
    assert taken(export_model, EXPORT) == ExportConfig(model="demo", to="nf4", out="there")


@pytest.mark.in_turn
@pytest.mark.parametrize("text", ["60MB", "4GiB", "8g", "1.5 TiB", "60000000", "0.5gb"])
def test_a_size_may_be_the_text_of_the_command_line(text: str) -> None:
    memory = config_from(parse_memory(text), MemoryOptions).memory
    for flow, given in ((caption_videos, CLIP), (tune_captions, TUNE), (export_model, EXPORT)):
        assert taken(flow, {**given, "memory": text}).memory == memory


@pytest.mark.parametrize("given", ["sixty", "60", 60, "-5MB", "60 MBs"])
def test_a_size_is_refused_with_the_words_of_the_command_line(given: Any) -> None:
    with pytest.raises(UsageError) as plain:
        config_from(parse_memory(str(given)), MemoryOptions)
    with pytest.raises(UsageError) as caught:
        caption_videos.validate_parameters({"config": {**CLIP, "memory": given}})
    assert str(caught.value) == str(plain.value)


def parse_memory(text: str) -> argparse.Namespace:
    """Return the words of a command line as `penstock caption` parses them."""
    parser = argparse.ArgumentParser()
    add_options(parser, MemoryOptions)
    return parser.parse_args([f"--memory={text}"])


def test_a_threshold_may_be_the_text_of_the_command_line() -> None:
    for given, threshold in (("auto", None), ("0.25", 0.25), (1, 1.0), (0.3, 0.3)):
        assert taken(label_images, {**LABEL, "threshold": given}).threshold == threshold


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
    (root := tmp_path / "allowed").mkdir()
    monkeypatch.setenv(VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)
    return CaptionConfig(sources=("a.mp4",), out=str(root / "new" / "run"))


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
        for given in (trusting, RebuildConfig(sources=("a.mp4",), trust_remote_code=True)):
            with pytest.raises(UsageError, match=f"trust_remote_code.*{REMOTE_CODE}=1"):
                confine(given)


def test_without_the_variable_and_without_outputs_nothing_is_confined(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    confine(RebuildConfig(sources=("a.mp4",)))
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


# `{world}` holds `allowed`, which is `{root}`, and `else`, `home` and `clone`, where one works.
# `allowed` holds the links `link` and `chain` to `else`, `back` to itself and `dangling` to
# nothing; `{world}/way` is a link to `{world}`.
INSIDE = [
    *("{root}", "{root}/x", "{root}/x/", "{root}//x", "{root}/x/../y", "{root}/new/deep/../../y"),
    *("{root}/..x", "{root}/...", "{root}/ ", "{root}/$HOME", "{root}/%2e%2e/%2e%2e/x"),
    *("{root}/..\\..\\x", "{root}/\uff0e\uff0e/\uff0e\uff0e/x", "{root}/\u2025/x"),
    *("{root}/" + "d/" * 60, "{root}/back/x", "../allowed/x", "//{root}/x", "~/../allowed/x"),
    "{world}/way/allowed/x",
]
OUTSIDE = [
    *("/", "/etc/penstock", "{world}", "{world}/allowed-too", "{world}/allowed too"),
    *("{world}/Allowed", "{world}/allowed ", "{world}/\uff41llowed/x", "{root}/.."),
    *("{root}/../else", "{root}/../allowed/../else", "{root}//..//else", "{root}/x/../../else"),
    *("{root}/new/new/../../../else/x", "{root}/link", "{root}/link/../x"),
    *("{root}/link/../../allowed-too", "{root}/chain/x", "{root}/dangling", "{root}/back/../x"),
    *("{world}/new/../allowed/x", "{world}/else/new/../../allowed/x", "file://{root}/x"),
    *("file:///../..{root}/x", "file:///{root}/x", "file:{root}/x", "file://localhost{root}/x"),
    *("s3://{root}/x", "x", ".", "..", "-", " ", "~/x", "~nobody-of-this-name/x", "$HOME/x"),
    *("${{HOME}}/../allowed/x", "{root}:/x", " {root}/x", "\ufeff{root}/x", "\\{root}\\x"),
    *("{root}\0/../../else", "{root}/\udc80\ud800", "/proc/self/cwd/x"),
    *("/".join(("/proc/self", "root", "etc")), "/dev/null", "{world}/else/" + "d" * 300),
    *("file://", "file://.", "file://~", "file://else", "file:///", "file://{root}/../x"),
]
ALSO_FOR_STORE = [
    f"file://{place}/x" for place in ("{root}", "/{root}", "/../..{root}", "../allowed")
]
"""A store may be an address of a file, and is opened where that leads."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `allowed`, links in and out of it, and a worker that works beside it."""
    world = tmp_path / "world"
    for name in ("allowed", "else", "clone", "home"):
        (world / name).mkdir(parents=True)
    (world / "allowed" / "link").symlink_to(world / "else")
    (world / "allowed" / "chain").symlink_to("link")
    (world / "allowed" / "back").symlink_to(".")
    (world / "allowed" / "dangling").symlink_to(world / "not-there")
    (world / "way").symlink_to(world)
    monkeypatch.setenv(VARIABLE, str(world / "allowed"))
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.chdir(world / "clone")
    return world


def spelled(text: str, world: Path) -> str:
    return text.format(root=world / "allowed", world=world)


def written(config: CaptionConfig, world: Path) -> None:
    """What a run makes first, where it makes it; it must lie inside, and nothing elsewhere."""
    root = str(world / "allowed")
    before = outside(world)
    out, store = out_folder(config), open_store(config.store_url)
    for folder in (out, store.local):
        real = os.path.realpath(folder)
        assert real == root or real.startswith(f"{root}/"), (config.out, config.store, real)
    with suppress(OSError, EnvironmentFault):  # where it leads by a broken link, it cannot be made
        out.mkdir(parents=True, exist_ok=True)
        (out / "captions.jsonl").write_bytes(b"")
        store.check_writable()
        store.put_if_absent("features/one", [b"one"])
    assert outside(world) == before, (config.out, config.store)


def outside(world: Path) -> set[str]:
    """Everything that is there but not in the folder."""
    found: set[str] = set()
    for folder, folders, files in os.walk(world):
        if folder == str(world):
            folders.remove("allowed")
        found.update(os.path.join(folder, name) for name in (*folders, *files))
    return found


def of(world: Path, **given: str) -> CaptionConfig:
    inside = str(world / "allowed" / "plain")
    return CaptionConfig(sources=("a.mp4",), **{"out": inside, "store": inside, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text"), [*product(("out", "store"), INSIDE), *product(["store"], ALSO_FOR_STORE)]
)
def test_what_leads_inside_is_let_through_and_lies_there(world: Path, name: str, text: str) -> None:
    config = of(world, **{name: spelled(text, world)})
    confine(config)
    written(config, world)


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_leads_outside_is_refused_in_one_line(world: Path, text: str) -> None:
    before = outside(world)
    for name in ("out",) if text in ALSO_FOR_STORE else ("out", "store"):
        with pytest.raises(UsageError):
            confine(of(world, **{name: spelled(text, world)}))
    assert outside(world) == before


@pytest.mark.parametrize(
    "root", ["{world}/else:{world}/allowed", "{world}/way/allowed", "../allowed"]
)
def test_roots_are_where_they_lead(world: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv(VARIABLE, spelled(root, world))
    confine(of(world))
    with pytest.raises(UsageError):
        confine(of(world, out=str(world / "home")))


def test_a_store_that_is_left_out_is_the_worker_s_own(world: Path) -> None:
    config = replace(of(world), store="")
    confine(config)
    assert open_store(config.store_url).url == os.environ["PENSTOCK_STORE"]
