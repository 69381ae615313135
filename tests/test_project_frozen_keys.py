"""Finished work is found again, and scripts go on: what decides namespaces and keys, the arguments
of stages, the rows of `--help` and the fields of Prefect's forms are as they were recorded.

tests/data/frozen_keys.json is never edited to make these tests pass, unless finished work is meant
to be done again, or an option is added: `python -m tests.support.frozen_keys --write`.
"""

import json
from typing import Any

import pytest

from tests.support.frozen_cells import CELLS, SLOW
from tests.support.frozen_keys import BASE, RECORDED, beside, record
from tests.support.frozen_surface import PARAMETERS, SMALLEST, defaults, forms, surface, written

FROZEN: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
MARKED = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in CELLS
    if name != BASE
]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value))


def test_the_matrix_is_the_recorded_one() -> None:
    assert FROZEN["cells"].keys() == CELLS.keys() - {BASE}
    assert CELLS.keys() > SLOW


def test_a_caption_run_is_as_it_was() -> None:
    assert record(BASE) == FROZEN["base"]


@pytest.mark.parametrize("name", MARKED)
def test_keys_and_stage_arguments_are_as_they_were(name: str) -> None:
    assert beside(record(name), FROZEN["base"]) == FROZEN["cells"][name]


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
    for flow, fields in FROZEN["forms"].items():
        assert found[flow] == fields, flow
