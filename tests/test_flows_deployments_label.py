"""The flows that give labels and that fill an index: their parameters, and runs that are those of
the plain commands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import UsageError
from artifacts.index.manifest import read_manifest
from flows.cli.main import main
from flows.deployments.index import index_folder
from flows.deployments.label import label_images
from flows.deployments.sweep import SWEPT
from flows.job.command_config import COMMANDS, IndexConfig
from flows.job.config import INDEX, PICTURES_A_BATCH
from flows.job.label_config import TOP, LabelConfig
from tests.support.dual_encoders import save_clip
from tests.support.embedding import SIZES, write_pictures

GOOD = {"sources": ["a.png"], "model": "a/clip", "labels": "cat,dog"}


@pytest.mark.parametrize(
    "config",
    [
        {**GOOD, "labels": " "},
        {"sources": ["a.png"], "model": "a/clip"},
        {**GOOD, "format": ["webdataset"]},
        {**GOOD, "threshold": 2},
        {**GOOD, "threshold": "auto"},
        {**GOOD, "top": 0},
        {**GOOD, "colour": "red"},
        {**GOOD, "fps": 0},
        {**GOOD, "summary": True},
    ],
    ids=json.dumps,
)
def test_the_server_refuses_bad_parameters_before_a_run(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate({"config": config}, label_images.parameters.model_dump(), raise_on_error=True)


@pytest.mark.parametrize(
    ("flow", "kind"), [(label_images, LabelConfig), (index_folder, IndexConfig)]
)
def test_every_field_of_the_form_says_what_it_is(flow: "Flow[..., Any]", kind: Any) -> None:
    schema = flow.parameters.model_dump()
    fields = schema["definitions"][kind.__name__]["properties"]
    assert set(fields) == COMMANDS[kind.command]
    assert all(field["description"] for field in fields.values())
    assert fields["batch_size"]["description"] == "Pictures a batch."
    assert flow.name in SWEPT


def test_what_is_left_out_has_the_defaults_of_the_commands() -> None:
    schema = label_images.parameters.model_dump()
    validate({"config": GOOD}, schema, raise_on_error=True)
    taken = label_images.validate_parameters({"config": GOOD})["config"]
    assert taken == LabelConfig(sources=("a.png",), model="a/clip", labels="cat,dog")
    assert (taken.batch_size, taken.top, taken.threshold) == (PICTURES_A_BATCH, TOP, None)
    plain = {"sources": ["a.png"], "model": "a/clip"}
    assert index_folder.validate_parameters({"config": plain})["config"].out == INDEX


def test_formats_that_labels_have_none_of_are_refused_on_the_worker_too() -> None:
    with pytest.raises(UsageError, match="webdataset is not known for labels"):
        LabelConfig(sources=("a",), model="a/clip", labels="a", format=("webdataset",))


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run_flow(flow: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The state that a flow run ends in, and what its artifacts hold."""
    state = flow(config, return_state=True)
    with get_client(sync_client=True) as client:
        found = [
            artifact
            for artifact in client.read_artifacts()
            if artifact.flow_run_id == state.state_details.flow_run_id
        ]
    return state, {str(artifact.key): artifact.data for artifact in found}


@pytest.mark.slow
def test_flows_give_the_labels_of_the_command_and_index_the_same_vectors(
    server: None, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    sources, model = write_pictures(tmp_path / "pictures"), save_clip(tmp_path / "clip")
    (tmp_path / "templates.txt").write_text("{} in a photo\n")
    asked = {"labels": "cat,sky,green", "templates": str(tmp_path / "templates.txt")}
    plain, flow = tmp_path / "plain", tmp_path / "flow"
    where = ["--store", str(plain / "store"), "--out", str(plain / "out"), "--quiet"]
    where += [option for name, value in asked.items() for option in (f"--{name}", value)]
    assert main(["label", str(sources), "--model", str(model), *where]) == 0

    place = {"sources": (str(sources),), "model": str(model), "store": str(flow / "store")}
    config = LabelConfig(**place, **asked, out=str(flow / "out"))  # type: ignore[arg-type]
    state, artifacts = run_flow(label_images, config)
    assert state.is_completed() and "of 6 given" in state.message
    for name in ("labels.jsonl", "label_report.json"):
        ours = (flow / "out" / name).read_bytes()
        assert ours == (plain / "out" / name).read_bytes(), name
    assert set(artifacts) == {
        "penstock-frames", "penstock-embed", "penstock-embed-texts", "penstock-labels",
        "penstock-label-counts", "penstock-run",
    }  # fmt: skip
    rows = json.loads(artifacts["penstock-label-counts"])
    assert {row["label"] for row in rows} == {"cat", "sky", "green"}
    assert all(-1 < row["median"] < 1 for row in rows)
    assert rows[0]["given to"] == max(row["given to"] for row in rows) > 0
    (row,) = json.loads(artifacts["penstock-labels"])
    assert (row["files"], row["pictures"]) == (6, 6)
    assert str(flow / "out" / "labels.jsonl") in artifacts["penstock-run"]
    assert artifacts["penstock-run"].count("![](data:image/jpeg;base64,") == len(SIZES)

    indexing = IndexConfig(**place, out=str(flow / "index"))  # type: ignore[arg-type]
    state, artifacts = run_flow(index_folder, indexing)
    assert state.is_completed() and "6 of them new" in state.message
    assert read_manifest(flow / "index").live_rows == len(SIZES)
    (row,) = json.loads(artifacts["penstock-index"])
    assert (row["rows"], row["new"], row["folder"]) == (6, 6, str(flow / "index"))
    assert "penstock-embed" not in artifacts  # what was labelled is embedded
    state, artifacts = run_flow(index_folder, indexing)
    assert state.is_completed() and "0 of them new" in state.message
