"""Runs `penstock`: parses the command line, calls one function. Errors become one line and an exit
code."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from artifacts.errors import EnvironmentFault, PenstockError
from flows.cli.export_options import add_export_options
from flows.cli.index_options import add_index_commands, add_search_options
from flows.cli.last_words import say, unforeseen
from flows.cli.options import (
    add_cache_commands,
    add_caption_options,
    add_embed_options,
    add_label_options,
    add_running_options,
)
from flows.cli.parsing import CommandParser, check_texts
from flows.cli.serve_options import add_serve_options
from flows.cli.train_options import add_train_options
from flows.cli.tune_options import add_tune_options
from flows.console.terminal import forget_terminal
from flows.job.config import PRECISIONS
from flows.pipelines import PURPOSES
from stages.convert.job import DTYPES

SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """exit codes: 0 all captioned · 1 some items failed, named · 2 usage · 3 cannot fit ·
4 interrupted, resumable · 5 environment (disk, store, driver, network)"""


def parser() -> CommandParser:
    """Return the parser with every command and option; a test freezes the set."""
    top = CommandParser(
        prog="penstock",
        description="Caption long videos and large image folders on a GPU too small for the model.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    caption = commands.add_parser("caption", help="caption videos and images", epilog=EPILOG)
    add_caption_options(caption)
    add_running_options(caption)
    plan = commands.add_parser(
        "plan", help="what a run would take, and whether it fits", epilog=EPILOG
    )
    add_caption_options(plan)
    add_train_options(plan)
    plan.add_argument(
        "--for",
        dest="purpose",
        choices=PURPOSES,
        help="what is to be made [what the model makes]",
    )
    plan.add_argument("--what-fits", action="store_true", help="budgets by precisions")
    plan.add_argument("--explain", action="store_true", help="the arithmetic, number by number")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON, all of it")
    embed = commands.add_parser("embed", help="vectors of images and videos", epilog=EPILOG)
    add_embed_options(embed)
    label = commands.add_parser("label", help="labels of images and videos", epilog=EPILOG)
    add_label_options(label)
    add_index_commands(commands.add_parser("index", help="vectors to search in", epilog=EPILOG))
    add_search_options(commands.add_parser("search", help="search an index", epilog=EPILOG))
    add_tune_options(
        commands.add_parser("tune", help="an adapter trained on your captions", epilog=EPILOG)
    )
    add_serve_options(
        commands.add_parser("serve", help="labels, search, captions over HTTP", epilog=EPILOG)
    )
    status = commands.add_parser("status", help="how a run stands", epilog=EPILOG)
    status.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    status.add_argument("--json", action="store_true", help="print the record as JSON")
    report = commands.add_parser("report", help="a run as one HTML file", epilog=EPILOG)
    report.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    report.add_argument("--to", default="", metavar="FILE", help="[OUT/report.html]")
    review = commands.add_parser("review", help="correct and accept captions", epilog=EPILOG)
    review.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    review.add_argument(
        "--port", type=int, default=8010, metavar="P", help="0: a free one [%(default)s]"
    )
    add_cache_commands(commands.add_parser("cache", help="look after the store", epilog=EPILOG))
    convert = commands.add_parser(
        "convert", help="a model's pickled weights as safetensors", epilog=EPILOG
    )
    convert.add_argument("source", metavar="SRC", help="the model's folder, or one .pt, .pth, .bin")
    convert.add_argument("folder", metavar="DST", help="a new folder, or one begun before")
    convert.add_argument(
        "--dtype", choices=DTYPES, default="", help="of its numbers; 16 bit halve the files [same]"
    )
    add_export_options(
        commands.add_parser("export", help="a model in few bits, judged", epilog=EPILOG)
    )
    doctor = commands.add_parser("doctor", help="what this machine has and lacks", epilog=EPILOG)
    doctor.add_argument(
        "--measure", action="store_true", help="measure it (15 s), so that plans know times"
    )
    doctor.add_argument(
        "--model", default="", metavar="DIR", help="measure this model's graphs beside torch, too"
    )
    completion = commands.add_parser("completion", help="what a shell completes this command by")
    completion.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help='eval "$(penstock completion bash)"'
    )
    demo = commands.add_parser("demo", help="caption a dozen clips of the demo world, with score")
    demo.add_argument(
        "--clips", type=int, default=200, metavar="N", help="fresh clips to score [200]"
    )
    demo.add_argument("--seed", type=int, metavar="S", help="of the fresh clips [a new one]")
    demo.add_argument(
        "--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]"
    )
    return top


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, which is in `words`; sources may stand before and after options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parse(words)
    given.words = words
    return given


def _parse(words: list[str]) -> argparse.Namespace:
    top = parser()
    # What follows `--` is a source whatever it looks like; argparse takes it for unknown options
    # where sources stand before the options.
    end = words.index("--") if "--" in words else len(words)
    given, rest = top.parse_known_args(words[:end])
    if "sources" not in given:
        given, rest = top.parse_known_args(words)
        if rest:
            top.of_command(given.command).unknown(rest)
        return given
    if any(word.startswith("-") for word in rest):
        top.of_command(given.command).unknown(rest)
    given.sources += [*rest, *words[end + 1 :]]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parse(arguments)
    try:
        if given.version:
            from importlib.metadata import version

            print(f"penstock {version('penstock')}")
            return 0
        if given.command is None:
            parser().print_help()
            return 2
        check_platform()
        check_texts(given)
        return run(given)
    except PenstockError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped. Nothing finished is lost")
        return 4
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        from artifacts.store import fault_of

        forget_terminal()
        fault = fault_of(error, Path(str(error.filename or "standard output")))
        say(str(fault))
        return fault.exit_code
    except Exception as error:
        return unforeseen(error)


def run(given: argparse.Namespace) -> int:
    """Call the command's function, in a module of its own that is imported only when wanted."""
    name = f"{given.command}_command"
    return int(getattr(import_module(f"flows.cli.{name}"), name)(given))


def check_platform() -> None:
    """Refuse in one line to run where Penstock was never tried. Raises EnvironmentFault."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentFault(
            f"Penstock runs on Linux x86-64, this is {platform.system()} {platform.machine()}",
            hint="On Windows use WSL2",
        )


if __name__ == "__main__":
    sys.exit(main())
