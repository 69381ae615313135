"""What the page of a studio may name, the words it stands for, and the queue of runs."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from starlette.routing import Route
from starlette.testclient import TestClient

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.options import declared
from artifacts.records.store import open_store
from artifacts.schema import values_of
from flows.commands.cache.clean import collect, holdings
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parse
from flows.core.machine.processes import start_of
from flows.core.options.commands import CaptionConfig
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.refusals import json_answer
from flows.interfaces.studio.roots import NoSuchFolder, Refused, Roots
from flows.interfaces.studio.run_captions import RunCaptions, choose, sifted_in
from flows.interfaces.studio.runs import QueuedRun, RunQueue, interrupt, run_id, search_lines
from flows.interfaces.studio.server import PageAddress, studio_app
from flows.interfaces.studio.server import studio as start_studio
from flows.interfaces.studio.session import RecordedCommand, Studio, Thumbnails, answers_of
from flows.interfaces.studio.values import ALLOWED, DENIED, OPTIONS, checked, line_of
from flows.interfaces.studio.values import words_of as command_of
from flows.outputs.record.record_writer import RecordWriter, remember
from stages.models.hub.resolve import download_bytes
from tests.support.pipeline import ROOT
from tests.support.reports import captions_of, media_file, write_run
from tests.support.strangers import own_folder

Patch = pytest.MonkeyPatch


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Two roots with media, links out of them, and what is outside."""
    for name in ("media/inner", "out", "outside/deep", "media/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("media/a.png", "media/inner/b.mp4", "outside/c.png", "media/.hidden/d.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "media/list.txt").write_text("/etc/passwd\n")
    (tmp_path / "media/model").mkdir()
    (tmp_path / "media/link").symlink_to(tmp_path / "outside")
    return Roots([tmp_path / "media", tmp_path / "out"])


def words_of(values: dict[str, Any], roots: Roots) -> list[str]:
    return command_of(checked(values, roots))


def given(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"sources": [str(tmp_path / "media/a.png")], "model": "demo", **more}


def test_every_option_of_the_table_is_allowed_or_denied_by_name() -> None:
    names = {each.name for each in declared(CaptionConfig)}
    assert ALLOWED <= names <= ALLOWED | DENIED and not ALLOWED & DENIED
    odd = [n for n in ALLOWED for w in ("trust", "token", "endpoint", "secret", "key") if w in n]
    assert odd == ["max_new_tokens"]


VALUES: dict[type, Any] = {
    bool: True,
    int: 3,
    float: 1.5,
    str: "a b",
    tuple: ["a"],
    dict: {"a": "b"},
}
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}}'
REAL: dict[str, Any] = {
    "sources": None, "model": "a/b-c", "memory": "8GiB", "max_store": "8GiB", "gpus": "all",
    "schema": SCHEMA, "adapter": "model", "language_gguf": "model", "out": "out",
    "temperature": 0.5, "top_p": 0.5, "repetition_penalty": 1.1, "presence_penalty": 0.5,
    "max_new_tokens": 300, "extensions": ["mp4"], "today": "2026-01-31",
    "questions": '{"a": "Is it?"}', "question": {"a": "Is it?"}, "decisions": "m.csv",
    "keep": "a > 0.5", "min_age": "10m",
    "sift": "blurred = 0 and duplicate = 0", "trainer": ["kohya:sdxl", "musubi:wan"],
}  # fmt: skip


def test_each_option_is_refused_or_reaches_the_command_as_it_was_sent(
    roots: Roots, tmp_path: Path
) -> None:
    for name in sorted((ALLOWED | DENIED) & OPTIONS.keys()):
        check_option(roots, tmp_path, name)


def check_option(roots: Roots, tmp_path: Path, name: str) -> None:
    option = next(each for each in declared(CaptionConfig) if each.name == name)
    value = REAL.get(name, VALUES[option.kind])
    if option.option.values and name not in REAL:
        value = next(one for one in option.option.values if one)
        value = [value] if option.kind is tuple else value
    values = given(tmp_path) if value is None else given(tmp_path, **{name: value})
    needed: dict[str, Any] = {
        "beside": {"format": ["txt"]},
        "summary_prompt": {"summary": True},
        "keep": {"question": {"a": "Is it?"}},
        "decisions": {"question": {"a": "Is it?"}},
        "clip_frames": {"clip_fps": 16.0},
        "clip_fps": {"clip_frames": 81},
        "clip_rest": {"clip_frames": 81, "clip_fps": 16.0},
    }
    values |= needed.get(name, {})
    if name in DENIED:
        with pytest.raises(Refused, match="cannot be set in the page"):
            words_of(values, roots)
        return
    words = words_of(values, roots)
    assert shlex.split(line_of(words)) == ["penstock", *words]
    config = config_of(parse(words), CaptionConfig)
    found = getattr(config, name)
    if name in ("adapter", "language_gguf", "out", "decisions"):
        value = str(tmp_path / "media" / value)
    if name in ("questions", "question"):
        assert [one.text for one in config.every_question] == ["Is it?"]
    elif name == "min_age":
        assert found == 600.0
    elif name not in ("sources", "memory", "max_store", "schema"):
        assert found == (tuple(value) if isinstance(value, list) else value)
    assert config.sources == (str(tmp_path / "media/a.png"),) and not config.trust_remote_code


