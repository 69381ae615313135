"""Flow runs on a server: the states that they end in, and the tables and pages that they leave."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

import flows.running.sequence
import penstock_demo
from artifacts.errors import UsageError
from artifacts.index.manifest import read_manifest
from flows.cli.main import main
from flows.deployments.caption import caption_videos
from flows.deployments.embed import embed_media
from flows.deployments.export import export_model
from flows.deployments.index import index_folder
from flows.deployments.label import label_images
from flows.deployments.runs import MOST_LETTERS
from flows.job.command_config import EmbedConfig, IndexConfig
from flows.job.config import CaptionConfig
from flows.job.export_config import ExportConfig
from flows.job.label_config import LabelConfig
from flows.results.run_read import load_record
from stages.export.parity import PARITY
from tests.support.dual_encoders import save_clip
from tests.support.embedding import SIZES, embed, vectors, write_pictures
from tests.support.pipeline import read_lines

CLIPS = [str(penstock_demo.CLIPS / name) for name in ("clip-01.mp4", "clip-02.mp4")]
SECRET = "not-to-be-told-4711"


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    # Not above: it imports the server, and every test run collects this file.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run_flow(flow: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The state that a flow run ends in, and what the artifacts hold that it leaves."""
    state = flow(config, return_state=True)
    with get_client(sync_client=True) as client:
        mine = [
            artifact
            for artifact in client.read_artifacts()
            if artifact.flow_run_id == state.state_details.flow_run_id
        ]
    return state, {str(artifact.key): artifact.data for artifact in mine}


def caption(tmp_path: Path, sources: list[str]) -> tuple[Any, dict[str, Any]]:
    out = str(tmp_path / "out")
    config = CaptionConfig(sources=tuple(sources), model="demo", out=out, batch_size=1)
    return run_flow(caption_videos, config)


@pytest.mark.slow
def test_a_flow_with_a_bad_file_completes_and_says_so(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "PREFECT_SERVER_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    bad = tmp_path / "<b>bad|\n.mp4"
    bad.write_text("no video")
    state, artifacts = caption(tmp_path, [CLIPS[0], str(bad), f"https://me:{SECRET}@host/a.mp4"])
    assert state.is_completed()
    assert "2 of 3 files failed" in state.message
    assert set(artifacts) == {
        "penstock-frames", "penstock-encode", "penstock-decode", "penstock-captions",
        "penstock-run",
    }  # fmt: skip
    assert artifacts["penstock-decode"] == 100
    rows = json.loads(str(artifacts["penstock-captions"]))
    assert [row["file"] for row in rows] == ["https://host/a.mp4", r"\<b>bad|?.mp4"]
    assert all(row["what to do"] for row in rows)
    page = str(artifacts["penstock-run"])
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
    state, _ = caption(tmp_path, CLIPS)
    assert state.is_failed()
    assert "`out` leads to" in state.message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.logs_errors
def test_a_flow_that_captions_nothing_fails(server: None, tmp_path: Path) -> None:
    state, artifacts = caption(tmp_path, [str(tmp_path / "missing.mp4")])
    assert state.is_failed()
    assert state.message.startswith("nothing to caption")
    assert "\n" not in state.message
    assert "missing.mp4" in str(artifacts["penstock-captions"])
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
    state, artifacts = caption(tmp_path, CLIPS)
    assert state.is_failed()
    assert str(artifacts["penstock-run"]).startswith("**failed**")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "something nobody thought of")


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
    state, artifacts = run_flow(embed_media, config)
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
    state, artifacts = run_flow(embed_media, config)
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
    state, _ = run_flow(embed_media, config)
    assert state.is_failed() and "failures.jsonl" in state.message
    state = embed_media(asdict(config) | {"prompt": "What is it?"}, return_state=True)
    assert state.is_failed() and "`penstock embed` does not have `prompt`" in str(state.message)
    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(embed_media, config)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message


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


@pytest.mark.slow
def test_a_flow_exports_what_passes_and_fails_with_the_figures_of_what_does_not(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    good = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "good"), samples=12, store=store)
    state, artifacts = run_flow(export_model, good)
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

    state, artifacts = run_flow(export_model, good)
    assert state.is_completed() and "there before" in state.message
    assert "penstock-judge" not in artifacts

    few = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "few"), samples=2, store=store)
    state, artifacts = run_flow(export_model, few)
    assert state.is_failed() and state.name == "Failed"  # the sweep leaves it alone
    assert "frames were seen (≥ 64)" in state.message and "\n" not in state.message
    assert str(tmp_path / "few" / "rejected") in state.message
    (row,) = json.loads(artifacts["penstock-checkpoint"])
    assert not row["taken"] and "frames were seen" in row["missed"]
    assert not (tmp_path / "few" / "config.json").exists()

    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(export_model, few)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message
