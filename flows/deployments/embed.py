"""The Prefect flow of a run that computes vectors."""

from functools import partial
from typing import Any

from prefect import State, flow

from flows.deployments.config_checks import EmbedParameters
from flows.deployments.runs import named_after_out, run_in_flow
from flows.pipelines import EMBED, product_of
from flows.running.run import embed


@flow(name="embed-media", flow_run_name=named_after_out, persist_result=False)
def embed_media(config: EmbedParameters) -> State[Any]:
    """Compute vectors of everything that `config` names; its fields are the command line's options.

    Relative paths are looked up as `caption-videos` does.
    """
    return run_in_flow(config, partial(embed, config), product_of(EMBED))
