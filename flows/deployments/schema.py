"""Makes Prefect refuse before a run what a configuration would refuse in it. Who takes a
configuration in a flow imports it from here."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, with_config

from flows.job.command_config import (
    FORMER,
    EmbedConfig,
    RebuildConfig,
    check_used,
    unused_fields,
)
from flows.job.config import ABOVE_ZERO, PRECISIONS, VISION_BACKENDS, CaptionConfig
from flows.job.formats import FORMATS, RULES
from flows.job.speaking_config import LENGTHS, SpeakingConfig
from stages.decode.generation import SAMPLINGS

__all__ = [
    "CaptionConfig",
    "CaptionParameters",
    "EmbedConfig",
    "RebuildConfig",
    "above_zero",
    "settings_by",
    "settings_over",
    "tighten",
]


def settings_by(change: Callable[[dict[str, Any]], None]) -> ConfigDict:
    """Return settings by which Prefect refuses what is not known, and what `change` says."""
    return ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra=change)


def settings_over(
    base: type[SpeakingConfig],
    tighten: Callable[[dict[str, Any]], None],
    kind: type[CaptionConfig],
    command: str,
) -> ConfigDict:
    """Return settings by which Prefect refuses what it refuses of `base`, what `tighten` says, and
    what a command does not have of the fields of a `kind`. They say of each field what it is: of
    fields that are inherited, pydantic finds no words."""

    def change(schema: dict[str, Any]) -> None:
        tighten(schema)
        stated = TypeAdapter(base).json_schema()
        words = {**stated["properties"], **stated.get("patternProperties", {})}
        for name, field in schema["properties"].items():
            there = words.get(name) or words.get(f"^{name}$", {})
            field.setdefault("description", there.get("description"))
        hide(schema, kind, command)

    return settings_by(change)


def hide(schema: dict[str, Any], kind: type[CaptionConfig], command: str) -> None:
    """Take fields off the form that a command does not have. Parameters that were recorded while
    they were on it may hold their defaults. The server's refusal of anything else repeats the words
    under `not`: no other keyword puts words of ours into it."""
    unused = unused_fields(kind, command)
    known = "|".join(schema["properties"])
    refused: dict[str, Any] = {
        f"^(?!({known})$)": {"not": {"description": f"{command} does not have this field"}}
    }
    for name, default in unused.items():
        same = list(default) if isinstance(default, tuple) else default
        kept = [same, FORMER[name]] if name in FORMER else [same]
        other = {"description": f"{command} does not have {name}", "not": {"enum": kept}}
        words = schema["properties"].pop(name).get("description")
        refused[f"^{name}$"] = {"not": other, "description": words}
    schema["patternProperties"] = refused
    del schema["additionalProperties"]  # its refusal would list all patterns


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


def _caption_checked(config: CaptionConfig) -> CaptionConfig:
    check_used(config, "caption")
    return config


CaptionParameters = Annotated[CaptionConfig, AfterValidator(_caption_checked)]
"""What flows that caption take: the class itself has fields of other commands, too."""
with_config(ConfigDict(use_attribute_docstrings=True))(SpeakingConfig)
with_config(settings_over(SpeakingConfig, tighten, CaptionConfig, "caption"))(CaptionConfig)
# Here, because configurations of labels and of indexes have its words, whoever imports them.
with_config(settings_over(CaptionConfig, tighten, EmbedConfig, "embed"))(EmbedConfig)
with_config(settings_over(CaptionConfig, tighten, RebuildConfig, "cache rebuild"))(RebuildConfig)
