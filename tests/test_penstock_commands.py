"""The commands as functions: their defaults, their records, and their errors."""

import asyncio
import copy
import json
import pickle
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from artifacts.errors import MediaError
from flows.cli.derived import config_from
from flows.cli.main import parse
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportConfig
from flows.options.search import SearchPlace, SearchQuery
from flows.options.tune import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig
from flows.serving.config import ServeConfig
from penstock.arguments import anchored, config_of

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
NAMES = ("clip-01.mp4", "clip-02.mp4")


@pytest.mark.parametrize("command", LEAST)
def test_defaults_of_functions_are_those_of_commands(command: str) -> None:
    kinds, options = LEAST[command]
    given = parse(command.split())
    for kind in kinds:
        names = {name: options[name] for name in options if name in kind.__dataclass_fields__}
        assert config_of(kind, names) == config_from(given, kind)


def test_the_commands_are_shown_and_documented() -> None:
    commands = (
        "caption plan rebuild embed label index search tune export convert serve status report"
    )
    for name in commands.split():
        assert name in dir(penstock) and name in penstock.__all__
        assert getattr(penstock, name).__doc__, name


@pytest.mark.slow
def test_all_records_come_inside_a_running_event_loop(here: Path) -> None:
    asyncio.run(use_vectors())


async def use_vectors() -> None:
    with penstock.embed("videos", model="demo", out="e") as vectors:
        found = list(vectors)
    table = vectors.table()
    assert table.num_rows == len(found) == vectors.result().vectors > len(NAMES)
    assert table.column("vector").to_pylist()[-1] == found[-1].vector.tolist()

    labels = penstock.label("videos", model="demo", labels=["a red ball", "a box"], out="l")
    rows = list(labels)
    written = Path("l/labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row.media_path for row in rows] == [json.loads(line)["media_path"] for line in written]
    assert labels.table().column("top").to_pylist() == [row.top for row in rows]

    assert penstock.index("videos", model="demo", out="i").added == len(found)
    hits = penstock.search("a red ball", "i", top=3, without="a box, or two")
    assert [hit.rank for hit in hits] == hits.table().column("rank").to_pylist()
    assert hits

    with (
        penstock.serve(model="demo", port=0) as server,
        urllib.request.urlopen(f"{server.url}/healthz") as answer,
    ):
        assert json.load(answer)["status"] == "ok"
    assert server.close() == 0


@pytest.mark.slow
def test_two_runs_at_once_work_and_one_folder_has_one_run(here: Path) -> None:
    first = penstock.caption("videos", model="demo", out="a")
    second = penstock.caption("videos", model="demo", out="b", chunk=2.0)
    assert len(list(first)) == len(NAMES) < len(list(second))
    assert penstock.status("a")["state"] == "done"
    assert penstock.report("a").stat().st_size > 1000

    with penstock.caption("videos", model="demo", out="c", chunk=0.1) as running:
        next(running)
        with pytest.raises(penstock.PenstockError, match="captioning into"):
            list(penstock.caption("videos", model="demo", out="c"))


@pytest.mark.slow
def test_a_run_that_is_closed_early_is_resumed(here: Path) -> None:
    with penstock.embed("videos", model="demo", out="e") as vectors:
        pass
    with pytest.raises(penstock.PenstockError, match="stopped"):
        vectors.result()
    assert len(list(penstock.embed("videos", model="demo", out="e"))) > len(NAMES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: penstock.label("x", model="demo"), "labels is missing"),  # type: ignore[call-arg]
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
    ],
)
def test_a_wrong_call_is_one_line(call: Callable[[], object], message: str, here: Path) -> None:
    with pytest.raises(penstock.PenstockError) as found:
        call()
    assert message in str(found.value) and "\n" not in str(found.value)


def test_wrong_places_and_numbers_of_numpy(here: Path) -> None:
    for call in (
        lambda: penstock.status(3),  # type: ignore[arg-type]
        lambda: penstock.search("a", None),  # type: ignore[arg-type]
        lambda: penstock.convert(3, "x"),  # type: ignore[arg-type]
    ):
        with pytest.raises(penstock.PenstockError, match="Give a path"):
            call()
    config = config_of(CaptionConfig, {"frames": np.int64(4), "fps": None}, sources=("x",))
    assert type(config.frames) is int and config.frames == 4


def test_errors_reach_other_processes() -> None:
    error = MediaError("broken", kind="no-video", hint="Replace it")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(other), other.kind) == ("broken. Replace it", "no-video")
        assert type(other) is MediaError


def test_folders_are_those_of_the_call(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = anchored(config_of(CaptionConfig, {"out": "o"}, sources=("x",)))
    assert config.out == str(here / "o") and config.store == ""


def test_a_search_that_finds_nothing_has_the_columns(here: Path) -> None:
    assert {"rank", "path", "score"} <= set(penstock.Hits().table().schema.names)
