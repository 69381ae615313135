"""Tests a checkpoint's tokenizer, template and processor files before its profile is built."""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.regular_files import read_text
from stages.models.halves.classes import one_line
from stages.models.hub.checkpoint import GENERATION, JSON_BYTES
from stages.models.processors.input_layout import channels_of, layout_of
from stages.process.exit_diagnosis import out_of_memory

TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files that may hold a chat template; the first one present is used."""


def try_processor(processor: Any, folder: Path) -> None:
    """Raise PenstockError if prompts cannot be written or images cannot be processed. Probing alone
    would ignore the error."""
    for channel in channels_of(processor):
        try:
            layout_of(processor, channel)
        except PenstockError:
            raise
        except TemplateSyntaxError as error:
            raise EnvironmentFault(
                f"{_template(folder)}: the chat template cannot be parsed (line {error.lineno}: "
                f"{one_line(error)})",
                hint="Download the checkpoint again, or correct that line",
            ) from error
        except Exception as error:  # a template's expressions may fail in any way
            if out_of_memory(error):
                raise
            raise UsageError(
                f"{_template(folder)}: the chat template cannot be rendered for {channel} "
                f"({one_line(error)})",
                hint="Download the checkpoint again, or correct that file",
            ) from error


def refuse_damaged_generation(folder: Path) -> None:
    """Raise EnvironmentFault for a generation_config.json without a JSON object."""
    path, why = folder / GENERATION, "it holds no JSON object"
    try:
        if isinstance(json.loads(read_text(path, JSON_BYTES)), dict):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        why = one_line(error)
    raise EnvironmentFault(
        f"{path} cannot be used: {why}", hint="Download the checkpoint again, or correct that file"
    )


def _template(folder: Path) -> Path:
    found = (folder / name for name in TEMPLATES if (folder / name).exists())
    return next(found, folder)
