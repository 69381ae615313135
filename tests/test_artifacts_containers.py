"""Media files are opened with arguments that every PyAV of the lock accepts."""

import ast
import re
from pathlib import Path

import av
import pytest

from artifacts.containers import open_arguments, open_media
from stages.frames.video import Video
from tests.support.media import write_video

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("artifacts", "stages", "flows", "penstock", "penstock_demo", "scripts", "benchmarks")
OWN_CALLS = {"artifacts/containers.py", "penstock_demo/evaluate.py", "penstock_demo/render.py"}
"""Files that call PyAV's `open` themselves; the demo's package imports nothing of the program."""
OF_BOTH = {
    *("file", "mode", "format", "options", "container_options"),
    *("buffer_size", "timeout", "io_open", "hwaccel"),
}
ACCEPTED = {
    "18.1.0": {*OF_BOTH, "stream_options", "metadata_encoding", "metadata_errors"},
    "19.0.2": OF_BOTH,
}
"""Version of PyAV in the lock → the arguments of its `av.open`."""


def locked_versions() -> set[str]:
    locks = [ROOT / "requirements" / name for name in ("dev.txt", "runtime.txt")]
    return {v for lock in locks for v in re.findall(r"(?m)^av==(\S+)", lock.read_text())}


def test_the_arguments_of_every_locked_pyav_are_written_down() -> None:
    assert locked_versions() == set(ACCEPTED)


def test_the_installed_pyav_accepts_what_is_written_down_of_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    known = {name for names in ACCEPTED.values() for name in names} - {"file", "mode"}
    defaults = {"buffer_size": 32768, "metadata_encoding": "utf-8", "metadata_errors": "strict"}
    accepted = {"file", "mode"}
    for name in known:
        try:
            av.open(str(path), **{name: defaults.get(name)}).close()  # type: ignore[call-overload]
        except TypeError as error:
            assert name in str(error)
        else:
            accepted.add(name)
    if av.__version__ in ACCEPTED:  # elsewhere dependencies may be newer than the lock
        assert accepted == ACCEPTED[av.__version__]


@pytest.mark.parametrize("version", ACCEPTED)
def test_files_are_opened_with_arguments_that_a_locked_pyav_accepts(version: str) -> None:
    given = open_arguments(version, mode="r", format=None, options={})
    assert {"file", *given} <= ACCEPTED[version]


def calls_of_open(path: Path) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("av.open", "av.container.open")
    ]


def test_one_function_of_the_program_calls_pyavs_open() -> None:
    found = {
        file.relative_to(ROOT).as_posix(): calls
        for package in PRODUCT
        for file in (ROOT / package).rglob("*.py")
        if (calls := calls_of_open(file))
    }
    of_program = {name for name in found if not name.startswith(("scripts/", "benchmarks/"))}
    assert of_program == OWN_CALLS
    named = {key.arg for calls in found.values() for call in calls for key in call.keywords}
    assert named - {None} <= OF_BOTH  # the one that has ** is judged by version above


def test_a_title_in_latin_1_does_not_keep_a_video_from_being_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", container_options={})
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as titled:
        copied = titled.add_stream_from_template(source.streams.video[0])
        titled.metadata["title"] = "Fluss XY"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                titled.mux(packet)
    data = (tmp_path / "b.mkv").read_bytes()
    assert data.count(b"Fluss XY") == 1
    (tmp_path / "c.mkv").write_bytes(data.replace(b"Fluss XY", "Flüße XY".encode("latin-1")))
    with open_media(tmp_path / "c.mkv") as container:
        assert "XY" in container.metadata["title"]
    with Video(tmp_path / "c.mkv") as video:
        assert video.duration > 0
