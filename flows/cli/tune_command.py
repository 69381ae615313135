"""Runs `penstock tune`: trains an adapter on captions, and says how it ended."""

import argparse
import json

from flows.console.display import Display, parse_size, printable


def tune_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    from flows.job.tune_config import TuneConfig
    from flows.running.tune import tune

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
        max_new_tokens=given.max_new_tokens,
        memory=parse_size(given.memory) if given.memory else None,
        trust_remote_code=given.trust_remote_code,
    )
    result = tune(config, Display(quiet=given.quiet, as_json=given.json))
    if given.json:
        print(json.dumps({"event": "result", **result.to_json()}, ensure_ascii=False))
    elif not given.quiet:
        print(printable(result.line()))
    return result.exit_code
