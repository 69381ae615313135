"""A review attacked by pages of other sites, by odd addresses, bodies and media, two tabs at once,
at the terminal where it asks, and by what lies in the folder that it shows."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from artifacts.edits import read_edits
from artifacts.errors import EnvironmentFault
from artifacts.secret_files import own_secret
from flows.results.recorded_command import is_own_command, signed_command
from flows.reviewing.commands import confirmed, rewriting_of
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.reports import media_file, said, write_run
from tests.support.servers import Answer
from tests.support.terminals import Dialogue

pytestmark = pytest.mark.slow

EVIL = "http://evil.example"
PAGES = ("page.html", "picture.svg", "drawn.svgz", "page.xhtml", "code.js", "page.mp4.htm")
ADDRESS = re.compile(rb"review at http://127\.0\.0\.1:(\d+)/([0-9a-f]{32})/")
SECONDS = 60
KEY_OF_NONE = "0" * 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A review that is going on."""

    out: Path
    port: int
    word: str

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        host: str | None = "127.0.0.1",
    ) -> Answer:
        """Ask for a path below the word, or with `//` before it for that path, as it is written; a
        `host` of None sends no such header."""
        target = path[1:] if path.startswith("//") else f"/{self.word}{path}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            if host is not None:
                connection.putheader("Host", host)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body or b"")
            found = connection.getresponse()
            given = {name.lower(): value for name, value in found.getheaders()}
            return Answer(status=found.status, headers=given, body=found.read())

    def edit(self, edit: Any, **headers: str) -> Answer:
        body = edit if isinstance(edit, bytes) else json.dumps(edit).encode()
        return self.ask("POST", "/edits", body, {"Content-Type": "application/json", **headers})

    @property
    def captions(self) -> dict[str, Any]:
        answer = self.ask("GET", "/captions")
        assert answer.status == 200
        return dict(loaded(answer))

    @property
    def key(self) -> str:
        return str(self.captions["media"][0]["captions"][0]["key"])

    def caption(self) -> str | None:
        edit = self.captions["edits"].get(self.key)
        return edit["caption"] if edit else None

    def journal(self) -> bytes:
        return (self.out / "edits.jsonl").read_bytes()


def loaded(answer: Answer) -> Any:
    return json.loads(answer.body)


def deed(
    of: str, caption: Any, name: str = "", does: str = "x", review: Any = ""
) -> dict[str, Any]:
    change = {"of": of, "caption": caption, "review": review}
    return {"id": name or os.urandom(8).hex(), "does": does, "changes": [change]}


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Review]:
    """One video, what is none, and one that is gone."""
    root = tmp_path_factory.mktemp("review")
    first = write_video(root / "a.mp4", ticks=range(0, 60, 6))
    names = [*PAGES, 'odd"\r\nSet-Cookie: a=b.mp4', "gone.mp4"]
    for name in names[:-1]:
        (root / name).write_text("<script>alert(1)</script>")
    files = [media_file(path) for path in (first, *(root / name for name in names))]
    write_run(root / "out", [(file, said(file, ["A ring.", "A square."])) for file in files])
    command = [*PENSTOCK, "review", str(root / "out"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = ADDRESS.match(line := process.stdout.readline())
        assert found, line
        yield Review(out=root / "out", port=int(found[1]), word=found[2].decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": EVIL}, {"Origin": "null"}, {"Origin": ""}, {"Origin": "http://127.0.0.1:1"}),
        *({"Origin": "http://127.0.0.1.evil.example"}, {"Sec-Fetch-Site": "cross-site"}),
        *({"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "", "Origin": EVIL}),
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    ],
)
def test_a_page_of_another_site_does_nothing(review: Review, headers: dict[str, str]) -> None:
    before = review.journal()
    body = json.dumps(deed(review.key, "theirs")).encode()
    for path, form in product(("/edits", "/files"), ("application/json", "text/plain")):
        answer = review.ask("POST", path, body, {"Content-Type": form, **headers})
        assert answer.status == 403 and "from another site" in loaded(answer)["error"]
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert review.journal() == before


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:{port}"),
        *("evil.example@127.0.0.1", "127.0.0.1:{port}:80", "127.0.0.1:port"),
        *("127.0.0.1, evil.example", "0.0.0.0:{port}", "2130706433", "[::1", "[::ffff:7f00:1]"),
        "\xe9.example",
    ],
)
def test_a_name_that_was_bound_to_this_machine_is_refused(review: Review, host: str | None) -> None:
    before, host = review.journal(), host and host.format(port=review.port)
    origin = {
        "Content-Type": "application/json",
        "Origin": f"http://{host}".encode("ascii", "replace").decode(),
    }
    body = json.dumps(deed(KEY_OF_NONE, "theirs")).encode()
    asked = [
        *(review.ask("GET", "/", host=host), review.ask("GET", "/captions", host=host)),
        *(review.ask("GET", "/media/0", host=host), review.ask("GET", "//elsewhere", host=host)),
        review.ask("POST", "/edits", body, origin, host=host),
        review.ask("POST", "/files", b"", origin, host=host),
    ]
    assert {answer.status for answer in asked} <= {400, 421}
    assert not any(review.word.encode() in answer.body for answer in asked)
    assert review.journal() == before


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LocalHost:9000", "[::1]:8080", "[::1]"],
)
def test_a_forwarded_port_is_this_machine(review: Review, host: str) -> None:
    host = host.format(port=review.port)
    assert review.ask("GET", "/", host=host).status == 200
    asked = json.dumps({"id": os.urandom(4).hex(), "does": "undo"}).encode()
    headers = {"Content-Type": "application/json", "Origin": f"http://{host}"}
    assert review.ask("POST", "/edits", asked, headers, host=host).status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/media/../../../etc/passwd", "/media/..%2f..%2fetc%2fpasswd", "/media//etc/passwd"),
        *("/media/a.mp4", "/media/-1", "/media/0%00", "/media/1e0"),
        *("/media/99999999999999999999", "/media/" + "9" * 5000, "/media/%D9%A0", "/media/8"),
        *("/small/8", "/small/%F0%9D%9F%8E", "/small/1", "/captions/../../etc/passwd"),
        *("/..//etc/passwd", "/static/app.js", "/run.json"),
    ],
)
def test_an_odd_address_is_of_no_file(review: Review, path: str) -> None:
    answer = review.ask("GET", path)
    assert answer.status == 404 and b"root:" not in answer.body


