"""The frames stage over a real store: what it publishes, what it leaves alone, what it survives."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.disk.json_records import read_record
from artifacts.disk.stamps import stamp_of
from artifacts.errors import EnvironmentFault
from artifacts.records.keys import hash_file, item_key
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import FolderStore, open_store
from artifacts.schema import MediaIndex
from stages.frames import run as stage
from stages.frames.frame_recorder import FrameRecorder
from stages.frames.job import FramesItem
from tests.support.media import flip_bits, picture, spoil, write_audio, write_video
from tests.support.waves import events, keys_told

NAMESPACE = "5c" * 32


class Desk:
    """A store, jobs for it, and what the stage told its parent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder / "store")
        self.events: list[dict[str, Any]] = []

    def run(
        self, *media: dict[str, Any], workers: int = 2, sampling: dict[str, Any] | None = None
    ) -> list[str]:
        """Run the stage; returns the keys it published, in order."""
        job = {
            "store": self.url,
            "namespace": NAMESPACE,
            "sampling": sampling or {"chunk_seconds": 2, "fps": 1, "frames": None, "max_frames": 8},
            "fit_video": {"long_edges": [[1.0, 32]]},
            "fit_image": {"long_edges": [[1.0, 40]]},
            "media": [FramesItem(**each) for each in media],
            "workers": workers,
        }
        with events() as (report, self.events):
            stage.run(json.loads(json.dumps(job)), report)
        return keys_told(self.events)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def record_set(self, kind: str) -> RecordSet:
        return RecordSet(open_store(self.url), kind, NAMESPACE)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def medium(path: Path) -> dict[str, Any]:
    kind = "image" if path.suffix in (".png", ".jpg") else "video"
    digest, stamp = (hash_file(path), stamp_of(path)) if path.is_file() else ("0" * 64, None)
    found = {"path": str(path), "digest": digest, "kind": kind, "stamp": stamp}
    return {**found, "chunk_indexes": None}


def video(desk: Desk, name: str = "a.mp4", seconds: int = 7) -> dict[str, Any]:
    return medium(write_video(desk.folder / name, ticks=range(30 * seconds)))


def image(desk: Desk, n: int) -> dict[str, Any]:
    path = desk.folder / f"{n}.png"
    Image.fromarray(picture(n)).save(path)
    return medium(path)


def keys(medium: dict[str, Any], count: int) -> list[str]:
    return [item_key(NAMESPACE, medium["digest"], index) for index in range(count)]


