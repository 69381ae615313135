"""Options of `penstock plan --train`, which plans fine-tuning."""

import argparse
from typing import Any, get_args

from artifacts.errors import UsageError
from flows.commands.plan.training.terms import OPTIMIZERS, Method, Training

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
    add("--train", metavar="HOW", help=f"plan fine-tuning instead: {'|'.join(get_args(Method))}")
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
