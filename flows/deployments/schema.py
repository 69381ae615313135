"""Makes Prefect refuse before a run what a configuration would refuse in it. Who takes a
configuration in a flow imports it from here."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

from flows.job.config import ABOVE_ZERO, PRECISIONS, VISION_BACKENDS, CaptionConfig, EmbedConfig
from flows.job.formats import FORMATS, RULES
from flows.job.speaking_config import LENGTHS, SpeakingConfig
from stages.decode.generation import SAMPLINGS

__all__ = [
    "CaptionConfig",
    "EmbedConfig",
    "above_zero",
    "settings_by",
    "settings_over",
    "tighten",
]


def settings_by(change: Callable[[dict[str, Any]], None]) -> ConfigDict:
    """Return settings by which Prefect refuses what is not known, and what `change` says."""
    return ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra=change)


def settings_over(
    base: type[SpeakingConfig], tighten: Callable[[dict[str, Any]], None]
) -> ConfigDict:
    """Return settings by which Prefect refuses what it refuses of `base`, and what `tighten` says.
    They say of each field what it is: of fields that are inherited, pydantic finds no words."""

    def change(schema: dict[str, Any]) -> None:
        tighten(schema)
        stated = TypeAdapter(base).json_schema()["properties"]
        for name, field in schema["properties"].items():
            field.setdefault("description", stated.get(name, {}).get("description"))

    return settings_by(change)


def above_zero(schema: dict[str, Any], names: Iterable[str]) -> None:
    """Make Prefect refuse of these fields what is not above 0."""
    for name in names:
        field = schema["properties"][name]
        field.get("anyOf", [field])[0]["exclusiveMinimum"] = 0


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
    fields["length"]["enum"] = ["", *LENGTHS]
    fields["sampling"]["enum"] = list(SAMPLINGS)
    above_zero(schema, ABOVE_ZERO)


with_config(ConfigDict(use_attribute_docstrings=True))(SpeakingConfig)
with_config(settings_over(SpeakingConfig, tighten))(CaptionConfig)
# Here, because configurations of labels and of indexes have its words, whoever imports them.
with_config(settings_over(CaptionConfig, tighten))(EmbedConfig)