def test_a_video_is_stored_chunk_by_chunk_then_described_and_not_made_again(desk: Desk) -> None:
    one = video(desk)
    assert desk.run(one) == keys(one, 4)
    index = read_record(MediaIndex, desk.record_set("media").meta(one["digest"]))
    found = [(c.start, c.end, c.times) for c in index.chunks]
    assert found == [(0, 2, (0, 1)), (2, 4, (2, 3)), (4, 6, (4, 5)), (6, 7, (6,))]
    record = desk.record_set("frames").read(keys(one, 4)[1])
    assert record.meta["index"] == 1
    pixels = np.frombuffer(record.payload, dtype=np.uint8).reshape(2, 24, 32, 3)
    expected = np.asarray(Image.fromarray(picture(90)).resize((32, 24)), dtype=int)
    assert np.abs(pixels[1] - expected).mean() < 12
    assert desk.told("Total")[-1]["items"] == 4
    Path(one["path"]).unlink()
    assert desk.run(one) == []
    assert desk.told("Failed") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "text"),
    [
        ("h264.mp4", "libx264", "requested"),
        ("a.mov", "mjpeg", "left out"),
        ("bitflip.mp4", "", "damaged, the first at"),
    ],
)
def test_damage_is_described_alike_wherever_a_run_was_killed(
    desk: Desk, request: pytest.FixtureRequest, name: str, codec: str, text: str
) -> None:
    if codec:
        whole = write_video(desk.folder / f"whole-{name}", ticks=range(300), codec=codec)
        clip = spoil(whole, desk.folder / name, which=lambda at: 50 <= at < 130)
    else:
        clip = request.getfixturevalue("shared_clips") / "awkward" / name
    stored = desk.run(one := medium(clip))
    undisturbed = desk.record_set("media").meta(one["digest"])
    assert text in " ".join((*undisturbed["warnings"], *undisturbed["damage"]))
    assert all(name in message["text"] for message in desk.told("Warned")) and desk.told("Warned")
    frames = [desk.record_set("frames").read(key).payload for key in stored]
    for killed_after in {0, 1, len(stored) // 2, len(stored)}:
        desk.record_set("frames").drop(stored[killed_after:])
        desk.record_set("media").drop([one["digest"]])
        assert desk.run(one) == stored[killed_after:]
        assert desk.record_set("media").meta(one["digest"]) == undisturbed
        if codec:  # in the other one, what FFmpeg conceals hangs on where it began
            assert [desk.record_set("frames").read(key).payload for key in stored] == frames


def test_only_wanted_chunks_are_made_and_made_again_when_their_frames_are_gone(desk: Desk) -> None:
    one = video(desk)
    assert desk.run({**one, "chunk_indexes": [1, 3]}) == [keys(one, 4)[1], keys(one, 4)[3]]
    assert one["digest"] not in desk.record_set("media")
    assert desk.run({**one, "chunk_indexes": [1]}) == []
    assert desk.run(one) == [keys(one, 4)[0], keys(one, 4)[2]]
    index = read_record(MediaIndex, desk.record_set("media").meta(one["digest"]))
    assert [c.index for c in index.chunks] == [0, 1, 2, 3]
    desk.record_set("frames").drop(keys(one, 4))
    assert desk.run({**one, "chunk_indexes": [2]}) == [keys(one, 4)[2]]


def test_several_videos_and_pictures_at_once(desk: Desk) -> None:
    videos = [video(desk, f"{n}.mp4", seconds=n) for n in range(1, 6)]
    images = [image(desk, n) for n in range(150)]
    published = desk.run(*videos, *images, workers=2)
    assert len(published) == len(set(published)) == 1 + 1 + 2 + 2 + 3 + 150
    assert desk.record_set("media").keys() == {m["digest"] for m in (*videos, *images)}
    packs = list(FolderStore(Path(desk.url)).list(f"frames/{NAMESPACE[:2]}/{NAMESPACE}"))
    assert len(packs) == 9 + 3
    record = desk.record_set("frames").read(keys(images[7], 1)[0])
    pixels = np.frombuffer(record.payload, dtype=np.uint8).reshape(48, 64, 3)
    np.testing.assert_array_equal(pixels, picture(7))


def test_pictures_are_stored_before_they_fill_the_memory(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PACK_BYTES", 48 * 64 * 3 * 2)
    desk.run(*(image(desk, n) for n in range(6)), workers=1)
    assert len(list(FolderStore(Path(desk.url)).list(f"frames/{NAMESPACE[:2]}/{NAMESPACE}"))) == 3


def test_two_files_of_one_content_are_cut_once(desk: Desk) -> None:
    one = video(desk, seconds=2)
    two = desk.folder / "copy.mp4"
    two.write_bytes(Path(one["path"]).read_bytes())
    assert desk.run(one, medium(two)) == keys(one, 1)


def test_an_unusable_medium_is_recorded_and_the_others_go_on(desk: Desk) -> None:
    sound, one = medium(write_audio(desk.folder / "sound.mp4")), video(desk, seconds=2)
    assert desk.run(sound, one, workers=1) == keys(one, 1)
    (failure,) = desk.told("Failed")
    assert (failure["media"], failure["kind"]) == (sound["digest"], "no-video")
    assert failure["message"] == "the file holds no video (audio)"  # whoever tells it names it
    kept = desk.record_set("failures").meta(sound["digest"])
    assert kept == {name: failure[name] for name in ("kind", "message", "hint")}
    assert sound["digest"] not in desk.record_set("media")


def test_a_disk_that_went_away_is_no_fault_of_the_file(desk: Desk) -> None:
    (desk.folder / "disk").mkdir()
    one = video(desk, "disk/a.mp4", seconds=2)
    Path(one["path"]).unlink()
    with pytest.raises(EnvironmentFault, match=r"does not exist.*again to resume"):
        desk.run(one)
    assert desk.record_set("failures").keys() == set()


def test_a_file_that_was_removed_beside_others_fails_and_these_go_on(desk: Desk) -> None:
    gone, one = image(desk, 1), image(desk, 2)
    Path(gone["path"]).unlink()
    assert desk.run(gone, one) == keys(one, 1)
    (failure,) = desk.told("Failed")
    assert (failure["media"], failure["kind"]) == (gone["digest"], "changed")
    assert failure["message"].startswith("it was changed, replaced or removed")
    assert desk.record_set("failures").keys() == set()


def test_a_medium_that_works_at_last_has_no_failure_to_its_name(desk: Desk) -> None:
    one = video(desk, seconds=2)
    meta = {"kind": "unreadable", "message": "", "hint": ""}
    desk.record_set("failures").publish([Record(key=one["digest"], meta=meta)])
    desk.run(one)
    assert desk.record_set("failures").keys() == set()


def test_a_full_disk_stops_the_stage(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise EnvironmentFault("the disk of the store is full")

    media = [video(desk, f"{n}.mp4", seconds=4) for n in range(1, 4)]
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put_if_absent", full)
        with pytest.raises(EnvironmentFault, match="full"):
            desk.run(*media)
    assert desk.told("Answered") == desk.told("Failed") == []
    assert desk.run(*media) != []


def test_a_disk_that_fails_is_not_blamed_on_the_medium(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("stages.frames.video.Video", broken)
    with pytest.raises(EnvironmentFault, match="Input/output error"):
        desk.run(video(desk))
    assert desk.record_set("failures").keys() == set()


@pytest.mark.parametrize("kind", ["video", "image", "rubbish"])
def test_a_file_that_was_replaced_since_is_not_filed_under_what_it_held(
    desk: Desk, kind: str
) -> None:
    one = image(desk, 1) if kind == "image" else video(desk)
    if kind == "rubbish":
        Path(one["path"]).write_bytes(b"not a video any more")
    else:
        other = image(desk, 2) if kind == "image" else video(desk, "b.mp4")
        os.replace(other["path"], one["path"])
    assert desk.run(one) == []
    (message,) = desk.told("Failed")
    assert message["kind"] == "changed" and message["media"] == one["digest"]
    for record_set in ("media", "frames", "failures"):  # nor is it held against the old content
        assert desk.record_set(record_set).keys() == set()


def test_a_video_that_is_replaced_in_the_middle_keeps_what_came_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = video(desk), video(desk, "b.mp4")
    publish = FrameRecorder.publish

    def replacing(self: FrameRecorder, chunks: Any) -> None:
        publish(self, chunks)
        if os.path.exists(other["path"]):
            os.replace(other["path"], one["path"])

    monkeypatch.setattr(FrameRecorder, "publish", replacing)
    assert desk.run(one) == keys(one, 1)
    assert [message["kind"] for message in desk.told("Failed")] == ["changed"]
    assert desk.record_set("media").keys() == set()


def test_two_stages_at_once_cut_each_medium_once(tmp_path: Path) -> None:
    desks = [Desk(tmp_path), Desk(tmp_path)]
    videos = [video(desks[0], f"{n}.mp4", seconds=n) for n in (4, 5, 6)]
    media = [*videos, *(image(desks[0], n) for n in range(5, 9))]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda desk: desk.run(*media), desks))
    counts = [2, 3, 3, 1, 1, 1, 1]
    every = [key for one, count in zip(media, counts, strict=True) for key in keys(one, count)]
    assert sorted(made[0] + made[1]) == sorted(every)


def test_a_damaged_file_has_the_same_frames_alone_among_others_and_resumed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "cores", lambda: 4)
    whole = write_video(tmp_path / "whole.mp4", ticks=range(240), size=(96, 128), gop=30)
    damaged = medium(flip_bits(whole, tmp_path / "a.mp4", packets=range(35, 200, 7)))
    files = [write_video(tmp_path / f"{at}.mp4", ticks=range(30 + at), gop=30) for at in range(5)]
    others = [medium(file) for file in files]

    def payloads() -> dict[str, bytes]:
        frames = desk.record_set("frames")
        return {key: bytes(frames.read(key).payload) for key in alone}

    sampling = {"chunk_seconds": 2, "fps": 3, "max_frames": 8}
    alone: list[str] = desk.run(damaged, sampling=sampling)  # by four decoder threads
    expected, index = payloads(), desk.record_set("media").meta(damaged["digest"])
    assert len(expected) == 4 and any("damaged" in text for text in index["damage"])
    for kept, media in ((0, [damaged, *others]), (1, [damaged]), (2, [damaged, *others])):
        desk.record_set("frames").drop(alone[kept:])
        desk.record_set("media").drop([one["digest"] for one in media])
        desk.run(*media, workers=len(media), sampling=sampling)
        assert payloads() == expected
        assert desk.record_set("media").meta(damaged["digest"]) == index
