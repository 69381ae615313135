"""The sound stage over a real store: what it publishes, what it leaves alone, what it survives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.disk.stamps import stamp_of
from artifacts.records.keys import hash_file, item_key
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from stages.process.stage_process import ProcessSettings, StageProcess
from stages.sound import SILENCES, STAGE, SoundChunk, SoundItem
from stages.sound import run as stage
from stages.sound.track import NO_SOUND, sound_of_chunks
from tests.support.builders.jobs import made_job
from tests.support.media import write_video
from tests.support.sound import NEEDS_FFMPEG, RATE, bounds, ffmpeg, noise, tones, write_sounding
from tests.support.waves import events, keys_told

pytestmark = NEEDS_FFMPEG
NAMESPACE = "5d" * 32


class Desk:
    """A store, jobs for it, and what the stage told its parent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []

    def job(self, *media: SoundItem, **settings: Any) -> dict[str, Any]:
        fields = {"store": str(self.folder / "store"), "namespace": NAMESPACE, "rate": RATE}
        fields |= {"media": media, "workers": 2, **settings}
        job: dict[str, Any] = json.loads(json.dumps(fields))
        return job

    def run(self, *media: SoundItem, **settings: Any) -> list[str]:
        """Run the stage; returns the keys it published, in order."""
        with events() as (report, self.events):
            stage.run(self.job(*media, **settings), report)
        return keys_told(self.events)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def record_set(self, kind: str = "sound") -> RecordSet:
        return RecordSet(open_store(str(self.folder / "store")), kind, NAMESPACE)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def item(path: Path, chunks: list[tuple[float, float]]) -> SoundItem:
    digest = hash_file(path)
    keyed = [SoundChunk(item_key(NAMESPACE, digest, n), *each) for n, each in enumerate(chunks)]
    return SoundItem(str(path), digest, keyed, stamp_of(path))


def sounding(desk: Desk, name: str = "a.mp4", seconds: float = 5) -> SoundItem:
    path = write_sounding(desk.folder / name, [noise(seconds)], "aac", seconds=seconds)
    return item(path, bounds(path, 2))


def keys(medium: SoundItem) -> list[str]:
    return [chunk.key for chunk in medium.chunks]


@pytest.mark.slow
def test_chunks_are_stored_as_pcm_with_what_describes_them_and_not_read_again(desk: Desk) -> None:
    one = sounding(desk)
    assert desk.run(one) == keys(one)
    assert desk.told("Total") == [{"event": "Total", "items": 3, "earlier": 0}]
    spans = [(chunk.start, chunk.end) for chunk in one.chunks]
    expected = list(sound_of_chunks(Path(one.path), spans, RATE))
    for chunk, sound in zip(one.chunks, expected, strict=True):
        record = desk.record_set().read(chunk.key)
        assert np.array_equal(np.frombuffer(record.payload, "<i2"), sound.samples)
        assert record.meta == {
            "rate": RATE,
            "samples": round(chunk.end * RATE) - round(chunk.start * RATE),
            "start": chunk.start,
            "seconds": pytest.approx(chunk.end - chunk.start, abs=1 / RATE),
            "track": 1,
            "peak": int(np.abs(sound.samples.astype(int)).max()),
            "damaged": [],
            "note": "",
        }
    Path(one.path).unlink()
    assert desk.run(one) == []
    assert desk.told("Failed") == desk.told("Warned") == []


@pytest.mark.slow
def test_only_missing_chunks_are_stored_with_the_same_bytes(desk: Desk) -> None:
    one = sounding(desk)
    desk.run(one)
    whole = [desk.record_set().read(key) for key in keys(one)]
    for gone in (0, 1, 2):
        desk.record_set().remove(keys(one)[gone : gone + 1])
        assert desk.run(one) == keys(one)[gone : gone + 1]
        assert [desk.record_set().read(key) for key in keys(one)] == whole


def test_chunks_without_sound_are_named_and_have_no_sound(desk: Desk) -> None:
    silent = item(write_video(desk.folder / "a.mp4"), [(0, 0.5), (0.5, 1)])
    path = desk.folder / "b.mkv"
    short = item(write_sounding(path, [noise(1.05)], "pcm_s16le", seconds=2), [(0, 1), (1, 2)])
    assert sorted(desk.run(silent, short)) == sorted([*keys(silent), *keys(short)])
    assert desk.record_set().keys() == {keys(short)[0]}
    names = {*keys(silent), keys(short)[1]}
    assert desk.record_set(SILENCES).keys() == names, "0.05 s of sound count as none"
    assert desk.record_set(SILENCES).meta(keys(silent)[0])["note"] == NO_SOUND
    assert desk.run(silent, short) == []


def test_a_track_that_cannot_be_decoded_is_named(desk: Desk) -> None:
    path = write_sounding(desk.folder / "a.mov", [noise(2)], "pcm_s16le", seconds=2)
    path.write_bytes(path.read_bytes().replace(b"sowt", b"zzzz"))
    one = item(path, [(0, 2)])
    assert desk.run(one) == keys(one)
    (warning,) = desk.told("Warned")
    assert warning["text"] == f"{path}: its sound cannot be decoded"


