"""The Prefect flow of a round of learning."""

from dataclasses import replace
from functools import partial
from typing import Any

from prefect import State, flow

from flows.deployments.config_checks import CaptionParameters, LearnConfig
from flows.deployments.runs import named_after_out, run_in_flow
from flows.learning.learn import learn
from flows.options.learn import RecordedRun


@flow(name="learn-captions", flow_run_name=named_after_out, persist_result=False)
def learn_captions(config: LearnConfig, caption: CaptionParameters) -> State[Any]:
    """Train an adapter on corrected captions, and caption again with it. The fields of `config` are
    the options of `penstock learn`; those of `caption` are the options of the run that made the
    captions, and name its folder.

    Relative paths are looked up as `caption-videos` does. A round that died goes on from its last
    step when it is started again.
    """
    learning, recorded = replace(config, out=caption.out), RecordedRun(config=caption)
    # With the round's own consent to code, so that the worker's rule about it holds.
    trusted = config.trust_remote_code or caption.trust_remote_code
    captioning = replace(caption, trust_remote_code=trusted)
    return run_in_flow(captioning, partial(learn, learning, recorded), "learned")
