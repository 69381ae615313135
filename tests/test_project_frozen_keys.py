"""Finished work is found again, and scripts go on: what decides namespaces and keys, the arguments
of stages, the rows of `--help` and the fields of Prefect's forms are as they were recorded.

tests/data/frozen_keys.json and frozen_job_keys.json are never edited to make these tests pass,
unless finished work is meant to be done again, or an option is added:
`python -m tests.support.frozen_keys --write`, or `--write-jobs`.
"""

import ast
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from artifacts import options
from flows.options.commands import CaptionConfig, RebuildConfig
from flows.options.export_config import ExportConfig
from flows.options.training import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig, SearchPlace, SearchQuery
from flows.serving.config import ServeConfig
from tests.support.frozen_cells import CELLS, JOBS, LABELS, SLOW, Cell
from tests.support.frozen_keys import BASE, RECORDED, RECORDED_JOBS, beside, record
from tests.support.frozen_surface import PARAMETERS, SMALLEST, defaults, forms, surface, written

FROZEN: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
FROZEN_JOBS: dict[str, Any] = json.loads(RECORDED_JOBS.read_text(encoding="utf-8"))["jobs"]


def marked(names: Iterable[str]) -> list[Any]:
    """Names of cells, those marked that only slow tests look at."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value))


def test_the_matrix_is_the_recorded_one() -> None:
    assert FROZEN["cells"].keys() == CELLS.keys() - {BASE}
    assert FROZEN_JOBS.keys() == JOBS.keys()
    assert CELLS.keys() | JOBS.keys() > SLOW


def test_a_caption_run_is_as_it_was() -> None:
    assert record(BASE) == FROZEN["base"]


@pytest.mark.parametrize("name", marked(name for name in CELLS if name != BASE))
def test_keys_and_stage_arguments_are_as_they_were(name: str) -> None:
    assert beside(record(name), FROZEN["base"]) == FROZEN["cells"][name]


@pytest.mark.parametrize("name", marked(JOBS))
def test_what_trainings_and_exports_tell_stages_is_as_it_was(name: str) -> None:
    assert record(name) == FROZEN_JOBS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_sampling_parameters_enter_keys_as_they_did(name: str) -> None:
    assert plain(written(PARAMETERS[name])) == FROZEN["sampling parameters"][name]


@pytest.mark.parametrize("command", SMALLEST)
def test_options_that_are_left_out_mean_what_they_did(command: str) -> None:
    assert plain(defaults(command)) == FROZEN["defaults"][command]


def test_the_rows_of_help_are_the_same() -> None:
    found = surface()["help"]
    assert found.keys() == FROZEN["help"].keys()
    for command, rows in FROZEN["help"].items():
        assert set(found[command]) == set(rows), command


def test_prefects_forms_have_the_same_fields() -> None:
    found = plain(forms())
    assert found.keys() == FROZEN["forms"].keys()
    for flow, named in FROZEN["forms"].items():
        assert found[flow] == named, flow


TEXTS = ("--format", "txt")
READ_BY: dict[type[Any], Cell] = {
    CaptionConfig: Cell(options=TEXTS),
    RebuildConfig: CELLS["rebuild"],
    EmbedConfig: CELLS["embed"],
    IndexConfig: CELLS["index"],
    LabelConfig: Cell(command="label", model="dual", options=(*LABELS, *TEXTS)),
}
"""Configuration → a run of its command that reads all of its fields."""
NOT_READING = {"__post_init__", "_asdict_inner", "_replace", "replace"}
"""Functions that look at every field, whether anything comes of it or not."""


@pytest.mark.parametrize("kind", READ_BY)
def test_a_command_reads_every_field_that_it_has(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, read = {field.name for field in fields(kind)}, set[str]()

    def reading(config: Any, name: str) -> Any:
        code = sys._getframe(1).f_code
        if code.co_name not in NOT_READING and Path(code.co_filename) != Path(options.__file__):
            read.add(name)
        return object.__getattribute__(config, name)

    monkeypatch.setattr(kind, "__getattribute__", reading, raising=False)
    monkeypatch.setitem(CELLS, "reading", READ_BY[kind])
    record("reading")
    assert names - read == set()


def test_every_field_is_named_where_something_is_done() -> None:
    """These commands load models of their own: that some module reads a field has to do."""
    found: set[str] = set()
    for path in (Path(__file__).parents[1] / "flows").rglob("*.py"):
        if "cli" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute)}
    for kind in (TuneConfig, ExportConfig, SearchQuery, SearchPlace, ServeConfig):
        assert {field.name for field in fields(kind)} <= found, kind
