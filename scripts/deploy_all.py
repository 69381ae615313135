"""Deploys what prefect.yaml names, once its parameters are checked as the command line checks them.

Called by scripts/prepare_pool.py. A wrong value gets one line and exit code 2, before anything is
deployed: Prefect stops at the first that its server refuses, with a traceback.
"""

import importlib
import json
import logging
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.errors import UsageError

FILE = Path("prefect.yaml")
FLOWS = "flows/deployments/"
"""Folder of the flows that are checked. Others may not be importable here."""
TEMPLATE = "{{"
"""In parameters that Prefect fills in, from variables and blocks of its server."""


def refusals(file: Path) -> Iterator[str]:
    """Yield a line about each deployment of the file whose parameters are wrong: its name, the
    field, and what is accepted."""
    try:
        deployments = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    except yaml.YAMLError as error:
        yield f"penstock: {file} is not valid YAML: {' '.join(str(error).split())}"
        return
    for each in deployments:
        parameters = each.get("parameters") or {}
        path, _, name = str(each.get("entrypoint")).partition(":")
        if not path.startswith(FLOWS) or TEMPLATE in json.dumps(parameters, default=str):
            continue
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        flow = getattr(module, name)
        if text := refusal(flow, parameters):
            yield f"penstock: {file}: {flow.name}/{each['name']}: {text}"


def refusal(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> str:
    """Return why a flow cannot run with these parameters, the command's words before those of the
    server's schema; empty if it can. Missing ones may be given with the run."""
    schema = ""
    try:
        validate(dict(parameters), flow.parameters.model_dump(), True, ignore_required=True)
    except ValidationError as error:
        schema = str(error)
    logging.disable()  # Prefect logs many lines about wrong parameters
    try:
        flow.validate_parameters(dict(parameters))
    except UsageError as error:
        return str(error)
    except ParameterTypeError:  # what the schema says in one line
        pass
    finally:
        logging.disable(logging.NOTSET)
    return schema


def main() -> int:
    """Print what is wrong, and return 2; otherwise become `prefect deploy`."""
    if lines := list(refusals(FILE)):
        print("\n".join(lines), flush=True)
        return 2
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