@pytest.mark.parametrize("at", ["nan", "inf", "-inf", "1e308", "-5", "x", "9" * 400, "0.1&at=7"])
def test_a_picture_at_an_odd_time_is_one_or_none(review: Review, at: str) -> None:
    answer = review.ask("GET", f"/small/0?at={at}")
    assert (answer.status, answer.body[:2]) in {(200, b"\xff\xd8"), (404, b'{"')}


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=99999999-", "bytes=-0", "bytes=a-b", "bytes=5-1", "bytes=", "x=0-1", "bytes=-1-"),
        "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 4000, 2)),
        "bytes=" + "0-," * 3000,
    ],
)
def test_an_odd_range_takes_no_more_than_the_file(review: Review, asked: str) -> None:
    size = len(review.ask("GET", "/media/0").body)
    answer = review.ask("GET", "/media/0", headers={"Range": asked})
    assert answer.status in {200, 206, 400, 416}
    assert len(answer.body) <= 200 * size


@pytest.mark.parametrize("name", PAGES)
def test_what_could_run_is_never_a_page(review: Review, name: str) -> None:
    answer = review.ask("GET", f"/media/{1 + PAGES.index(name)}")
    assert answer.status == 200 and answer.body.startswith(b"<script>")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert review.ask("GET", f"/small/{1 + PAGES.index(name)}").status == 404


def test_a_file_s_name_puts_nothing_into_the_headers(review: Review) -> None:
    answer = review.ask("GET", f"/media/{1 + len(PAGES)}")
    assert answer.status == 200 and "set-cookie" not in answer.headers
    assert answer.headers["content-type"] == "video/mp4"


def test_the_page_runs_no_code_but_its_own_and_lies_in_no_frame(review: Review) -> None:
    policy = review.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy


@pytest.mark.parametrize(
    "body",
    [
        *(
            *(b"", b"{", b"[]", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"NaN", b"[" * 200_000),
            b"1" * 10_000,
        ),
        *(b'{"id": NaN, "does": "x"}', b'{"id": "a"}', b'{"id": 1, "does": "x"}'),
        b'{"id": "a", "does": "\\ud800"}',
        b'{"id": "\\udfff", "does": "x", "changes": []}',
        *(b'{"id": "a", "does": "x", "changes": %b}' % each for each in (b"{}", b"[1]")),
        b'{"id": "a", "does": "x", "changes": [{"of": null, "caption": "a", "review": ""}]}',
        deed(KEY_OF_NONE, "a"),
        deed("KEY", "a", name="n" * 201),
        deed("KEY", "a", does="d" * 201),
        *(deed("KEY", "a", review=each) for each in ("perhaps", {"accepted": 1})),
        *(deed("KEY", caption) for caption in (["a"], True, "", "\u00a0\u2003", "a" * (5 << 20))),
        *(deed("KEY", caption) for caption in ("a\0b", "\x1b[2J", "a\x7fb", "a\ud800")),
        deed("KEY", "a" * ((1 << 16) + 1)),
        {"id": "a", "does": "x", "changes": []},
        {"id": "a", "does": "x", "changes": [deed(KEY_OF_NONE, "a")] * 20_000},
    ],
)
def test_an_edit_that_is_none_is_refused_in_one_line(review: Review, body: Any) -> None:
    before = review.journal()
    if isinstance(body, dict):
        body = json.dumps(body).replace("KEY", review.key).encode()
    answer = review.edit(body)
    assert answer.status == 422
    told = loaded(answer)["error"]
    assert told.isprintable() and len(told) < 300 and "Traceback" not in told
    assert review.journal() == before


