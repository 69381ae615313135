"""A library that crashes over one file, or never ends, costs that file, and no other."""

import ctypes
import hashlib
from pathlib import Path
from typing import Any

from flows.console.display import Display
from flows.job.launch import StageCall
from flows.running.run import caption
from stages.frames import run as stage
from stages.frames import watchdog
from stages.frames.video import Video
from stages.process.report import Report
from stages.process.stage_process import Listener, StageProcess
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.stand_ins import Stages, config_in

CRASH, HANG = b"crash", b"hang"
"""Files that begin so end the process that opens them, or keep it busy for ever."""


class CrashingVideo(Video):
    """As FFmpeg would be with a bug in it."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        if path.read_bytes().startswith(CRASH):
            ctypes.string_at(0)
        if path.read_bytes().startswith(HANG):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        super().__init__(path, threads=threads)


def frames(job: dict[str, Any], report: Report) -> None:
    """The real stage, over such a library."""
    vars(stage)["Video"] = CrashingVideo
    watchdog.LIMIT_CPU_SECONDS = 1.0
    stage.run(job, report)


class RealFrames(Stages):
    """Frames are cut in a process of their own; the other stages answer at once."""

    def launcher(self, listen: Listener) -> "RealFrames":
        self._listen = listen
        return self

    def start(self, call: StageCall) -> Any:
        if call.name != "frames":
            return super().start(call)
        self.calls.append(call)
        entry = f"tests.{Path(__file__).stem}:frames"
        arguments = call.arguments
        return StageProcess(
            call.name, entry, arguments, device="cpu", log=call.log, listen=self._listen
        )


def test_the_file_over_which_the_decoder_crashes_or_hangs_is_named_and_the_others_are_captioned(
    tmp_path: Path,
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(4):
        write_video(clips / f"{number}.mp4", ticks=range(40), gop=5 + number)
    for name, content in (("2-bad.mp4", CRASH), ("9-bad.mp4", HANG)):
        (clips / name).write_bytes(content + name.encode())
    config = config_in(tmp_path, clips)
    stages = RealFrames()
    assert caption(config, Display(quiet=True), stages.launcher).exit_code == 1
    rows = read_lines(tmp_path / "out" / "captions.jsonl")
    assert [row["media_path"] for row in rows] == [f"{number}.mp4" for number in range(4)]
    failures = read_lines(tmp_path / "out" / "failures.jsonl")
    assert [(f["media_path"], f["error"]) for f in failures] == [
        ("2-bad.mp4", "crash"),
        ("9-bad.mp4", "crash"),
    ]
    assert all(failure["hint"] for failure in failures)
    tried = len(stages.calls)
    again = caption(config, Display(quiet=True), stages.launcher)
    assert [f.error for f in again.failures] == ["crash"] * 2
    assert "frames" not in [call.name for call in stages.calls[tried:]]
