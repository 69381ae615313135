"""Makes Prefect refuse before a run what a configuration would refuse in it. Who takes a
configuration in a flow imports it from here."""

from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

from flows.job.config import (
    ABOVE_ZERO,
    FORMATS,
    PRECISIONS,
    VISION_BACKENDS,
    CaptionConfig,
)
from flows.job.existing import RULES

__all__ = ["CaptionConfig", "settings_over", "tighten"]


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


def tighten(schema: dict[str, Any]) -> None:
    """Make Prefect refuse before a run what CaptionConfig would refuse in it."""
    fields = schema["properties"]
    fields["sources"]["minItems"] = 1
    fields["out"]["minLength"] = 1
    fields["format"]["items"]["enum"] = list(FORMATS)
    fields["precision"]["enum"] = list(PRECISIONS)
    fields["vision_backend"]["enum"] = list(VISION_BACKENDS)
    for name in ("vision_precision", "language_precision"):
        fields[name]["anyOf"][0]["enum"] = list(PRECISIONS)
    fields["existing"]["anyOf"][0]["enum"] = list(RULES)
    fields["prompt"]["anyOf"][0]["pattern"] = r"\S"
    for name in ABOVE_ZERO:
        fields[name].get("anyOf", [fields[name]])[0]["exclusiveMinimum"] = 0


with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra=tighten))(
    CaptionConfig
)
