"""`penstock serve` with a vision half that fits no more pictures at once than a file says, or ends
when it is given more: `python -m tests.support.tight_half OPTIONS`."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FITS = "PENSTOCK_TEST_FITS"
"""In the environment: a file that says how many pictures fit, and whether the process ends."""


def run(told: dict[str, Any], report: Any) -> None:
    """Be the embed stage, as tight as the file says."""
    import torch

    stage: Any = importlib.import_module("stages.embed.run")

    encode = stage.encode_batches

    def tight(half: Any, batches: Sequence[Sequence[Any]]) -> Any:
        most, ends = Path(os.environ[FITS]).read_text().split()
        if sum(row.count.media for batch in batches for row in batch) > int(most):
            words = "CUDA out of memory. Tried to allocate 2.00 GiB"
            if ends == "ends":
                print(f"torch.OutOfMemoryError: {words}", flush=True)
                os._exit(1)
            raise torch.OutOfMemoryError(words)
        return encode(half, batches)

    stage.encode_batches = tight
    stage.run(told, report)


def main() -> None:
    from flows.cli.main import parser
    from flows.cli.serve_command import config_of
    from flows.console.display import Display
    from flows.job.launch import ENTRIES, DirectLauncher
    from flows.serving.server import serve

    entries = {**ENTRIES, "embed": "tests.support.tight_half:run"}
    config = config_of(parser().parse_args(["serve", "--model", "demo", *sys.argv[1:]]))
    serve(config, Display(), lambda listen: DirectLauncher(listen, entries))


if __name__ == "__main__":
    main()
