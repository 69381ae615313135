"""The program as a package: captions as they are made, what the docs print, and the commands."""

import asyncio
import copy
import json
import math
import pickle
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

import penstock
from artifacts import packages
from artifacts.digests import digest_of
from artifacts.errors import Interrupted, MediaError
from flows.commands.export.options import ExportConfig
from flows.commands.shared.arguments import config_from, recorded_run
from flows.commands.shared.parser import parse
from flows.core.options.commands import CaptionConfig
from flows.core.options.serving import ServeConfig
from flows.core.options.training import CommandRecord, TuneConfig
from flows.core.options.vectors import (
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
)
from flows.interfaces.cli.main import main as run_command
from flows.outputs.folder.trust import command_in
from flows.outputs.record.recorded_command import words_of
from penstock.arguments import anchored, config_for, config_with
from penstock.background import StoppableLauncher
from penstock.keywords import CaptionOptions
from tests.support.adapters import matrices, write_adapter
from tests.support.commands import completed
from tests.support.pipeline import ROOT, read_lines

CALLS: tuple[Callable[..., object], ...] = (penstock.caption, penstock.plan, penstock.rebuild)
CLIP_COUNT = 2


def test_nothing_heavy_is_imported_for_the_names() -> None:
    code = (
        "import sys, penstock; penstock.Caption; "
        "print(sorted({'torch', 'transformers', 'prefect', 'pyarrow'} & set(sys.modules)))"
    )
    done = completed([sys.executable, "-c", code], check=True)
    assert done.stdout.strip() == "[]"


IN_A_CLASS = "type('C', (), {'n': type('N', (), {'__set_name__': interrupted})()})"


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("call", ["interrupted()", IN_A_CLASS])
def test_an_interruption_while_options_are_imported_is_one_line(call: str, number: str) -> None:
    code = f"""
import os, signal, sys
import flows.interfaces.cli.main as cli
from penstock.start import main
def interrupted(*_): os.kill(os.getpid(), signal.{number})
def parse(_): {call}
cli.parse = parse
sys.exit(main())
"""
    done = completed([sys.executable, "-c", code])
    line = "penstock: interrupted; finished items are kept\n"
    assert (done.returncode, done.stderr) == (4, line)