def test_a_body_of_megabytes_is_refused_and_the_next_is_read(review: Review) -> None:
    before = review.journal()
    # It may be refused while it is still being sent.
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert review.edit(b" " * ((64 << 20) + 2)).status == 422
    assert review.journal() == before
    assert (
        review.edit(b" " * (8 << 20) + json.dumps(deed(review.key, "long")).encode()).status == 200
    )
    assert review.edit({"id": "long-back", "does": "undo"}).status == 200


def test_a_form_of_another_page_is_no_edit(review: Review) -> None:
    before, body = review.journal(), json.dumps(deed(review.key, "theirs")).encode()
    for form in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert review.ask("POST", "/edits", body, {"Content-Type": form}).status == 422
    assert review.journal() == before


def test_another_method_does_nothing(review: Review) -> None:
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        answer = review.ask(method, "/edits", headers=asked)
        assert answer.status == 405
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "caption",
    [
        *("\u202eevil\u202c", "\u2066a\u2069 \u200f\u05e9\u05dc\u05d5\u05dd"),
        *("line\u2028separator\u2029", "</script><script>alert(1)</script>"),
        *('{"id": 1}\n{"id": 2}', "e\u0301" * 100, "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        *("a\tb\r\nc", "\ufffe\uffff", "=cmd|' /C calc'!A0"),
    ],
)
def test_what_a_person_writes_stays_as_it_is(review: Review, caption: str) -> None:
    answer = review.edit(deed(review.key, caption))
    assert answer.status == 200 and loaded(answer)["edits"][review.key]["caption"] == caption
    assert answer.headers["content-type"] == "application/json"
    assert review.caption() == caption
    assert read_edits(review.out).now[review.key].caption == caption
    assert review.edit({"id": os.urandom(8).hex(), "does": "undo"}).status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("//", "//captions", "//%2e/{word}/", "//{word}x/captions", "//{short}/captions"),
        *("//{upper}/captions", "//{other}/captions", "//captions?word={word}"),
        "///{word}/captions",
    ],
)
def test_without_the_word_nothing_is_found(review: Review, path: str) -> None:
    word = review.word
    other = word[:-1] + ("0" if word[-1] != "0" else "1")
    upper = word.upper() if word.upper() != word else f"{word[:-1]}X"
    path = path.format(word=word, short=word[:-1], upper=upper, other=other)
    with_it = {"Cookie": f"word={word}", "Referer": f"http://127.0.0.1/{word}/"}
    for method, body in (("GET", None), ("POST", b"{}")):
        answer = review.ask(method, path, body, with_it)
        assert answer.status in {404, 405} and word.encode() not in answer.body


def test_two_tabs_that_edit_one_caption_take_turns(review: Review) -> None:
    key, start = review.key, review.caption()
    for caption in ("first tab", "second tab"):
        assert review.edit(deed(key, caption, name=f"tab {caption}")).status == 200
    assert loaded(review.edit(deed(key, "first tab", name="tab first tab")))["edits"] == {}, "once"
    assert review.caption() == "second tab"
    for number, left in enumerate(("first tab", start)):
        assert review.edit({"id": f"tabs {number}", "does": "undo"}).status == 200
        assert review.caption() == left


def test_twenty_edits_at_once_are_each_a_line(review: Review) -> None:
    key, lines = review.key, review.journal().count(b"\n")
    with ThreadPoolExecutor(10) as pool:
        asked = [deed(key, f"at once {n}", name=f"at once {n}") for n in range(20)]
        assert {answer.status for answer in pool.map(review.edit, asked)} == {200}
    assert review.journal().count(b"\n") == lines + 20
    last = json.loads(review.journal().splitlines()[-1])
    assert review.caption() == last["changes"][0]["caption"]


def test_a_body_that_never_ends_keeps_nobody_else_waiting(review: Review) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", review.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.putrequest("POST", f"/{review.word}/edits")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b'{"id": ')
        assert review.edit({"id": os.urandom(8).hex(), "does": "redo"}).status == 200


def run_folder(root: Path, words: list[str], folder: str) -> Path:
    """A run whose record names a command that nobody signed."""
    file = media_file(write_video(root / "a.mp4", ticks=range(0, 60, 6)))
    record = write_run(root / "out", [(file, said(file, ["A ring."]))])
    record.value["command"] = {"words": words, "folder": folder}
    record.write(force=True)
    return root / "out"


