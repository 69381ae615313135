"""Gives a Prefect server the work pools, the deployments of prefect.yaml, and the automation that
marks runs as Crashed which nobody hears of any more.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m scripts.run.prepare_pool

scripts/run/worker calls it. It leaves as it is what the server has already: a limit of the pool, an
automation or a schedule that somebody has switched on or off. It prints one line for each
deployment, where Prefect prints a box and tells people to start a worker, which is about to start.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from itertools import count
from uuid import UUID

# Before the first import of Prefect, which reads it once.
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from artifacts.errors import redacted
from flows.interfaces.prefect.runs import INTERRUPTED, SKIPPED
from flows.interfaces.prefect.server import FILE, OWN, refuses_login
from flows.interfaces.prefect.sweep import NAME, SWEPT
from scripts.run.run_worker import die_with_parent

POOL = "gpu"
"""Work pool of runs that take a machine's GPUs."""
FLOWS = (*SWEPT, NAME)
"""Runs of other flows may beat more slowly, and are none of ours to mark."""
BEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
BEAT_SECONDS = 30
"""The shortest that Prefect takes."""
AUTOMATION = "penstock: a run that is not heard of has crashed"
DEPLOY = (sys.executable, "-P", "-m", "scripts.run.deploy_all")
DEPLOYED = re.compile(r"Deployment '([^']+)' successfully created")
WIDTH = 200
"""Columns in which Prefect does not break the line that is looked for."""
PAGE = 200
"""Deployments that the server gives at once."""
BEATS_MISSED = 4
"""Three can be lost to a busy machine and a server that is started anew."""


def crash_automation(beat_seconds: int) -> AutomationCore:
    """After a heartbeat, another or the end of the run must follow in time."""
    names = ("Completed", "Failed", "Cancelled", "Crashed", INTERRUPTED, SKIPPED)
    ended = {f"prefect.flow-run.{name}" for name in names}  # Prefect's events have these names
    beat = "prefect.flow-run.heartbeat"
    within = timedelta(seconds=BEATS_MISSED * beat_seconds)
    return AutomationCore(
        name=AUTOMATION,
        description=(
            "Marks a run as Crashed when its heartbeats stop, so that it is started again. It stops"
            " no process. `make worker` made it."
        ),
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
            ),
            for_each={"prefect.resource.id"},
            after={beat},
            expect={beat, *ended},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message=f"Nothing was heard of this run for {within.total_seconds():.0f} s",
            )
        ],
    )


def put_automation(client: SyncPrefectClient, expected: AutomationCore) -> str:
    """Create it, or bring the one of that name up to date; returns what was done. One that is as
    wanted is left alone: an update makes the server forget the runs that it is watching."""
    found = client.read_automations_by_name(expected.name)
    if not found:
        client.create_automation(expected)
        return "made"
    there = found[0]
    same = AutomationCore.model_validate(there.model_dump()) == expected.model_copy(
        update={"enabled": there.enabled}
    )
    if same:
        return "is there"
    client.update_automation(there.id, expected.model_copy(update={"enabled": there.enabled}))
    return "brought up to date"


def put_pool(client: SyncPrefectClient, name: str) -> str:
    """Create the pool where it is missing; returns what was done."""
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
        )
    except ObjectAlreadyExists:
        return "is there"
    return "made"


def deployments(client: SyncPrefectClient) -> dict[UUID, DeploymentResponse]:
    """All deployments of the server, by their ids."""
    found: dict[UUID, DeploymentResponse] = {}
    for offset in count(0, PAGE):
        page = client.read_deployments(limit=PAGE, offset=offset)
        found.update((each.id, each) for each in page)
        if len(page) < PAGE:
            return found
    raise AssertionError


def keep_switches(
    client: SyncPrefectClient, before: Mapping[UUID, DeploymentResponse]
) -> list[str]:
    """Switch schedules on and off as they were, and pause deployments that were paused: `prefect
    deploy` makes both anew. Returns a line for each that is off."""
    lines: list[str] = []
    for id, deployment in deployments(client).items():
        flow, was = client.read_flow(deployment.flow_id).name, before.get(id)
        if flow not in FLOWS:
            continue
        name = f"{flow}/{deployment.name}"
        if was and was.paused:
            client.pause_deployment(id)
            lines.append(f"penstock: {name} stays paused; resume it in the UI")
        for each in deployment.schedules:
            same = [old for old in was.schedules if old.schedule == each.schedule] if was else []
            active = same[0].active if same else each.active
            if active != each.active:
                client.update_deployment_schedule(id, each.id, active=active)
            if not active:
                resume = f"prefect deployment schedule resume {name} {each.id}"
                lines.append(f"penstock: a schedule of {name} is off. To switch it on: {resume}")
    return lines


def deploy() -> int:
    """Deploy what changed in prefect.yaml, and print a line for each; returns the exit code. Where
    something is not deployed, all output is printed."""
    print("penstock: deploying what changed in prefect.yaml", flush=True)
    output: list[str] = []
    with subprocess.Popen(
        DEPLOY,
        env={**os.environ, "COLUMNS": str(WIDTH), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    ) as deploying:
        assert deploying.stdout
        for line in deploying.stdout:
            if line.startswith("penstock: "):
                print(line.rstrip(), flush=True)
                continue
            output.append(line)
            if found := DEPLOYED.search(line):
                print(f"penstock: deployed {found[1]}", flush=True)
    if deploying.returncode and output:
        print("".join(output).rstrip(), flush=True)
    return deploying.returncode


def main() -> int:
    url = PREFECT_API_URL.value()
    if not url:
        raise SystemExit(
            "penstock: PREFECT_API_URL is not set. Call scripts/run/worker, which sets it"
        )
    expected = crash_automation(int(os.environ.get(BEAT) or BEAT_SECONDS))
    try:
        with get_client(sync_client=True) as client:
            print(f"penstock: the work pool {POOL} {put_pool(client, POOL)}")
            print(
                f"penstock: the heartbeat automation {put_automation(client, expected)}", flush=True
            )
            before = deployments(client)
            code = deploy()
            switched = keep_switches(client, before)
            if not code:  # else the error is the last line
                print(*switched, "penstock: starting the worker", sep="\n", flush=True)
    except PrefectHTTPStatusError as error:
        if not refuses_login(error):
            raise
        raise SystemExit(
            f"penstock: the Prefect server at {redacted(url)} refuses the login of this worker. "
            "Set PREFECT_API_AUTH_STRING to what that server asks for: "
            f"{FILE} in its PREFECT_HOME; {OWN}"
        ) from None
    return code


if __name__ == "__main__":
    sys.exit(main())
