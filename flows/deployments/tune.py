"""The Prefect flow that trains an adapter."""

from functools import partial
from typing import Any

from prefect import State, flow

from flows.deployments.config_checks import TuneConfig
from flows.deployments.runs import named_after_out, run_in_flow
from flows.running.tune import tune

ADAPTER = "adapter"
"""Name of the product: the stage that makes it has the progress bar `penstock-tune`."""


@flow(name="tune-captions", flow_run_name=named_after_out, persist_result=False)
def tune_captions(config: TuneConfig) -> State[Any]:
    """Train an adapter on captions; the fields of `config` are the options of `penstock tune`.

    Relative paths are looked up as `caption-videos` does. A run that died goes on from its last
    checkpoint when it is started again.
    """
    return run_in_flow(config.captioning((), config.out), partial(tune, config), ADAPTER)
