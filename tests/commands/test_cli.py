"""The command line: what its options mean, how it refuses bad input, and what it says last."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.disk.paths import user_cache
from flows.commands.caption import caption_command as caption_command
from flows.commands.caption.caption_command import first_captions, first_rows
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parse
from flows.core.console.display import Display
from flows.core.console.lines import columns_of, shortened
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli import main as cli
from flows.interfaces.cli.completion_command import SHELLS
from flows.interfaces.cli.main import main
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.run_result import RunResult
from tests.support.commands import completed
from tests.support.described import described
from tests.support.refusals import one_line
from tests.support.terminals import terminal

Said = pytest.CaptureFixture[str]
BROKEN = os.fsdecode(b"\xff\xfe")
LABEL = "label a --labels x --model m --out out"
EMPTY = [
    *("index remove a --index ''", "index stats --index ''", "search a --index ''"),
    *("search a --html ''", "search a --copy ''", "search a --where ''", "sift a --keep ''"),
    *("caption a --sift ''", "status ''", "report ''", "report . --to ''", "review ''"),
    *("studio ''", "studio . --out ''", "studio . --root ''", "convert '' new", "convert old ''"),
    *("learn ''", "cache rebuild ''", "export a --to nf4 --out ''"),
]
"""Command lines with an empty value where none may be."""


def test_a_prompt_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Was passiert\nübrigens?\n", encoding="utf-8")
    given = parse(["caption", "a", "--prompt-file", str(tmp_path / "prompt.txt")])
    assert config_of(given, CaptionConfig).prompt == "Was passiert\nübrigens?"


def test_sources_stand_anywhere_and_lists_are_split_at_commas() -> None:
    words = ["a.mp4", "--model", "demo", "b.mp4", "--format", "txt, vtt", "--", "--out.mp4"]
    config = config_of(parse(["caption", *words]), CaptionConfig)
    assert config.sources == ("a.mp4", "b.mp4", "--out.mp4") and config.format == ("txt", "vtt")
    assert parse(["caption", "--", "a.mp4", "--out.mp4"]).sources == ["a.mp4", "--out.mp4"]
    assert parse(["search", "--index", "INDEX", "--", "-word"]).what == "-word"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("caption", "no source given"),
        ("caption a --fps 1 --frames 8", "--fps and --frames exclude each other"),
        ("caption a --fps 0", "invalid --fps 0."),
        ("caption a --prompt '  '", "--prompt is empty"),
        ("caption a --prompt-file ./gone.txt", "--prompt-file gone.txt cannot be read"),
        ("caption a --prompt-file /dev/null", "/dev/null cannot be read: it is a device"),
        ("caption a --prompt-file ./empty.txt", "--prompt-file ./empty.txt is empty"),
        ("caption a --beside --format csv", "--beside needs a format"),
        ("caption a --existing ask", "unknown --existing ask"),
        ("caption a --engine vllm", "--engine vllm. Choose from auto, transformers, inflight"),
        ("caption a --overwrite --existing keep", "--overwrite and --existing keep"),
        ("caption a --existing append", "unknown --existing append"),
        (f"{LABEL} --format hf", "unknown --format hf. Choose from jsonl, csv"),
        (f"{LABEL} --threshold high", "invalid --threshold 'high'"),
        (f"{LABEL} --top 0", "invalid --top 0"),
        (f"{LABEL} --tiles many", "unknown --tiles many"),
        (f"caption {__file__} --model ./nowhere", "there is no model at ./nowhere"),
        ("caption a --store ftp://host/x", "unsupported store ftp://host/x"),
        ("caption ./nowhere.mp4 --model demo", "nothing to caption: ./nowhere.mp4"),
        ("caption ./no.mp4 ./none.png --model demo", "(and 1 more)"),
        ("caption @empty.txt --model demo", "the list of sources is empty: @empty.txt"),
        ("sift empty.txt", "the list of sources is empty: empty.txt"),
        ("cache gc --max 500", "--max 500: 500 bytes? Write 500GiB"),
        ("serve --model demo --memory 8", "--memory 8: 8 bytes? Write 8GiB"),
        ("plan a --memory 4096", "--memory 4096: 4096 bytes? Write 4096MiB"),
        ("status /nowhere", "no run has written to /nowhere"),
        *((words, "empty") for words in EMPTY),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    assert main(shlex.split(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and says in one_line(shown.err)
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["caption", "export", "tune", "learn", "cache rebuild"])
def test_quiet_and_json_exclude_each_other(command: str, capsys: Said) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), "a", "--quiet", "--json"])
    assert "not allowed with argument --quiet" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caption", "a", "--prompts", "short=One.", "--prompts", f"b={BROKEN}"], "--prompts: not"),
        (["plan", "a", "--summary-prompt", BROKEN], "--summary-prompt: not valid UTF-8"),
        (["search", BROKEN], "TEXT|IMAGE: not valid UTF-8"),
        (["search", "a dog", "--not", BROKEN], "--not: not valid UTF-8"),
        (["search", "a dog", "--where", BROKEN], "--where: not valid UTF-8"),
        (["caption", BROKEN, "--model", "demo"], "nothing to caption"),  # a file may be named so
    ],
)
def test_a_text_that_is_not_utf_8_is_one_line_and_exit_2(
    arguments: list[str], says: str, here: Path, capsys: Said
) -> None:
    assert main(arguments) == 2
    assert says in one_line(capsys.readouterr().err)


def test_a_plan_without_sources_fails_as_its_run_would(tmp_path: Path, capsys: Said) -> None:
    store = str(described(tmp_path / "store"))
    words = ["plan", "--json", "--model", "demo", "--store", store, "--system", "<|video_pad|>"]
    assert main(words) == 2
    assert "--system holds <|video_pad|>, an image" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_file_in_the_place_of_a_folder_is_exit_5_and_named(
    option: str, tmp_path: Path, capsys: Said
) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    words = {"--out": tmp_path / "out", "--store": tmp_path / "store", option: place}
    requests = [str(word) for pair in words.items() for word in pair]
    clip = next(penstock_demo.CLIPS.glob("*.mp4"))
    assert main(["caption", str(clip), "--model", "demo", "--quiet", *requests]) == 5
    printed = one_line(capsys.readouterr().err)
    assert printed.startswith(f"penstock: {place} cannot be made: a file is in its place")


def test_what_nobody_can_see_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it where it was closed: 2>&-
    Display().print_line("cutting frames")


def test_json_tells_the_plan_and_how_a_run_ended(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "empty.mp4").touch()
    where = ["--out", str(tmp_path / "out"), "--store", str(described(tmp_path / "store"))]
    command = ["caption", str(tmp_path / "empty.mp4"), "--model", "demo", "--json", *where]
    assert main([*command, "--dry-run"]) == 2
    assert "nothing to caption: empty.mp4: the file is empty" in capsys.readouterr().err
    clip = next(penstock_demo.CLIPS.glob("*.mp4"))
    assert main(["caption", str(clip), *command[1:], "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["unreadable"]) == (2, 1)
    assert main(command) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["failed", "end"]
    assert (events[-1]["failed"], events[-1]["exit_code"]) == (1, 1)


def test_a_model_that_cannot_be_had_is_named_and_an_unreachable_hub_is_exit_5(
    here: Path, tmp_path: Path, capsys: Said
) -> None:
    assert main(["caption", __file__]) == 5
    shown = capsys.readouterr().err
    assert "SmolVLM2" in shown and "--model demo" in shown
    assert main(["caption", __file__, "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_status_tells_a_run_that_died(tmp_path: Path, capsys: Said) -> None:
    writer = RecordWriter(tmp_path)
    writer.record.pid = 2**22 + 1  # above the largest process id there can be
    writer.write(force=True)
    assert main(["status", str(tmp_path)]) == 0
    assert "died" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "died"


def test_cache_of_an_empty_store(tmp_path: Path, capsys: Said) -> None:
    for action in ("ls", "verify"):
        assert main(["cache", action, "--store", str(tmp_path / "new")]) == 0
    assert not (tmp_path / "new").exists()
    assert "0 packs good" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("caption --mod demo x", "unknown option --mod (did you mean --model?)"),
        ("caption x --lim=1", "unknown option --lim (did you mean --limit?)"),
        ("capton x", "unknown command: capton (did you mean caption?)"),
        ("cache rebild x", "unknown command: rebild (did you mean rebuild?)"),
        ("plan --for captoin", "unknown value of --for: captoin (did you mean caption?)"),
        ("plan x --max-pixels 1.5", "invalid --max-pixels '1.5'. Give a whole number."),
        ("plan x --max-pixels=x", "invalid --max-pixels 'x'. Give a whole number."),
        ("plan x --fps fast", "invalid --fps 'fast'. Give a number."),
        ("status --jsn", "unknown option --jsn (did you mean --json?)"),
        ("search -- -a --top 3", "--top stands after --, where no option is read"),
        ("frobnicate", "unknown command: frobnicate."),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(words: str, text: str, capsys: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and text in printed and printed.count("\n") == 1


def test_a_kept_completion_script_is_made_anew_when_others_may_have_written_it(
    capsys: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "penstock" / "completion.bash"
    scripts = []
    for mode, more in ((0, ""), (0o600, "own\n"), (0o660, "strange\n"), (0o600, "")):
        if mode:
            kept.write_text(kept.read_text() + more)
            kept.chmod(mode)
        assert main(["completion", "bash"]) == 0
        scripts.append(capsys.readouterr().out)
    first, own, anew, last = scripts
    assert own == f"{first[:-1]}own\n\n" and anew == last == first
    kept.write_text("# of another version\nstrange\n")
    assert main(["completion", "bash"]) == 0 and capsys.readouterr().out == first


def test_a_shell_completes_commands_and_options(capsys: Said) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    request = "COMP_WORDS=(penstock caption --no-rep); COMP_CWORD=2; _shtab_penstock"
    code = f'{script}\n{request}; echo "${{COMPREPLY[@]}}"'
    message = completed(["bash", "-c", code], check=True)
    assert message.stdout.split() == ["--no-repeat-ngram"]
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "fsdp" not in capsys.readouterr().out


STARTED = {
    "artifacts": {"errors", "option_texts", "packages", "wording"},
    "flows": {
        *("commands", "commands.shared", "commands.shared.parser"),
        *("core", "core.commands"),
        *("core.console", "core.console.interrupts", "core.console.lines"),
        *("interfaces", "interfaces.cli", "interfaces.cli.main"),
    },
    "penstock": {"checked_start", "start"},
    "stages": {"process", "process.output_streams"},
    "rich": set(),
}
"""Top-level package → its modules that the help may import, which takes most of its time."""
COMPLETED = {
    "artifacts": {"disk", "disk.paths", "disk.regular_files"},
    "flows": {"interfaces.cli.completion_command", "interfaces.cli.elsewhere"},
}
"""The same of what `completion` may import besides, once its script was made."""
MODULES = """
import sys
at_start = {*sys.modules}  # .pth files of an environment may import what they like
from penstock.start import main
try:
    main()
