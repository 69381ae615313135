"""Adds the options of `penstock serve`; runs nothing."""

import argparse

from artifacts.tiles import AUTO
from flows.cli.options import STORE_HELP
from flows.job.config import TORCH, VISION_BACKENDS


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    add = parser.add_argument_group("what is served").add_argument
    add("--index", default="", metavar="DIR", help="an index to search in")
    add("--labels", default="", metavar="F", help="file with a label a line, YAML, JSON; or a,b")
    add("--templates", default="", metavar="F", help='texts with {} for a label ["a photo of {}"]')
    add("--model", default="", metavar="M", help="CLIP kind: hub id, folder, demo [the index's]")
    add("--caption-model", default="", metavar="M", help="one that captions [no captions]")
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--tiles", default=AUTO, metavar="T", help="off|auto|N: parts of pictures [%(default)s]")
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    add = parser.add_argument_group("memory and batches").add_argument
    add("--memory", metavar="SIZE", help="all halves take at most so much: 8GiB [what is free]")
    add(
        "--vision-backend",
        default=TORCH,
        metavar="B",
        help=f"{'|'.join(VISION_BACKENDS)}: graphs of the model compute it [%(default)s]",
    )
    add(
        "--idle",
        type=float,
        default=15.0,
        metavar="MINUTES",
        help="then the GPU is given back [15]",
    )
    add("--max-batch", default="auto", metavar="N", help="most pictures of a batch [what fits]")
    add("--max-wait", default="10ms", metavar="TIME", help="an idle half waits for others [10ms]")
    add("--max-queue", type=int, default=256, metavar="N", help="requests at once [%(default)s]")
    add = parser.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to listen on [%(default)s]")
    add("--port", type=int, default=8000, metavar="P", help="0: a free one [%(default)s]")
    add("--token-file", default="", metavar="F", help="every request must bring what it holds")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
