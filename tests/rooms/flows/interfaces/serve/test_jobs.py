"""Jobs of a server: which media and options they may name, how many there are, and whose turn the
device is."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from flows.core.options.serving import ServeConfig
from flows.interfaces.serve import job_runner
from flows.interfaces.serve import jobs as served_jobs
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.guard import Guard
from flows.interfaces.serve.job_runner import JobRunner
from flows.interfaces.serve.jobs import MOST_UNFINISHED, UNFINISHED, JobFolder, ServedJob
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.refusals import HttpRefusal
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.temp_store import TempStore
from flows.outputs.record.record_writer import RecordWriter
from penstock_demo import CLIPS
from tests.support.disks import small_disk
from tests.support.jobs import OPTIONS
from tests.support.serving import a_picture

BASE = "http://127.0.0.1:8000"
BUDGET = 1 << 30


def jobs_in(folder: Path, **options: Any) -> JobFolder:
    config = ServeConfig(caption_model="demo", store=str(folder / "store"), **options)
    return JobFolder(folder / "jobs", config)


def client_in(tmp_path: Path) -> tuple[TestClient, JobFolder]:
    """A server with the folder `media`, whose jobs wait."""
    media = tmp_path / "media"
    (media / ".hidden").mkdir(parents=True)
    for name in ("a.mp4", "a [1].mp4", ".hidden/a.mp4", "a.txt", "../out.mp4"):
        (media / name).write_bytes(b"x")
    (media / "link.mp4").symlink_to("../out.mp4")
    (media / "folder").symlink_to(tmp_path)
    (media / "inside.mp4").symlink_to("a.mp4")
    (media / "odd.mp4").mkdir()
    scheduler = DeviceScheduler("cpu", BUDGET, print)
    config = ServeConfig(caption_model="demo", root=(str(media),))
    service = Service(
        config=config,
        metrics=Metrics(),
        temp_store=TempStore(tmp_path),
        scheduler=scheduler,
        budget_bytes=BUDGET,
    )
    service.jobs = jobs_in(tmp_path, root=(str(media),))
    return TestClient(Guard(app_of(service, {}), service, {}), base_url=BASE), service.jobs


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    client, jobs = client_in(tmp_path)
    yield client
    jobs.close()


REFUSED_PATHS = (
    *("../out.mp4", "folder/out.mp4", "link.mp4", "/etc/passwd", "x/../a.mp4", "~/a.mp4"),
    *(".hidden/a.mp4", "", ".", "a.txt", "none.mp4", "odd.mp4", "a.mp4%00", "%ff.mp4", "x" * 5000),
)


@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_paths_outside_the_roots_are_refused_with_one_error(client: TestClient, path: str) -> None:
    answer = client.post(f"/v1/jobs?path={path}")
    assert answer.status_code == (400 if "%ff" in path else 422)
    refusal = answer.json()
    assert set(refusal) == {"error", "hint"} and "\n" not in refusal["error"]
    assert "passwd" not in answer.text and client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["a.mp4", "a [1].mp4", "inside.mp4", "{media}/a.mp4"])
def test_paths_below_a_root_are_taken(client: TestClient, path: str, tmp_path: Path) -> None:
    path = path.format(media=tmp_path / "media")
    answer = client.post("/v1/jobs", params={"path": path})
    job = answer.json()
    assert (answer.status_code, job["state"], job["source"]) == (202, "queued", path)
    assert client.get(f"/v1/jobs/{job['id']}").json()["rows"] == []


REFUSED_OPTIONS = (
    *({"chunk": "0.01"}, {"chunk": "nan"}, {"frames": "0"}, {"fps": "2", "frames": "2"}),
    *({"prompt": " "}, {"questions": "/etc/passwd"}, {"questions": "{}"}, {"model": "other"}),
    *({"trust_remote_code": "1"}, {"store": "/tmp"}, {"out": "/tmp"}, {"sound": "loud"}),
)


@pytest.mark.parametrize("options", REFUSED_OPTIONS)
def test_options_that_no_job_has_are_refused(client: TestClient, options: dict[str, str]) -> None:
    answer = client.post("/v1/jobs", params={"path": "a.mp4", **options})
    assert answer.status_code == 422 and set(answer.json()) == {"error", "hint"}
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_job_has_one_medium(client: TestClient, tmp_path: Path) -> None:
    assert client.post("/v1/jobs?path=a.mp4", content=a_picture()).status_code == 422
    assert client.post("/v1/jobs").status_code == 422
    assert client.post("/v1/jobs", content=b"no medium").status_code == 415
    assert [*(tmp_path / "jobs").glob("job-*")] == []
    picture = a_picture()
    job = client.post("/v1/jobs?prompt=What%3F", content=picture).json()
    (upload,) = (tmp_path / "jobs" / job["id"]).glob("upload.*")
    assert upload.read_bytes() == picture and job["options"] == {"prompt": "What?"}
    assert client.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.get(f"/v1/jobs/{job['id']}").json()["complete"] is True
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 200
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert not upload.exists()


def test_jobs_are_as_many_as_the_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for _ in range(MOST_UNFINISHED):
        names.append(client.post("/v1/jobs?path=a.mp4").json()["id"])
    answer = client.post("/v1/jobs?path=a.mp4")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    monkeypatch.setattr(served_jobs, "MOST_ENDED", 2)
    for name in names[:4]:
        client.delete(f"/v1/jobs/{name}")
    names.append(client.post("/v1/jobs?path=a.mp4").json()["id"])
    listed, page = list[str](), {"has_more": True, "last_id": names[2]}
    while page["has_more"]:
        page = client.get(f"/v1/jobs?limit=40&after={page['last_id']}").json()
        listed += [job["id"] for job in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], listed[-1])
    assert listed == names[3:], "the oldest that ended make room"
    assert client.get("/v1/jobs").json()["first_id"] == names[2]
    assert client.get(f"/v1/jobs?after={names[0]}").status_code == 404, "it made room"
    end = client.get(f"/v1/jobs?after={names[-1]}").json()
    assert end == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
    }  # fmt: skip


def test_jobs_are_of_one_server_at_a_time(client: TestClient, tmp_path: Path) -> None:
    job = client.post("/v1/jobs?path=a.mp4").json()["id"]
    other = jobs_in(tmp_path)
    for refused in (lambda: other.of(job), other.listed):
        with pytest.raises(HttpRefusal, match="run by another server"):
            refused()


def test_a_server_takes_over_the_jobs_when_the_one_before_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "CLAIM_SECONDS", 0.01)

    async def go() -> None:
        first, second = jobs_in(tmp_path), jobs_in(tmp_path)
        job = ServedJob(model="other", source="it", path="none.mp4", options={})
        async with first.adding(job):
            pass
        scheduler = DeviceScheduler("cpu", BUDGET, print)
        runner = JobRunner(second, "demo", scheduler, BUDGET, lambda: 1e9)
        working = asyncio.create_task(runner.run())
        await asyncio.sleep(0.1)
        with pytest.raises(HttpRefusal, match="run by another server"):
            second.of(job.id)
        first.close()
        async with asyncio.timeout(60):
            while not second.claim() or state_of(second.of(job.id)) != "failed":
                await asyncio.sleep(0.01)
        why = "this server no longer serves other, the job's model: post the job again for demo"
        assert second.of(job.id).error == why
        working.cancel()
        await asyncio.wait([working])
        second.close()

    asyncio.run(go())


FOREIGN: tuple[dict[str, Any], ...] = (
    *({"store": "/tmp/other"}, {"out": "/tmp/other"}, {"trust_remote_code": True}),
    *({"chunk": "2"}, {"chunk": -1.0}, {"prompt": ["a"]}, {"questions": {}}),
)


@pytest.mark.parametrize("options", FOREIGN)
def test_a_job_with_options_that_no_client_can_give_is_left_out(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ServedJob(model="demo", source="a", path="a.mp4", options={"chunk": 2.0, "seed": 1})
    foreign = ServedJob(model="demo", source="b", path="b.mp4", options=options)
    for job in (ours, foreign):
        (place := tmp_path / "jobs" / job.id).mkdir(parents=True)
        (place / "job.json").write_text(json.dumps(asdict(job)))
    folder = jobs_in(tmp_path)
    assert [job.id for job in folder.jobs] == [ours.id]
    assert f"no job has the option {next(iter(options))}" in caplog.text
    folder.close()


def test_a_job_reads_its_upload_and_files_below_a_root_of_now(tmp_path: Path) -> None:
    (root := tmp_path / "root").mkdir()
    (out := tmp_path / "out.mp4").write_bytes(b"x")
    (root / "in.mp4").write_bytes(b"x")
    folder = jobs_in(tmp_path, root=(str(root),))
    without = jobs_in(tmp_path / "other")

    def why(path: str, jobs: JobFolder = folder) -> str:
        job = ServedJob(model="demo", source="a", path=path, options={})
        (place := jobs.place(job)).mkdir(parents=True)
        (place / "upload.mp4").symlink_to(out)
        (place / "upload.jpg").write_bytes(b"x")
        return jobs.why_not(job)

    assert not why(str(root / "in.mp4")) and not why("upload.jpg") and not why("gone.mp4")
    for path in ("/etc/passwd", str(out), "upload.mp4", "../../out.mp4", "job.json/../../../a"):
        assert why(path) == served_jobs.OUTSIDE, path
    assert why(str(root / "in.mp4"), without) == served_jobs.OUTSIDE
    folder.close()
    without.close()


@pytest.mark.parametrize("after", ["-1", "x", str(1 << 63), "9" * 30])
def test_rows_after_no_number_are_refused(client: TestClient, after: str) -> None:
    job = client.post("/v1/jobs?path=a.mp4").json()["id"]
    assert client.get(f"/v1/jobs/{job}?after={after}").status_code == 422
    assert client.get(f"/v1/jobs/{job}?after={1 << 53}").json()["rows"] == []


def test_a_full_disk_refuses_jobs_and_changes_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "jobs", "64k") as disk:
        client, jobs = client_in(tmp_path)
        job = client.post("/v1/jobs?path=a.mp4").json()["id"]
        with open(disk / "fill", "wb") as file, suppress(OSError):
            file.write(bytes(1 << 20))
        listed = client.get("/v1/jobs").json()
        for answer in (client.post("/v1/jobs?path=a.mp4"), client.delete(f"/v1/jobs/{job}")):
            assert answer.status_code == 507 and set(answer.json()) == {"error", "hint"}
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/v1/jobs").json() == listed
        assert [path.name for path in disk.glob("job-*")] == [job]
        (disk / "fill").unlink()
        assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
        jobs.close()


def test_a_job_that_failed_says_how_many_rows_it_made(tmp_path: Path) -> None:
    folder = jobs_in(tmp_path)
    runner = JobRunner(folder, "demo", DeviceScheduler("cpu", BUDGET, print), BUDGET, lambda: 1e9)
    job = ServedJob(model="demo", source="it", path="it.mp4", options={})
    out = folder.place(job) / served_jobs.OUT
    out.mkdir(parents=True)
    writer = RecordWriter(out)
    asyncio.run(runner._note(job, 5))
    assert (job.state, job.error) == ("failed", "the command ended with code 5")
    (out.parent / job_runner.LOG).write_text("penstock: the disk is full\n")
    writer.record.captions = 3
    writer.stage("decode").failed = 1
    writer.finish("failed")
    asyncio.run(runner._note(job, 5))
    assert job.error == "penstock: the disk is full; rows made before: 3"
    stages = {stage["name"]: stage for stage in cast(list[Any], asyncio.run(folder.stages(job)))}
    assert stages["decode"]["failed"] == 1
    folder.close()


class WaitingHalf:
    """A half that takes the device as soon as it can."""

    name, peak_bytes, idle = "vision", BUDGET, False

    def leave(self) -> None:
        raise AssertionError("it is never idle")


def state_of(job: ServedJob) -> str:
    return job.state


def test_a_half_gets_the_device_from_a_job_that_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, options = CLIPS / "clip-02.mp4", {**OPTIONS, "chunk": 1.0}
    monkeypatch.setattr(job_runner, "TURN_SECONDS", 0.0)
    monkeypatch.setattr("flows.interfaces.serve.device_scheduler.TURN_SECONDS", 0.0)
    starts: list[float] = []

    async def go() -> list[Any]:
        scheduler = DeviceScheduler("cpu", BUDGET, print)
        folder = jobs_in(tmp_path, root=(str(CLIPS),))
        runner = JobRunner(folder, "demo", scheduler, BUDGET, lambda: 1e9)
        start = runner._start

        async def started(job: ServedJob) -> Any:
            starts.append(time.monotonic())
            return await start(job)

        monkeypatch.setattr(runner, "_start", started)
        job = ServedJob(model="demo", source="it", path=str(clip), options=options)
        async with folder.adding(job):
            pass
        working = asyncio.create_task(runner.run())
        while not starts:
            await asyncio.sleep(0.05)
        half = WaitingHalf()
        await asyncio.wait_for(scheduler.enter(half), 120)
        assert (state_of(job), len(starts)) == ("in_progress", 1)
        await asyncio.sleep(0.5)
        assert len(starts) == 1, "it ran beside a half"
        scheduler.release(half)
        while state_of(job) == "in_progress":
            await asyncio.sleep(0.1)
        assert (state_of(job), job.error, len(starts)) == ("completed", "", 2)
        working.cancel()
        await asyncio.wait([working])
        folder.close()
        return await folder.rows(job, "captions", 0, 1000)

    rows = asyncio.run(go())
    assert [row["start"] for row in rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert all(row["caption"] for row in rows)
    kept = json.loads(next((tmp_path / "jobs").glob("*/job.json")).read_text())
    assert kept["state"] == "completed" and kept["deaths"] == 0


def test_a_job_with_questions_has_rows_of_captions_and_of_answers(tmp_path: Path) -> None:
    questions = {"ring": {"text": "Is there a ring?"}, "size": {"text": "How large?", "score": 3}}
    options = {**OPTIONS, "chunk": 4.0, "questions": json.dumps(questions)}

    async def go() -> list[list[Any]]:
        folder = jobs_in(tmp_path, root=(str(CLIPS),))
        scheduler = DeviceScheduler("cpu", BUDGET, print)
        runner = JobRunner(folder, "demo", scheduler, BUDGET, lambda: 1e9)
        path = str(CLIPS / "clip-02.mp4")
        job = ServedJob(model="demo", source="it", path=path, options=options)
        async with folder.adding(job):
            pass
        working = asyncio.create_task(runner.run())
        while state_of(job) in UNFINISHED:
            await asyncio.sleep(0.1)
        assert (state_of(job), job.error) == ("completed", "")
        working.cancel()
        await asyncio.wait([working])
        folder.close()
        return [await folder.rows(job, kind, 0, 1000) for kind in ("captions", "answers")]

    captions, answers = asyncio.run(go())
    chunks = [(row["start"], row["end"]) for row in captions]
    assert chunks == [(row["start"], row["end"]) for row in answers] and len(chunks) == 2
    for row in answers:
        assert row["source"] == "it" and set(row["answers"]) == set(questions)
        assert sum(row["answers"]["size"]["probabilities"].values()) == pytest.approx(1, abs=0.01)
