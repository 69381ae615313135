"""`penstock caption --shots` over clips joined into one file: a caption for each of them."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock_demo.clips import write_clips
from tests.support.media import rgb, write_video
from tests.support.pipeline import Place


@pytest.mark.slow
def test_clips_joined_to_one_video_are_captioned_one_by_one(tmp_path: Path) -> None:
    truths = write_clips(tmp_path / "single", 3, seed=5)
    pictures: list[NDArray[np.uint8]] = []
    starts: list[int] = []
    for truth in truths:
        starts.append(len(pictures))
        with av.open(str(tmp_path / "single" / truth.file)) as container:
            rate = container.streams.video[0].average_rate
            pictures += [rgb(frame) for frame in container.decode(video=0)]
    assert rate is not None
    (tmp_path / "joined").mkdir()
    write_video(
        tmp_path / "joined" / "all.mp4",
        ticks=range(len(pictures)),
        time_base=1 / rate,
        size=(pictures[0].shape[0], pictures[0].shape[1]),
        options={"crf": "18"},
        draw=lambda index, *_: pictures[index],
    )
    place = Place(clips=tmp_path / "joined", out=tmp_path / "out", store=tmp_path / "store")
    done = place.run("--shots")
    assert done.returncode == 0, done.stderr
    captions = place.captions()
    ends = [*starts[1:], len(pictures)]
    assert [round(line["start"] * rate) for line in captions] == starts
    assert [round(line["end"] * rate) for line in captions] == ends
    assert [line["caption"] for line in captions] == [truth.caption for truth in truths]
