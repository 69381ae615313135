"""Adds the options of `export`; runs nothing."""

import argparse

from flows.cli.options import STORE_HELP
from flows.cli.way_options import add_ways
from flows.job.export_asked import GROUP, HALVES, SAMPLES
from stages.export.job import GROUPS, KINDS, PACKED


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="hub id, folder, or `demo`")
    add("--to", dest="kind", required=True, metavar="KIND", help=f"{'|'.join(KINDS)}")
    add("--out", required=True, metavar="DIR", help="a new folder, or one begun before")
    add("--half", default="", metavar="H", help=f"{'|'.join(HALVES)} [language; vision of a CLIP]")
    add("--adapter", default="", metavar="A", help="folder of a LoRA (PEFT), merged into it before")
    add("--revision", metavar="R", help="branch, tag or commit of a hub id")
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    add_ways(parser)
    group = parser.add_argument_group("calibration and judgement")
    media = group.add_mutually_exclusive_group()
    media.add_argument("--calibrate", nargs="+", default=[], metavar="S", help="your own media")
    media.add_argument(
        "--calibrate-store", default="", metavar="DIR", help="a store that has captions of it"
    )
    add = group.add_argument
    add("--samples", type=int, default=SAMPLES, metavar="N", help="at most so many [%(default)s]")
    add(
        "--group",
        type=int,
        default=GROUP,
        metavar="N",
        help=f"columns a scale, of {'|'.join(PACKED)}: {'|'.join(map(str, GROUPS))} [%(default)s]",
    )
    add("--accept", action="store_true", help="take it whatever the figures say")
    add = parser.add_argument_group("running").add_argument
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--memory", metavar="SIZE", help="a stage takes at most so much: 8GiB [what is free]")
    add("--dry-run", action="store_true", help="say what would be written, write nothing")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