FAR = ("@list.txt", "s3://bucket/a.png", "http://e.example/a.png")
LINKED = ("link/c.png", "link", ".hidden", ".hidden/d.png")
FOLDERS = ("out", "adapter", "language_gguf")
MODELS = ("/etc", "../outside", "link", "~/m", "https://e.example/m")
OUT_OF_ROOTS: list[tuple[dict[str, Any], str]] = [
    *(({"sources": [path]}, "outside") for path in ("/etc/passwd", "../outside/c.png", "/")),
    *(({"sources": [path]}, "outside") for path in LINKED),
    *(({"sources": [path]}, "invalid|no folder") for path in ("~/x.png", "list.txt", "gone.png")),
    *(({"sources": [path]}, "no folder") for path in FAR),
    *(({name: path}, "outside") for name in FOLDERS for path in ("/tmp", "link")),
    *(({"model": path}, "outside|invalid") for path in MODELS),
    *(({"model": path}, "invalid") for path in ("a/b/c", "--out=/", "a b", "a/b@c")),
    *(({"schema": path}, "outside") for path in ("/etc/passwd", "../outside/c.png")),
]


def test_the_store_may_be_named_and_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    roots = Roots([tmp_path / "media"], [tmp_path / "store"])
    assert roots.offered == (tmp_path / "media",)
    assert roots.inside(str(tmp_path / "store")) == tmp_path / "store"


def test_paths_out_of_the_roots_fails(roots: Roots, tmp_path: Path) -> None:
    for values, why in OUT_OF_ROOTS:
        with pytest.raises(UsageError, match=why):
            words_of(given(tmp_path) | values, roots)


WRONG: list[dict[str, Any]] = [
    *({"limit": value} for value in ("3", 3.5, True, [3], -1)),
    *({"recursive": value} for value in (1, "yes", ["x"])),
    *({"prompt": value} for value in (1, ["a"], "a\0b", "\ud800", "x" * 70_000)),
    *({"format": value} for value in ("txt", ["txt,kohya"], ["nothing"], [1])),
    *({"prompts": value} for value in (["a=b"], {"A B": "c"}, {"a": 1})),
    *({"sources": value} for value in ("a.png", [1], [], None, {"a": "b"})),
    *({"memory": value} for value in (8, "much", "-1GiB")),
    {"precision": 3},
    *({name: "x"} for name in ("store", "trust_remote_code", "token_file", "endpoint", "json")),
    *({name: True} for name in ("trust_remote_code", "--trust-remote-code", "trust-remote-code")),
    *({name: "x"} for name in ("prompt_file", "prefect", "quiet", "__class__", "", "Out")),
    {"precision": "bf16 --trust-remote-code"},
    {"prompt": "a", "prompts": {"b": "c"}},
]


def test_values_that_the_command_would_not_take_fails(roots: Roots, tmp_path: Path) -> None:
    for values in WRONG:
        with pytest.raises(UsageError) as refused:
            raise AssertionError(words_of(given(tmp_path) | values, roots))
        assert "%(" not in refused.value.hint