class AtTerminal(Dialogue):
    """A review that was started at a terminal."""

    def __init__(self, out: Path) -> None:
        super().__init__([*PENSTOCK, "review", str(out), "--port", "0"], cwd=ROOT)
        self.out = out

    def say(self, answer: bytes) -> None:
        assert self.shows(r"\[y/N\] ", SECONDS), self.text
        self.type(answer)

    def review(self) -> Review:
        found = self.shows(ADDRESS.pattern.decode() + "\r\n", SECONDS)
        assert found, self.text
        return Review(out=self.out, port=int(found[1]), word=found[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.close()
        return code


def told_of_files(review: Review) -> dict[str, Any]:
    assert review.ask("POST", "/files", b"").status == 200
    until = time.monotonic() + SECONDS
    while (found := loaded(review.ask("GET", "/files")))["runs"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def help_run(tmp_path: Path) -> Path:
    """A run whose command only tells what it can do."""
    return run_folder(tmp_path, ["caption", "--help"], str(tmp_path))


NOTHING = {"can": False, "runs": False, "failed": False, "said": ""}


@pytest.mark.parametrize("answer", [b"y\n", b"n\n", b"\n", b"yess\n"])
def test_only_a_yes_at_the_terminal_runs_what_was_shown(help_run: Path, answer: bytes) -> None:
    started = AtTerminal(help_run)
    started.say(answer)
    told = told_of_files(started.review())
    assert started.end() == 0 and "Traceback" not in started.text
    if answer == b"y\n":
        assert "penstock caption --help" in started.text
        assert told["can"] and not told["failed"] and told["said"]
    else:
        assert told == NOTHING


def test_who_is_asked_may_leave(help_run: Path) -> None:
    started = AtTerminal(help_run)
    assert started.shows(r"\[y/N\] ", SECONDS)
    assert started.end(signal.SIGINT) == 4
    assert "Traceback" not in started.text and "review at" not in started.text


def test_the_question_shows_all_of_the_command_and_nothing_that_a_terminal_obeys(
    tmp_path: Path,
) -> None:
    words = ["caption", "a\x1b[2K\r", "\u202egnp.a", "--out", "b\nMay it? [y/N] y"]
    words.append("--device=\x9b2J")
    started = AtTerminal(run_folder(tmp_path, words, "/nowhere"))
    started.say(b"n\n")
    assert not told_of_files(started.review())["can"]
    assert started.end() == 0
    shown = started.text.split("would run this:")[1].split("\r\n")[1]
    assert "cd /nowhere && penstock caption" in shown and "--device" in shown
    assert shown.isprintable() and started.text.count("May it?") == 2


def test_a_command_too_long_to_be_read_is_not_asked_about(tmp_path: Path) -> None:
    words = ["caption", *["x" * 50] * 25, "--trust", *["x" * 50] * 25]
    started = AtTerminal(run_folder(tmp_path, words, str(tmp_path)))
    try:
        told = told_of_files(started.review())
    finally:
        assert started.end() == 0
    assert "[y/N]" not in started.text
    assert "Write files is off" in started.text and not told["can"]


def test_without_a_terminal_nothing_runs(help_run: Path) -> None:
    command = [*PENSTOCK, "review", str(help_run), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"y\ny\n")
        process.stdin.flush()
        found = ADDRESS.match(process.stdout.readline())
        assert found
        review = Review(out=help_run, port=int(found[1]), word=found[2].decode())
        told = told_of_files(review)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
    assert told == NOTHING
    assert b"Write files is off" in said and b"penstock caption --help" in said


WORDS = ["caption", "clips", "--format", "txt"]


def secret(path: Path) -> bytes:
    return own_secret(path, "secret", "Delete it", lambda: os.urandom(32))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\t \r\n", b" " * 40, b"\0" * 32, b"short", b"a" * 15]
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
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
        *({"mac": ""}, {"mac": "0" * 64}, {"mac": "é" * 64}),
        {"words": [*WORDS, "--trust-remote-code"]},
        *({"words": ["caption", "clips --format txt"]}, {"words": ["export", *WORDS[1:]]}),
        *({"words": []}, {"folder": "/"}),
    ],
)
def test_a_command_that_was_changed_does_not_run(tmp_path: Path, changed: dict[str, Any]) -> None:
    command = {**signed_command(WORDS, "/clips"), **changed}
    assert not is_own_command(command)
    assert confirmed(command, tmp_path) is None


def test_a_command_of_this_user_runs_without_what_lets_code_in(tmp_path: Path) -> None:
    command = signed_command([*WORDS, "--trust-remote-code", "--prefect"], "/clips")
    assert is_own_command(command) and confirmed(command, tmp_path) == command
    assert rewriting_of(command).words == WORDS
    assert confirmed(signed_command(["export", "m"], "/"), tmp_path) is None
    assert confirmed(None, tmp_path) is None
