"""Declares the options of commands that have only a few."""

import argparse

from flows.cli.derived import Groups, add_options, group_of
from flows.cli.options import add_caption_options, add_running_options
from flows.cli.train_options import add_train_options
from flows.options.headings import MODEL
from flows.options.model import PRECISIONS, STORE_HELP
from flows.options.text import TRUST_FOLDER_HELP
from flows.pipelines import PURPOSES

SHELLS = ("bash", "zsh", "tcsh")
ORDERS = ("source", "name", "longest", "shortest", "doubt", "teach")
"""Orders of a review; the page's menu offers them too."""


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
        help="purpose of the model [its first possible one]",
    )
    add("--what-fits", action="store_true", help="table of batch sizes by memory and precision")
    add("--explain", action="store_true", help="print the calculation of each number")
    add("--json", action="store_true", help="print the whole plan as JSON")


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--json", action="store_true", help="print the run record as JSON")


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--to", metavar="FILE", help="output file [OUT/report.html]")


def add_review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument(
        "--port", type=int, default=8010, metavar="P", help="port; 0: any free port [%(default)s]"
    )
    parser.add_argument(
        "--order", choices=ORDERS, default=ORDERS[0], help="order of the captions [%(default)s]"
    )
    parser.add_argument("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)


def add_studio(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", default=".", help="folder of media [.]")
    add("--out", default="penstock-out", metavar="DIR", help="output folder [%(default)s]")
    add(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="another folder that the page may show; repeatable",
    )
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)
    add("--port", type=int, default=8010, metavar="P", help="port; 0: any free port [%(default)s]")


def add_serve(parser: argparse.ArgumentParser) -> None:
    from flows.serving.config import BATCHES, SERVED, ServeConfig

    add_options(parser, ServeConfig, SERVED, BATCHES)
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def add_export(parser: argparse.ArgumentParser) -> None:
    from flows.options.export_config import JUDGEMENT, ExportConfig

    groups = add_options(parser, ExportConfig, JUDGEMENT)
    _add_running(parser, groups, "print what would be written, then exit")


def add_tune(parser: argparse.ArgumentParser) -> None:
    from flows.options.tune import TRAINING, TuneConfig

    groups = add_options(parser, TuneConfig, MODEL, TRAINING)
    _add_running(parser, groups, "print the required resources, then exit")


def add_learn(parser: argparse.ArgumentParser) -> None:
    from flows.options.learn import LearnConfig
    from flows.options.tune import TRAINING

    groups = add_options(parser, LearnConfig, TRAINING)
    _add_running(parser, groups, "print the required resources, then exit")


def _add_running(parser: argparse.ArgumentParser, groups: Groups, dry_run: str) -> None:
    add = group_of(parser, groups, "running").add_argument
    add("--dry-run", action="store_true", help=dry_run)
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")


def add_convert(parser: argparse.ArgumentParser) -> None:
    from stages.convert.job import DTYPES

    add = parser.add_argument
    add("source", metavar="SRC", help="folder of the model, or one .pt, .pth or .bin file")
    add("folder", metavar="DST", help="new output folder, or one to resume")
    add("--dtype", choices=DTYPES, default="", help="data type of the weights [unchanged]")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--measure", action="store_true", help="measure speeds (15 s), so that plans show times")
    add("--model", default="", metavar="DIR", help="also compare this model's graphs with torch")


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help='eval "$(penstock completion bash)"'
    )


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clips", type=int, default=200, metavar="N", help="number of random clips to score [200]")
    add("--seed", type=int, metavar="S", help="random seed of these clips [new]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