@pytest.mark.parametrize("ends", ["raise KeyboardInterrupt", "return 4"])
def test_a_second_interruption_ends_with_the_code_of_the_first(ends: str) -> None:
    code = f"""
import atexit, os, signal, sys
import flows.interfaces.cli.main as cli
from penstock.start import main
def command(): {ends}
cli.main = command
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.exit(main())
"""
    done = completed([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (4, "")


def rows_of(path: Path, *names: str) -> list[tuple[Any, ...]]:
    """These values of each line of a file."""
    return [tuple(row[name] for name in names) for row in read_lines(path)]


def test_captions_come_as_they_are_made_and_stand_in_the_file(here: Path) -> None:
    with penstock.caption("videos", model="demo", out="out", chunk=2.0, batch_size=1) as captions:
        found = [(row.media_path, row.start, row.caption) for row in captions]
    written = rows_of(here / "out" / "captions.jsonl", "media_path", "start", "caption")
    assert sorted(found) == sorted(written) and len(found) > CLIP_COUNT
    for _ in range(2):
        assert [(row.media_path, row.start, row.caption) for row in captions] == written
    assert captions.result().exit_code == 0
    table = captions.table()
    assert table.column("caption").to_pylist() == [caption for _, _, caption in written]
    assert list(captions.pandas()["media_path"]) == [name for name, _, _ in written]

    again = [row.caption for row in penstock.caption("videos", model="demo", out="out", chunk=2.0)]
    assert again == [caption for _, _, caption in written]
    stages = json.loads((here / "out" / "run.json").read_text())["stages"]
    assert [stage["items"] for stage in stages] == [0, 0, 0]


PROMPTS, CHUNK = {"a": "Describe the video.", "b": "What happens?"}, 4.0
KIND = {"kind": {"enum": ["ball", "box"]}}
SCHEMA = {"type": "object", "properties": KIND, "required": ["kind"], "additionalProperties": False}


def starts_of(clip: Path) -> list[float]:
    """Where the chunks of a clip begin, by its own length."""
    with av.open(str(clip)) as container:
        assert container.duration is not None
        seconds = Fraction(container.duration, av.time_base)
    return [CHUNK * number for number in range(math.ceil(seconds / Fraction(CHUNK)))]


def check_agreement(here: Path, **options: Any) -> None:
    """Check that what is iterated, the table and the file hold each chunk once per prompt."""
    prompts = options.get("prompts", PROMPTS)
    chunks = [(p.name, at) for p in (here / "videos").iterdir() for at in starts_of(p)]
    expected = sorted((clip, name, at) for clip, at in chunks for name in prompts)
    call = {"model": "demo", "out": "out", "chunk": CHUNK, "prompts": prompts, **options}
    with penstock.caption("videos", **call) as captions:
        given = sorted((row.media_path, row.name, row.start, row.caption) for row in captions)
    names = ("media_path", "name", "start", "caption")
    written = sorted(rows_of(here / "out" / "captions.jsonl", *names))
    assert [each[:3] for each in written] == expected
    assert given == written, f"{len(given)} of {len(written)} captions were given"
    rows = captions.table().to_pylist()
    table = [(row["media_path"], name, row["start"], row[name]) for row in rows for name in prompts]
    assert sorted(table) == written


@pytest.mark.slow
def test_captions_of_several_prompts_are_those_of_the_file(here: Path) -> None:
    check_agreement(here)
    check_agreement(here)  # all are stored
    check_agreement(here, prompts={**PROMPTS, "c": PROMPTS["b"]})  # half are; two names, one prompt


@pytest.mark.slow
def test_captions_of_several_prompts_are_those_of_the_file_by_adapter_and_schema(
    here: Path,
) -> None:
    q_proj = "model.language_model.layers.0.self_attn.q_proj"
    write_adapter(here / "adapter", matrices({q_proj: (192, 192)}))
    for options in ({"adapter": "adapter"}, {"schema": SCHEMA}):
        check_agreement(here, **options)
        check_agreement(here, **options)


@pytest.mark.slow
def test_vectors_are_those_of_the_files_made_now_or_before(here: Path) -> None:
    for _ in range(2):
        with penstock.embed("videos", model="demo", out="e") as running:
            found = list(running)
        rows = pq.read_table(here / "e" / "embeddings.parquet").to_pylist()
        array = np.load(here / "e" / "embeddings.npy")
        assert len(found) == len(rows) == len(array) > CLIP_COUNT
        places = [(row["media_path"], row["time"]) for row in rows]
        assert [(one.media_path, one.time) for one in found] == places
        assert np.array_equal(np.array([one.vector for one in found]), array)
        assert running.table().column("time").to_pylist() == [row["time"] for row in rows]


@pytest.mark.slow
def test_labels_are_those_of_the_file_made_now_or_before(here: Path) -> None:
    for _ in range(2):
        with penstock.label("videos", model="demo", out="l", labels=["a ball", "a box"]) as running:
            found = list(running)
        lines = read_lines(here / "l" / "labels.jsonl")
        expected = rows_of(here / "l" / "labels.jsonl", "media_path", "time", "top")
        assert len(expected) > CLIP_COUNT
        assert [(row.media_path, row.time, row.top) for row in found] == expected
        assert list(running) == found
        table = running.table().to_pylist()
        assert [(row["media_path"], row["time"], row["top"]) for row in table] == expected
        assert [row["given"] for row in table] == [
            [each["label"] for each in line["labels"] if each["passed"]] for line in lines
        ]
        shown = penstock.show(here / "l", most=len(table))
        places = [(name, at) for name, at, _ in expected]
        assert [(each.media_path, each.at) for each in shown.captions] == places
        assert running._repr_html_().count("<img") == min(5, len(table))


@pytest.mark.slow
def test_a_run_that_is_left_early_stops_in_order_and_is_taken_up(here: Path) -> None:
    options = {"model": "demo", "out": "out", "chunk": 1.0, "batch_size": 1}
    with penstock.caption("videos", **options) as captions:  # type: ignore[arg-type]
        first = next(captions)
    assert json.loads((here / "out" / "run.json").read_text())["state"] in ("interrupted", "done")
    assert not [t for t in threading.enumerate() if t.name == "penstock"]
    rest = list(penstock.caption("videos", **options))  # type: ignore[arg-type]
    assert first in rest and len(rest) == len(read_lines(here / "out" / "captions.jsonl"))


def test_a_stop_does_not_wait_for_a_fork_server_that_imports_libraries() -> None:
    waits, killed, stopped = threading.Event(), threading.Event(), threading.Event()

    def start(_: object) -> object:
        waits.set()
        assert killed.wait(20)
        return SimpleNamespace(stop=stopped.set)

    launcher = StoppableLauncher()
    launcher.launcher = cast(Any, SimpleNamespace(start=start))
    call = cast(Any, SimpleNamespace(fork_server=SimpleNamespace(kill=killed.set)))
    with ThreadPoolExecutor() as threads:
        begun = threads.submit(launcher.start, call)
        assert waits.wait(20)
        launcher.stop()
        assert isinstance(begun.exception(20), Interrupted)
    assert stopped.is_set()
    with pytest.raises(Interrupted):
        launcher.start(call)


@pytest.mark.slow
def test_a_run_from_python_is_repeated_by_what_repeats_a_command(here: Path) -> None:
    list(penstock.caption("videos", model="demo", out="out", prompts={"a": "What is it?"}))
    command = command_in(here / "out")
    assert command.folder == str(here)
    config = recorded_run(command).config
    given = ("videos",), {"a": "What is it?"}, str(here / "out")
    assert (config.sources, config.prompts, config.out) == given
    refused(partial(penstock.learn, "out", steps=1), "0 captions in")


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "2GiB", "chunk": 2, "fps": 0.1, "shots": False, "frames": None},
        {"prompts": {"a": "What is it?\n--Is it = 5?", "b": "x"}, "format": ["txt", "srt"]},
        {
            "prompt": "-v",
            "schema": {"type": "object", "properties": {"a": {"enum": ["x, y"]}}},
            "avoid": "a,b",
            "recursive": True,
        },
        {"endpoint": ["http://localhost:1/v1", "http://localhost:2/v1"], "model": "openai:x"},
    ],
)
def test_the_recorded_words_are_those_of_the_configuration(options: dict[str, Any]) -> None:
    names = CaptionOptions.__annotations__
    config = config_for(["-a.mp4", Path("b")], {"model": "demo", **options}, CaptionConfig, names)
    assert recorded_run(CommandRecord(words=tuple(words_of(config)), folder="")).config == config


