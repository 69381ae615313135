"""Configurations of the commands beside `caption`, and the fields of a run that each one has."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from artifacts.errors import UsageError
from flows.job.config import INDEX, PICTURES_A_BATCH, CaptionConfig

OF_ALL = frozenset(
    [
        "sources",
        "recursive",
        "extensions",
        "limit",
        "model",
        "revision",
        "trust_remote_code",
        "store",
        "memory",
        "batch_size",
        "precision",
        "vision_backend",
        "fps",
        "retry_failed",
        "keep_frames",
    ]
)
"""Fields that all of these commands have."""
OF_VECTORS = OF_ALL | {"out", "tiles"}
COMMANDS: Mapping[str, frozenset[str]] = {
    "caption": frozenset(field.name for field in fields(CaptionConfig)) - {"tiles"},
    "cache rebuild": OF_ALL
    | frozenset(
        [
            "prompt",
            "chunk",
            "shots",
            "whole",
            "frames",
            "max_frames",
            "max_pixels",
            "max_video_pixels",
            "vision_precision",
            "language_precision",
            "as_published",
        ]
    ),
    "embed": OF_VECTORS,
    "index build": OF_VECTORS,
    "label": OF_VECTORS
    | frozenset(
        [
            "labels",
            "templates",
            "threshold",
            "examples",
            "top",
            "format",
            "beside",
            "overwrite",
            "existing",
        ]
    ),
}
"""Command → the fields that it has options for; a test compares them with its options."""


FORMER: Mapping[str, Any] = {"as_published": False}
"""Field → the default that earlier versions recorded."""


def unused_fields(kind: type[CaptionConfig], command: str) -> dict[str, Any]:
    """Return the fields of a configuration that a command does not have, with their defaults."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(kind)
        if field.name not in COMMANDS[command]
    }


def check_used(config: CaptionConfig, command: str) -> None:
    """Raise UsageError where a field is set that a command does not have."""
    unused = unused_fields(type(config), command)
    given = {name: getattr(config, name) for name in unused}
    if names := [n for n, v in unused.items() if given[n] not in (v, FORMER.get(n, v))]:
        raise UsageError(
            f"`penstock {command}` does not have {', '.join(f'`{name}`' for name in names)}",
            hint=f"Leave out what is not among the options of `penstock {command} --help`",
        )


def run_config(config: CaptionConfig) -> CaptionConfig:
    """Return the configuration of the run itself, which may set fields that its command does not
    have, such as the precision of a half that graphs compute."""
    return CaptionConfig(
        **{each.name: getattr(config, each.name) for each in fields(CaptionConfig)}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildConfig(CaptionConfig):
    """One rebuild of stored features. Set fields are only those of `penstock cache rebuild`."""

    def __post_init__(self) -> None:
        CaptionConfig.__post_init__(self)
        check_used(self, "cache rebuild")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig(CaptionConfig):
    """One run that makes vectors. Set fields are only those of its command."""

    command: ClassVar[str] = "embed"
    model: str
    """Hub id or folder of a model of the CLIP kind."""
    batch_size: int = PICTURES_A_BATCH
    """Pictures a batch."""

    def __post_init__(self) -> None:
        CaptionConfig.__post_init__(self)
        check_used(self, self.command)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig(EmbedConfig):
    """One run that fills an index. Set fields are only those of `penstock index build`."""

    command: ClassVar[str] = "index build"
    out: str = INDEX
    """Folder of the index."""
