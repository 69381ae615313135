"""What is deployed, documented and handed to systemd fits together; no server is started."""

import importlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.settings import Settings

from flows.deployments.handing import POOL
from flows.deployments.many import PORTION
from scripts.prepare_pool import BEAT, BEAT_SECONDS, FLOWS, POOLS, crash_automation, told
from tests.support.commands import completed

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*r.service"))
"""Those that a user runs from a clone; the other one is the system's, and of an installation."""
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]


def flow_of(deployment: dict[str, Any]) -> "Flow[..., Any]":
    path, name = deployment["entrypoint"].split(":")
    found = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_what_is_deployed_can_be_run_and_is_watched(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    flow.validate_parameters(deployment.get("parameters", {}))
    hands_out = flow.name.endswith("-many")
    assert deployment["work_pool"]["name"] == ("cpu" if hands_out else POOL)
    assert deployment["work_pool"]["name"] in POOLS
    env = deployment["work_pool"]["job_variables"]["env"]
    seldom = {"PENSTOCK_PROGRESS_SECONDS": "60"} if deployment["name"] == PORTION else {}
    assert env == {BEAT: f"{BEAT_SECONDS}", **seldom}
    assert flow.name in FLOWS


def test_make_and_systemd_run_the_same_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert [unit.stem for unit in UNITS] == ["penstock-server", "penstock-worker"]
    for unit in UNITS:
        command = re.search(r"^ExecStart=%h/penstock/(\S+)$", unit.read_text(), re.MULTILINE)
        assert command
        assert os.access(ROOT / command[1], os.X_OK)
        name = unit.stem.removeprefix("penstock-")
        assert f"{name}: setup\n\t@exec {command[1]}\n" in makefile


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "penstock" / "scripts")
    done = completed(
        ["systemd-analyze", "--user", "verify", *UNITS],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_given_up_after_several_heartbeats_and_only_if_it_is_ours() -> None:
    automation = crash_automation(30)
    trigger = automation.trigger
    assert trigger.within.total_seconds() == 120  # type: ignore[union-attr]
    assert trigger.match_related.root["prefect.resource.name"] == list(FLOWS)  # type: ignore[union-attr]
    assert automation.enabled


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, "http://127.0.0.1:4200,http://localhost:4200"),
        ({"PREFECT_SERVER_API_PORT": "81"}, "http://127.0.0.1:81,http://localhost:81"),
        (
            {"PREFECT_SERVER_API_HOST": "box.example"},
            "http://127.0.0.1:4200,http://localhost:4200,http://box.example:4200",
        ),
        (
            {"PREFECT_SERVER_API_HOST": "::1"},
            "http://127.0.0.1:4200,http://localhost:4200,http://[::1]:4200",
        ),
        ({"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://mine"}, "http://mine"),
        ({"PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://mine"}, "http://mine"),
    ],
    ids=["none", "port", "host", "IPv6", "pages", "pages by their long name"],
)
def test_the_server_s_own_pages_alone_may_read_what_it_answers(
    given: dict[str, str], allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_SERVER_")}
    done = completed(
        ["sh", "-euc", ". scripts/prefect_variables; env -0"], env={**kept, **given}, check=True
    )
    for name, value in (line.split("=", 1) for line in done.stdout.split("\0") if line):
        monkeypatch.setenv(name, value)
    assert Settings().server.api.cors_allowed_origins == allowed


BOX = """\
╭───────────────────────────────────────────────────────────────────╮
│ Deployment '{}' successfully created with id '7caf9b02'. │
╰───────────────────────────────────────────────────────────────────╯
To execute flow runs from these deployments, start a worker in a separate terminal

        $ prefect worker start --pool 'gpu'
"""


def test_a_deployment_is_one_line_and_an_error_is_shown_whole() -> None:
    boxes = BOX.format("a/b") + BOX.format("c/d")
    assert told(boxes, failed=False) == "penstock: deployed a/b\npenstock: deployed c/d"
    assert told(boxes + "no such flow\n", failed=True) == boxes + "no such flow"
    assert told("in words of another version", failed=False) == "in words of another version"