def test_a_text_that_the_command_line_would_split_is_not_recorded() -> None:
    options = {"avoid": ["a, b"]}
    assert words_of(config_for("a.mp4", options, CaptionConfig, options)) == []


def test_what_ends_a_run_is_raised_where_its_captions_are_asked_for(here: Path) -> None:
    (here / "model").mkdir()
    captions = penstock.caption("videos", model="model", out="out")
    error = refused(lambda: list(captions), "config.json")
    assert str(error) in repr(captions) and error.hint in captions._repr_html_()
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert "_work" not in frames and error.__suppress_context__
    shown, last = error._render_traceback_()
    assert "refused(lambda" in shown and last == f"{type(error).__name__}: {error}"


@pytest.mark.slow
def test_results_are_shown_as_their_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = penstock.caption("videos", model="demo", out="out").result()
    assert repr(result) == f"2 captions in {here / 'out' / 'captions.jsonl'}"
    plan = {"model": "demo", "memory": "2GiB"}
    for shown, command in (
        (penstock.status("out"), "status out"),
        (penstock.plan("videos", **plan), "plan videos --model demo --memory 2GiB"),  # type: ignore[arg-type]
    ):
        assert run_command(command.split()) == 0
        printed = capsys.readouterr().out.splitlines()
        lines = [line for line in printed if " free" not in line and "ago" not in line]
        assert lines and set(lines) <= set(repr(shown).splitlines())
        assert json.loads(json.dumps(shown)).keys() == shown.keys() and "{" not in repr(shown)


