"""Objects with odd names in a bucket: each fails alone and by name, and all others are found."""

import http.client
import os
from urllib.parse import quote, urlsplit

import pytest

from flows.media.media_files import Selection
from flows.media.sources import find_media
from tests.support.buckets import BUCKET

pytestmark = pytest.mark.slow
DEEP, FLAT = Selection(recursive=True, extensions=()), Selection(recursive=False, extensions=())
REFUSED = [
    *("a//b.mp4", "/lead.mp4", "a///b.mp4", "./c.mp4", "a/./c.mp4", "a/../d.mp4", "../e.mp4"),
    *("e\x01f.mp4", "tab\tz.mp4", "del\x7f.mp4", "a/bell\x07.mp4", "esc\x1b[31m.mp4"),
    "a/ \x02.jpg",
]
TAKEN = [
    *("sp ace.mp4", "ü.mp4", "per%cent.mp4", "a%2Fb.mp4", "a\\b.mp4", "x?y.mp4", "x#y.mp4"),
    *("*.mp4", "~a.mp4", 'q"q.mp4', "[x].mp4", "plus+sign.mp4", "a&b.mp4", "<z>.mp4", "…/ö.mp4"),
]
PASSED_OVER = ["..", ".", "a/..", "notes\x01.docx", "a//b.txt"]


def put(*names: str, address: str) -> None:
    """Write objects into a folder below an address, over one connection."""
    connection = http.client.HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT"]).netloc)
    for name in names:
        path = quote(f"{urlsplit(address).path.strip('/')}/odd/{name}")
        connection.request("PUT", f"/{BUCKET}/{path}", body=b"x")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()


@pytest.mark.parametrize("name", REFUSED, ids=repr)
def test_an_object_that_cannot_be_asked_for_fails_alone_by_its_name(
    bucket_address: str, name: str
) -> None:
    put(name, "good.mp4", "a/deep.mp4", "plus+and space.jpg", address=bucket_address)
    found, failures = find_media([f"{bucket_address}/odd"], DEEP)
    names = sorted(file.media_path for file in found)
    assert names == ["a/deep.mp4", "good.mp4", "plus+and space.jpg"]
    assert [failure.error for failure in failures] == ["bad-name"]
    assert failures[0].media_path == name and "Rename it" in failures[0].hint
    flat, of_flat = find_media([f"{bucket_address}/odd/"], FLAT)
    assert [file.media_path for file in flat] == ["good.mp4", "plus+and space.jpg"]
    assert len(of_flat) == (0 if "/" in name else 1)


@pytest.mark.parametrize("name", TAKEN, ids=repr)
def test_an_odd_name_that_can_be_asked_for_is_taken_beside_one_that_cannot(
    bucket_address: str, name: str
) -> None:
    put(name, "a//b.mp4", address=bucket_address)
    found, failures = find_media([f"{bucket_address}/odd"], DEEP)
    assert [file.media_path for file in found] == [name] and len(failures) == 1
    assert found[0].remote is not None and found[0].remote.size == 1


@pytest.mark.parametrize("name", PASSED_OVER, ids=repr)
def test_an_odd_name_of_no_medium_is_passed_over(bucket_address: str, name: str) -> None:
    put(name, "good.mp4", address=bucket_address)
    found, failures = find_media([f"{bucket_address}/odd"], DEEP)
    assert [file.media_path for file in found] == ["good.mp4"] and failures == []


def test_a_pattern_finds_what_is_beside_an_odd_name(bucket_address: str) -> None:
    put("a//b.mp4", "a/c.mp4", "d.mp4", "e.jpg", address=bucket_address)
    found, failures = find_media([f"{bucket_address}/odd/**/*.mp4"], DEEP)
    assert sorted(file.media_path for file in found) == ["c.mp4", "d.mp4"]
    assert [failure.media_path for failure in failures] == ["a//b.mp4"]


def test_many_pages_are_listed_around_an_odd_name(bucket_address: str) -> None:
    put(*(f"{at:04}.mp4" for at in range(1005)), "0500//x.mp4", address=bucket_address)
    found, failures = find_media([f"{bucket_address}/odd"], DEEP)
    assert [file.media_path for file in found] == [f"{at:04}.mp4" for at in range(1005)]
    assert len(failures) == 1


@pytest.fixture
def gs_address(bucket_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same folder, asked for as one of Google's, which lists as S3 does."""
    monkeypatch.setenv("GOOGLE_BASE_URL", os.environ["AWS_ENDPOINT"])
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    return bucket_address.replace("s3:", "gs:")


@pytest.mark.parametrize("name", REFUSED[:-1], ids=repr)
def test_elsewhere_an_odd_name_costs_its_own_folder_alone(gs_address: str, name: str) -> None:
    put(f"x/{name}", "good.mp4", "y/z/deep.mp4", address=gs_address)
    found, failures = find_media([f"{gs_address}/odd"], DEEP)
    assert [file.media_path for file in found] == ["good.mp4", "y/z/deep.mp4"]
    (failure,) = failures
    assert failure.error == "bad-name" and "Rename it" in failure.hint
    assert failure.media_path in (f"{gs_address}/odd/x/", f"{gs_address}/odd/x/a/")
    found, failures = find_media([f"{gs_address}/odd/**/*.mp4"], DEEP)
    assert len(found) == 2 and len(failures) == 1
