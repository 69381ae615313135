"""Resumes what a deployment stored with an earlier version, as that version ran it."""

import contextlib
from dataclasses import replace
from typing import Any, TypeVar

from prefect import get_client
from prefect.runtime import deployment

from flows.options.model import ModelOptions

Config = TypeVar("Config", bound=ModelOptions)
WAY = "as_published"


def continued(config: Config) -> Config:
    """Return the configuration of a flow run. Where its deployment was recorded before models could
    be run as published by themselves, the model is run as stock."""
    if config.as_published is None and _recorded_before():
        return replace(config, as_published=False)
    return config


def _recorded_before() -> bool:
    """Return whether the deployment of this flow run has a form in which the way of a model is yes
    or no, and not left to its checkpoint."""
    if deployment.id is None:
        return False
    with contextlib.suppress(Exception):  # the run itself tells of a server that does not answer
        with get_client(sync_client=True) as client:
            form = client.read_deployment(deployment.id).parameter_openapi_schema or {}
        return is_form_without_rule(form)
    return False


def is_form_without_rule(form: dict[str, Any]) -> bool:
    """Return whether a deployment's form of parameters was made before the way of a model could be
    left open."""
    fields = [each.get("properties", {}) for each in form.get("definitions", {}).values()]
    configs = [each for each in fields if "trust_remote_code" in each]
    return bool(configs) and not any("anyOf" in each.get(WAY, {}) for each in configs)
