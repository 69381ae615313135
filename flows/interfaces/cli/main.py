"""Entry point of `penstock`: parses the command line and calls one function. An error becomes one
line and an exit code.
"""

import argparse
import errno
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.packages import missing_package
from flows.commands.shared.parser import module_of, parse, parser
from flows.core.console.interrupts import repeating_dropped_interrupts
from stages.process.output_streams import lasting_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. Output that nobody reads changes neither."""
    with lasting_output() as output:
        try:
            with repeating_dropped_interrupts():
                code = _main(arguments)
        except (Exception, KeyboardInterrupt) as error:
            code = _exit_code_of(error)
        output.flush()
        if output.error is not None:  # a full disk, not a reader that has ended
            why = f"because standard output cannot be written ({output.error.strerror})"
            hint = "All else is done; send the output elsewhere"
            fault = EnvironmentFault(f"the output is incomplete, {why}", hint=hint)
            code = code or _exit_code_of(fault)
        return code


def _main(arguments: Sequence[str] | None) -> int:
    given = parse(arguments)
    if given.version:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        return 0
    if given.command is None:
        parser("").print_help()
        return 2
    check_platform()
    return run(given)


def _exit_code_of(error: BaseException) -> int:
    """Print the error in one line, and return the exit code."""
    from flows.commands.shared.exit_report import print_error, report_crash

    if isinstance(error, PenstockError):
        print_error(str(error))
        return error.exit_code
    # Python raises RuntimeError from an interrupt that comes while a class is made.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        print_error("interrupted; finished items are kept")
        return 4
    if isinstance(error, OSError) and (
        error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        from artifacts.disk.faults import fault_of

        fault = fault_of(error, Path(str(error.filename or "the store or the output folder")))
        print_error(str(fault))
        return fault.exit_code
    assert isinstance(error, Exception)
    if missing := missing_package(error, "this command"):
        print_error(str(missing))
        return missing.exit_code
    return report_crash(error)


def run(given: argparse.Namespace) -> int:
    """Call the command's function."""
    from flows.interfaces.cli import elsewhere

    given.elsewhere = elsewhere
    code: int = getattr(module_of(given.command), f"{given.command}_command")(given)
    return code


def check_platform() -> None:
    """Raise EnvironmentFault on an untested platform."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentFault(
            f"Penstock runs on Linux x86-64, this is {platform.system()} {platform.machine()}",
            hint="On Windows use WSL2",
        )


if __name__ == "__main__":
    sys.exit(main())
