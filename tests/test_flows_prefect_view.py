"""What the log of a flow run does when nobody reads the worker's output any more."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from flows.prefect_view import RunLog
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


def test_lines_that_nobody_reads_any_more_end_no_thread() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=False)
    assert done.returncode == 7
