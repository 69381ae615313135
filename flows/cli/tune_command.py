"""Runs `penstock tune`: trains an adapter on captions, and says how it ended."""

import argparse
from contextlib import closing

from flows.cli.plan_command import show
from flows.cli.tune_refusal import refuse_more_than_adapters
from flows.console.display import READING, Display
from flows.console.lines import json_line, tell
from flows.console.units import parse_size
from flows.pipelines import TUNE


def tune_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    from flows.job.tune_config import TuneConfig

    refuse_more_than_adapters(given)
    config = TuneConfig(
        data=given.data,
        model=given.model,
        out=given.out,
        store=given.store,
        revision=given.revision,
        precision=given.precision,
        lora_rank=given.lora_rank,
        epochs=given.epochs,
        steps=given.steps,
        batch_size=given.batch_size,
        lr=given.lr,
        seed=given.seed,
        recompute=given.recompute,
        optimizer=given.optimizer,
        validate=given.validate,
        validate_only=given.validate_only,
        resume=given.resume,
        tensorboard=given.tensorboard,
        max_new_tokens=given.max_new_tokens,
        memory=parse_size(given.memory, "--memory") if given.memory else None,
        as_published=given.as_published,
        trust_remote_code=given.trust_remote_code,
    )
    if given.dry_run:
        from flows.running.tune import asked_of

        return show(asked_of(config)[1], TUNE, as_json=given.json)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.running.tune import tune

        result = tune(config, display)
    if given.json:
        print(json_line({"event": "result", **result.to_json()}))
    elif not given.quiet:
        tell(result.line())
    return result.exit_code
