"""A studio and a review attacked by pages of other sites, by odd addresses, bodies, names and
media, by two tabs at once, at the terminal where they ask, and by what lies in their folder."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.signing import own_secret
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.texts.edits import read_edits
from flows.core.options.training import CommandRecord
from flows.outputs.folder.trust import belief_in, command_in, is_trusted, own_belief
from flows.outputs.marker import MARKER, Marker, write_marker
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.recorded_command import repeated
from scripts.run.stage_processes import descendants
from tests.support.commands import completed
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.reports import captions_of, media_file, write_run
from tests.support.servers import Answer, raw_request
from tests.support.strangers import own_folder, strangers_folder
from tests.support.studios import OpenStudio
from tests.support.terminals import Dialogue

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
    write_run(root / "out", [(file, captions_of(file, WORDS)) for file in files])
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
        ("sifted/0", {"path": "/media/a.mp4", "choice": "best"}),
        (f"{run}/edits", studio.deed("theirs")),
        (f"{run}/again", {"keys": [studio.key()], "values": {}}),
        (f"{run}/write", {"format": ["kohya"]}),
        (f"{run}/learn", {}),
        (f"{run}/follow", {"command": "tune", "out": str(studio.out / "adapter")}),
    ]


def state(studio: OpenStudio) -> tuple[Any, ...]:
    journal = (studio.out / "edits.jsonl").read_bytes()
    return journal, studio.get("start")["prompts"], studio.runs(), sorted(os.listdir(studio.out))


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


def test_an_absolute_target_reaches_nothing(studio: OpenStudio) -> None:
    """RFC 9112, 3.2.2: its host would count, whatever Host says."""
    own = f"127.0.0.1:{studio.port}"
    for named in ("evil.example", own):
        target = f"http://{named}/{studio.token}/start"
        assert raw_request(studio.port, "GET", target, {"Host": own}).status == 404, target


PROXY = "8010-abc.example.org"


NO_HOSTS = ("a.org/x", "a;b", "*", "a:99999")


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_behind_a_proxy_the_page_of_that_host_alone_works(studio: OpenStudio, scheme: str) -> None:
    proxy = f"{scheme}://{PROXY}"
    more, other_out = ("--behind", f"{proxy}/"), studio.out.with_name(scheme)
    passed_on = OpenStudio(studio.folder, other_out, studio.store, more).start()
    assert passed_on.process is not None and passed_on.process.stdout is not None
    lines = [passed_on.process.stdout.readline() for _ in range(2)]
    assert lines[0].startswith(f"studio at {proxy}/")
    assert ("travels openly" in lines[1]) == (scheme == "http")
    other_scheme = {"https": "http", "http": "https"}[scheme]
    own, host = f"127.0.0.1:{passed_on.port}", PROXY
    for passed in (own, host, host.upper()):  # a proxy may pass on its own Host, or not
        answer = passed_on.ask("GET", "", host=passed)
        assert answer.status == 200
        rules = answer.headers["content-security-policy"].split("; ")
        assert [rule for rule in rules if rule.startswith("frame-")] == [f"frame-ancestors {proxy}"]
        for site in ("same-origin", None):
            headers = {"Origin": proxy, "Sec-Fetch-Site": site}
            answer = sent(passed_on, "words", {}, headers, host=passed)
            assert answer.status == 422 and b"values are missing" in answer.body
        others = (
            {"Origin": o}
            for o in (f"{other_scheme}://{host}", f"{proxy}.evil.example", f"{proxy}:1")
        )
        for headers in (*FOREIGN, *others):
            named = {"Origin": proxy, **headers}
            assert sent(passed_on, "words", {}, named, host=passed).status == 403, headers
    for other in (*HOSTS, f"{host}.evil.example", f"x.{host}"):
        assert passed_on.ask("GET", "", host=other).status in (400, 421)
    assert passed_on.end() == 0


@pytest.mark.parametrize(
    "address", ["a.org", "ftp://a.org", "://a.org", *map("https://{}".format, NO_HOSTS)]
)
def test_what_is_no_proxy_is_refused(address: str, tmp_path: Path) -> None:
    done = completed([*PENSTOCK, "studio", str(tmp_path), "--behind", address])
    assert done.returncode == 2 and f"--behind {address}: not the address" in done.stderr


def test_without_the_token_nothing_is_found(studio: OpenStudio) -> None:
    token = studio.token
    odd = ["", "start", f"{token[:-1]}/start", f"{token.upper()}x/start", f"x{token}/start"]
    odd += [f"start?token={token}", f"/{token}/start", f"%2e/{token}/start", "run.json"]
    for path in odd:
        for method, body in (("GET", None), ("POST", b"{}")):
            answer = studio.ask(method, f"//{path}", body, studio.page_headers)
            assert answer.status in (404, 405) and token.encode() not in answer.body
            assert answer.headers["x-content-type-options"] == "nosniff", answer.headers


def test_what_changes_something_is_no_address_to_follow(studio: OpenStudio) -> None:
    before = state(studio)
    requests = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    for path, _ in posts(studio):
        for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
            if method != "GET" or path not in ("runs", "sifted/0", f"{studio.own}/again"):
                answer = studio.ask(method, path, headers=requests)
                assert answer.status in (404, 405), (method, path)
                assert not any(name.startswith("access-control") for name in answer.headers)
    assert state(studio) == before


ODD_BODIES = (
    *(b"", b"{", b"[]", b"1", b"null", b"\xff{}", b"\xef\xbb\xbf{}", b"NaN", b"[" * 200_000),
    *(b'{"values": []}', b'{"values": 1}', b'{"values": {"sources": {"a": 1}}}'),
    *(b'{"a": "\\ud800"}', b'{"values": NaN}'),
)


def test_an_odd_body_is_refused_in_one_line(studio: OpenStudio) -> None:
    before = state(studio)
    for path, _ in posts(studio):
        for body in () if path.startswith("upload") else ODD_BODIES:
            refused_in_a_line(studio.post(path, body))
    assert state(studio) == before


def refused_in_a_line(answer: Answer) -> None:
    assert answer.status == 422, answer.body
    line = json.loads(answer.body)["error"]
    assert line.isprintable() and len(line) < 300 and "Traceback" not in line


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
        assert Path(studio.done("upload?name=a.png", content)["path"]).read_bytes() == content
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
    assert [action.changes[0].caption for action in journal.done][-len(taken) :] == taken
    assert refused > 5 and len(taken) > 5
    assert studio.captions()["edits"][studio.key()]["caption"] == taken[-1]


def test_a_plan_ends_with_the_page_that_waits_for_it(studio: OpenStudio) -> None:
    values = {"sources": ["a.mp4"], "model": "demo", "out": str(studio.out / "gone")}
    body = json.dumps({"values": values}).encode()
    with socket.create_connection(("127.0.0.1", studio.port)) as page:
        named = {**studio.page_headers, "Host": f"127.0.0.1:{studio.port}"}
        lines = [f"{name}: {value}" for name, value in named.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        page.sendall("\r\n".join([f"POST /{studio.token}/plan HTTP/1.1", *lines]).encode() + body)
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


ADDRESS = re.compile(rb"review at http://127\.0\.0\.1:(\d+)/([0-9a-f]{32})/run/[0-9a-f]{16}/")
SECONDS = 60
KEY_OF_NONE = "0" * 24


def review_at(out: Path, found: re.Match[bytes] | re.Match[str]) -> OpenStudio:
    """A review that is going on, which is a studio of one run."""
    port, token = map(os.fsdecode, found.groups())
    return OpenStudio(out, out, out, port=int(port), token=token)


def journal(review: OpenStudio) -> bytes:
    return (review.out / "edits.jsonl").read_bytes()


def again(review: OpenStudio, does: str) -> int:
    """The status of an undo or a redo."""
    of = review.get(f"{review.own}/history")["tops"][does]
    step = {"id": os.urandom(8).hex(), "does": does, "of": of}
    return review.post(f"{review.own}/edits", step).status


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStudio]:
    root = tmp_path_factory.mktemp("review")
    file = media_file(write_video(root / "a.mp4", ticks=range(0, 60, 6)))
    write_run(root / "out", [(file, captions_of(file, WORDS))])
    command = [*PENSTOCK, "review", str(root / "out"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = ADDRESS.match(line := process.stdout.readline())
        assert found, line
        yield review_at(root / "out", found)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    "requested",
    [
        *("bytes=99999999-", "bytes=-0", "bytes=a-b", "bytes=5-1", "bytes=", "x=0-1", "bytes=-1-"),
        "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 4000, 2)),
        "bytes=" + "0-," * 3000,
    ],
)
def test_an_odd_range_takes_no_more_than_the_file(review: OpenStudio, requested: str) -> None:
    path = f"{review.own}/media/0"
    size = len(review.ask("GET", path).body)
    answer = review.ask("GET", path, headers={"Range": requested})
    assert answer.status in {200, 206, 400, 416}
    assert len(answer.body) <= 200 * size


@pytest.mark.parametrize(
    "requested",
    [
        *(b'{"id": NaN, "does": "x"}', b'{"id": "a"}', {"id": 1}, {"does": "\ud800"}),
        *({"id": "\udfff"}, {"id": "n" * 201}, {"does": "d" * 201}, {"of": None}),
        {"of": KEY_OF_NONE},
        *({"review": each} for each in ("perhaps", {"accepted": 1})),
        *({"caption": each} for each in (["a"], True, "", "\u00a0\u2003", "a" * (5 << 20))),
        *({"caption": each} for each in ("a\ud800", "a" * ((1 << 16) + 1))),
        *({"changes": {}}, {"changes": [1]}, {"changes": []}),
        {"changes": [{"of": KEY_OF_NONE}] * 20_000},
    ],
)
def test_an_edit_that_is_none_is_refused_in_one_line(review: OpenStudio, requested: Any) -> None:
    """`asked` replaces fields of a valid edit, or of its change."""
    before, edit = journal(review), review.deed("a")
    if isinstance(requested, dict):
        (edit if requested.keys() <= edit.keys() else edit["changes"][0]).update(requested)
    sending = edit if isinstance(requested, dict) else requested
    refused_in_a_line(review.post(f"{review.own}/edits", sending))
    assert journal(review) == before


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\x7fb"])
def test_a_control_character_becomes_a_space(review: OpenStudio, text: str) -> None:
    edit = review.deed("a")
    edit["changes"][0]["caption"] = text
    (changed,) = json.loads(review.post(f"{review.own}/edits", edit).body)["edits"].values()
    assert changed["caption"] == "a b"
    assert again(review, "undo") == 200


def test_a_body_of_megabytes_is_refused_and_the_next_is_read(review: OpenStudio) -> None:
    before, path = journal(review), f"{review.own}/edits"
    # It may be refused while it is still being sent.
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert review.post(path, b" " * ((64 << 20) + 2)).status == 422
    assert journal(review) == before
    long = json.dumps(review.deed("long")).encode()
    assert review.post(path, b" " * (8 << 20) + long).status == 200
    assert again(review, "undo") == 200


@pytest.mark.parametrize(
    "caption",
    [
        *("\u202eevil\u202c", "\u2066a\u2069 \u200f\u05e9\u05dc\u05d5\u05dd"),
        *("line\u2028separator\u2029", "</script><script>alert(1)</script>"),
        *('{"id": 1}\n{"id": 2}', "e\u0301" * 100, "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        *("a\tb\r\nc", "\ufffe\uffff", "=cmd|' /C calc'!A0"),
    ],
)
def test_what_a_person_writes_stays_as_it_is(review: OpenStudio, caption: str) -> None:
    key, answer = review.key(), review.post(f"{review.own}/edits", review.deed(caption))
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["edits"][key]["caption"] == caption
    assert review.captions()["edits"][key]["caption"] == caption
    assert read_edits(review.out).now[key].caption == caption
    assert again(review, "undo") == 200


def test_a_body_that_never_ends_keeps_nobody_else_waiting(review: OpenStudio) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", review.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.putrequest("POST", f"/{review.token}/{review.own}/edits")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b'{"id": ')
        assert again(review, "redo") == 200


def run_folder(root: Path, words: list[str], folder: str) -> Path:
    """A run of another user."""
    file = media_file(write_video(root / "a.mp4", ticks=range(0, 60, 6)))
    record = write_run(root / "out", [(file, captions_of(file, ["A ring."]))])
    record.record.command = CommandRecord(words=tuple(words), folder=folder)
    record.write(force=True)
    strangers_folder(root / "out", words, folder)
    return root / "out"


class AtTerminal(Dialogue):
    """A review that was started at a terminal."""

    def __init__(self, out: Path) -> None:
        super().__init__([*PENSTOCK, "review", str(out), "--port", "0"], cwd=ROOT)
        self.out = out

    def say(self, answer: bytes) -> None:
        assert self.shows(r"\[y/N\] ", SECONDS), self.text
        self.type(answer)

    def review(self) -> OpenStudio:
        found = self.shows(ADDRESS.pattern.decode() + "\r\n", SECONDS)
        assert found, self.text
        return review_at(self.out, found)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.close()
        return code


def told_of_files(review: OpenStudio) -> dict[str, Any]:
    """Return what came of the button that writes files: an error, or its run."""
    answer = review.post(f"{review.own}/write", {"format": []})
    if answer.status != 200:
        assert answer.status == 422
        return dict(json.loads(answer.body))
    going = ("queued", "starting", "running")
    (found,) = review.wait(lambda runs: runs[0]["state"] not in going)
    return dict(found)


@pytest.fixture
def planning_run(tmp_path: Path) -> Path:
    """A run whose command only plans."""
    return run_folder(tmp_path, ["caption", "a.mp4", "--model", "demo", "--dry-run"], str(tmp_path))


@pytest.mark.parametrize("answer", [b"y\n", b"n\n", b"\n", b"yess\n"])
def test_only_a_yes_at_the_terminal_runs_what_was_shown(planning_run: Path, answer: bytes) -> None:
    started = AtTerminal(planning_run)
    started.say(answer)
    message = told_of_files(started.review())
    assert started.end() == 0 and "Traceback" not in started.text
    if answer == b"y\n":
        assert "penstock caption a.mp4 --model demo --dry-run" in started.text
        assert (message["kind"], message["state"]) == ("write", "done")
    else:
        assert "not written by a command of this user" in message["error"]


def test_who_is_asked_may_leave(planning_run: Path) -> None:
    started = AtTerminal(planning_run)
    assert started.shows(r"\[y/N\] ", SECONDS)
    assert started.end(signal.SIGINT) == 4
    assert "Traceback" not in started.text and "review at" not in started.text


def test_the_question_shows_all_of_the_command_and_nothing_terminals_obey(tmp_path: Path) -> None:
    words = ["caption", "a\x1b[2K\r", "\u202egnp.a", "--out", "b\nTrust it? [y/N] y"]
    words.append("--device=\x9b2J")
    started = AtTerminal(run_folder(tmp_path, words, "/nowhere"))
    started.say(b"n\n")
    assert told_of_files(started.review())["error"]
    assert started.end() == 0
    shown = started.text.split("let Write and Learn run:")[1].split("\r\n")[0]
    assert "cd /nowhere && penstock caption" in shown and "--device" in shown
    assert shown.isprintable() and started.text.count("Trust it?") == 2


def test_a_command_too_long_to_be_read_is_not_asked_about(tmp_path: Path) -> None:
    words = ["caption", *["x" * 50] * 25, "--trust", *["x" * 50] * 25]
    started = AtTerminal(run_folder(tmp_path, words, str(tmp_path)))
    try:
        message = told_of_files(started.review())
    finally:
        assert started.end() == 0
    assert "[y/N]" not in started.text
    assert "--trust-folder would let Write and Learn run" in started.text and message["error"]


COMMAND = ["caption", "clips", "--format", "txt"]


def secret(path: Path) -> bytes:
    return own_secret(path, "secret", "Delete it", lambda: os.urandom(32))


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"\t \r\n", b" " * 40, b"\0" * 32, b"short", b"a" * 15):
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(EnvironmentFault, match=r"contains no secret\. Delete it"):
            secret(tmp_path / "s")
        assert (tmp_path / "s").read_bytes() == content


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o600])
def test_a_secret_is_closed_to_others_and_stays(tmp_path: Path, mode: int) -> None:
    made = secret(tmp_path / "s")
    (tmp_path / "s").chmod(mode)
    assert secret(tmp_path / "s") == made
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "changed",
    [
        {"words": [*COMMAND, "--trust-remote-code"]},
        *({"words": ["caption", "clips --format txt"]}, {"words": ["export", *COMMAND[1:]]}),
        *({"words": []}, {"folder": "/"}, {"store": "/"}, {"media": ["0" * 64]}),
        {"outputs": ["x"]},
    ],
    ids=str,
)
def test_a_command_that_was_changed_does_not_run(tmp_path: Path, changed: dict[str, Any]) -> None:
    own_folder(tmp_path, {"words": COMMAND, "folder": "/clips"})
    RecordWriter(tmp_path).write(force=True)
    assert command_in(tmp_path) == CommandRecord(words=tuple(COMMAND), folder="/clips")
    marker = tmp_path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **changed}))
    assert belief_in(tmp_path).marker is None and not is_trusted(tmp_path)
    with pytest.raises(UsageError, match="not written by a command of this user"):
        own_belief(tmp_path)


def test_a_command_of_this_user_runs_without_what_lets_code_in(tmp_path: Path) -> None:
    words = [*COMMAND, "--trust-remote-code", "--trust-folder", "--prefect"]
    own_folder(tmp_path, {"words": words, "folder": "/clips"})
    RecordWriter(tmp_path).write(force=True)
    assert repeated(command_in(tmp_path).words) == COMMAND
    own_folder(tmp_path, {"words": ["export", "m"], "folder": "/"})
    with pytest.raises(UsageError, match="has no command of a caption run"):
        command_in(tmp_path)
    write_marker(tmp_path, Marker(command="label"))
    with pytest.raises(UsageError, match="is the output folder of `penstock label`"):
        command_in(tmp_path)
