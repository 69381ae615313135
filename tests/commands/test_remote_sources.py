"""Which media sources in a bucket and on the web mean, and what is read of them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.keys import ContentDigests
from artifacts.records.store import open_store
from artifacts.records.stores.bucket_client import Bucket
from artifacts.remote import finding
from flows.core.job.media_digests import check_beside, read_contents
from flows.core.job.partitions import partitions_of
from flows.core.ledger.prompts import FilePlaceholders
from flows.core.media import remote_digests
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.remote_digests import contents_of
from flows.core.media.sources import find_media
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from tests.support.buckets import Between
from tests.support.web import Web, web_server

PLAIN = Selection(recursive=False, extensions=())
DEEP = Selection(recursive=True, extensions=())
NAMES = ("b.mp4", "a.MKV", "notes.docx", "photo.jpg", "deep/c.webm", "a/z.mp4", ".hidden.mp4")
"""Those of a folder and of a bucket; in both the same is found."""


def names(found: list[MediaFile]) -> list[str]:
    return [file.media_path for file in found]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "nearby"))
    monkeypatch.setattr(finding, "WEB_WAITS", (0.01,))
    with web_server(tmp_path) as server:
        yield server


@pytest.fixture
def filled(bucket_address: str, tmp_path: Path) -> str:
    """A folder of a bucket, which is also `videos` on disk."""
    bucket = Bucket(bucket_address)
    for name in NAMES:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        bucket.write(f"videos/{name}", name.encode())
    bucket.write("videos2/other.mp4", b"x")
    return f"{bucket_address}/videos"


@pytest.mark.in_turn
@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("selection", [PLAIN, DEEP, Selection(recursive=True, extensions=("mp4",))])
def test_a_folder_of_a_bucket_gives_what_one_on_disk_does(
    filled: str, tmp_path: Path, selection: Selection, end: str
) -> None:
    found, failures = find_media([filled + end], selection)
    local, _ = find_media([str(tmp_path / "videos")], selection)
    assert names(found) == names(local) and len(found) >= 2 and failures == []
    assert [file.kind for file in found] == [file.kind for file in local]
    assert [file.place for file in found] == [f"{filled}/{name}" for name in names(local)]
    assert {file.source for file in found} == {filled + end}


@pytest.mark.parametrize("pattern", ["*.mp4", "**/*.mp4", "*/c.webm", "[ab].*", "deep/*", "**"])
def test_a_pattern_means_the_same_in_a_bucket(filled: str, tmp_path: Path, pattern: str) -> None:
    found, failures = find_media([f"{filled}/{pattern}"], PLAIN)
    local, _ = find_media([f"{tmp_path}/videos/{pattern}"], PLAIN)
    assert names(found) == names(local) != [] and failures == []


def test_a_bucket_is_listed_in_one_request(filled: str, tmp_path: Path, way: Between) -> None:
    store = open_store(str(tmp_path / "store"))
    found, _ = find_media([filled + "/"], DEEP)
    assert way.counts == {"list": 1}
    files, failures = read_contents(found, ContentDigests(tmp_path / "d"), store)
    local, _ = find_media([str(tmp_path / "videos")], DEEP)
    expected, _ = read_contents(local, ContentDigests(tmp_path / "d"), store)
    digests = [each.medium.digest for each in files]
    assert digests == [each.medium.digest for each in expected] and failures == []
    assert all(each.medium.stamp is None for each in files)
    assert way.counts == {"list": 1, "get": len(found)}
    again, _ = find_media([filled + "/"], DEEP)
    read_contents(again, ContentDigests(tmp_path / "d"), store)
    assert way.counts == {"list": 2, "get": len(found)}


def test_an_object_and_a_folder_with_nothing_in_it(filled: str) -> None:
    bucket = "/".join(filled.split("/")[:3])
    found, failures = find_media([bucket], DEEP)
    assert failures == [] and {"c.webm", "z.mp4"} <= {Path(name).name for name in names(found)}
    found, failures = find_media([f"{filled}/notes.docx", f"{filled}/none", f"{filled}/no*"], PLAIN)
    assert names(found) == ["notes.docx"]  # what is named is taken, whatever its suffix
    missing = [(f"{filled}/{name}", "missing") for name in ("none", "no*")]
    assert [(f.media_path, f.error) for f in failures] == missing


def test_a_bucket_that_cannot_be_read_ends_the_run(bucket_address: str) -> None:
    with pytest.raises(EnvironmentFault, match="s3://nobody"):
        find_media(["s3://nobody/videos/"], PLAIN)
    with pytest.raises(UsageError, match="more than a bucket"):
        find_media(["s3://me:pw@bucket/videos/"], PLAIN)


def test_the_lines_of_a_list_may_be_addresses_with_prompts(web: Web, tmp_path: Path) -> None:
    (tmp_path / "here.mp4").write_bytes(b"here")
    (tmp_path / "a b.jpg").write_bytes(b"there")
    lines = tmp_path / "list.jsonl"
    lines.write_text(
        f'{{"path": "{web.address}/a%20b.jpg?X-Amz-Signature=s3cret", "prompt": "What?"}}\n'
        f'{{"path": "here.mp4"}}\n{{"path": "{web.address}/gone.mp4?se=1&sig=s3cret"}}\n'
        f'{{"path": "http://127.0.0.1:1/dead.mp4"}}\n{{"path": "{web.address}/more.txt"}}\n'
    )
    found, failures = find_media([f"@{lines}"], PLAIN)
    assert names(found) == ["a b.jpg", "here.mp4"]
    assert [file.kind for file in found] == ["image", "video"]
    assert found[0].prompt == "What?" and found[0].place == f"{web.address}/a%20b.jpg"
    assert [(f.error, f.media_path) for f in failures] == [
        ("missing", f"{web.address}/gone.mp4"),
        ("unreachable", "http://127.0.0.1:1/dead.mp4"),
        ("list", f"{web.address}/more.txt"),
    ]
    assert not any("s3cret" in str(f) for f in [*failures, found[0].source, found[0].place])


def test_what_cannot_be_fetched_fails_alone(web: Web, tmp_path: Path) -> None:
    medias = ("a.mp4", "b.mp4", "c.mp4")
    for name in medias:
        (tmp_path / name).write_bytes(name.encode())
    found, _ = find_media([f"{web.address}/{name}" for name in medias], PLAIN)
    web.versions["a.mp4"] = "2"
    web.before = lambda path, _: 500 if "b.mp4" in path else 0
    store = open_store(str(tmp_path / "store"))
    readable, failures = read_contents(found, ContentDigests(tmp_path / "d"), store)
    assert names([each.file for each in readable]) == ["c.mp4"]
    assert readable[0].medium.digest == hashlib.sha256(b"c.mp4").hexdigest()
    failed = [(f.media_path, f.error) for f in failures]
    assert failed == [("a.mp4", "changed"), ("b.mp4", "unreachable")]
    assert "500" in failures[1].message


def test_portions_name_addresses_and_know_their_sizes(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = CaptionConfig(sources=(filled + "/",), out=str(tmp_path / "out"), recursive=True)
    portions, failures = partitions_of(config, max_files=2)
    assert [p.files for p in portions] == [2, 2, 1] and failures == []
    sizes = (len(name) for name in NAMES if name[0] != "." and "docx" not in name)
    assert sum(p.bytes for p in portions) == sum(sizes)
    # Another machine finds the same by the list alone.
    again, _ = find_media([f"@{p.path}" for p in portions], PLAIN)
    whole, _ = find_media([filled + "/"], DEEP)
    assert [file.path for file in again] == [file.path for file in whole]
    assert not os.path.exists(again[0].path)


def test_what_one_machine_learnt_another_need_not_fetch(
    filled: str, way: Between, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents(machine: str) -> list[str]:
        monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / machine))
        store = open_store(filled.replace("videos", "store"))
        found, _ = find_media([filled + "/"], DEEP)
        digests = ContentDigests(tmp_path / f"{machine}.digests")
        way.clear()
        files, failures = read_contents(found, digests, store)
        assert failures == []
        return [each.medium.digest for each in files]

    first = contents("one")
    assert way.counts == {"list": 1, "get": len(first), "put": len(first)}
    assert contents("two") == first and way.counts == {"list": 1}
    monkeypatch.setattr(remote_digests, "MAX_LISTED", 3)
    assert contents("three") == first and way.counts["get"] == 0
    assert way.counts["list"] == 1 + len(first) - 3  # a page holds all; each other one is asked for


def test_who_waits_sees_how_much_is_here(web: Web, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(bytes(1000))
    found, _ = find_media([f"{web.address}/{name}" for name in ("a.mp4", "b.mp4")], PLAIN)
    store, message = open_store(str(tmp_path / "store")), list[tuple[int, int]]()
    contents_of(found, store, lambda here, total: message.append((here, total)))
    assert sorted(message)[-1] == (2000, 2000) and sorted(message) == message
    message.clear()
    contents_of(found, store, lambda here, total: message.append((here, total)))
    assert message == []


@pytest.mark.parametrize(
    "odd",
    ["http://", "https://[::1", "http://h:99999/x", "s3://bucket/a//b.mp4", "s3://bucket/../b.mp4",
     "s3://bucket/a\nb.mp4", "http://h/\x00.mp4", "s3://bucket/\udce4.mp4"],
)  # fmt: skip
def test_an_odd_address_is_a_failure_of_its_own(odd: str, bucket_address: str, web: Web) -> None:
    (web.folder / "a").mkdir()
    (web.folder / "a" / "b.mp4").write_bytes(b"b")
    found, failures = find_media([odd, f"{web.address}/a//b.mp4"], PLAIN)
    assert names(found) == ["b.mp4"]  # two slashes together are a path of the web
    assert [f.error in ("bad-address", "unreachable", "missing") for f in failures] == [True]


def test_a_prompt_may_name_the_folder_of_what_lies_far_away_but_no_text_goes_there(
    filled: str, tmp_path: Path
) -> None:
    found, _ = find_media([f"{filled}/deep/c.webm"], PLAIN)
    placeholders = FilePlaceholders(open_store(str(tmp_path / "store")))
    assert placeholders.fill("{folder}: {name}", found[0], "") == "deep: c"
    with pytest.raises(UsageError, match=r"--beside: cannot write next to .*deep/c\.webm"):
        check_beside(found, CaptionConfig(sources=(filled,), format=("txt",), beside=True))


def test_no_text_goes_beside_media_in_a_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a")
    found, _ = find_media([str(tmp_path)], PLAIN)
    config = CaptionConfig(sources=(str(tmp_path),), format=("txt",), beside=True)
    check_beside(found, config)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    with pytest.raises(UsageError, match=r"a\.mp4 \(its folder is not writable\)"):
        check_beside(found, config)


def test_a_portion_is_called_the_same_when_it_is_signed_anew(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a")
    found = set()
    for word in ("old", "new"):
        source = f"{web.address}/a.mp4?X-Amz-Signature={word}"
        config = CaptionConfig(sources=(source,), out=str(tmp_path / "out"))
        (portion,), _ = partitions_of(config)
        assert word in portion.path.read_text() and portion.path.stat().st_mode & 0o077 == 0
        found.add(portion.path)
    assert len(found) == 1


@pytest.mark.slow
def test_a_source_whose_server_is_silent_ends_as_the_network_does(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    source, model = "http://127.0.0.1:1/dead.mp4", ("--model", "demo")
    assert main(["caption", source, *model, *out]) == 5
    assert "nothing to caption" in capsys.readouterr().err
    assert main(["sift", source, "--out", str(tmp_path / "sift")]) == 5
    assert main(["caption", source, str(tmp_path / "none.mp4"), *model, *out]) == 2
