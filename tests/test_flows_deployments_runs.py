"""Flow runs on a server: the states that they end in, and the tables and pages that they leave."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Artifact

import flows.running.sequence
import penstock_demo
from artifacts.errors import UsageError
from flows.deployments.caption import caption_videos
from flows.deployments.runs import MOST_LETTERS
from flows.job.config import CaptionConfig
from tests.support.pipeline import read_lines

CLIPS = [str(penstock_demo.CLIPS / name) for name in ("clip-01.mp4", "clip-02.mp4")]
SECRET = "not-to-be-told-4711"


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    # Not above: it imports the server, and every test run collects this file.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run_flow(tmp_path: Path, sources: list[str]) -> tuple[Any, dict[str, Artifact]]:
    """The state that a flow run ends in, and the artifacts that it leaves."""
    config = CaptionConfig(
        sources=tuple(sources), model="demo", out=str(tmp_path / "out"), batch_size=1
    )
    state = caption_videos(config, return_state=True)
    with get_client(sync_client=True) as client:
        mine = [
            artifact
            for artifact in client.read_artifacts()
            if artifact.flow_run_id == state.state_details.flow_run_id
        ]
    return state, {str(artifact.key): artifact for artifact in mine}


@pytest.mark.slow
def test_a_flow_with_a_bad_file_completes_and_says_so(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "PREFECT_SERVER_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    bad = tmp_path / "<b>bad|\n.mp4"
    bad.write_text("no video")
    state, artifacts = run_flow(tmp_path, [CLIPS[0], str(bad), f"https://me:{SECRET}@host/a.mp4"])
    assert state.is_completed()
    assert "2 of 3 files failed" in state.message
    assert set(artifacts) == {
        "penstock-frames", "penstock-encode", "penstock-decode", "penstock-captions",
        "penstock-run",
    }  # fmt: skip
    assert artifacts["penstock-decode"].data == 100
    rows = json.loads(str(artifacts["penstock-captions"].data))
    assert [row["file"] for row in rows] == ["https://host/a.mp4", r"\<b>bad|?.mp4"]
    assert all(row["what to do"] for row in rows)
    page = str(artifacts["penstock-run"].data)
    assert page.startswith("**done**") and str(tmp_path / "out" / "captions.jsonl") in page
    assert r"- \<b>bad|?.mp4: " in page
    (captioned,) = read_lines(tmp_path / "out" / "captions.jsonl")
    said = f"\n\nclip-01.mp4, 0.0 to {captioned['end']:.1f} s\n\n> {captioned['caption']}\n\n"
    assert said in page
    assert page.count("![](data:image/jpeg;base64,") == 1
    assert f"- HTML report: penstock report {tmp_path / 'out'}\n" in page
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(state.state_details.flow_run_id).name
    assert name.lstrip("…") == str(tmp_path / "out")[-MOST_LETTERS:]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["prefect"]["id"] == str(state.state_details.flow_run_id)
    assert SECRET not in page + str(rows) + state.message
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != bad]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_flow_that_would_leave_its_worker_s_folders_fails(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(tmp_path, CLIPS)
    assert state.is_failed()
    assert "`out` leads to" in state.message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.logs_errors
def test_a_flow_that_captions_nothing_fails(server: None, tmp_path: Path) -> None:
    state, artifacts = run_flow(tmp_path, [str(tmp_path / "missing.mp4")])
    assert state.is_failed()
    assert state.message.startswith("nothing to caption")
    assert "\n" not in state.message
    assert "missing.mp4" in str(artifacts["penstock-captions"].data)
    with pytest.raises(UsageError, match="nothing to caption"):
        state.result()


@pytest.mark.slow
@pytest.mark.logs_errors
def test_a_flow_that_an_unknown_error_ends_does_not_say_that_it_is_running(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr(flows.running.sequence, "write_outputs", wrong)
    state, artifacts = run_flow(tmp_path, CLIPS)
    assert state.is_failed()
    assert str(artifacts["penstock-run"].data).startswith("**failed**")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "something nobody thought of")
