"""Adds the options of every command, and makes a configuration of them; runs nothing."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.regular import read_text
from artifacts.tiles import OFF
from flows.cli.speaking_options import add_speaking_options, prompts_of
from flows.cli.way_options import add_ways
from flows.console.units import parse_size
from flows.job.config import (
    DEFAULT_MODEL,
    PICTURES_A_BATCH,
    PRECISIONS,
    TORCH,
    VISION_BACKENDS,
    CaptionConfig,
)
from flows.job.formats import FORMATS, RULES

PROMPT_BYTES = 1 << 24
"""Largest size of the text of `--prompt-file`: no model reads as much."""
SOURCES_HELP = "files, folders, globs, addresses, or lists (@list.txt)"
STORE_HELP = "folder, or s3://BUCKET/FOLDER [$PENSTOCK_STORE or the user's cache folder]"


def add_caption_options(parser: argparse.ArgumentParser, *, text: bool = True) -> None:
    """Add the options of `caption` and `plan`; without `text`, those that decide features."""
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCES", help=SOURCES_HELP)
    model = parser.add_argument_group("model and store")
    add = model.add_argument
    add(
        "--model",
        default=DEFAULT_MODEL,
        metavar="M",
        help="hub id, folder, or `demo` [%(default)s]",
    )
    add("--revision", metavar="R", help="branch, tag or commit of a hub id")
    prompt = model.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help='["Describe this video in detail."]')
    prompt.add_argument("--prompt-file", metavar="F", help="a text file that holds the prompt")
    if text:
        add("--out", default="penstock-out", metavar="DIR", help="for captions [%(default)s]")
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add_ways(model)
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    sampling = parser.add_argument_group("sampling")
    add = sampling.add_argument
    pieces = sampling.add_mutually_exclusive_group()
    pieces.add_argument(
        "--chunk",
        type=float,
        metavar="SECONDS",
        help="seconds a chunk [30, or less where a model sees less]",
    )
    pieces.add_argument(
        "--shots", action="store_true", help="a chunk a shot, those over 30 seconds in pieces"
    )
    add("--whole", action="store_true", help="one caption a file, however long")
    add("--fps", type=float, metavar="F", help="frames a second [what the model states, else 1]")
    add("--frames", type=int, metavar="N", help="frames a chunk, evenly")
    most = "at most so many a chunk [the model's, else 32]"
    add("--max-frames", type=int, metavar="N", help=most)
    add("--max-pixels", type=int, metavar="N", help="at most so many a frame [the model's]")
    add("--max-video-pixels", type=int, metavar="N", help="at most so many a chunk [the model's]")
    add = parser.add_argument_group("memory").add_argument
    add("--memory", metavar="SIZE", help="a stage takes at most so much: 8GiB [what is free]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
    add("--vision-precision", metavar="P", help="of the vision half [--precision, unquantized]")
    add("--language-precision", metavar="P", help="of the language half [--precision]")
    _add_backend_option(add)
    add("--batch-size", type=int, metavar="N", help="chunks a batch [8]")
    if text:
        model.add_argument("--adapter", default="", metavar="A", help="folder of a LoRA (PEFT)")
        add_speaking_options(parser)
    _add_file_options(parser.add_argument_group("files"), text)


def _add_backend_option(add: Callable[..., object]) -> None:
    add(
        "--vision-backend",
        default=TORCH,
        metavar="B",
        help=f"{'|'.join(VISION_BACKENDS)}: graphs of the model compute it [%(default)s]",
    )


def _add_file_options(group: "argparse._ArgumentGroup", text: bool) -> None:
    add = group.add_argument
    _add_choice_options(group)
    if text:
        add("--format", default="", metavar="F,F", help=f"beside jsonl: {', '.join(FORMATS[1:])}")
        add("--beside", action="store_true", help="put txt, vtt and srt next to the media files")
        _add_existing_options(add)
    _add_again_options(group)


def _add_existing_options(add: Callable[..., object]) -> None:
    add(
        "--existing",
        metavar="RULE",
        help=f"{'|'.join(RULES)}: what people wrote or edited; the last two of txt alone [keep]",
    )
    add("--overwrite", action="store_true", help="--existing replace")


def _add_choice_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--recursive", action="store_true", help="look into the folders of a folder")
    add("--extensions", default="", metavar="mp4,mkv", help="take only these from folders")
    add("--limit", type=int, metavar="N", help="at most so many files")


def _add_again_options(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--retry-failed", action="store_true", help="try media again that failed before")
    add("--keep-frames", action="store_true", help="keep the stored frames after encoding")


def _add_quiet_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    quiet = group.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `caption` alone."""
    group = parser.add_argument_group("running")
    _add_quiet_options(group)
    group.add_argument("--prefect", action="store_true", help="run as a Prefect flow")


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `label`: those of `embed`, and which labels."""
    add = parser.add_argument_group("labels").add_argument
    add("--labels", required=True, metavar="F", help="file with a label a line, YAML, JSON; or a,b")
    add("--templates", default="", metavar="F", help='texts with {} for a label ["a photo of {}"]')
    add("--threshold", default="auto", metavar="T", help="least score of a label [auto]")
    add("--examples", default="", metavar="F", help="CSV of media_path,label to learn thresholds")
    add("--top", type=int, default=5, metavar="K", help="labels told of each picture [5]")
    add_embed_options(parser)
    add = parser.add_argument_group("outputs").add_argument
    add(
        "--format",
        default="",
        metavar="F,F",
        help="beside jsonl: csv, parquet, coco, txt, vtt, srt",
    )
    add("--beside", action="store_true", help="put txt, vtt and srt next to the media files")
    _add_existing_options(add)


def add_embed_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `embed`."""
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCES", help=SOURCES_HELP)
    add = parser.add_argument_group("model and store").add_argument
    add("--model", required=True, metavar="M", help="CLIP kind: hub id, folder, or `demo`")
    add("--revision", metavar="R", help="branch, tag or commit of a hub id")
    add("--out", default="penstock-out", metavar="DIR", help="for vectors [%(default)s]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
    add_vector_options(parser)


def add_vector_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of whatever makes vectors, but which model makes them and where to."""
    add = parser.add_argument_group("store and sampling").add_argument
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    add("--fps", type=float, metavar="F", help="frames a second of a video [1]")
    add(
        "--tiles", default=OFF, metavar="N", help="off, auto, or squares a short side [%(default)s]"
    )
    add = parser.add_argument_group("memory").add_argument
    add("--memory", metavar="SIZE", help="a stage takes at most so much: 8GiB [what is free]")
    _add_backend_option(add)
    add(
        "--batch-size",
        type=int,
        default=PICTURES_A_BATCH,
        metavar="N",
        help="pictures a batch [%(default)s]",
    )
    group = parser.add_argument_group("files")
    _add_choice_options(group)
    _add_again_options(group)
    _add_quiet_options(parser.add_argument_group("running"))


def add_cache_commands(cache: argparse.ArgumentParser) -> None:
    """Add the actions and options of `cache`."""
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="what is stored, by model, age and size")
    ls.add_argument("--json", action="store_true", help="print the list as JSON")
    verify = actions.add_parser("verify", help="check every byte; what is bad is set aside")
    gc = actions.add_parser("gc", help="delete what was not used for the longest time")
    gc.add_argument("--max", required=True, metavar="SIZE", help="keep so much: 200GB, 1.5TiB")
    gc.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    for action in (ls, verify, gc):
        action.add_argument("--store", default="", metavar="DIR", help=STORE_HELP)
    rebuild = actions.add_parser("rebuild", help="encode what of SOURCES has no features")
    add_caption_options(rebuild, text=False)
    add = rebuild.add_argument_group("rebuild").add_argument
    add("--name", default="", metavar="N", help="tells apart jobs over the same sources")
    add("--prune", action="store_true", help="remove what this job made and needs no more")
    add("--dry-run", action="store_true", help="say what would be done and what it costs")
    quiet = rebuild.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")


def config_of(arguments: argparse.Namespace, *, sources: bool = True) -> CaptionConfig:
    """Return the configuration that the options mean; without `sources`, none need be given. Raises
    UsageError."""
    known = {f.name: getattr(arguments, f.name, None) for f in fields(CaptionConfig)}
    named = {name: value for name, value in known.items() if value is not None}
    named["sources"] = tuple(arguments.sources)
    if getattr(arguments, "prompt_file", None) is not None:
        named["prompt"] = read_prompt(Path(arguments.prompt_file))
        if not named["prompt"]:
            raise UsageError(
                f"--prompt-file {arguments.prompt_file} holds no text",
                hint="Leave it out to ask for a description",
            )
    if "prompts" in named:
        named["prompts"] = prompts_of(named["prompts"])
    if "memory" in named:
        named["memory"] = parse_size(named["memory"], "--memory")
    for name in {"format", "extensions", "avoid"} & named.keys():
        named[name] = tuple(v.strip() for v in named[name].split(",") if v.strip())
    config = CaptionConfig(**named)
    if sources:
        config.check_sources()
    return config


def read_prompt(path: Path) -> str:
    """Return the prompt in a text file, without the line break at its end. Raises UsageError."""
    try:
        return read_text(path.expanduser(), PROMPT_BYTES).strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"--prompt-file {path} cannot be read: {reason}", hint="Give a text file, or --prompt"
        ) from error
