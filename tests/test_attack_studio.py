"""A studio attacked by pages of other sites, by odd addresses, bodies, names and media, by values
that its own page never sends, and by two tabs at once."""

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.edits import read_edits
from scripts.stage_processes import descendants
from tests.support.media import write_video
from tests.support.reports import media_file, said, write_run
from tests.support.servers import Answer
from tests.support.strangers import own_folder
from tests.support.studios import OpenStudio

pytestmark = pytest.mark.slow

EVIL = "http://evil.example"
PAGES = ("page.html", "picture.svg", "drawn.svgz", "page.xhtml", "code.js", "page.mp4.htm")
WORDS = ["A ring.", "A square."]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStudio]:
    """A run of one video, what is none, and one that is gone."""
    root = tmp_path_factory.mktemp("studio")
    (root / "media").mkdir()
    first = write_video(root / "media/a.mp4", ticks=range(0, 60, 6))
    names = [*PAGES, 'odd"\r\nSet-Cookie: a=b.mp4', "gone.mp4"]
    for name in names[:-1]:
        (root / "media" / name).write_text("<script>alert(1)</script>")
    (root / "media/secret").symlink_to("/etc")
    files = [media_file(path) for path in (first, *(root / "media" / name for name in names))]
    write_run(root / "out", [(file, said(file, WORDS)) for file in files])
    own_folder(root / "out")  # of a stranger's, nothing but media is shown
    opened = OpenStudio(root / "media", root / "out", root / "store").start()
    assert opened.captions()["media"]
    yield opened
    assert opened.end() == 0


def posts(studio: OpenStudio) -> list[tuple[str, Any]]:
    """Everything that changes something, as the page asks for it."""
    values = {"sources": ["a.mp4"], "model": "demo", "out": str(studio.out / "other")}
    run = studio.own
    return [
        *((path, {"values": values}) for path in ("words", "plan", "runs", "sift")),
        ("presets", {"name": "evil", "text": "theirs"}),
        ("upload?name=evil.png", b"theirs"),
        ("runs/0", {"do": "stop"}),
        (f"{run}/edits", studio.deed("theirs")),
        (f"{run}/again", {"keys": [studio.key()], "values": {}}),
        (f"{run}/write", {"format": ["kohya"]}),
        (f"{run}/learn", {}),
        (f"{run}/follow", {"command": "tune", "out": str(studio.out / "adapter")}),
    ]


def state(studio: OpenStudio) -> tuple[Any, ...]:
    journal = (studio.out / "edits.jsonl").read_bytes()
    prompts = studio.get("start")["prompts"]
    return journal, prompts, studio.runs(), sorted(os.listdir(studio.out))


