"""Declares the options of each command that has options of its own besides its configuration.

These are the commands that have only a few options, the commands that compute vectors, `penstock
index`, `penstock search`, `penstock cache`, and `penstock plan` for fine-tuning.
"""

import argparse
from collections.abc import Collection
from typing import Any, get_args

from artifacts.errors import UsageError
from flows.commands.shared.arguments import (
    Groups,
    add_caption_options,
    add_options,
    add_print_options,
    add_quiet_options,
    add_ray_option,
    group_of,
)
from flows.core.options.commands import RebuildConfig
from flows.core.options.formats import FILES, LABELS, MEMORY, MODEL, VECTORS
from flows.core.options.model import PRECISIONS
from flows.core.options.store import STORE_HELP
from flows.core.options.text import TRUST_FOLDER_HELP
from flows.core.options.vectors import (
    INDEX,
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
    SiftConfig,
    VectorConfig,
)
from flows.core.pipelines import PURPOSES
from flows.core.plan.training.terms import OPTIMIZERS, Method, Training

PLAIN = Training(method="lora")
DEFAULTS: dict[str, Any] = {
    "checkpointing": PLAIN.checkpointing,
    "zero": PLAIN.zero,
    "optimizer": PLAIN.optimizer,
    "max_length": PLAIN.length,
}
"""Fine-tuning options → their defaults."""


def add_train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fine-tuning").add_argument
    add(
        "--train",
        metavar="HOW",
        help=f"plan fine-tuning instead: {'|'.join(get_args(Method))}",
    )
    add("--checkpointing", action="store_true", help="gradient checkpointing")
    add("--zero", type=int, metavar="STAGE", help="DeepSpeed ZeRO stage, 0 to 3 [%(default)s]")
    add("--optimizer", metavar="O", help=f"{'|'.join(OPTIMIZERS)} [%(default)s]")
    add("--max-length", type=int, metavar="N", help="tokens per sample [%(default)s]")
    parser.set_defaults(**DEFAULTS)


def refuse_without_train(given: argparse.Namespace) -> None:
    """Raise UsageError for a fine-tuning option without --train."""
    for option, default in DEFAULTS.items():
        if getattr(given, option) != default:
            raise UsageError(
                f"--{option.replace('_', '-')} needs --train",
                hint=f"Add --train {'|'.join(get_args(Method))}, or leave it out",
            )


BEHIND_HELP = "https address of the proxy that passes the page on, as a notebook's"
ORDERS = ("source", "name", "longest", "shortest", "doubt")
"""Orders of a review; the page's menu offers them too."""


