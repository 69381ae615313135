"""Entry point of `penstock`: parses the command line and calls one function. An error becomes one
line and an exit code.
"""

import argparse
import platform
import sys
from collections.abc import Sequence

from artifacts.errors import EnvironmentFault
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
            from flows.commands.shared.exit_report import exit_code_of

            code = exit_code_of(error)
        output.flush()
        if output.error is not None:  # a full disk, not a reader that has ended
            from flows.commands.shared.exit_report import exit_code_of

            why = f"because standard output cannot be written ({output.error.strerror})"
            hint = "All else is done; send the output elsewhere"
            fault = EnvironmentFault(f"the output is incomplete, {why}", hint=hint)
            code = code or exit_code_of(fault)
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


def run(given: argparse.Namespace) -> int:
    """Call the command's function."""
    from flows.interfaces.cli import elsewhere

    given.elsewhere = elsewhere
    command = getattr(module_of(given.command), f"{given.command}_command")
    if "notify" in given and (given.notify or given.metrics_file) and not given.dry_run:
        from flows.commands.shared.monitoring import monitored

        return monitored(given, command)
    code: int = command(given)
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