LABEL = partial(penstock.label, labels=["red"])
START: list[Callable[..., object]] = [penstock.caption, penstock.embed, LABEL]
"""The functions whose runs begin in the background."""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sources": "nosuch"}, "nosuch: no such file or folder"),
        ({"sources": ["nosuch", "@nosuch.txt", "videos/*.png"]}, "nosuch"),
        ({"sources": "empty"}, "no media file in this folder"),
        ({"sources": []}, "no source"),
        ({"model": "nosuch"}, "there is no model at nosuch"),
        ({"model": "videos/clip-01.mp4"}, "clip-01.mp4"),
        ({"chunk": -1.0}, "chunk"),
        ({"memory": 8}, "memory 8: 8 bytes? Write 8GiB"),
        ({"out": "videos/clip-01.mp4"}, "clip-01.mp4"),
    ],
)
def test_what_cannot_be_is_refused_at_the_call_and_nothing_is_begun(
    given: dict[str, object], words: str, here: Path
) -> None:
    (here / "empty").mkdir()
    for call in START:
        given = {"sources": "videos", "model": "demo", "out": "out", **given}
        assert refused(partial(call, **given), words).hint
    assert not [t for t in threading.enumerate() if t.name == "penstock"]
    assert not (here / "out").exists()


@pytest.mark.parametrize("call", START)
def test_a_missing_package_is_told_at_the_call(
    call: Callable[..., object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda module: module != "bitsandbytes")
    given = {"sources": "videos", "model": "demo", "precision": "int8", "out": "out"}
    refused(partial(call, **given), "--precision int8 needs the package bitsandbytes")
    assert not [t for t in threading.enumerate() if t.name == "penstock"]


def test_a_whole_number_is_quoted_as_it_was_given() -> None:
    refused(lambda: penstock.plan(chunk=-1), "invalid --chunk -1. Give")


def blocks_of(page: str) -> list[str]:
    found: list[str] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.slow
def test_the_code_of_the_readme_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "videos" / "clip-01.mp4").unlink()
    (here / "videos").rename(here / "VIDEOS")
    (block,) = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(compile(block, "README.md", "exec"), {})
    captions = read_lines(here / "penstock-out" / "captions.jsonl")
    assert len(capsys.readouterr().out.splitlines()) == len(captions)


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_printed(here: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    page = page.partition("## A model in halves")[0]  # tests/project/test_docs.py has that
    names: dict[str, object] = {}
    for block in blocks_of(page):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["table"].num_rows == len(read_lines(here / "captions" / "captions.jsonl"))  # type: ignore[attr-defined]
    assert names["plan"]["fits"] is True  # type: ignore[index]
    assert names["made"].encoded == 0  # type: ignore[attr-defined]
    server = names["server"]
    assert repr(server) == f"<penstock server at {server.url}: model='demo', ended>"  # type: ignore[attr-defined]
    status = penstock.status("captions")  # of the frame, only the row that was changed counts
    assert (status["corrected"], status["accepted"], status["unwritten"]) == (2, 0, 0)


@pytest.mark.slow
def test_its_types_are_seen_from_outside_the_clone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for package in ("penstock", "flows", "stages", "artifacts"):
        shutil.copytree(ROOT / package, site / package)
    program = tmp_path / "program.py"
    program.write_text(
        "import penstock\n"
        "for row in penstock.caption('videos', model='demo', max_new_tokens=9):\n"
        "    reveal_type(row.caption)\n"
        "penstock.caption('videos', max_new_token=9)\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "c")]
    environment = {"MYPYPATH": "", "PYTHONPATH": str(site), "PATH": ""}
    done = completed([*mypy, program], cwd=tmp_path, env=environment)
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", ""), done.stdout
    assert "max_new_token" in done.stdout and "Found 1 error" in done.stdout, done.stdout


def refused(call: Callable[[], object], words: str) -> penstock.PenstockError:
    """Return the error of a call, which is one line with these words."""
    with pytest.raises(penstock.PenstockError) as found:
        call()
    assert words in str(found.value) and "\n" not in str(found.value)
    return found.value


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: penstock.caption("x", max_tokens=3), "max_tokens (did you mean max_new_tokens?)"),  # type: ignore[call-arg]
        (lambda: penstock.plan("x", bath_size=3), "bath_size (did you mean batch_size?)"),  # type: ignore[call-arg]
        (lambda: penstock.rebuild("x", out="y"), "unknown option out"),  # type: ignore[call-arg]
        (lambda: penstock.load_half("x", "visio"), "'visio' (did you mean vision?)"),  # type: ignore[arg-type]
        (lambda: penstock.load_half("x", "text"), 'Give "vision" or "language"'),  # type: ignore[arg-type]
        (lambda: penstock.load_half("dmeo", "vision"), "such as owner/name, or demo"),
        (lambda: penstock.load_half(None, "vision"), "path is None (NoneType). Give a folder"),  # type: ignore[arg-type]
        (lambda: penstock.load_half("demo", "vision", dtyp="x"), "dtyp (did you mean dtype?)"),
        (lambda: penstock.rebuild("x", name=5), "name is 5 (int). Give a text"),  # type: ignore[arg-type]
        (lambda: penstock.label("x", model="demo"), "labels is missing"),
        (lambda: penstock.label("x", model="demo", labels=["a,b"]), "without commas"),
        (lambda: penstock.embed("x", model="demo", top=3), "unknown option top"),  # type: ignore[call-arg]
        (lambda: penstock.serve(), "there is nothing to serve"),
        (lambda: penstock.serve(model="nowhere", port=0), "there is no model at nowhere"),
        (lambda: penstock.export("demo", to="nf4"), "out is missing"),  # type: ignore[call-arg]
        (lambda: penstock.tune("x", out="o"), "model is missing"),  # type: ignore[call-arg]
        (lambda: penstock.search("", "i"), "is empty"),
        (lambda: penstock.search("x", "nowhere"), "nowhere"),
        (lambda: penstock.convert("x", "y", dtype="fp8"), "Choose from fp16, bf16, fp32"),
        (lambda: penstock.status("nowhere"), "nowhere"),
        (lambda: penstock.report("nowhere"), "nowhere"),
        (lambda: penstock.status(3), "Give a path"),  # type: ignore[arg-type]
        (lambda: penstock.search("a", None), "Give a path"),  # type: ignore[arg-type]
        (lambda: penstock.convert(3, "x"), "Give a path"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_one_line(call: Callable[[], object], words: str, here: Path) -> None:
    refused(call, words)


def test_a_deleted_current_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused(lambda: penstock.caption(tmp_path, out=tmp_path), "the current folder was deleted")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 3.5}, "max_new_tokens is 3.5 (float). Give a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True (bool). Give a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot' (str). Give a number or None"),
        ({"summary": 1}, "summary is 1 (int). Give True or False"),
        ({"memory": 2.5}, "memory is 2.5 (float). Give a whole number or None (bytes), or a text"),
        ({"memory": "much"}, "memory 'much' is not a size"),
        ({"prompts": ["a=x"]}, "prompts is ['a=x'] (list). Give a dict of texts"),
        ({"prompt": 5}, "prompt is 5 (int). Give a text or None"),
        ({"prompt": "x\ny", "prompts": 3}, "prompts is 3 (int)"),
        ({"out": 5}, "out is 5 (int). Give a text"),
        ({"format": 5}, "format is 5 (int). Give texts in a list, or in one text with commas"),
        ({"format": ["txt", 5]}, "format is ['txt', 5] (list). Give texts"),
        ({"format": "txt,t"}, "unknown --format t"),
        ({"schema": 5}, "schema is 5 (int). Give a text, a path, or the schema as a dict"),
        ({"schema": {"const": {1, 2}}}, "schema is no JSON: Object of type set"),
        ({"schema": {"const": float("nan")}}, "schema is no JSON"),
    ],
)
def test_another_type_is_refused_at_once(
    options: dict[str, object], words: str, here: Path
) -> None:
    for call in CALLS[:2]:
        given = {"model": "demo", "out": "o", **options}
        error = refused(partial(call, "videos", **given), words)
        assert error.exit_code == 2 and error.hint


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (None, "sources is None (NoneType). Give a path"),
        ({"videos": 1}, "sources is {'videos': 1} (dict). Give a path"),
        (["videos", None], "a source is None (NoneType). Give a path"),
        ("", "sources is empty"),
        (["videos", ""], "sources is empty"),
    ],
)
def test_what_is_no_source_is_refused_at_the_call(sources: object, words: str, here: Path) -> None:
    for call in CALLS:
        assert refused(partial(call, sources, model="demo"), words).exit_code == 2


