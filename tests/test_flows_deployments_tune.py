"""The flow that trains an adapter: its parameters are those of the plain command."""

import json
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.deployments.sweep import SWEPT
from flows.deployments.tune import tune_captions
from flows.job.tune_config import TuneConfig

GOOD = {"data": "captions.jsonl", "model": "demo", "out": "there"}


@pytest.mark.parametrize(
    "config",
    [
        {"model": "demo", "out": "there"},
        {**GOOD, "data": ""},
        {**GOOD, "out": ""},
        {**GOOD, "precision": "int8"},
        {**GOOD, "optimizer": "sgd"},
        {**GOOD, "validate": 1},
        {**GOOD, "lora_rank": 0},
        {**GOOD, "steps": 0},
        {**GOOD, "memory": "8GiB"},
        {**GOOD, "full": True},
    ],
    ids=json.dumps,
)
def test_the_server_refuses_bad_parameters_before_a_run(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate({"config": config}, tune_captions.parameters.model_dump(), raise_on_error=True)


def test_every_field_of_the_form_says_what_it_is() -> None:
    fields = tune_captions.parameters.model_dump()["definitions"]["TuneConfig"]["properties"]
    assert set(fields) == set(TuneConfig.__dataclass_fields__)
    assert [name for name, field in fields.items() if not field.get("description")] == []
    assert tune_captions.name in SWEPT


def test_what_is_left_out_has_the_defaults_of_the_command() -> None:
    validate({"config": GOOD}, tune_captions.parameters.model_dump(), raise_on_error=True)
    assert tune_captions.validate_parameters({"config": GOOD})["config"] == TuneConfig(
        data="captions.jsonl", model="demo", out="there"
    )
