"""Makes a Prefect flow of the run that makes vectors, as of the one that captions."""

from collections.abc import Callable
from typing import Any

from prefect import State, flow
from pydantic import ConfigDict, TypeAdapter, with_config

from flows.deployments.caption import tighten
from flows.deployments.runs import run_in_flow
from flows.job.config import CaptionConfig, EmbedConfig
from flows.pipelines import EMBED, product_of
from flows.running.run import embed


def settings_over(
    base: type[CaptionConfig], tighten: Callable[[dict[str, Any]], None]
) -> ConfigDict:
    """Return settings by which Prefect refuses what it refuses of `base`, and what `tighten` says.
    They say of each field what it is: of fields that are inherited, pydantic finds no words."""

    def change(schema: dict[str, Any]) -> None:
        tighten(schema)
        stated = TypeAdapter(base).json_schema()["properties"]
        for name, field in schema["properties"].items():
            field.setdefault("description", stated.get(name, {}).get("description"))

    return ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra=change)


with_config(settings_over(CaptionConfig, tighten))(EmbedConfig)


@flow(name="embed-media", persist_result=False)
def embed_media(config: EmbedConfig) -> State[Any]:
    """Make vectors of everything that `config` names; its fields are the command line's options.

    Relative paths are looked up as `caption-videos` does. What `config` says of text has no effect.
    """
    return run_in_flow(config, embed, product_of(EMBED))
