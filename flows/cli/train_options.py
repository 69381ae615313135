"""Declares the options of `penstock plan` for fine-tuning. Computes nothing."""

import argparse
from typing import Any, get_args

from artifacts.errors import UsageError
from flows.planning.training.terms import OPTIMIZERS, Method, Training

PLAIN = Training(method="lora")
UNSAID: dict[str, Any] = {
    "checkpointing": PLAIN.checkpointing,
    "zero": PLAIN.zero,
    "gpus": PLAIN.gpus,
    "optimizer": PLAIN.optimizer,
    "max_length": PLAIN.length,
}
"""Options of fine-tuning → their values when they are not given."""


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan` for fine-tuning."""
    add = parser.add_argument_group("fine-tuning").add_argument
    add(
        "--train",
        metavar="HOW",
        help=f"what fine-tuning would take instead: {'|'.join(get_args(Method))}",
    )
    add("--checkpointing", action="store_true", help="layers are computed again, not kept")
    add("--zero", type=int, metavar="STAGE", help="of DeepSpeed: 0, 1, 2 or 3 [%(default)s]")
    add("--gpus", type=int, metavar="N", help="that train together [%(default)s]")
    add("--optimizer", metavar="O", help=f"{'|'.join(OPTIMIZERS)} [%(default)s]")
    add("--max-length", type=int, metavar="N", help="tokens of a sample [%(default)s]")
    parser.set_defaults(**UNSAID)


def refuse_without_train(given: argparse.Namespace) -> None:
    """Refuse an option of fine-tuning where none is planned. Raises UsageError."""
    for option, unsaid in UNSAID.items():
        if getattr(given, option) != unsaid:
            raise UsageError(
                f"--{option.replace('_', '-')} is given, and no --train",
                hint=f"Add --train {'|'.join(get_args(Method))}, or leave it out",
            )