def test_values_are_taken_as_the_command_line_or_python_writes_them() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    options: CaptionOptions = {"format": "txt, csv", "avoid": ["image", "photo"], "chunk": 2}
    options |= {"extensions": ("mp4",), "schema": schema, "out": Path("out"), "memory": "2GiB"}
    options["temperature"] = None
    config = captioning((Path(name) for name in ("a", "b")), options)
    assert (config.format, config.avoid) == (("txt", "csv"), ("image", "photo"))
    assert (config.extensions, config.sources) == (("mp4",), ("a", "b"))
    assert (config.out, config.memory, config.chunk) == ("out", 2 << 30, 2)
    as_text: CaptionOptions = {"schema": json.dumps(schema)}
    assert config.schema == captioning("a", as_text).schema
    remote: CaptionOptions = {"model": "openai:x", "endpoint_keys": Path("keys")}
    remote["endpoint"] = "http://127.0.0.1:1/v1"
    assert captioning("a", remote).endpoint_keys == "keys"


def captioning(sources: Any, options: CaptionOptions) -> CaptionConfig:
    return config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)


def test_a_whole_number_for_a_float_finds_what_the_same_float_made() -> None:
    hints = get_type_hints(CaptionConfig)
    names = [name for name, kind in hints.items() if float in (kind, *get_args(kind))]
    assert {"chunk", "fps", "temperature", "top_p", "repetition_penalty"} <= {*names}
    beside: CaptionOptions = {"clip_frames": 5}
    for name in names:
        more = beside if name == "clip_fps" else CaptionOptions()
        whole, same = (captioning("a", {**more, name: one}) for one in (1, 1.0))  # type: ignore[misc]
        assert digest_of([getattr(whole, name)]) == digest_of([getattr(same, name)]), name
    assert digest_of([1]) != digest_of([1.0])
    whole_only: CaptionOptions = {"max_new_tokens": 1}
    assert type(captioning("a", whole_only).max_new_tokens) is int


