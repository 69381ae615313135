"""What the log of a flow run does when nobody reads the worker's output any more."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from flows.deployments.view import RunLog
setup_logging()
log = RunLog(get_logger("engine"))
reader, writer = os.pipe()
os.close(reader)
for stream in (1, 2):
    os.dup2(writer, stream)
log.write("nobody reads this")
log.write("nor this")
os._exit(7)
"""

AWAY = """
import sys
from prefect.logging.configuration import setup_logging
setup_logging()
from prefect._internal.concurrency import logger
from prefect.logging import get_logger
from flows.deployments.view import quiet_console
quiet_console(lambda text: print("ours:", text, file=sys.stderr))
for _ in range(3):
    logger.error("Service %r failed with %s pending items.", "EventsWorker", 7)
get_logger("engine").error("theirs")
"""


def test_a_server_that_is_gone_costs_a_command_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AWAY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert done.stderr == (
        "ours: the Prefect server stopped answering: its UI shows less of this run than there is\n"
    )


def test_lines_that_nobody_reads_any_more_end_no_thread() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=False)
    assert done.returncode == 7
