"""The Prefect flow of a run that marks media."""

from functools import partial
from typing import Any

from prefect import State, flow

from flows.deployments.config_checks import SiftParameters
from flows.deployments.runs import named_after_out, run_in_flow
from flows.pipelines import SIFT, product_of
from flows.running.sift import sift


@flow(name="sift-media", flow_run_name=named_after_out, persist_result=False)
def sift_media(config: SiftParameters) -> State[Any]:
    """Mark everything that `config` names, and list what meets `keep`; its fields are the command
    line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(sift, config), product_of(SIFT))