def test_a_server_is_named_by_its_number(roots: Roots, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", "http://127.0.0.1:9/v1 http://far.example/v1")
    for number, url, is_open in ((0, "http://127.0.0.1:9/v1", False), (1, "far.example", True)):
        values = given(tmp_path) | {"model": "openai:a/b:7b", "server": number}
        config = config_of(parse(words_of(values, roots)), CaptionConfig)
        assert url in config.endpoint[0] and config.insecure_endpoint == is_open
    for wrong in (2, -1, True, "0", 0.0, "http://far.example/v1"):
        with pytest.raises(Refused, match="no such server"):
            words_of(given(tmp_path) | {"server": wrong}, roots)
    with pytest.raises(UsageError, match="address is missing"):
        words_of(given(tmp_path) | {"model": "openai:a"}, roots)


def test_a_text_stays_one_value(roots: Roots, tmp_path: Path) -> None:
    for text in ("--trust-remote-code", "-- /etc", "$(id)", "`id`;id", "a'b\"c", "\n"):
        words = words_of(given(tmp_path, prefix=text, suffix=text), roots)
        config = config_of(parse(words), CaptionConfig)
        assert (config.prefix, config.suffix, config.trust_remote_code) == (text, text, False)


def test_a_folder_with_a_link_out_of_the_roots_fails(roots: Roots, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="link out of the folders"):
        words_of(given(tmp_path, sources=[str(tmp_path / "media")]), roots)
    (tmp_path / "media/link").unlink()
    (tmp_path / "media/inner/link.png").symlink_to(tmp_path / "outside/c.png")
    assert words_of(given(tmp_path, sources=[str(tmp_path / "media")]), roots)
    with pytest.raises(Refused, match="link out of the folders"):
        words_of(given(tmp_path, sources=[str(tmp_path / "media")], recursive=True), roots)
    (tmp_path / "media/inner/link.png").rename(tmp_path / "out/link.png")
    (tmp_path / "media/inner/other").symlink_to(tmp_path / "out")
    (tmp_path / "out/back").symlink_to(tmp_path / "media")
    with pytest.raises(Refused, match="link out of the folders"):
        words_of(given(tmp_path, sources=[str(tmp_path / "media")], recursive=True), roots)


def test_a_folder_lists_what_may_be_named(roots: Roots, tmp_path: Path) -> None:
    found = roots.listing(str(tmp_path / "media"))
    assert found["media"] == ["a.png"] and found["count"] == 1 and found["up"] is None
    assert found["folders"] == ["inner", "model"]
    for path in ("..", "/", "/etc", "link", ".hidden", "a\0b"):
        with pytest.raises(Refused):
            roots.listing(path)
    for path in ("gone", "a.png"):
        with pytest.raises(NoSuchFolder, match=f"there is no folder .*{path}"):
            roots.listing(path)


def test_media_are_counted_at_any_depth_and_not_beyond_the_roots(
    roots: Roots, tmp_path: Path, monkeypatch: Patch
) -> None:
    deep = tmp_path / "media/inner/a/b"
    deep.mkdir(parents=True)
    (deep / "c.JPG").write_bytes(b"x")
    (deep / "again").symlink_to(tmp_path / "media/inner")
    assert roots.media_below(str(tmp_path / "media")) == {"count": 3, "more": False}
    assert roots.media_below(str(deep)) == {"count": 2, "more": False}, "its link leads inside"
    with pytest.raises(Refused):
        roots.media_below(str(tmp_path / "outside"))
    monkeypatch.setattr("flows.interfaces.studio.roots.COUNT_SECONDS", -1.0)
    assert roots.media_below(str(tmp_path / "media")) == {"count": 0, "more": True}


def queue(tmp_path: Path) -> RunQueue:
    return RunQueue(tmp_path / "out")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[RunQueue]:
    """A queue without runs."""
    with contextlib.closing(queue(tmp_path)) as opened:
        yield opened


def run(tmp_path: Path, name: str) -> QueuedRun:
    """A run that fails: its file is not there."""
    words = ["caption", f"{name}.png", "--model", "demo", "--out", name]
    return QueuedRun(kind="caption", out=str(tmp_path / name), words=words, folder=str(tmp_path))


@pytest.mark.slow
def test_a_queue_is_kept_and_its_runs_take_turns(tmp_path: Path) -> None:
    first = queue(tmp_path)
    with pytest.raises(EnvironmentFault, match="another studio"):
        queue(tmp_path)
    for name in "abc":
        first.add(run(tmp_path, name))
    with pytest.raises(UsageError, match="waiting or running already"):
        first.add(run(tmp_path, "a"))
    first.change(first.runs[1].id, "stop")
    first.close()
    second = queue(tmp_path)
    assert [run.state for run in second.runs] == ["queued", "interrupted", "queued"]
    seen = set()
    while any(run.state not in ("failed", "interrupted") for run in second.runs):
        second.tick()
        seen.add(tuple(run.state for run in second.runs if run.state == "running"))
    assert seen <= {(), ("running",)}
    assert [run.state for run in second.runs] == ["failed", "interrupted", "failed"]
    assert "a.png" in second.runs[0].error and "file" in second.runs[0].error
    second.change(second.runs[1].id, "go on")
    assert [Path(run.out).name for run in second.runs] == ["a", "c", "b"]
    with pytest.raises(UsageError, match="no such run"):
        second.change("x", "stop")
    second.close()


def test_what_cannot_be_saved_is_not_queued(
    tmp_path: Path, runs: RunQueue, monkeypatch: Patch
) -> None:
    runs.add(run(tmp_path, "a"))

    def full(*_: object) -> None:
        raise EnvironmentFault("the disk is full", hint="Free some space")

    monkeypatch.setattr("flows.interfaces.studio.runs.write_json", full)
    for change in (
        lambda: runs.add(run(tmp_path, "b")),
        lambda: runs.change(runs.runs[0].id, "stop"),
    ):
        with pytest.raises(EnvironmentFault, match="full"):
            change()
    assert [(Path(each.out).name, each.state) for each in runs.runs] == [("a", "queued")]


def kept(tmp_path: Path, **more: Any) -> Path:
    """Put one run into the queue's file, with some fields replaced, and return the file."""
    with contextlib.closing(queue(tmp_path)) as opened:
        opened.add(run(tmp_path, "a"))
    path = opened._state / "runs.json"
    found = json.loads(path.read_text())
    found["runs"][0] |= more
    path.write_text(json.dumps(found))
    return path


def test_a_queue_found_in_the_output_folder_is_never_read(tmp_path: Path) -> None:
    made = tmp_path / "made by it"
    words = ["caption", "--model", "demo", "--trust-remote-code", "--out", str(made)]
    planted: dict[str, Any] = {"kind": "caption", "state": "queued", "words": words}
    planted |= {"out": str(made), "folder": str(tmp_path)}
    folder = tmp_path / "out/.studio"
    folder.mkdir(parents=True)
    for form in (1, 2):
        (folder / "runs.json").write_text(json.dumps({"format": form, "runs": [planted]}))
        with contextlib.closing(queue(tmp_path)) as opened:
            assert [each.words for each in opened.runs] == []
            opened.tick()
    assert not made.exists() and os.listdir(tmp_path / "out") == [".studio"]


ODD_ENTRIES: list[dict[str, Any]] = [
    *({"out": 5}, {"words": "caption"}, {"words": [1]}, {"folder": None}, {"of": []}),
    *({"id": "../../x"}, {"id": "a" * 16 + "\n"}, {"kind": "serve"}, {"state": "waiting"}),
    *({"pid": -1}, {"pid": "1"}, {"began": "soon"}, {"values": []}, {"about": [1]}, {"error": 1}),
    {"words": ["caption", "--trust-remote-code", "--", "a.png"]},
]


@pytest.mark.parametrize("odd", ODD_ENTRIES, ids=str)
def test_a_queue_with_an_odd_entry_fails(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = kept(tmp_path, **odd)
    with pytest.raises(
        EnvironmentFault, match=rf"^{re.escape(str(path))} cannot be read: .*(runs\[0\]|soon)"
    ):
        queue(tmp_path)
    path.unlink()
    queue(tmp_path).close()


def test_a_command_that_lets_code_in_is_not_queued(tmp_path: Path, runs: RunQueue) -> None:
    one = run(tmp_path, "a")
    one.words = ["caption", "--trust-remote-code", "--model=demo", "--", "a.png"]
    with pytest.raises(UsageError, match="--trust-remote-code is never taken"):
        runs.add(one)
    one.words = ["caption", "--model=demo", "--", "--trust-remote-code"]  # a file of that name
    runs.add(one)


def test_stop_signals_no_process_but_the_one_that_was_started(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        start = start_of(other.pid)
        for recorded in ("", start + "0", start.rpartition(" ")[0], start):
            assert other.poll() is None, "signalled"
            file = kept(tmp_path, state="running", pid=other.pid, start=recorded)
            with contextlib.closing(queue(tmp_path)) as opened:
                opened.change(opened.runs[0].id, "stop")
            file.unlink()
        assert other.wait(10) == -signal.SIGTERM
        interrupt(other.pid, start)  # it is gone: nothing happens


def test_a_run_is_found_again_by_its_own_process(tmp_path: Path) -> None:
    """The server was killed between the start of a run and its note of the process."""
    file = kept(tmp_path, state="starting", began="2026-01-01T00:00:00+00:00")
    name = json.loads(file.read_text())["runs"][0]["id"]
    lock = os.open(tmp_path / "out/.studio/run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    environment = {**os.environ, "PENSTOCK_STUDIO_RUN": name}
    sleeping = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
    with sleeping, subprocess.Popen(["sleep", "60"], env=environment) as its_stage:
        opened = queue(tmp_path)
        opened.tick()
        assert [each.pid for each in opened.runs] == [sleeping.pid]
        assert opened.runs[0].start == start_of(sleeping.pid)
        opened.change(name, "stop")
        assert sleeping.wait(10) == -signal.SIGTERM and its_stage.poll() is None
        its_stage.kill()
        opened.close()
    os.close(lock)


@pytest.mark.parametrize("name", [".studio", ".studio/server.lock", ".studio/run.lock"])
def test_a_lock_of_the_queue_that_is_a_link_fails(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere if name == ".studio" else elsewhere / "made")
    with pytest.raises(EnvironmentFault, match=f"{link}: it is a link"):
        queue(tmp_path).tick()
    assert os.listdir(elsewhere) == []


def test_a_run_that_was_not_started_before_a_kill_is_started_later(tmp_path: Path) -> None:
    with contextlib.closing(queue(tmp_path)) as first:
        first.add(run(tmp_path, "a"))
        first.runs[0].state = "starting"
        first._save()
    second = queue(tmp_path)
    second.tick()
    states = [second.runs[0].state]
    while states[-1] == "running":
        second.tick()
        states.append(second.runs[0].state)
    assert second.runs[0].pid and len(states) > 1 and states[-1] == "failed"
    second.close()


def test_how_a_run_ended_without_recording_it(tmp_path: Path, runs: RunQueue) -> None:
    one = run(tmp_path, "a")
    one.pid = 1 << 30
    (tmp_path / "a").mkdir()
    record = RecordWriter(tmp_path / "a")
    record.record.pid = one.pid
    record.write(force=True)
    runs._state.mkdir(parents=True, exist_ok=True)
    runs.processes.log(one).write_text("reading\npenstock: stopped. It goes on later\n")
    stopped = "penstock: stopped. It goes on later"
    killed = "died", "its process was killed, by a user or for lack of memory"
    ends = ((4, ("interrupted", stopped)), (5, ("died", stopped)), (-9, killed), (None, killed))
    for code, outcome in ends:
        assert runs.processes.outcome(one, code) == outcome
    record.finish("failed", error="for a reason")
    assert runs.processes.outcome(one, 5) == ("failed", "for a reason")
    one.kind = "export"
    record.finish("done")
    assert runs.processes.outcome(one, 0) == ("done", "")
    assert runs.processes.outcome(one, 1) == ("failed", stopped), "rejected"


def test_thumbnails_are_records_that_the_cache_counts_and_deletes(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), (200, 30, 30)).save(tmp_path / "a.png")
    store = open_store(str(tmp_path / "store"))
    made = Thumbnails(store)
    jpeg = made.get(tmp_path / "a.png", None)
    assert jpeg is not None and jpeg[:2] == b"\xff\xd8"
    assert Thumbnails(None).get(tmp_path / "a.png", None) == jpeg
    made.flush()
    (held,) = holdings(store)
    assert (held.kind, held.packs) == ("thumbnails", 1) and held.bytes > len(jpeg)
    os.utime(tmp_path / "a.png", (1, 1))  # another file: another thumbnail
    kept = Thumbnails(store)
    assert kept.get(tmp_path / "a.png", None) == jpeg
    assert len(kept._waiting) == 1
    kept.flush()
    assert collect(store, 0, dry_run=False).packs["thumbnails"] == 2
    assert Thumbnails(store).get(tmp_path / "store", None) is None
    assert holdings(store) == []


def test_stored_thumbnails_are_bounded_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("flows.interfaces.studio.session.LIMIT_BYTES", 10_000)
    store, names = open_store(str(tmp_path / "store")), [f"{number}.png" for number in range(12)]
    kept = Thumbnails(store)
    for number, name in enumerate(names):
        Image.new("RGB", (320, 240), (20 * number, 30, 30)).save(tmp_path / name)
        assert kept.get(tmp_path / name, None)
        kept.flush()
    (held,) = [each for each in holdings(store) if each.kind == "thumbnails"]
    assert 5000 < held.bytes < 15_000 and held.packs < len(names)
    assert kept.get(tmp_path / names[-1], None) == Thumbnails(store).get(tmp_path / names[-1], None)


def test_the_commands_of_a_search_are_those_of_the_command_line(
    roots: Roots, tmp_path: Path
) -> None:
    asked = {"model": "demo", "recursive": True, "prompt": "-- x", "trigger": "ohwx"}

    def lines_of(**more: str) -> list[Any]:
        values = given(tmp_path, sources=[str(tmp_path / "media/inner")], **asked, **more)
        out, words = str(tmp_path / "out"), words_of(values, roots)
        run = QueuedRun(kind="caption", out=out, words=words, folder="/")
        return [parse(shlex.split(line)[1:]) for line in search_lines(run)]

    build, search = lines_of()
    assert build.sources == [str(tmp_path / "media/inner")] and build.recursive
    assert (build.model, build.out) == ("demo", search.index) == ("demo", f"{tmp_path}/out/index")
    assert lines_of(sift="blurred = 0")[0].sources == [f"{tmp_path}/out/sift/kept.jsonl"]
    run = QueuedRun(kind="caption", out="out", words=[], folder="/")
    run.words = ["caption", "--model=a/b", "x"]
    assert search_lines(run) == []


def test_what_sift_found_is_shown_with_what_is_kept_first(tmp_path: Path) -> None:
    def row(name: str, group: int | None, duplicate: int) -> dict[str, Any]:
        names = {"path": f"/m/{name}", "media_path": name, "digest": f"d{name}"}
        return {**names, "group": group, "duplicate": duplicate}

    # `d` is the best of its copies and left out, so that `f` is kept.
    rows = [row("a", 1, 1), row("b", None, 0), row("c", 1, 0), row("d", 2, 0), row("e", 2, 1)]
    rows.append(row("f", 2, 1))
    (tmp_path / "marks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    why = {"a": "not duplicate = 0 (a copy of c)", "d": "not blurred = 0 (blurred 1)"}
    why["e"] = "not duplicate = 0 (a copy of f)"
    left = [{"path": f"/m/{n}", "media_path": n, "why": text} for n, text in why.items()]
    (tmp_path / "left_out.jsonl").write_text("".join(json.dumps(each) + "\n" for each in left))
    found: Any = sifted_in(tmp_path)
    assert found["count"] == 2
    names = [[each["media_path"] for each in group] for group in found["groups"]]
    assert names == [["f", "d", "e"], ["c", "a"]]
    assert found["sizes"] == [3, 2]
    assert [each["why"] for each in found["left_out"]] == list(why.values())
    chosen: Any = choose(tmp_path, "/m/d", "best")
    assert [each["choice"] for each in chosen["groups"][0]] == ["", "best", ""]
    chosen = choose(tmp_path, "/m/a", "keep")
    assert chosen["left_out"][0]["choice"] == "keep"
    lines = (tmp_path / "choices.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": "/m/d", "digest": "dd", "choice": "best"},
        {"path": "/m/a", "digest": "da", "choice": "keep"},
    ]
    chosen = choose(tmp_path, "/m/d", "")
    assert chosen["groups"][0][1]["choice"] == ""
    for path, choice in (("/m/x", "best"), ("/m/a", "delete")):
        with pytest.raises(UsageError, match="not marked by that run"):
            choose(tmp_path, path, choice)


def test_copies_that_sift_found_are_of_one_group(tmp_path: Path) -> None:
    files = [media_file(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    captioned = [(file, captions_of(file, [f"A ring of {file.path}"])) for file in files]
    write_run(tmp_path / "out", captioned)
    marks = [{"path": str(files[at].path), "group": group} for at, group in ((0, 7), (1, None))]
    (tmp_path / "out/sift").mkdir()
    lines = [json.dumps(mark) + "\n" for mark in (*marks, {"path": str(files[2].path), "group": 7})]
    (tmp_path / "out/sift/marks.jsonl").write_text("".join(lines))
    captions = RunCaptions(tmp_path / "out")
    found = json.loads(b"".join(captions.body("")))["media"]
    captions.close()
    assert [m["captions"][0].get("group") for m in found] == [7, None, 7]


def read(words: Sequence[str]) -> CaptionConfig:
    return config_of(parse(words), CaptionConfig)


def moved_run(tmp_path: Path, *more: str) -> Path:
    """The folder of a run with these options, which was moved since."""
    out = tmp_path / "out"
    words = ["caption", "--out", str(out), "--format", "txt", *more, "--", "clips"]
    job = SimpleNamespace(config=read(words), store=open_store(str(tmp_path / "store")))
    record = write_run(out, [])
    remember(words, cast(Any, job), record)
    assert record.record.command is not None
    own_folder(out, values_of(record.record.command))
    return out.rename(tmp_path / "moved")


def commands_in(folder: Path) -> list[CaptionConfig]:
    command = RecordedCommand(folder, read)
    return [read(words) for words in (command.writing(()), command.again({}, ["a.png"], folder))]


@pytest.mark.parametrize("given", [[], ["--store=s3://b/mine"]])
def test_a_moved_folder_is_written_where_it_is_from_the_store_of_its_captions(
    tmp_path: Path, monkeypatch: Patch, given: list[str]
) -> None:
    moved = moved_run(tmp_path, *given)
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "other"))
    store = "s3://b/mine" if given else str(tmp_path / "store")
    for config in commands_in(moved):
        assert (config.out, config.store) == (str(moved), store)
    for wrong in ("../x", "jsonl,../x", "-x"):
        with pytest.raises(UsageError, match="unknown --format"):
            RecordedCommand(moved, read).writing((wrong,))


@pytest.mark.parametrize("value", [5, "kohya:sdxl", [5], {"a": "b"}, [["kohya:sdxl"]]])
def test_a_list_of_another_type_is_refused(roots: Roots, value: Any) -> None:
    for name in ("trainer", "format"):
        with pytest.raises(Refused, match=f"invalid --{name}"):
            checked({name: value}, roots)


def test_files_are_written_for_the_models_of_trainers_the_last_one_of_each(tmp_path: Path) -> None:
    moved = moved_run(tmp_path, "--trainer", "musubi:wan,kohya:sdxl")
    command = RecordedCommand(moved, read)
    config = read(command.writing((), ("kohya:sd1.5", "ltx:ltx2")))
    assert config.trainer == ("musubi:wan", "kohya:sd1.5", "ltx:ltx2")
    with pytest.raises(UsageError, match="unknown model"):
        command.writing((), ("kohya:mine",))


@pytest.mark.parametrize(
    ("adapter", "found"),
    [
        ("out/learn/round-001/adapter", "moved/learn/round-001/adapter"),
        ("other/adapter", "other/adapter"),
    ],
)
def test_an_adapter_in_a_moved_folder_is_that_of_the_folder(
    tmp_path: Path, adapter: str, found: str
) -> None:
    """Another run may have an adapter of its own at the place of before."""
    moved = moved_run(tmp_path, "--adapter", str(tmp_path / adapter))
    assert [c.adapter for c in commands_in(moved)] == [str(tmp_path / found)] * 2


def test_the_command_of_a_moved_folder_names_the_folder(tmp_path: Path) -> None:
    moved = moved_run(tmp_path)
    assert read(RecordedCommand(moved, read).words).out == str(moved)


def test_second_answers_to_two_prompts_are_told_apart(tmp_path: Path) -> None:
    texts = {"a": "A ball.", "b": "A box."}
    lines = [
        {"media_path": "x.png", "source": "p", "start": 0.0, "end": 0.0, "name": n, "caption": text}
        for n, text in texts.items()
    ]
    entry = {"media_path": "x.png", "source": "p", "kind": "image", "url": "file:///p/x.png"}
    (tmp_path / "media.jsonl").write_text(json.dumps({**entry, "captions": 2}) + "\n")
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    run = cast(Any, SimpleNamespace(out=str(tmp_path)))
    keys = {f"key of {name}": ("/p/x.png", 0.0, name) for name in texts}
    assert answers_of(run, keys) == {f"key of {name}": text for name, text in texts.items()}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[TestClient]:
    """The page of a studio whose folder has an ordinary model and one that UTF-8 cannot name."""
    for name in (b"media/model", b"media/m\xff"):
        os.makedirs(os.fsencode(tmp_path) + b"/" + name)
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name), "config.json").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "media/a.png")
    media = media_file(tmp_path / "media/a.png")
    write_run(tmp_path / "out", [(media, captions_of(media, ["A ring."]))])
    folder, out, store = (tmp_path / name for name in ("media", "out", "store"))
    opened = Studio(folder=folder, out=out, store=str(store), config_of=cast(Any, None))
    with contextlib.closing(opened):
        address = f"http://127.0.0.1/{opened.token}/"
        client = TestClient(studio_app(opened), address, raise_server_exceptions=False)
        client.headers |= {"x-penstock-token": opened.token, "origin": "http://127.0.0.1"}
        yield client


