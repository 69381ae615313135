"""Makes a Prefect flow of the run that makes vectors, as of the one that captions."""

from typing import Any

from prefect import State, flow
from pydantic import ConfigDict, TypeAdapter, with_config

from flows.deployments.caption import tighten
from flows.deployments.runs import run_in_flow
from flows.job.config import CaptionConfig, EmbedConfig
from flows.pipelines import EMBED
from flows.running.run import embed


def tighten_and_describe(schema: dict[str, Any]) -> None:
    """Make Prefect refuse what it refuses of captions, and say of each field what it is. Of fields
    that are inherited, pydantic finds no words."""
    tighten(schema)
    stated = TypeAdapter(CaptionConfig).json_schema()["properties"]
    for name, field in schema["properties"].items():
        field.setdefault("description", stated[name]["description"])


SETTINGS = ConfigDict(
    extra="forbid", use_attribute_docstrings=True, json_schema_extra=tighten_and_describe
)
with_config(SETTINGS)(EmbedConfig)


@flow(name="embed-media", persist_result=False)
def embed_media(config: EmbedConfig) -> State[Any]:
    """Make vectors of everything that `config` names; its fields are the command line's options.

    Relative paths are looked up as `caption-videos` does. What `config` says of text has no effect.
    """
    return run_in_flow(config, embed, EMBED)
