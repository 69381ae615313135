"""Refuses the retired options of `penstock tune`: none of them ever trained anything."""

import argparse

from artifacts.errors import UsageError

RETIRED = {"--full": "store_true", "--zero": "store", "--fsdp": "store_true", "--gpus": "store"}
"""Options of full fine-tuning and of several GPUs → argparse's actions. They go with 0.2."""


def add_retired_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to no help and no completion, so that they can be refused."""
    for option, action in RETIRED.items():
        parser.add_argument(option, action=action, help=argparse.SUPPRESS)


def refuse_more_than_adapters(given: argparse.Namespace) -> None:
    """Refuse the retired options. Raises UsageError."""
    found = [option for option in RETIRED if getattr(given, option[2:])]
    if found:
        method = "full" if given.full else "qlora" if given.precision == "nf4" else "lora"
        raise UsageError(
            f"{', '.join(found)}: adapters alone are trained here, on one device",
            hint=f"Leave it out, or see `penstock plan --model {given.model} --train {method}` "
            "and train elsewhere",
        )
