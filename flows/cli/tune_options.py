"""Adds the options of `penstock tune`; runs nothing."""

import argparse

from flows.cli.options import STORE_HELP
from flows.cli.tune_refusal import add_retired_options
from flows.cli.way_options import add_ways
from flows.job.tune_config import EPOCHS, OPTIMIZERS, PRECISIONS


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    add = parser.add_argument
    add("data", metavar="DATA", help="captions.jsonl, .csv, .parquet; or media with .txt beside")
    add("--model", required=True, metavar="M", help="hub id, folder, or `demo`")
    add("--out", required=True, metavar="ADAPTER", help="folder of the adapter")
    add("--revision", metavar="R", help="branch, tag or commit of a hub id")
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    add_ways(parser)
    add = parser.add_argument_group("training").add_argument
    add("--lora-rank", type=int, default=16, metavar="N", help="[%(default)s]")
    add("--precision", default="native", metavar="P", help=f"{'|'.join(PRECISIONS)} [%(default)s]")
    add("--epochs", type=float, metavar="N", help=f"times through all examples [{EPOCHS:g}]")
    add("--steps", type=int, metavar="N", help="times that weights change, instead")
    add("--batch-size", type=int, default=8, metavar="N", help="examples a step [%(default)s]")
    add("--lr", type=float, default=2e-3, metavar="X", help="learning rate [%(default)s]")
    add("--seed", type=int, default=0, metavar="S", help="of the order and the start [%(default)s]")
    add("--recompute", action="store_true", help="layers are computed again, not kept")
    add("--optimizer", default=OPTIMIZERS[0], metavar="O", help=f"{'|'.join(OPTIMIZERS)}")
    add("--validate", type=float, default=0.1, metavar="SHARE", help="held out [%(default)s]")
    add("--validate-only", action="store_true", help="score ADAPTER, or M without one; train none")
    add("--resume", action="store_true", help="begin with the adapter that is in ADAPTER")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="when it is scored [256]")
    add_retired_options(parser)
    add = parser.add_argument_group("running").add_argument
    add("--memory", metavar="SIZE", help="a stage takes at most so much: 8GiB [what is free]")
    add("--dry-run", action="store_true", help="say what it would take; start nothing")
    add("--tensorboard", action="store_true", help="write ADAPTER/run/tensorboard as well")
    add("--quiet", action="store_true", help="print errors only")
    add("--json", action="store_true", help="print events as JSON lines")
