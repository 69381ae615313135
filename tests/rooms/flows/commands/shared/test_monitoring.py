"""Runs that are reported to other programs: `--metrics-file` and `--notify`."""

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from artifacts.disk.files import UMASK
from flows.commands.export.options import ExportConfig
from flows.commands.export.result import Exported
from flows.commands.shared import monitoring
from flows.commands.shared.parser import parse
from flows.core.options.commands import CaptionConfig
from flows.core.options.questions import AskConfig
from flows.core.options.training import LearnConfig, TuneConfig
from flows.core.options.vectors import EmbedConfig, IndexConfig, LabelConfig, SiftConfig
from flows.core.pipelines import EMBED
from flows.interfaces.cli.main import main
from flows.interfaces.studio.roots import Refused, Roots
from flows.interfaces.studio.values import checked
from flows.outputs.record.record_writer import RecordWriter
from stages.export.parity import Parity
from tests.support.commands import begun
from tests.support.loopback import QuietHandler, served, visited_port
from tests.support.pipeline import PENSTOCK

CONFIGS = (
    *(CaptionConfig, AskConfig, LabelConfig, EmbedConfig, IndexConfig, SiftConfig),
    *(TuneConfig, LearnConfig, ExportConfig),
)
Posted = list[tuple[str, str, dict[str, Any]]]
"""Path, Authorization and JSON of each request."""
SECRET = "me:pass%20word"


