"""Declares the options of commands that have few. Runs nothing."""

import argparse

from flows.cli.options import add_caption_options, add_running_options
from flows.cli.train_options import add_train_options
from flows.options.model import PRECISIONS
from flows.pipelines import PURPOSES

SHELLS = ("bash", "zsh", "tcsh")


def add_caption(parser: argparse.ArgumentParser) -> None:
    add_caption_options(parser)
    add_running_options(parser)


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_caption_options(parser)
    add_train_options(parser)
    add = parser.add_argument
    add(
        "--for",
        dest="purpose",
        choices=PURPOSES,
        help="what is to be made [what the model makes]",
    )
    add("--what-fits", action="store_true", help="budgets by precisions")
    add("--explain", action="store_true", help="the arithmetic, number by number")
    add("--json", action="store_true", help="print the plan as JSON, all of it")


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--to", default="", metavar="FILE", help="[OUT/report.html]")


def add_review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument(
        "--port", type=int, default=8010, metavar="P", help="0: a free one [%(default)s]"
    )


def add_convert(parser: argparse.ArgumentParser) -> None:
    from stages.convert.job import DTYPES

    add = parser.add_argument
    add("source", metavar="SRC", help="the model's folder, or one .pt, .pth, .bin")
    add("folder", metavar="DST", help="a new folder, or one begun before")
    add("--dtype", choices=DTYPES, default="", help="of its numbers; 16 bit halve the files [same]")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--measure", action="store_true", help="measure it (15 s), so that plans know times")
    add("--model", default="", metavar="DIR", help="measure this model's graphs beside torch, too")


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help='eval "$(penstock completion bash)"'
    )


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clips", type=int, default=200, metavar="N", help="fresh clips to score [200]")
    add("--seed", type=int, metavar="S", help="of the fresh clips [a new one]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
