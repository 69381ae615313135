"""Builds the job of the ask stage."""

import os
from collections.abc import Mapping, Sequence

from flows.job.prepare import Job
from flows.ledger.namespaces import Variant
from flows.options.endpoint import EndpointOptions
from flows.options.text import EngineOptions
from flows.planning.rungs import Rung
from stages.ask import AskItem, AskJob
from stages.decode.generation import CHECKPOINT, SamplingParams


def ask_job(
    job: Job,
    namespaces: Variant,
    rung: Rung,
    items: Sequence[AskItem],
    seen: Mapping[str, list[str]],
) -> AskJob:
    """Return the job for these items. `seen` is what the servers have stated in this run."""
    served, config = job.model.served, job.config
    assert served is not None
    params, keys = SamplingParams.of(config), EndpointOptions.of(config).endpoint_keys
    sampling = {"temperature": params.temperature} if params.temperature is not None else {}
    if not params.is_sampled and params.sampling != CHECKPOINT:
        sampling = {"temperature": 0.0}
    for name in ("top_p", "presence_penalty"):
        value = getattr(params, name)
        sampling |= {name: value} if value is not None else {}
    return AskJob(
        store=job.store.url,
        frames_namespace=namespaces["frames"],
        namespace=namespaces["captions"],
        items=list(items),
        model=served.model,
        endpoints=[each.url for each in served.endpoints],
        keys_file=os.path.abspath(os.path.expanduser(keys)) if keys else "",
        fit=job.model.fit("image"),
        video=namespaces.sends_video,
        at_once=rung.batch,
        max_new_tokens=EngineOptions.of(config).max_new_tokens,
        system=params.system,
        schema=params.schema,
        sampling=sampling,
        seed=params.seed if params.is_sampled else None,
        seen=dict(seen),
    )
