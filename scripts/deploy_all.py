"""Deploys what prefect.yaml names and prints a line for each deployment, where Prefect prints a box
and tells people to start a worker; called by scripts/worker, which is about to be one. What Prefect
printed is shown if anything is not deployed."""

import os
import re
import subprocess
import sys

COMMAND = (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
DEPLOYED = re.compile(r"Deployment '([^']+)' successfully created")
WIDTH = 200
"""Columns in which Prefect does not break the line that is looked for."""


def main() -> int:
    """Return the exit code of the deployment."""
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    print(told(done.stdout, failed=bool(done.returncode)), flush=True)
    return done.returncode


def told(output: str, *, failed: bool) -> str:
    """Return what people read of Prefect's output: all of it where something is not deployed."""
    names = DEPLOYED.findall(output)
    if failed or not names:
        return output.rstrip()
    return "\n".join(f"penstock: deployed {name}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
