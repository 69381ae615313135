"""Implements `penstock convert`: writes a model's pickled weights as safetensors into a
new folder.
"""

import argparse

from artifacts.disk.paths import folder_named
from artifacts.wording import counted
from flows.commands.export.convert import convert
from flows.core.console.display import Display
from flows.core.console.lines import print_lines, size
from stages.convert import ConvertJob


def convert_command(given: argparse.Namespace) -> int:
    """Convert a model, and print the contents of its folder. Raises PenstockError."""
    source, folder = folder_named(given.source, "source"), folder_named(given.folder, "folder")
    job = ConvertJob(source=str(source), folder=str(folder), dtype=given.dtype)
    result = convert(job, Display())
    before = f", {result.there} of them from before" if result.there else ""
    print_lines(
        f"{folder}: {counted(result.tensors, 'tensor')}, {size(result.data_bytes)}, "
        f"in {counted(result.shards, 'file')}{before}; use it with --model {folder}"
    )
    return 0


def add_convert(parser: argparse.ArgumentParser) -> None:
    from stages.convert import DTYPES

    add = parser.add_argument
    add("source", metavar="SRC", help="folder of the model, or one .pt, .pth or .bin file")
    add("folder", metavar="DST", help="new output folder, or one to resume")
    add("--dtype", choices=DTYPES, default="", help="data type of the weights [unchanged]")
