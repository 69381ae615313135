"""Refuses what `penstock tune` does not do, and says what it would take; trains nothing."""

import argparse

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.console.units import gib
from flows.job.config import CaptionConfig
from flows.job.models import find_checkpoint
from flows.planning.architecture import read_architecture
from flows.planning.training.estimate import train_estimate
from flows.planning.training.terms import Method, Training

ALONE = 2
"""GPUs that ZeRO and FSDP begin to be worth something with."""


def refuse_more_than_adapters(given: argparse.Namespace) -> None:
    """Refuse full fine-tuning and training on several GPUs, with what a GPU would need for it.
    Raises UsageError."""
    asked = {"--full": given.full, "--zero": given.zero, "--fsdp": given.fsdp, "--gpus": given.gpus}
    found = [option for option, value in asked.items() if value]
    if not found:
        return
    method: Method = "qlora" if given.precision == "nf4" else "lora"
    training = Training(
        method="full" if given.full else method,
        checkpointing=given.recompute,
        zero=given.zero or (3 if given.fsdp else 0),
        gpus=given.gpus or (ALONE if given.zero or given.fsdp else 1),
        batch=given.batch_size,
    )
    config = CaptionConfig(sources=(), model=given.model, revision=given.revision)
    checkpoint = find_checkpoint(config, Display(quiet=True).say)
    takes = gib(train_estimate(read_architecture(checkpoint), training).peak_bytes)
    each = f"each of {training.gpus} GPUs" if training.gpus > 1 else "a GPU"
    raise UsageError(
        f"{', '.join(found)}: adapters alone are trained here, on one device; this would take "
        f"{takes} of {each}",
        hint=f"Leave it out, or see `penstock plan --model {given.model} --train "
        f"{training.method}` and train elsewhere",
    )