def test_a_file_without_the_requested_track_fails_by_name_and_others_go_on(desk: Desk) -> None:
    one = sounding(desk, "one.mp4")
    path = desk.folder / "two.mp4"
    two = item(write_sounding(path, [noise(2), tones(2, 300)], "aac", seconds=2), [(0, 2)])
    assert desk.run(one, two, track=2) == keys(two)
    failed = [(each["media"], each["kind"]) for each in desk.told("Failed")]
    assert failed == [(key, "no-track") for key in keys(one)]
    stored = desk.record_set("failures").meta(keys(one)[0])
    assert stored["message"] == "sound of track 2 is not there (it has 1)"
    assert desk.run(one, two, track=2) == []
    assert desk.told("Failed") == []


def test_a_file_that_changed_meanwhile_fails_and_is_tried_again(desk: Desk) -> None:
    one = sounding(desk)
    path = Path(one.path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0\0")
    assert desk.run(one) == []
    assert {each["kind"] for each in desk.told("Failed")} == {"changed"}
    assert not desk.record_set("failures").keys()
    path.write_bytes(content)
    assert desk.run(one._replace(stamp=stamp_of(path))) == keys(one)


def test_a_file_that_is_no_media_fails(desk: Desk) -> None:
    path = desk.folder / "a.mp4"
    path.write_bytes(b"no media at all" * 100)
    one = item(path, [(0, 2), (2, 4)])
    assert desk.run(one) == []
    assert desk.record_set("failures").keys() == set(keys(one))


def test_damage_is_a_warning_also_in_a_resumed_run(desk: Desk) -> None:
    path = write_sounding(desk.folder / "a.mp4", [noise(6)], "aac", "-movflags", "faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    one = item(path, [(0, 2), (2, 5)])
    desk.run(one)
    warnings = desk.told("Warned")
    assert warnings[0]["text"].startswith(f"{path}: its sound ends at ")
    desk.record_set().remove(keys(one)[:1])
    desk.run(one)
    assert desk.told("Warned") == warnings


def test_two_files_with_the_same_content_are_read_once(desk: Desk) -> None:
    one = sounding(desk)
    copy = desk.folder / "copy.mp4"
    copy.write_bytes(Path(one.path).read_bytes())
    assert desk.run(one, item(copy, [(c.start, c.end) for c in one.chunks])) == keys(one)


def long_sound(desk: Desk, seconds: int, codec: str, chunk_seconds: float = 30) -> SoundItem:
    """A video with so many seconds of noise, and a frame each ten seconds."""
    path = desk.folder / "long.mkv"
    picture = f"testsrc=size=64x64:rate=0.1:duration={seconds}"
    sound = f"anoisesrc=duration={seconds}:sample_rate=48000:amplitude=0.1:seed=7"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    ffmpeg(*inputs, "-c:v", "mpeg4", "-c:a", codec, "-ac", 2, path)
    return item(path, bounds(path, chunk_seconds))


@pytest.mark.slow
def test_an_hour_of_sound_takes_less_than_64_mib(desk: Desk) -> None:
    job = made_job(**desk.job(long_sound(desk, 3600, "ac3")))
    log = desk.folder / "logs" / "sound.log"
    settings = ProcessSettings(name="sound", job=job, device="cpu", log=log)
    outcome = StageProcess(settings, STAGE.entry, lambda *_: None).wait()
    assert outcome.items == 120
    assert outcome.peak_host_bytes - outcome.notes["loaded_bytes"] < 64 << 20
    assert len(desk.record_set()) == 120


KILLED = """
import json, os, random, signal, sys, time
from stages.process.events import EventReporter
from stages.sound.run import run

job, drawn, kills, took = json.loads(sys.argv[1]), random.Random(sys.argv[2]), 0, 0.0
while kills < 20:
    child = os.fork()
    if not child:
        run(job, EventReporter(os.open(os.devnull, os.O_WRONLY)))
        os._exit(0)
    began = time.monotonic()
    if took:
        time.sleep(drawn.uniform(0, took))
        os.kill(child, signal.SIGKILL)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kills, took = kills + died, took or time.monotonic() - began
    if not died or kills == 20:
        print("whole" if not died else "killed", flush=True)
        sys.stdin.readline()
"""
"""Runs the stage, at first undisturbed, then again and again until 20 runs were killed. After each
whole run, and after the last kill, it waits for a line."""


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(desk: Desk) -> None:
    one, rate = long_sound(desk, 120, "ac3", chunk_seconds=10), 48000  # four packs
    command = [sys.executable, "-c", KILLED, json.dumps(desk.job(one, rate=rate))]
    command.append(os.environ["PENSTOCK_TEST_SEED"])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    stored = []
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            if line == "killed\n":
                desk.run(one, rate=rate)
            stored.append([desk.record_set().read(key) for key in keys(one)])
            desk.record_set().remove(keys(one))
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert len(stored) > 1
    assert all(records == stored[0] for records in stored)