def test_the_wrong_half_is_told_as_an_error_of_penstock() -> None:
    import torch

    half = penstock.load_half("demo", "language")
    requests = {
        "input_ids": torch.zeros(1, 4, dtype=torch.long),
        "pixel_values": torch.zeros(4, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    }
    with pytest.raises(penstock.PenstockError, match="is needed, but belongs to") as found:
        penstock.encode(half, requests)
    assert "extra_modules=" in found.value.hint and "\n" not in str(found.value)


LEAST: dict[str, tuple[tuple[type[Any], ...], dict[str, Any]]] = {
    "caption x": ((CaptionConfig,), {"sources": ("x",)}),
    "embed x --model m": ((EmbedConfig,), {"sources": ("x",), "model": "m"}),
    "label x --model m --labels a,b": (
        (LabelConfig,),
        {"sources": ("x",), "model": "m", "labels": ["a", "b"]},
    ),
    "index build x --model m": ((IndexConfig,), {"sources": ("x",), "model": "m"}),
    "search x": ((SearchQuery, SearchPlace), {"what": "x"}),
    "tune x --model m --out o": ((TuneConfig,), {"data": "x", "model": "m", "out": "o"}),
    "export m --to nf4 --out o": ((ExportConfig,), {"model": "m", "to": "nf4", "out": "o"}),
    "serve --model m": ((ServeConfig,), {"model": "m"}),
}
"""Shortest command lines → their configurations, and the same as keywords."""


@pytest.mark.parametrize("command", LEAST)
def test_defaults_of_functions_are_those_of_commands(command: str) -> None:
    kinds, options = LEAST[command]
    given = parse(command.split())
    for kind in kinds:
        names = {name: options[name] for name in options if name in kind.__dataclass_fields__}
        assert config_with(kind, names, names) == config_from(given, kind)


def test_the_commands_are_shown_and_documented() -> None:
    commands = "caption plan rebuild embed label index search tune export convert serve"
    for name in [*commands.split(), "status", "report"]:
        assert name in dir(penstock) and name in penstock.__all__
        assert getattr(penstock, name).__doc__, name


@pytest.mark.slow
def test_all_records_come_inside_a_running_event_loop(here: Path) -> None:
    async def use_vectors() -> None:
        with penstock.embed("videos", model="demo", out="e") as vectors:
            found = list(vectors)
        table = vectors.table()
        assert table.num_rows == len(found) == vectors.result().vectors > CLIP_COUNT
        assert table.column("vector").to_pylist()[-1] == found[-1].vector.tolist()

    asyncio.run(use_vectors())


@pytest.mark.slow
def test_two_runs_at_once_work_and_one_folder_has_one_run(here: Path) -> None:
    first = penstock.caption("videos", model="demo", out="a")
    second = penstock.caption("videos", model="demo", out="b", chunk=2.0)
    assert len(list(first)) == CLIP_COUNT < len(list(second))
    assert penstock.status("a")["state"] == "done"
    assert penstock.report("a").stat().st_size > 1000

    with penstock.caption("videos", model="demo", out="c", chunk=0.1) as running:
        next(running)
        with pytest.raises(penstock.PenstockError, match="captioning into"):
            list(penstock.caption("videos", model="demo", out="c"))


def test_numbers_of_numpy_are_those_of_python() -> None:
    given = {"frames": np.int64(4), "fps": None}
    config = config_with(CaptionConfig, given, given, sources=("x",))
    assert type(config.frames) is int and config.frames == 4


def test_errors_reach_other_processes() -> None:
    error = MediaError("broken", kind="no-video", hint="Replace it")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(other), other.kind) == ("broken. Replace it", "no-video")
        assert type(other) is MediaError


