"""Penstock's server with an encoder behind it that takes a card's time; decoding,
queue, processes and HTTP are its own.

    python -m benchmarks._penstock [--slower 1] ANY OPTION OF penstock serve
"""

import argparse
import os

from benchmarks._card_time import SLOWER
from flows.cli.derived import config_from
from flows.cli.main import parser
from flows.console.display import Display
from flows.machine.launch import ENTRIES, DirectLauncher, Launcher
from flows.serving.config import ServeConfig
from flows.serving.server import serve
from stages.process.stage_process import Listener

STANDING_IN = {**ENTRIES, "embed": "benchmarks._card_time:run"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slower", type=float, default=1.0)
    given, rest = options.parse_known_args()
    if "--model" not in rest:
        rest += ["--model", "demo"]
    os.environ[SLOWER] = str(given.slower)

    def launcher(listen: Listener) -> Launcher:
        return DirectLauncher(listen, STANDING_IN)

    serve(config_from(parser().parse_args(["serve", *rest]), ServeConfig), Display(), launcher)


if __name__ == "__main__":
    main()