def add_caption(parser: argparse.ArgumentParser) -> None:
    add_caption_options(parser)
    engine = add_quiet_options(parser).add_mutually_exclusive_group()
    engine.add_argument("--prefect", action="store_true", help="run as a Prefect flow")
    add_ray_option(engine)


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
    parser.add_argument("--behind", default="", metavar="URL", help=BEHIND_HELP)
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
    add("--behind", default="", metavar="URL", help=BEHIND_HELP)
    add("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)
    add("--port", type=int, default=8010, metavar="P", help="port; 0: any free port [%(default)s]")


def add_serve(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.serving import BATCHES, SERVED, ServeConfig

    add_options(parser, ServeConfig, SERVED, BATCHES)
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def add_export(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.export import JUDGEMENT, ExportConfig

    groups = add_options(parser, ExportConfig, JUDGEMENT)
    _add_running(parser, groups, "print what would be written, then exit")


def add_tune(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.training import TRAINING, TuneConfig

    groups = add_options(parser, TuneConfig, MODEL, TRAINING)
    _add_running(parser, groups, "print the required resources, then exit")


def add_learn(parser: argparse.ArgumentParser) -> None:
    from flows.core.options.training import TRAINING, LearnConfig

    groups = add_options(parser, LearnConfig, TRAINING)
    _add_running(parser, groups, "print the required resources, then exit")


def _add_running(parser: argparse.ArgumentParser, groups: Groups, dry_run: str) -> None:
    group = group_of(parser, groups, "running")
    group.add_argument("--dry-run", action="store_true", help=dry_run)
    add_print_options(group)


def add_convert(parser: argparse.ArgumentParser) -> None:
    from stages.convert import DTYPES

    add = parser.add_argument
    add("source", metavar="SRC", help="folder of the model, or one .pt, .pth or .bin file")
    add("folder", metavar="DST", help="new output folder, or one to resume")
    add("--dtype", choices=DTYPES, default="", help="data type of the weights [unchanged]")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="", metavar="DIR", help="also compare this model's graphs with torch")


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", default="", metavar="FILE", help="then caption it, by the default model")
    add("--clips", type=int, default=200, metavar="N", help="number of random clips to score [200]")
    add("--seed", type=int, metavar="S", help="random seed of these clips [new]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")


def add_embed(parser: argparse.ArgumentParser) -> None:
    add_ray_option(add_vector_options(parser, EmbedConfig))


def add_label(parser: argparse.ArgumentParser) -> None:
    add_ray_option(add_vector_options(parser, LabelConfig))


def add_sift(parser: argparse.ArgumentParser) -> None:
    add_vector_options(parser, SiftConfig)
    parser.add_argument("--marks", action="store_true", help="print the marks and their ranges")


def add_vector_options(
    parser: argparse.ArgumentParser, config: type[VectorConfig], *, without: Collection[str] = ()
) -> Any:
    """Add the options of a command that computes vectors. Return the group of those of running."""
    headings = [MODEL, VECTORS, MEMORY, FILES]
    if issubclass(config, LabelConfig):
        headings.insert(0, LABELS)
    if "model" in without:
        headings.remove(MODEL)
    add_options(parser, config, *headings, without=without)
    return add_quiet_options(parser)


OF_INDEX = ("sources", "model", "revision", "out", "precision")
"""Fields that `index add` takes from the index, or declares itself."""


def add_index_commands(index: argparse.ArgumentParser) -> None:
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="embed and index SOURCES; repeat to add new files")
    add_vector_options(build, IndexConfig)
    add = actions.add_parser("add", help="embed SOURCES with the index's model and append them")
    add.add_argument("sources", nargs="*", metavar="SOURCES", help="as for `index build`")
    _add_index(add)
    add_vector_options(add, IndexConfig, without=OF_INDEX)
    remove = actions.add_parser("remove", help="remove rows by file, folder or key")
    remove.add_argument("names", nargs="*", metavar="NAMES", help="files, folders or keys")
    remove.add_argument("--gone", action="store_true", help="rows whose files are gone")
    _add_index(remove)
    compact = actions.add_parser("compact", help="drop removed rows, merge shards, measure recall")
    verify = actions.add_parser("verify", help="check every byte; list damaged files")
    stats = actions.add_parser("stats", help="print rows, bytes and recall")
    for action in (compact, verify, stats):
        _add_index(action)
    stats.add_argument("--json", action="store_true", help="print them as JSON")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints what an index holds that is like a text or an image. For many searches, the fast "
        "way is a running `penstock serve --index DIR`: it answers each in milliseconds."
    )
    _add_index(parser)
    add_options(parser, SearchQuery)
    add = parser.add_argument_group("outputs").add_argument
    add("--json", action="store_true", help="print hits as JSON lines")
    add("--html", metavar="FILE", help="write one HTML page of thumbnails")
    add("--copy", metavar="DIR", help="copy found files and search.jsonl into DIR")
    add_options(parser, SearchPlace, MODEL)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index", default=INDEX, metavar="DIR", help="folder of the index [%(default)s]"
    )


def add_cache_commands(cache: argparse.ArgumentParser) -> None:
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list contents by model, age and size")
    ls.add_argument("--json", action="store_true", help="print the list as JSON")
    verify = actions.add_parser("verify", help="check every byte; quarantine damaged packs")
    gc = actions.add_parser("gc", help="delete the least recently used packs")
    gc.add_argument("--max", required=True, metavar="SIZE", help="target size: 200GB, 1.5TiB")
    gc.add_argument("--dry-run", action="store_true", help="print what would be deleted")
    clear = actions.add_parser("clear", help="delete all records, of any format")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    for action in (ls, verify, gc, clear):
        action.add_argument("--store", default="", metavar="DIR", help=STORE_HELP)
    rebuild = actions.add_parser("rebuild", help="encode SOURCES without stored features")
    add_caption_options(rebuild, RebuildConfig)
    add = rebuild.add_argument_group("rebuild").add_argument
    add("--name", default="", metavar="N", help="name of the job, if several share its sources")
    add("--dry-run", action="store_true", help="print what would be done, and its cost")
    add_print_options(rebuild)


SHELLS = ("bash", "zsh", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help='eval "$(penstock completion bash)"'
    )