except SystemExit:
    pass
print(*(sys.modules.keys() - at_start), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["completion", "bash"]])
def test_help_and_completion_import_little(words: list[str], tmp_path: Path) -> None:
    scripts = []
    for _ in range(2):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        command = [sys.executable, "-c", MODULES, *words]
        done = completed(command, check=True, env=environment)
        scripts.append(done.stdout)
    assert scripts[0] == scripts[1] != ""
    found: dict[str, set[str]] = {}
    for name in done.stderr.split():
        top, _, below = name.partition(".")
        if top not in sys.stdlib_module_names and not top.startswith("_"):
            found.setdefault(top, set()).update([below] if below and top != "rich" else [])
    for top, names in found.items():
        assert names <= STARTED.get(top, set()) | COMPLETED.get(top, set()), top
    assert found.keys() <= STARTED.keys()


SECRET = ValueError("https://me:hunter2@host/x")


@pytest.mark.parametrize(
    "error", [TypeError("a\nb"), RecursionError("deep"), MemoryError(), SECRET]
)
def test_what_nobody_foresaw_is_one_line_and_exit_5(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fails)
    before = {*(user_cache() / "errors").glob("*.txt")}
    assert main(["doctor"]) == 5
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert shown.err.startswith(f"penstock: unexpected error: {type(error).__name__}")
    (path,) = {*(user_cache() / "errors").glob("*.txt")} - before
    text = path.read_text()
    assert str(path) in shown.err and "Traceback" in text and "hunter2" not in shown.err + text
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_an_error_that_can_be_kept_nowhere_is_still_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr(cli, "run", lambda _: 1 // 0)
    assert main(["doctor"]) == 5
    assert "could not be written" in capsys.readouterr().err


def row(name: str, caption: str, **more: str) -> str:
    fields = {"media_path": name, "source": "videos", "start": 0, "end": 1, "caption": caption}
    return json.dumps({**fields, **more}, ensure_ascii=False) + "\n"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rows = [
        row("videos/a.mp4", "Nobody wants this.", review="rejected"),
        row("videos/a.mp4", "A red\ncircle \x1b[31mmoves\u202e up."),
        row("videos/a.mp4", "A second chunk."),
        row("b.mp4", "一个红色的圆圈" * 40),
        row("a very long name of a clip " * 8 + ".mp4", "A star."),
        row("d.mp4", "A fourth."),
    ]
    (tmp_path / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_first_captions_fit_a_terminal(
    columns: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(columns) as seen:
        monkeypatch.setattr(sys, "stdout", seen.to)
        lines = first_captions(out)
    assert len(lines) == 3
    assert all(columns_of(line) <= columns and line.isprintable() for line in lines)
    assert lines[1].endswith("…") and "b.mp4: " in lines[1]
    if columns > 60:
        assert lines[0] == "  a.mp4: A red circle \\u001b[31mmoves\\u202e up."


def test_captions_of_an_earlier_run_are_not_shown_again(out: Path) -> None:
    earlier = first_rows(out)
    assert first_captions(out, earlier[:2])[0] == "  a.mp4: A second chunk."
    assert first_captions(out, earlier) == []


@pytest.mark.parametrize("text", ["", "{"])
def test_a_file_without_captions_shows_none(text: str, tmp_path: Path) -> None:
    assert first_captions(tmp_path) == []
    (tmp_path / "captions.jsonl").write_text(text)
    assert first_captions(tmp_path) == []


def test_a_text_is_shortened_by_columns() -> None:
    assert shortened("four", 4) == "four" and shortened("five!", 4) == "fiv…"
    assert shortened("e\u0301" * 10, 10) == "e\u0301" * 10
    assert columns_of(shortened("圆" * 10, 7)) <= 7


@pytest.mark.parametrize("option", ["", "quiet", "json"])
def test_captions_are_shown_to_people_before_the_last_line(
    option: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    config = CaptionConfig(sources=("a.mp4",), out="out", trust_folder=True)
    monkeypatch.setattr(caption_command, "config_of", lambda *_: config)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ended = RunResult(out=out, files=4, limit=9)
    monkeypatch.setattr("flows.execution.run.caption", lambda *_, **__: ended)
    given: dict[str, Any] = dict.fromkeys(("quiet", "json", "dry_run", "prefect"), False)
    named = argparse.Namespace(**given | {option: True}, ray="", words=[])
    assert caption_command.caption_command(named) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("  a.mp4: A red circle")]
    assert bool(shown) == (option == "") and (option or "captions.jsonl" in lines[-1])
