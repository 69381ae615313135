"""Files that need more memory than the frames stage may take are no damaged files."""

from pathlib import Path

import pytest

from artifacts.errors import OutOfMemory
from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.schema import MediaIndex
from artifacts.store import open_store
from stages.process.stage_process import StageProcess
from tests.support.media import write_video

NAMESPACE = digest_of("frames")
MIB = 1 << 20


def record_set(folder: Path, kind: str) -> RecordSet:
    return RecordSet(open_store(str(folder / "store")), kind, NAMESPACE)


@pytest.mark.parametrize(("budget", "cut"), [(700, True), (60, False)])
def test_a_large_video_is_cut_whole_or_not_at_all(budget: int, cut: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", ticks=range(12), size=(2160, 3840))
    job = {
        "store": str(tmp_path / "store"),
        "namespace": NAMESPACE,
        "sampling": {"chunk_seconds": 30, "fps": 30, "frames": None, "max_frames": 12},
        "fit": {"video": [[1.0, 64]], "image": [[1.0, 64]]},
        "media": [{"path": str(path), "digest": "ab" * 32, "kind": "video", "wanted": None}],
        "workers": 1,
    }
    stage = StageProcess(
        "frames",
        "stages.frames.run:run",
        job,
        device="cpu",
        log=tmp_path / "frames.log",
        listen=lambda *_: None,
        budget=budget * MIB,
    )
    if cut:
        stage.wait()
        index = MediaIndex.from_json(record_set(tmp_path, "media").meta("ab" * 32))
        assert not index.warnings
        assert sum(len(chunk.times) for chunk in index.chunks) == 12
        return
    with pytest.raises(OutOfMemory):
        stage.wait()
    assert not record_set(tmp_path, "media").keys() and not record_set(tmp_path, "failures").keys()
    assert stage.outcome.in_hand == {"ab" * 32}