def test_a_folder_that_utf_8_cannot_name_closes_no_studio(page: TestClient, tmp_path: Path) -> None:
    answer = page.get("start")
    assert answer.status_code == 200, answer.text
    assert str(tmp_path / "media/model") in answer.json()["models"]
    assert not any("\ufffd" in name or "m?" in name for name in answer.json()["models"])


def test_the_page_shows_pictures_of_media_below_its_roots_alone(
    page: TestClient, tmp_path: Path
) -> None:
    answer = page.get("small", params={"path": str(tmp_path / "media/a.png")})
    assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "media/link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "media/page.html").write_text("<script>")
    os.mkfifo(tmp_path / "media/pipe.png")
    odd = ("link.png", "page.html", "pipe.png", "gone.png", ".", "a\0.png")
    for path in (str(tmp_path / "b.png"), *odd):
        assert page.get("small", params={"path": path}).status_code == 422, path
    (tmp_path / "media/no.png").write_bytes(b"no picture")
    assert page.get("small", params={"path": "no.png"}).status_code == 404


def test_the_page_says_where_a_model_is(page: TestClient, monkeypatch: Patch) -> None:
    def told(name: str) -> Any:
        answer = page.get("model", params={"name": name})
        assert answer.status_code == 200, answer.text
        return answer.json()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert told("demo") == told("model") == {"bytes": 0}
    missing = told(page.get("start").json()["default_model"])
    assert "was not downloaded before" in missing["error"] and missing["hint"]
    assert page.get("model", params={"name": "/etc"}).status_code == 422


