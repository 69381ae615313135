"""A Postgres of one's own that lives as long as a block, and checks of a stack on one."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.run.prefect_stack import Stack, free_port, prefect_stack
from scripts.run.stage_processes import CheckFailed, checked

DEBIAN = Path("/usr/lib/postgresql")
SERVER_USER = "postgres"
"""Postgres refuses to run as root; Debian's package makes this user."""


def postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl, the newest version first; None where it is not installed."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def throwaway_postgres() -> Iterator[str]:
    """The URL of an empty database, as PENSTOCK_DATABASE takes it. Raises CheckFailed."""
    programs = postgres_programs()
    if programs is None:
        raise CheckFailed("Postgres is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam(SERVER_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["runuser", "-u", SERVER_USER, "--"]
    data, port = folder / "data", free_port()
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    try:
        login = ["-U", "penstock", "--auth=trust"]
        call([*as_user, str(programs / "initdb"), "-D", str(data), *login], folder)
        where = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        call([*control, "-l", str(folder / "log"), "-o", where, "start"], folder)
        try:
            yield f"postgresql+asyncpg://penstock@127.0.0.1:{port}/postgres"
        finally:
            call([*control, "-m", "immediate", "stop"], folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def call(command: list[str], folder: Path) -> None:
    """What is started must not hold our standard output open. Raises CheckFailed."""
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, check=False
        )
        out.seek(0)
        text = out.read().decode("utf-8", "replace")
    if done.returncode != 0:
        raise CheckFailed(f"{' '.join(command)}\n{text[-3000:]}")


def checked_on_stack(
    check: Callable[[Stack], None], good: str, *, postgres: bool, database: str = ""
) -> int:
    """The exit status of a check of a stack on a database; on one of its own with `postgres`."""

    def on_stack() -> None:
        with contextlib.ExitStack() as held:
            url = held.enter_context(throwaway_postgres()) if postgres else database
            check(held.enter_context(prefect_stack(url)))

    return checked(on_stack, good)