@contextmanager
def hook(status: int = 204, **headers: str) -> Iterator[tuple[str, Posted]]:
    """Serve an address that takes notifications; yield it, and what was posted."""
    posted: Posted = []

    class Hook(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/json"
            posted.append((self.path, self.headers.get("authorization", ""), json.loads(body)))
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("content-length", "0")
            self.end_headers()

    with served(Hook) as port:
        yield f"http://{SECRET}@127.0.0.1:{port}/hooks/T0?a=b", posted


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (folder := tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = random.Random(number).randbytes(32 * 32 * 3)
        Image.frombytes("RGB", (32, 32), noise).save(folder / f"{number}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def metrics(path: Path) -> dict[str, dict[str, float]]:
    """Return metric → value of its last label → number, as Prometheus' own parser reads them."""
    families = list(text_string_to_metric_families(path.read_text()))
    assert all(family.type == "gauge" and family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    assert all([*sample.labels][:2] == ["command", "out"] for sample in samples)
    numbers: dict[str, dict[str, float]] = {}
    for sample in samples:
        name = sample.name.removeprefix("penstock_run_")
        label = "".join(text for key, text in sample.labels.items() if key in ("state", "stage"))
        numbers.setdefault(name, {})[label] = sample.value
    return numbers


def test_a_run_is_measured_and_posted(pictures: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "prom" / "penstock.prom"
    words = ["sift", str(pictures), "--out", str(out), "--metrics-file", str(file)]
    with hook() as (url, posted):
        assert main([*words, f"--notify={url}"]) == 1
    ((path, authorization, notice),) = posted
    assert (path, authorization) == ("/hooks/T0?a=b", "Basic bWU6cGFzcyB3b3Jk")
    told = {name: notice[name] for name in ("event", "state", "exit_code", "error", "out")}
    expected = {"event": "end", "state": "done", "exit_code": 1, "error": "", "out": str(out)}
    assert told == expected
    assert notice["command"] == f"penstock sift {pictures} --out {out}"
    assert (notice["counts"]["files"], notice["counts"]["files_failed"]) == (4, 1)
    assert notice["seconds"] > 0
    numbers = metrics(file)
    assert numbers["state"] == {"running": 0, "done": 1, "failed": 0, "interrupted": 0}
    assert numbers["files"] == {"": 4} and numbers["files_failed"] == {"": 1}
    assert numbers["rows"] == {"": 3} and numbers["exit_code"] == {"": 1}
    assert numbers["items_done"] == notice["counts"]["done"]
    assert (numbers["items_failed"], numbers["items_pending"]) == ({"sift": 1}, {"sift": 0})
    assert numbers["host_peak_bytes"]["sift"] > 1 << 20
    begin, end = numbers["start_time_seconds"][""], numbers["end_time_seconds"][""]
    assert end - begin == pytest.approx(notice["seconds"], abs=1e-3)
    assert file.stat().st_mode & 0o777 == 0o666 & ~UMASK
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"hooks" not in written and b"penstock.prom" not in written


def test_the_metrics_follow_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "METRICS_SECONDS", 0.05)
    file, out = tmp_path / "penstock.prom", tmp_path / "out"
    given = parse(["embed", "x", "--model", "m", "--out", str(out), "--metrics-file", str(file)])
    monitor = monitoring.Monitor.of(given)
    monitor.begin()
    assert metrics(file).keys() == {"state", "start_time_seconds"}
    writer = RecordWriter(out, EMBED)
    writer.record.plan.chunks = 10
    for stage, seconds in zip(writer.record.stages, (2.0, 20.0), strict=True):
        stage.items, stage.total, stage.seconds = 4, 10, seconds
    deadline = time.monotonic() + 60
    while "seconds_left" not in metrics(file):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    numbers = metrics(file)
    assert numbers["state"]["running"] == 1
    assert numbers["items_pending"] == {"frames": 6, "embed": 6}
    assert numbers["seconds_left"][""] == pytest.approx(6 / (4 / 2) + 6 / (4 / 20))
    RecordWriter(tmp_path / "elsewhere")
    assert monitor.record is writer.record
    writer.finish("done")
    monitor.end(0)
    numbers = metrics(file)
    assert numbers["state"]["done"] == 1 and "seconds_left" not in numbers


def test_a_failed_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "penstock.prom"
    words = ["sift", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    with hook() as (url, posted):
        code = main([*words, "--metrics-file", str(file), "--notify", url])
    (_, _, notice) = posted[0]
    line = capsys.readouterr().err.strip()
    assert code and (notice["state"], notice["exit_code"]) == ("failed", code)
    assert line == f"penstock: {notice['error']}" and "none" in line
    numbers = metrics(file)
    assert numbers["state"]["failed"] == 1 and numbers["exit_code"] == {"": code}


def test_an_export_that_misses_its_quality_limit_has_failed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = ("share of the same tokens 0.5 (≥ 0.99)",)
    parity = Parity(recipe={}, frames=3, gates={}, passed=False, missed=why)
    missed = Exported(out=tmp_path, parity=parity, accepted=False)
    monkeypatch.setattr("flows.commands.export.run.export", lambda *_: missed)
    words = ["export", "demo", "--to", "nf4", "--calibrate", str(pictures), "--out"]
    with hook() as (url, posted):
        assert main([*words, str(tmp_path / "out"), "--notify", url]) == 1
    ((_, _, notice),) = posted
    assert (notice["state"], notice["exit_code"]) == ("failed", 1)
    assert notice["error"] == f"quality limit missed: {why[0]}"


def test_a_notification_that_fails_is_one_line(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["sift", str(pictures), "--out", str(tmp_path / "out"), "--quiet"]
    (pictures / "torn.png").unlink()

    def warning(url: str) -> str:
        assert main([*words, "--notify", url]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: --notify: ") and line.endswith("; the run is not affected")
        assert "me:" not in line and "pass" not in line and "hooks" not in line
        return line

    with hook(500) as (url, posted):
        assert "the server answered 500" in warning(url)
        assert len(posted) == 1
    with visited_port() as (port, visits):
        for status in (301, 307):
            with hook(status, location=f"http://127.0.0.1:{port}/") as (url, posted):
                assert f"the server answered {status}" in warning(url)
                assert len(posted) == 1
        assert visits == []
    assert "refused" in warning(url)  # nobody listens there any more
    for proxy, why in (("me:pass@x:abc", "Invalid port"), ("junk://me:pass@x", "scheme")):
        monkeypatch.setenv("http_proxy", proxy)
        assert why in warning("http://host.invalid/hooks")


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "POST_SECONDS", 0.5)
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            peer, _ = server.accept()
            with peer:
                while not end.wait(0.1):
                    peer.sendall(b"H")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        why = monitoring.post(f"http://127.0.0.1:{server.getsockname()[1]}/", {})
        end.set()
        thread.join()
    assert why == "no answer within 0.5 s"


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a/b", "http://", "me:pw@host", "file:///x", "http://me:pw@host:x/", "http://[::"),
        "http://me:pw@host:65536/",
    ],
)
def test_another_address_is_refused_before_the_run_and_not_printed(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sift", str(tmp_path), "--out", str(tmp_path / "out"), "--notify", url]) == 2
    line = capsys.readouterr().err
    assert "--notify is no address of http or https" in line and "me:" not in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_holds_something_else_is_not_replaced(pictures: Path, tmp_path: Path) -> None:
    words = ["sift", str(pictures), "--out", str(tmp_path / "out"), "--metrics-file"]
    picture = pictures / "0.png"
    before = picture.read_bytes()
    assert main([*words, str(picture)]) == 2
    assert picture.read_bytes() == before
    picture.rename(named := pictures / "0.prom")
    assert main([*words, str(named)]) == 2
    assert named.read_bytes() == before
    named.rename(picture)
    (folder := pictures / "folder.prom").mkdir()
    assert main([*words, str(folder)]) == 5
    for name in ("new", ".lock", "out/run.json", "out/marks.jsonl"):  # node_exporter reads none
        assert main([*words, str(tmp_path / name)]) == 2
        assert not (tmp_path / name).exists()
    assert main([*words, str(picture / "x.prom")]) == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_metrics_may_lie_in_the_first_output(pictures: Path, tmp_path: Path) -> None:
    out, captions = tmp_path / "out", tmp_path / "captions"
    (pictures / "torn.png").unlink()
    report = ["--quiet", "--metrics-file", str(out / "penstock.prom")]
    words = ["index", "build", str(pictures), "--model", "demo", "--out", str(out)]
    assert main([*words, *report]) == 0
    report[-1] = str(out / "add.prom")
    assert main(["index", "add", str(pictures), "--index", str(out), *report]) == 0
    assert main(["index", "verify", "--index", str(out)]) == 0
    # Two files of one index state no metric twice: node_exporter would answer with an error.
    texts = [path.read_text() for path in sorted(out.glob("*.prom"))]
    families = (family for text in texts for family in text_string_to_metric_families(text))
    samples = [(s.name, *s.labels.items()) for family in families for s in family.samples]
    assert len(texts) == 2 and len({*samples}) == len(samples)

    assert main(["caption", str(pictures), "--model", "demo", "--out", str(captions)]) == 0
    data, out = captions / "captions.jsonl", tmp_path / "adapter"
    report[-1] = str(out / "penstock.prom")
    words = ["tune", str(data), "--model", "demo", "--out", str(out), "--steps", "1"]
    assert main([*words, *report]) == 0
    assert metrics(out / "penstock.prom")["state"]["done"] == 1


def test_no_configuration_of_a_run_has_them(tmp_path: Path) -> None:
    names = {"notify", "metrics_file"}
    for config in CONFIGS:
        assert not names & {field.name for field in fields(config)}, config
    roots = Roots((tmp_path,))
    for name in names:
        with pytest.raises(Refused, match="cannot be set in the page"):
            checked({name: "x"}, roots)


@pytest.mark.slow
def test_a_stopped_run_is_reported(pictures: Path, tmp_path: Path) -> None:
    (pictures / "torn.png").unlink()
    file = tmp_path / "penstock.prom"
    where = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    words = [*PENSTOCK, "caption", str(pictures), "--model", "demo", *where]
    with hook() as (url, posted):
        watched = begun([*words, "--metrics-file", str(file), "--notify", url])
        assert watched.stdout is not None
        for line in watched.stdout:
            if "to do" in line:
                assert metrics(file)["state"]["running"] == 1
                watched.send_signal(signal.SIGTERM)
                break
        rest, _ = watched.communicate()
        assert watched.returncode == 4
    assert "stopped" in rest and SECRET.split(":")[0] + ":" not in rest
    ((_, _, notice),) = posted
    assert (notice["state"], notice["exit_code"]) == ("interrupted", 4)
    assert notice["error"].startswith("stopped")
    numbers = metrics(file)
    assert numbers["state"]["interrupted"] == 1 and numbers["exit_code"] == {"": 4}
