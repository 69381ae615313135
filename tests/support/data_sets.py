"""A run that writes data sets of trainers over a few clips, and what lies there then."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifacts.trainers import TRAINERS
from flows.job.config import CaptionConfig
from flows.job.formats import TRAINER_FORMATS
from flows.results.run_result import RunResult
from tests.support.media import write_video
from tests.support.saying import Saying, make, run
from tests.support.trainers import READERS

Stats = dict[str, tuple[int, int, bytes]]


def with_more(root: Path) -> CaptionConfig:
    """The clips of `make`, and beside them files that have another's stem."""
    config = make(root)
    folder = Path(config.sources[0])
    (folder / "sub").mkdir()
    write_video(folder / "sub" / "long.mkv", ticks=range(30))
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "photo.webp")
    return config


def write(config: CaptionConfig, stages: Saying | None = None, **more: Any) -> RunResult:
    options = {"format": TRAINER_FORMATS, "recursive": True, **more}
    return run(config, stages, **options)


def stats(config: CaptionConfig) -> Stats:
    """What lies in the folders of trainers and of clips, with inode and time of each."""
    found: Stats = {}
    for name in (*TRAINERS, "clips"):
        for path in sorted((Path(config.out) / name).rglob("*")):
            if path.is_file():
                stat = path.stat()
                key = str(path.relative_to(config.out))
                found[key] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
    return found


def said(config: CaptionConfig, name: str) -> list[str]:
    return sorted(READERS[name](Path(config.out)).values())