def test_a_download_is_the_weights_and_the_files_that_describe_them(monkeypatch: Patch) -> None:
    sizes = {"model.safetensors": 1000, "config.json": 20, "onnx/model.onnx": 5000, "a.bin": 900}
    files = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    info = SimpleNamespace(siblings=files)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    assert download_bytes("no-one/nothing", 1.0) == 1020


def test_a_studio_of_a_folder_that_utf_8_cannot_name_fails(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    folder.mkdir()
    for folders in ((folder, tmp_path), (tmp_path, folder)):
        with pytest.raises(UsageError, match="the page cannot show a name that is not UTF-8"):
            start_studio(*folders, [], "", PageAddress(0), cast(Any, None))


@pytest.mark.parametrize(
    ("path", "values", "status"),
    [
        ("words", {"sources": ["a" * 5000]}, 422),
        ("words", {"sources": ["a/" * 3000]}, 422),
        ("words", {"sources": ["a.png"], "out": "b" * 5000}, 422),
        ("words", {"sources": ["a.png"], "model": "a" * 5000}, 422),
        ("words", {"sources": ["a.png"], "model": "./" + "a" * 5000}, 422),
        ("words", {"sources": ["a.png/b"]}, 422),
        ("files?path=gone", None, 404),
        ("files?path=" + "a" * 5000, None, 422),
        ("files?path=%00", None, 422),
        ("files?path=%ED%A0%80", None, 404),
        ("run/OWN/captions?since=REVISION-\u00b2", None, 200),
        ("run/OWN/captions?since=REVISION-" + "1" * 5000, None, 200),
        ("run/OWN/small/0?at=nan", None, 404),
        ("run/OWN/small/0?at=inf", None, 404),
        ("run/OWN/media/\u00b2", None, 404),
    ],
)
def test_an_odd_value_is_no_fault_of_the_studio(
    page: TestClient, tmp_path: Path, path: str, values: dict[str, Any] | None, status: int
) -> None:
    own = run_id(tmp_path / "out")
    revision = page.get(f"run/{own}/captions").json()["revision"].rpartition("-")[0]
    path = path.replace("OWN", own).replace("REVISION", revision)
    answer = page.get(path) if values is None else page.post(path, json={"values": values})
    assert answer.status_code == status, f"{answer.status_code}: {answer.text[:300]}"
    if status != 200:
        assert answer.json()["error"].isprintable()


def test_every_json_answer_is_of_one_writer() -> None:
    """Names of files may have letters that UTF-8 cannot hold."""
    answer = json_answer({"a\udcff": ["\ud800b", "\xe9"]})
    assert json.loads(bytes(answer.body)) == {"a\ufffd": ["\ufffdb", "\xe9"]}
    for path in (ROOT / "flows/interfaces").glob("s*/*.py"):
        source = path.read_text()
        assert "JSONResponse" not in source, path
        if path.name not in ("refusals.py", "chat.py", "captioning.py", "half_worker.py"):
            assert "json.dumps" not in source, path


def test_a_server_has_no_route_of_the_studio() -> None:
    app = app_of(cast(Any, SimpleNamespace(config=SimpleNamespace(store=""))), {})
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    assert paths == {
        *(f"/v1/{name}" for name in ("label", "embed", "caption", "search", "info", "stats")),
        *("/v1/chat/completions", "/v1/models", "/v1/models/{name:path}", "/v1/session"),
        *("/v1/answers", "/v1/jobs", "/v1/jobs/{job}", "/v1/embeddings"),
        *("/v1/media/{hit}", "/v1/thumbnail/{hit}", "/metrics", "/healthz", "/readyz"),
        *("/", "/openapi.json"),
    }


def test_a_link_that_leads_in_a_circle_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="there is no folder"):
        Roots([tmp_path]).listing("loop")
    assert Roots([tmp_path]).source(".", recursive=True) == tmp_path