def sent(studio: OpenStudio, path: str, value: Any, headers: dict[str, Any], **how: Any) -> Answer:
    """Ask with the page's headers, some of them replaced, or left out where they are None."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {**studio.page_headers, **headers}
    return studio.ask("POST", path, body, {n: v for n, v in named.items() if v is not None}, **how)


FOREIGN: list[dict[str, Any]] = [
    *({"Origin": one} for one in (EVIL, "null", "", None, "http://127.0.0.1:1", "file://")),
    *({"Origin": f"http://127.0.0.1{one}"} for one in ("", ".evil.example", ":80@evil.example")),
    *({"Sec-Fetch-Site": one} for one in ("cross-site", "same-site", "")),
    *({"X-Penstock-Token": one} for one in (None, "", "0" * 32, "x", "\xe9" * 32)),
    {"X-Penstock-Token": None, "Cookie": "X-Penstock-Token=TOKEN; token=TOKEN"},
    {"X-Penstock-Token": None, "Authorization": "Bearer TOKEN"},
]


def test_who_is_not_the_page_changes_nothing(studio: OpenStudio) -> None:
    before = state(studio)
    for headers in FOREIGN:
        named = {n: v and v.replace("TOKEN", studio.token) for n, v in headers.items()}
        for path, value in posts(studio):
            answer = sent(studio, path, value, named)
            assert answer.status == 403, (path, headers)
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert state(studio) == before


def test_a_form_of_another_site_has_no_token_and_no_json(studio: OpenStudio) -> None:
    before = state(studio)
    for form in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        for path, value in posts(studio):
            if path.startswith("upload"):
                continue
            assert sent(studio, path, value, {"Content-Type": form}).status == 422, path
    assert state(studio) == before


HOSTS = (
    *(None, "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "0.0.0.0:80"),
    *("evil.example@127.0.0.1", "127.0.0.1:80:80", "127.0.0.1:port", "127.0.0.1, evil.example"),
    *("2130706433", "[::1", "[::ffff:7f00:1]", "\xe9.example"),
)


def test_a_name_that_was_bound_to_this_machine_is_refused(studio: OpenStudio) -> None:
    before = state(studio)
    for host in HOSTS:
        origin = f"http://{host}".encode("ascii", "replace").decode()
        for path in ("", "start", "files", "runs", f"{studio.own}/captions", "//favicon.ico"):
            answer = studio.ask("GET", path, host=host)
            assert answer.status in (400, 421) and studio.token.encode() not in answer.body
        for path, value in posts(studio):
            assert sent(studio, path, value, {"Origin": origin}, host=host).status in (400, 421)
    assert state(studio) == before
    for host in (f"localhost:{studio.port}", "[::1]:8080", "LocalHost:9000"):
        assert studio.ask("GET", "", host=host).status == 200
        answer = sent(studio, "words", {}, {"Origin": f"http://{host}"}, host=host)
        assert answer.status == 422 and b"values are missing" in answer.body


def test_without_the_token_nothing_is_found(studio: OpenStudio) -> None:
    token = studio.token
    odd = ["", "start", f"{token[:-1]}/start", f"{token.upper()}x/start", f"x{token}/start"]
    odd += [f"start?token={token}", f"/{token}/start", f"%2e/{token}/start", "run.json"]
    for path in odd:
        for method, body in (("GET", None), ("POST", b"{}")):
            answer = studio.ask(method, f"//{path}", body, studio.page_headers)
            assert answer.status in (404, 405) and token.encode() not in answer.body


def test_what_changes_something_is_no_address_to_follow(studio: OpenStudio) -> None:
    before = state(studio)
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    for path, _ in posts(studio):
        for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
            if method != "GET" or path not in ("runs", f"{studio.own}/again"):
                answer = studio.ask(method, path, headers=asked)
                assert answer.status in (404, 405), (method, path)
                assert not any(name.startswith("access-control") for name in answer.headers)
    assert state(studio) == before


ODD_BODIES = (
    *(
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"[" * 200_000,
        b'{"values": NaN}',
    ),
    *(b'{"values": []}', b'{"values": 1}', b'{"values": {"sources": {"a": 1}}}'),
    b'{"a": "\\ud800"}',
)


def test_an_odd_body_is_refused_in_one_line(studio: OpenStudio) -> None:
    before = state(studio)
    for path, _ in posts(studio):
        for body in () if path.startswith("upload") else ODD_BODIES:
            answer = studio.post(path, body)
            assert answer.status == 422, (path, body[:40], answer.body)
            told = json.loads(answer.body)["error"]
            assert told.isprintable() and len(told) < 300 and "Traceback" not in told
    assert state(studio) == before


EVIL_VALUES: list[dict[str, Any]] = [
    *({"trust_remote_code": value} for value in (True, "yes", 1)),
    *({name: "x"} for name in ("store", "token_file", "endpoint", "prefect", "--out", "words")),
    *({"sources": [path]} for path in ("/etc/passwd", "secret/passwd", "../..", "@x", "s3://b/a")),
    *({"out": path} for path in ("/tmp/evil", "../evil", "secret")),
    *({"model": path} for path in ("/etc", "../..", "secret", "https://evil.example/m", "-x")),
    *({"adapter": "/etc"}, {"schema": "/etc/passwd"}, {"language_gguf": "secret/passwd"}),
    {"overwrite": True},
    {"chunk": 1e-300},
    *({"server": value} for value in (0, -1, True, "0", "http://evil.example/v1", [0])),
    {"model": "openai:theirs"},
]


def test_values_that_the_page_never_sends_start_nothing(studio: OpenStudio) -> None:
    good = {"sources": ["a.mp4"], "model": "demo", "out": str(studio.out / "other")}
    before = state(studio)
    for evil in EVIL_VALUES:
        for path in ("words", "plan", "runs", "sift"):
            answer = studio.post(path, {"values": {**good, **evil}})
            assert answer.status == 422, (evil, answer.body)
    for changes in ({"out": "/tmp/e"}, {"store": "x"}, {"adapter": "/etc"}, {"format": ["txt"]}):
        again = {"keys": [studio.key()], "values": changes}
        assert studio.post(f"{studio.own}/again", again).status == 422
    for format_ in ({}, {"format": None}, {"format": "kohya"}, {"out": str(studio.out)}):
        answer = studio.post(f"{studio.own}/write", format_)
        assert answer.status == 422 and b"the formats are missing" in answer.body
    assert studio.post("words", {"values": good}).status == 200
    assert state(studio) == before


def test_files_are_listed_below_the_roots_alone(studio: OpenStudio) -> None:
    for path in ("/", "/etc", "..", "secret", "a.mp4/..", "../out/../..", "%00", "~"):
        answer = studio.ask("GET", f"files?path={path}")
        if path == "a.mp4/..":
            continue  # the folder itself
        assert answer.status == 422 and b"root:" not in answer.body, path
    assert "secret" not in json.dumps(studio.get("files"))


NAMES = (
    *("../evil.png", "%2Fetc%2Fevil.png", "..%5Cevil.png", ".evil.png", "evil.html", "evil.txt"),
    *("a%00.png", "a%0A.png", "x" * 300 + ".png", "", ".png", "a.png%2F..%2Fb.png", "evil.jsonl"),
)


def test_an_odd_name_of_an_upload_is_refused(studio: OpenStudio) -> None:
    before = sorted(os.listdir(studio.out))
    for name in NAMES:
        assert studio.post(f"upload?name={name}", b"x").status == 422, name
    assert studio.post("upload?name=a.png", b"").status == 422
    assert {*os.listdir(studio.out)} - {*before} <= {"uploads"}
    for content in (b"one", b"two", b"one"):
        place = studio.done("upload?name=a.png", content)["path"]
        assert Path(place).read_bytes() == content
    assert sorted(os.listdir(studio.out / "uploads")) == ["a-2.png", "a.png"]
    (studio.out / "uploads" / "b.png").symlink_to("nowhere.png")
    (studio.out / "uploads" / "b-2.png").mkdir()
    answer = studio.post("upload?name=b.png", b"three")
    assert answer.status == 200, answer.body
    assert (studio.out / "uploads" / "b-3.png").read_bytes() == b"three"
    for path in ("upload", "upload?name="):
        assert "has no name" in json.loads(studio.post(path, b"x").body)["error"]


def test_what_is_no_range_of_bytes_is_ignored(studio: OpenStudio) -> None:
    whole = studio.ask("GET", f"{studio.own}/media/0").body
    for given in ("bytes=x", "bytes=9-1", "items=0-3"):
        answer = studio.ask("GET", f"{studio.own}/media/0", headers={"Range": given})
        assert (answer.status, answer.body == whole) == (200, True), given
    answer = studio.ask("GET", f"{studio.own}/media/0", headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.body) == (206, whole[:10])


def test_an_odd_address_is_of_no_file(studio: OpenStudio) -> None:
    run = studio.own
    odd = ["-1", "0%00", "1e0", "9" * 5000, "%D9%A0", "8", "a.mp4", "..%2f..%2fetc%2fpasswd"]
    paths = [f"{run}/{kind}/{one}" for one in odd for kind in ("media", "small")]
    paths += [f"{run}/media/../../../etc/passwd", "log/../../x", f"run/{'0' * 16}/captions"]
    for path in paths:
        answer = studio.ask("GET", path)
        assert answer.status in (404, 422) and b"root:" not in answer.body, path
    for at in ("nan", "inf", "-inf", "1e308", "-5", "x", "9" * 400):
        answer = studio.ask("GET", f"{run}/small/0?at={at}")
        assert (answer.status, answer.body[:2]) in {(200, b"\xff\xd8"), (404, b'{"')}, at


def test_what_could_run_is_never_a_page(studio: OpenStudio) -> None:
    for number in range(1, 1 + len(PAGES)):
        answer = studio.ask("GET", f"{studio.own}/media/{number}")
        assert answer.status == 200 and answer.body.startswith(b"<script>")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert studio.ask("GET", f"{studio.own}/small/{number}").status == 404
    answer = studio.ask("GET", f"{studio.own}/media/{1 + len(PAGES)}")
    assert answer.status == 200 and "set-cookie" not in answer.headers
    policy = studio.ask("GET", "").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy


def test_edits_of_two_tabs_are_each_of_the_text_that_was_shown(studio: OpenStudio) -> None:
    """Fifty random interleavings: every acknowledged edit was based on the one before it."""
    path, shown, taken = f"{studio.own}/edits", [studio.deed(None)] * 2, list[str | None]()
    refused, draw = 0, random.Random(7)
    for number in range(50):
        tab = draw.randrange(2)
        if draw.random() < 0.5:
            shown[tab] = studio.deed(None)
        was = shown[tab]["changes"][0]["was"]
        edit = studio.deed(f"tab {tab}, edit {number}", was=was)
        now = studio.captions()["edits"].get(studio.key(), {"caption": None, "review": ""})
        answer = studio.post(path, edit)
        if was == now:
            assert answer.status == 200
            taken.append(edit["changes"][0]["caption"])
            assert studio.post(path, edit).status == 200, "sent twice, done once"
        else:
            assert answer.status == 409 and json.loads(answer.body)["now"][studio.key()] == now
            refused += 1
    journal = read_edits(studio.out)
    assert [d["changes"][0]["caption"] for d in journal.done][-len(taken) :] == taken
    assert refused > 5 and len(taken) > 5
    assert studio.captions()["edits"][studio.key()]["caption"] == taken[-1]


def test_an_edit_is_seen_by_another_tab_in_one_poll(studio: OpenStudio) -> None:
    since = studio.captions()["revision"]
    assert studio.get(f"{studio.own}/captions?since={since}")["edits"] == {}
    studio.done(f"{studio.own}/edits", studio.deed("seen there"))
    found = studio.get(f"{studio.own}/captions?since={since}")
    assert found["edits"] == {studio.key(): {"caption": "seen there", "review": ""}}
    assert "media" not in found
    answer = studio.post(f"{studio.own}/edits", {"id": "old", "does": "undo", "of": "other"})
    assert answer.status == 409, "the last action is not the one that this tab shows"
    for since in ("", "x", "x-1-1", found["revision"].replace("-", "-9", 1), "-" * 99):
        assert "media" in studio.get(f"{studio.own}/captions?since={since}")


def test_a_plan_ends_with_the_page_that_waits_for_it(studio: OpenStudio) -> None:
    values = {"sources": ["a.mp4"], "model": "demo", "out": str(studio.out / "gone")}
    body = json.dumps({"values": values}).encode()
    with socket.create_connection(("127.0.0.1", studio.port)) as page:
        named = {**studio.page_headers, "Host": f"127.0.0.1:{studio.port}"}
        lines = [f"{name}: {value}" for name, value in named.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        head = [f"POST /{studio.token}/plan HTTP/1.1", *lines]
        page.sendall("\r\n".join(head).encode() + body)
        within(lambda: plans_of(studio))
    within(lambda: not plans_of(studio))
    assert studio.done("plan", {"values": values})["plan"]["fits"], "another page may plan"


def plans_of(studio: OpenStudio) -> list[int]:
    """The processes that plan for a studio."""
    assert studio.process is not None
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends just now
        for pid in descendants(studio.process.pid):
            if b"\0plan\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def within(until: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)
