"""Media far away, by a real web server: what lies there, its bytes, the copies kept."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.disk.stamps import FileChanged
from artifacts.errors import EnvironmentFault, MediaError, Unanswered
from artifacts.records.stores import copies as copies_module
from artifacts.remote import finding, media_cache
from artifacts.remote.addresses import is_address, is_object, name_in, signed, unsigned
from artifacts.remote.ahead import map_prefetched
from artifacts.remote.finding import remote_file_at
from artifacts.remote.media_cache import copy_of, digest_at, local_path, media_folder, open_local
from tests.support.faults import failing
from tests.support.web import Web, web_server

BLOCK = 1000
AT_HAND = """
from artifacts.remote import finding, media_cache
import sys
with media_cache.open_local(sys.argv[1]): pass
"""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "nearby"))
    monkeypatch.setattr(finding, "STREAMED_BYTES", BLOCK)
    monkeypatch.setattr(finding, "WEB_WAITS", (0.01,))
    (tmp_path / "there").mkdir()
    with web_server(tmp_path / "there", block=BLOCK) as server:
        yield server


def put(web: Web, name: str, size: int) -> bytes:
    content = os.urandom(size)
    (web.folder / name).write_bytes(content)
    return content


def fetched(place: str | Path) -> bytes:
    with open_local(place) as path:
        return path.read_bytes()


def copies() -> list[str]:
    names = (path.name for path in media_folder().glob("*/*/*"))
    return sorted(name for name in names if not name.startswith(".penstock-"))


@pytest.fixture
def far(web: Web) -> str:
    """The address of `a.mp4`."""
    return f"{web.address}/a.mp4"


def test_addresses_are_told_from_paths() -> None:
    assert is_address("s3://b/x.mp4") and is_address("https://h/x") and is_address("HTTP://h")
    assert not any(map(is_address, ["x.mp4", "/a/s3/x", "ftp://h/x", "s3:/b/x", "file:///x"]))
    assert is_object("https://h/x?a=[1]") and is_object("s3://b/x.mp4")
    assert not is_object("s3://b/folder/") and not is_object("s3://b/*.mp4")


def test_what_lets_a_reader_in_is_neither_shown_nor_kept() -> None:
    address = "https://me:pw@h.org:8/a%20b.mp4?X-Amz-Signature=abc&id=3&x-amz-date=1&token=t#part"
    assert unsigned(address) == "https://h.org:8/a%20b.mp4?id=3"
    assert signed(address) and not signed("https://h.org:8/a%20b.mp4?id=3#part")
    assert unsigned("https://h/x.mp4?se=2026&sig=abc") == "https://h/x.mp4"
    others = "https://h/x?access_token=a&hdnts=b&x-oss-signature=c&page=2"
    assert unsigned(others) == "https://h/x?page=2"
    assert unsigned("S3://b/x.mp4") == "s3://b/x.mp4"
    assert unsigned("s3://b/a?b#c.mp4") == "s3://b/a?b#c.mp4"  # a name, and no query


@pytest.mark.slow
def test_a_copy_has_the_name_of_what_it_is_a_copy_of() -> None:
    for address, name in (
        *(("https://h/a/b%20c.mp4?x=y.png", "b c.mp4"), ("https://h/a%2F..%2Fetc", "etc")),
        *(("https://h", "file"), ("https://h/..", "file"), ("s3://b/folder/ü?.mp4", "ü?.mp4")),
        ("https://h/.penstock-far.json", "penstock-far.json"),
        ("https://h/" + "x" * 500 + ".mp4", "x" * 116 + ".mp4"),
    ):
        assert name_in(address) == name


def test_a_file_is_fetched_once_in_one_response(web: Web, far: str) -> None:
    content = put(web, "a.mp4", 10 * BLOCK + 7)
    file = remote_file_at(far)
    assert (file.size, file.version, file.name) == (len(content), "1", "a.mp4")
    path = copy_of(file)
    assert not path.exists()
    for _ in range(2):
        assert digest_at(path) == hashlib.sha256(content).hexdigest()
    for place in (path, str(path), far):
        with open_local(place) as found:
            assert found == path and found.read_bytes() == content
    assert web.ranges("a.mp4") == [""]


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_every_size_comes_whole_also_without_parts(web: Web, size: int, parts: bool) -> None:
    web.parts = parts
    content = put(web, "a.mp4", size)
    assert fetched(f"{web.address}/a.mp4") == content


@pytest.mark.parametrize("parts", [True, False])
def test_a_download_that_is_cut_goes_on_from_its_last_byte(web: Web, parts: bool) -> None:
    """The server ends the connection twice, and is busy for the request in between."""
    web.parts, content, cuts = parts, put(web, "a.mp4", 40 * BLOCK), {10 * BLOCK, 25 * BLOCK}

    def cut(_: str, place: int) -> bool:
        is_cut = place in cuts
        cuts.discard(place)
        return is_cut

    web.during = cut
    web.before = lambda _, part: 503 if len(web.ranges("a.mp4")) == 2 else 0
    assert fetched(f"{web.address}/a.mp4") == content
    first, _, *others = web.ranges("a.mp4")
    begins = [int(part.removeprefix("bytes=").partition("-")[0]) for part in others if part]
    assert first == "" and cuts == set()
    if parts:
        assert begins == sorted(begins) and 0 < begins[0] <= 10 * BLOCK < begins[-1] <= 25 * BLOCK


def test_trouble_that_stays_is_one_line_and_what_is_here_stays(web: Web) -> None:
    content = put(web, "a.mp4", 20 * BLOCK)
    web.during = lambda _, place: place == 10 * BLOCK
    web.before = lambda _, part: 503 if part.endswith("-") else 0
    with pytest.raises(MediaError, match=r"no response from .*\(.*503 Service Unavail.*\)") as no:
        fetched(f"{web.address}/a.mp4")
    assert "\n" not in str(no.value)
    (part,) = media_folder().glob("*/*/*.part")
    here, web.before, web.during = part.stat().st_size, lambda *_: 0, lambda *_: False
    assert fetched(f"{web.address}/a.mp4") == content
    assert 0 < here <= 10 * BLOCK and web.ranges("a.mp4")[-1] == f"bytes={here}-"


def test_a_killed_fetch_goes_on_where_it_was(web: Web) -> None:
    content = put(web, "a.mp4", 40 * BLOCK)
    process: list[subprocess.Popen[bytes]] = []

    def kill_in_the_middle(_: str, place: int) -> bool:
        if place == 20 * BLOCK:
            while not any(each.stat().st_size for each in media_folder().glob("*/*/*.part")):
                time.sleep(0.01)
            process[0].send_signal(signal.SIGKILL)
            process[0].wait()
        return place == 20 * BLOCK

    web.during = kill_in_the_middle
    code = AT_HAND.replace("import sys", f"import sys\nfinding.STREAMED_BYTES = {BLOCK}")
    process.append(subprocess.Popen([sys.executable, "-c", code, f"{web.address}/a.mp4"]))
    assert process[0].wait(60) == -signal.SIGKILL
    (part,) = media_folder().glob("*/*/*.part")
    here, web.during = part.stat().st_size, lambda *_: False
    assert fetched(f"{web.address}/a.mp4") == content
    assert web.ranges("a.mp4") == ["", f"bytes={here}-"] and here <= 20 * BLOCK
    assert copies() == ["a.mp4"]


def test_what_tells_no_version_is_fetched_anew_by_each_run(web: Web) -> None:
    web.told = False
    put(web, "a.mp4", 10)
    first, second = (copy_of(remote_file_at(f"{web.address}/a.mp4")) for _ in range(2))
    assert first != second
    digest_at(first)
    content = put(web, "a.mp4", 10)
    assert digest_at(second) == hashlib.sha256(content).hexdigest()
    first.unlink()  # for room; what lies there now is not what was digested
    with pytest.raises(MediaError, match="changed, replaced or removed"):
        fetched(first)


def test_a_new_version_is_another_copy(web: Web) -> None:
    put(web, "a.mp4", 100)
    before = copy_of(remote_file_at(f"{web.address}/a.mp4"))
    web.versions["a.mp4"] = "2"
    with pytest.raises(FileChanged):
        digest_at(before)
    assert copy_of(remote_file_at(f"{web.address}/a.mp4")) != before


def test_a_signed_address_is_asked_with_what_is_given_last(web: Web) -> None:
    content = put(web, "a.mp4", 100)
    before = copy_of(remote_file_at(f"{web.address}/a.mp4?X-Amz-Signature=old"))
    assert before == copy_of(remote_file_at(f"{web.address}/a.mp4?X-Amz-Signature=new"))
    assert fetched(before) == content
    assert web.asked[-1][0].endswith("Signature=new")
    note = before.parent / ".penstock-far.json"
    assert note.stat().st_mode & 0o077 == 0 and "new" in note.read_text()


def test_an_old_part_is_not_trusted(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    content = put(web, "a.mp4", 3 * BLOCK)
    path = copy_of(remote_file_at(f"{web.address}/a.mp4"))
    path.with_name("01234567.part").write_bytes(bytes(2 * BLOCK))
    monkeypatch.setattr(media_cache, "boot_suffix", lambda: ".fedcba9876543210")
    assert fetched(path) == content


def test_two_that_want_the_same_fetch_it_once(web: Web) -> None:
    put(web, "a.mp4", 30 * BLOCK)
    command = [sys.executable, "-c", AT_HAND, f"{web.address}/a.mp4"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [each.wait(60) for each in both] == [0, 0]
    assert len(web.ranges("a.mp4")) == 1


def test_copies_in_use_stay_and_the_oldest_go(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_NEARBY_GB", str(5500 / 1e9))
    paths, names = [], ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    for used, name in enumerate(names):
        put(web, name, 1000)
        with open_local(f"{web.address}/{name}") as path:
            paths.append(path)
        os.utime(path, ns=(used, used))
    assert copies() == names
    with open_local(paths[0]):
        os.utime(paths[0], ns=(0, 0))
        put(web, "f.mp4", 1000)
        with open_local(f"{web.address}/f.mp4"):
            assert copies() == ["a.mp4", "d.mp4", "e.mp4", "f.mp4"]
    with open_local(paths[1]) as path:  # fetched again
        assert path.stat().st_size == 1000 and len(web.ranges("b.mp4")) == 2
        put(web, "g.mp4", 5400)
        with open_local(f"{web.address}/g.mp4"):
            assert copies() == ["b.mp4", "g.mp4"]


def test_own_files_are_never_taken_for_copies(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_NEARBY_GB", str(1500 / 1e9))
    folders = ("films/2024", f"ab/{'ab' * 32}")  # without a note
    own = [media_folder() / folder / "holiday.mp4" for folder in folders]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(5000))
        os.utime(path, (0, 0))
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        put(web, name, 1000)
        fetched(f"{web.address}/{name}")
    assert all(path.exists() for path in own) and "a.mp4" not in copies()
    with open_local(own[0]) as found:
        assert found == own[0] and found.stat().st_atime == 0


def test_a_disk_that_is_nearly_full_makes_room(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4"):
        put(web, name, 1000)
    fetched(f"{web.address}/a.mp4")
    free = shutil.disk_usage(media_folder()).free
    monkeypatch.setattr(copies_module, "SPARE_BYTES", free + (1 << 40))
    with open_local(f"{web.address}/b.mp4") as path:
        assert path.exists() and copies() == ["b.mp4"]


def test_a_size_of_no_disk_is_the_file_s_fault(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    put(web, "a.mp4", 1000)
    far = replace(remote_file_at(f"{web.address}/a.mp4"), size=10**17)
    with pytest.raises(MediaError, match="says that it has 100,000,000,000,000,000 bytes"):
        local_path(copy_of(far))


def test_results_come_in_order_and_errors_in_their_turn() -> None:
    def halved(number: int) -> float:
        time.sleep(0.02 if number % 3 else 0)
        return 1 / (number - 7)

    seen = []
    with pytest.raises(ZeroDivisionError):
        for result in map_prefetched(halved, range(20), 3):
            seen.append(result)
    assert seen == [1 / (number - 7) for number in range(7)]
    assert list(map_prefetched(abs, range(-50, 0), 4)) == list(range(50, 0, -1))
    assert list(map_prefetched(abs, [], 0)) == []


def test_what_is_not_there_or_not_allowed_is_said(web: Web) -> None:
    with pytest.raises(FileNotFoundError):
        remote_file_at(f"{web.address}/a.mp4")
    web.before = lambda *_: 403
    with pytest.raises(Unanswered, match="403"):
        remote_file_at(f"{web.address}/a.mp4?token=secret")
    with pytest.raises(Unanswered, match="no response from"):
        remote_file_at("http://127.0.0.1:1/a.mp4")


def test_a_disk_without_room_is_said_before(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    put(web, "a.mp4", BLOCK)
    monkeypatch.setattr(finding, "SPARE_BYTES", 1 << 60)
    with pytest.raises(EnvironmentFault, match=r"has no room for http.*PENSTOCK_NEARBY"):
        fetched(f"{web.address}/a.mp4")
    assert web.ranges("a.mp4") == []


def test_a_disk_that_fills_meanwhile_is_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    put(web, "a.mp4", BLOCK)
    path = copy_of(remote_file_at(f"{web.address}/a.mp4"))  # which writes a note
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(EnvironmentFault, match=r"the disk of /.* is full"):
        fetched(path)


def test_a_note_that_rotted_is_written_anew(web: Web) -> None:
    content = put(web, "a.mp4", 10)
    path = copy_of(remote_file_at(f"{web.address}/a.mp4"))
    (path.parent / ".penstock-far.json").write_text("{")
    assert copy_of(remote_file_at(f"{web.address}/a.mp4")) == path
    assert fetched(path) == content
