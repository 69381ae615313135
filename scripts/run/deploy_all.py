"""Deploys what changed in prefect.yaml, once all that it names is checked: flows, work pools,
schedules, and parameters as the command line checks them.

Called by scripts/run/prepare_pool.py. A wrong value gets one line and exit code 2, before anything
is deployed: Prefect stops at the first that its server refuses, with a traceback.

What a deployment was made of, and what the server had of it then, is noted as a digest beside
Prefect's own files. While both are the same, it is not deployed again.
"""

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import prefect
import yaml
from prefect import Flow
from prefect.cli.deploy._schedules import _schedule_config_to_deployment_schedule
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_HOME
from prefect.utilities.schema_tools.validation import ValidationError, validate

from artifacts.digests import digest_of
from artifacts.disk.files import write_json
from artifacts.errors import UsageError
from artifacts.wording import counted
from scripts.run.prepare_pool import deployments
from scripts.run.run_worker import die_with_parent

FILE = Path("prefect.yaml")
FLOWS = "flows/interfaces/prefect/"
"""Folder of the flows that are checked. Others may not be importable here."""
NOTES = "penstock-deployed.json"
"""File of the digests, by the ids of deployments."""
TEMPLATE = "{{"
"""In parameters that Prefect fills in, from variables and blocks of its server."""


def refusals(file: Path, pools: Collection[str] | None = None) -> Iterator[str]:
    """Yield a line about each deployment of the file that is wrong: its name, the field, and what
    is accepted. `pools`: work pools of the server; None: unknown."""
    try:
        deployments = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    except yaml.YAMLError as error:
        yield f"penstock: {file} is not valid YAML: {' '.join(str(error).split())}"
        return
    for at, each in enumerate(deployments, 1):
        if not (isinstance(each, dict) and each.get("name") and each.get("entrypoint")):
            yield f"penstock: {file}: deployment {at} has no name, or no entrypoint"
            continue
        flow, name = flow_of(each), each["name"]
        if flow is None and str(each["entrypoint"]).startswith(FLOWS):
            yield f"penstock: {file}: {name}: no flow is at {each['entrypoint']}"
            continue
        texts = [*_place_refusals(each, pools)]
        parameters = each.get("parameters") or {}
        if flow is not None and TEMPLATE not in json.dumps(parameters, default=str):
            texts.append(refusal(flow, parameters))
        for text in filter(None, texts):
            yield f"penstock: {file}: {f'{flow.name}/' if flow else ''}{name}: {text}"


def flow_of(deployment: Mapping[str, Any]) -> Flow[..., Any] | None:
    """Return the flow of a deployment; None if it is none of FLOWS, or missing."""
    path, _, name = str(deployment.get("entrypoint")).partition(":")
    if not path.startswith(FLOWS) or not Path(path).is_file():
        return None
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    found = getattr(module, name, None)
    return found if isinstance(found, Flow) else None


def _place_refusals(deployment: Mapping[str, Any], pools: Collection[str] | None) -> Iterator[str]:
    """Yield what is wrong with the work pool and the schedules of a deployment."""
    pool = (deployment.get("work_pool") or {}).get("name")
    if not pool:
        yield "it names no work pool: write `work_pool: *gpu`"
    elif pools is not None and TEMPLATE not in pool and pool not in pools:
        yield (
            f"the server has no work pool {pool}, only {', '.join(sorted(pools))}: name one of "
            f"these, or make it: prefect work-pool create {pool} --type process"
        )
    for schedule in deployment.get("schedules") or ():
        if TEMPLATE in json.dumps(schedule, default=str):
            continue
        try:
            _schedule_config_to_deployment_schedule(schedule)
        except (ValueError, TypeError, AttributeError) as error:
            yield f"schedule {schedule}: {' '.join(str(error).split())}"


FIELDS = (
    *("description", "entrypoint", "path", "parameters", "parameter_openapi_schema", "tags"),
    *("enforce_parameter_schema", "work_pool_name", "work_queue_name", "job_variables"),
    *("pull_steps", "concurrency_limit", "concurrency_options"),
)
"""What the server has of a deployment that is no switch, which users change in the UI."""


def fingerprint(
    deployment: Mapping[str, Any], others: Mapping[str, Any], there: DeploymentResponse
) -> str:
    """Return a digest of what a deployment is made of, and of what the server has of it. `others`:
    the sections of the file that all deployments share."""
    flow = flow_of(deployment)
    schema = flow.parameters.model_dump() if flow is not None else {}
    schedules = [[str(each.schedule), each.parameters, each.slug] for each in there.schedules]
    made_of = [deployment, others, schema, os.getcwd(), prefect.__version__, sys.version]
    found = [str(getattr(there, name, None)) for name in FIELDS]
    return digest_of(json.loads(json.dumps([made_of, found, schedules], default=str)))


def deployed(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Return flow and name of each deployment of the server → the deployment."""
    found = deployments(client).values()
    return {f"{client.read_flow(each.flow_id).name}/{each.name}": each for each in found}


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


def named(deployment: Mapping[str, Any]) -> str:
    """Return flow and name of a deployment; empty if its flow cannot be imported here."""
    flow = flow_of(deployment)
    return f"{flow.name}/{deployment['name']}" if flow is not None else ""


def main() -> int:
    """Print what is wrong, and return 2; otherwise deploy what changed, by `prefect deploy`."""
    notes = PREFECT_HOME.value() / NOTES
    with get_client(sync_client=True) as client:
        if lines := list(refusals(FILE, [each.name for each in client.read_work_pools()])):
            print("\n".join(lines), flush=True)
            return 2
        file = yaml.safe_load(FILE.read_text(encoding="utf-8"))
        others = {name: value for name, value in file.items() if name != "deployments"}
        there, noted = deployed(client), dict[str, str]()
        with contextlib.suppress(OSError, ValueError):
            noted = dict(json.loads(notes.read_text(encoding="utf-8")))
        changed = [
            each
            for each in file["deployments"]
            if (found := there.get(named(each))) is None
            or noted.get(str(found.id)) != fingerprint(each, others, found)
        ]
    if same := len(file["deployments"]) - len(changed):
        print(f"penstock: {counted(same, 'deployment')} unchanged", flush=True)
    if not changed:
        return 0
    if code := _deploy({**others, "deployments": changed}):
        return code
    with get_client(sync_client=True) as client:
        delete_schedules(client, changed)
        there = deployed(client)
    entries = ((each, there.get(named(each))) for each in file["deployments"])
    digests = {
        str(response.id): fingerprint(deployment, others, response)
        for deployment, response in entries
        if response is not None
    }
    write_json(notes, {**noted, **digests})
    return 0


def _deploy(file: Mapping[str, Any]) -> int:
    """Deploy what a file names by `prefect deploy`, and return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        path.write_text(yaml.safe_dump(dict(file)), encoding="utf-8")
        words = ["--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
        command = [sys.executable, "-P", "-m", "prefect", *words]
        return subprocess.run(command, preexec_fn=die_with_parent, check=False).returncode


def delete_schedules(client: SyncPrefectClient, changed: Iterable[Mapping[str, Any]]) -> None:
    """Delete the schedules of deployments with an empty list of them, which `prefect deploy` takes
    for no list."""
    names = {named(each) for each in changed if each.get("schedules") == []}
    for name, response in deployed(client).items() if names else ():
        for schedule in response.schedules if name in names else ():
            client.delete_deployment_schedule(response.id, schedule.id)


if __name__ == "__main__":
    sys.exit(main())
