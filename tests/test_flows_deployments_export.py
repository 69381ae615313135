"""The flow that exports a model: its parameters, and runs that are those of the plain command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import UsageError
from flows.deployments.export import export_model
from flows.deployments.sweep import SWEPT
from flows.job.export_asked import GROUP, SAMPLES, ExportAsked
from flows.job.export_config import ExportConfig
from flows.results.run_read import load_record
from stages.export.parity import PARITY

GOOD = {"model": "demo", "to": "nf4", "out": "there"}


@pytest.mark.parametrize(
    "config",
    [
        {"to": "nf4", "out": "there"},
        {**GOOD, "to": "nf3"},
        {**GOOD, "out": ""},
        {**GOOD, "model": ""},
        {**GOOD, "half": "left"},
        {**GOOD, "group": 48},
        {**GOOD, "samples": 1},
        {**GOOD, "memory": 0},
        {**GOOD, "memory": "8GiB"},
        {**GOOD, "calibrate": "a.mp4"},
        {**GOOD, "chunk": 3.0},
    ],
    ids=json.dumps,
)
def test_the_server_refuses_bad_parameters_before_a_run(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate({"config": config}, export_model.parameters.model_dump(), raise_on_error=True)


def test_every_field_of_the_form_says_what_it_is() -> None:
    fields = export_model.parameters.model_dump()["definitions"]["ExportConfig"]["properties"]
    assert set(fields) == set(ExportConfig.__dataclass_fields__)
    assert all(field["description"] for field in fields.values())
    assert export_model.name in SWEPT


def test_what_is_left_out_has_the_defaults_of_the_command() -> None:
    validate({"config": GOOD}, export_model.parameters.model_dump(), raise_on_error=True)
    taken = export_model.validate_parameters({"config": GOOD})["config"]
    assert taken == ExportConfig(model="demo", to="nf4", out="there")
    asked = ExportAsked(kind="nf4", folder=Path("there").absolute(), samples=SAMPLES, group=GROUP)
    assert taken.asked() == asked
    assert taken.captioning(("clips",)).sources == ("clips",)


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
        ExportConfig(**{**GOOD, **more})
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run_flow(config: ExportConfig) -> tuple[Any, dict[str, Any]]:
    """The state that a flow run ends in, and what its artifacts hold."""
    state = export_model(config, return_state=True)
    with get_client(sync_client=True) as client:
        found = [
            artifact
            for artifact in client.read_artifacts()
            if artifact.flow_run_id == state.state_details.flow_run_id
        ]
    return state, {str(artifact.key): artifact.data for artifact in found}


@pytest.mark.slow
def test_a_flow_exports_what_passes_and_fails_with_the_figures_of_what_does_not(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    good = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "good"), samples=12, store=store)
    state, artifacts = run_flow(good)
    assert state.is_completed(), state.message
    assert "% of captions the same" in state.message
    assert (tmp_path / "good" / "config.json").exists()
    parity = json.loads((tmp_path / "good" / PARITY).read_text())
    assert parity["passed"]
    assert set(artifacts) == {
        "penstock-frames", "penstock-encode", "penstock-decode", "penstock-export",
        "penstock-judge", "penstock-checkpoint", "penstock-run",
    }  # fmt: skip
    (row,) = json.loads(artifacts["penstock-checkpoint"])
    assert (row["taken"], row["text.captions"]) == (True, 12)
    for name in ("native", "exported"):
        record = load_record(tmp_path / "good" / "parity" / name)
        assert record["state"] == "done" and record["prefect"]

    state, artifacts = run_flow(good)
    assert state.is_completed() and "there before" in state.message
    assert "penstock-judge" not in artifacts

    few = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "few"), samples=2, store=store)
    state, artifacts = run_flow(few)
    assert state.is_failed() and state.name == "Failed"  # the sweep leaves it alone
    assert "frames were seen (≥ 64)" in state.message and "\n" not in state.message
    assert str(tmp_path / "few" / "rejected") in state.message
    (row,) = json.loads(artifacts["penstock-checkpoint"])
    assert not row["taken"] and "frames were seen" in row["missed"]
    assert not (tmp_path / "few" / "config.json").exists()

    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(few)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message