def test_folders_are_those_of_the_call(here: Path) -> None:
    config = anchored(config_with(CaptionConfig, {"out": "o"}, ["out"], sources=("x",)))
    assert config.out == str(here / "o") and config.store == ""


def test_a_search_that_finds_nothing_has_the_columns() -> None:
    assert {"rank", "path", "score"} <= set(penstock.Hits().table().schema.names)


def test_a_path_that_cannot_be_told_is_one_error(tmp_path: Path) -> None:
    def path_of(fspath: Callable[[object], Any]) -> Any:
        return type("Odd", (), {"__fspath__": fspath})()

    for odd in (path_of(lambda _: 3), path_of(lambda _: 1 // 0)):
        for name in ("out", "store"):
            with pytest.raises(penstock.PenstockError, match=f"{name} is <"):
                penstock.caption(tmp_path, model="demo", **{"out": str(tmp_path / "o"), name: odd})
        with pytest.raises(penstock.PenstockError, match="a source is <"):
            penstock.caption(odd, model="demo", out=str(tmp_path / "o"))


def test_an_error_can_be_written_whatever_it_names(tmp_path: Path) -> None:
    with pytest.raises(penstock.PenstockError) as raised:
        penstock.caption(tmp_path, model="demo", out=str(tmp_path / "o"), schema="\ud800.json")
    assert "\\ud800.json" in str(raised.value.message.encode().decode())
