"""Options for the checkpoint, adapters, GPUs, and models that a server runs."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, Any

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.remote.endpoints import SERVED, endpoints_of
from flows.core.options.formats import LABELS, MEMORY, MODEL

QUANTIZED = ("int8", "nf4")
"""Precisions to which layers are quantized while they are loaded."""
DEMO_MODEL = "demo"
TRUST_HELP = "run code that comes with the checkpoint"
GIVE_MODEL = "Give a folder, a hub id, or demo"
MODEL_OPTION = Option("hub id, folder, or `demo`", MODEL, "M", not_empty=GIVE_MODEL, path=True)
DEFAULT_MODEL_OPTION = replace(MODEL_OPTION, help=f"{MODEL_OPTION.help} [%(default)s]")
TODAY_OPTION = Option("date for chat templates that ask for it [of their first use]", MODEL, "DATE")


SIZES = ("memory", "max_store")
"""Options in bytes, for which a text such as 8GiB may be given."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionGroup):
    """The checkpoint of a run."""

    model: Annotated[str, MODEL_OPTION]
    """Hub id, folder, or `demo`."""
    revision: Annotated[str | None, Option("branch, tag or commit of a hub id", MODEL, "R")] = None
    """Branch, tag or commit of a hub id; None: its default branch."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, MODEL)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""


@dataclass(frozen=True, kw_only=True)
class DateOptions(OptionGroup):
    """The date that chat templates write as today's."""

    today: Annotated[str, TODAY_OPTION] = ""
    """Date as YYYY-MM-DD for chat templates that ask for today's; empty: that of their first use
    with the store. It affects no other model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with contextlib.suppress(ValueError):
            if not self.today or date.fromisoformat(self.today).isoformat() == self.today:
                return
        raise UsageError(f"invalid --today {self.today!r}", hint="Give a date such as 2026-01-31")


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(OptionGroup):
    """The adapter of the language half."""

    adapter: Annotated[str, Option("folder of a LoRA adapter (PEFT)", MODEL, "A", path=True)] = ""
    """Folder of a LoRA adapter (PEFT) for the language half; empty: none."""


@dataclass(frozen=True, kw_only=True)
class RecordedAdapterOptions(OptionGroup):
    """The adapter that a run trains further, or that was merged into the model."""

    recorded_by: str = ""
    """Folder of an adapter that is not applied: its record alone says how the model runs. Empty:
    none."""


@dataclass(frozen=True, kw_only=True)
class GgufOptions(OptionGroup):
    """The GGUF file of the language half."""

    language_gguf: Annotated[
        str, Option("GGUF file of the language half, for --engine gguf", MODEL, "FILE", path=True)
    ] = ""
    """GGUF file of the checkpoint's language half, made by another program; empty: none."""


@dataclass(frozen=True, kw_only=True)
class TaggerOptions(OptionGroup):
    """The tagger of the user."""

    tagger: Annotated[
        str, Option("TOML of an ONNX tagger, for --labels and --model", LABELS, "FILE", path=True)
    ] = ""
    """TOML file that declares an ONNX graph which gives tags, in place of labels and a model;
    empty: none."""


@dataclass(frozen=True, kw_only=True)
class PassOptions(OptionGroup):
    """How inputs are divided into passes of the vision half."""

    in_batches: bool = False
    """Whether whole batches pass it, as in a server."""


ALL_GPUS = "all"
GPU_NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
"""A number of GPUs, or of one: `00` and digits of other scripts are none."""


@dataclass(frozen=True, kw_only=True)
class GpuOptions(OptionGroup):
    """The GPUs that share the work of a run."""

    gpus: Annotated[
        str | None,
        Option("GPUs that share the work: all, a number, or a list (0,1) [1]", MEMORY, "N"),
    ] = None
    """Equal GPUs that share the work of the stages that compute: `all`, their number, or a list
    such as `0,1`. None: one. They make a run faster, not a model smaller."""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [part.strip() for part in ("1" if self.gpus is None else self.gpus).split(",")]
        is_list = all(map(GPU_NUMBER.fullmatch, numbers)) and len({*numbers}) == len(numbers)
        if self.gpus != ALL_GPUS and (not is_list or numbers == ["0"]):
            raise UsageError(
                f"invalid --gpus {self.gpus}",
                hint="Give all, a number of GPUs, or a list such as 0,1",
            )


REQUESTS = 32
"""Default maximum of requests to one address at once."""
REFUSED: Mapping[str, tuple[str, ...]] = {
    "the server loads the model": (
        "trust_remote_code", "adapter", "language_gguf", "precision",
        "vision_precision", "language_precision", "vision_backend", "today", "features_as",
    ),
    "the server decides how the model runs": (
        "engine", "memory", "gpus", "batch_size", "prepare_workers", "max_video_pixels",
    ),
    "OpenAI's protocol has no such parameter": (
        "top_k", "repetition_penalty", "no_repeat_ngram", "avoid", "start_with",
        "retry_loops",
    ),
    "summaries need a model on this machine": ("summary",),
}  # fmt: skip
"""Why an option has no effect with a server → its fields."""


def parse_addresses(given: list[str]) -> tuple[str, ...]:
    """Return the addresses of several options, each with one or more."""
    return tuple(address for text in given for address in text.replace(",", " ").split())


@dataclass(frozen=True, kw_only=True)
class EndpointOptions(OptionGroup):
    """The servers of a model `openai:NAME`."""

    endpoint: Annotated[
        tuple[str, ...],
        Option(
            "address of a server with OpenAI's protocol, for --model openai:NAME; repeatable",
            MODEL,
            "URL",
            parse=parse_addresses,
            repeated=True,
        ),
    ] = ()
    """Addresses of servers that speak OpenAI's protocol, for a model `openai:NAME`. A deployment
    may use those that PENSTOCK_ENDPOINTS lists on its machine."""
    endpoint_keys: Annotated[
        str, Option("file of lines `host = key`, readable by you alone", MODEL, "FILE", path=True)
    ] = ""
    """File of lines `host = key` with mode 0600; empty: PENSTOCK_ENDPOINT_KEY, or no key."""
    insecure_endpoint: Annotated[bool, Option("allow http to other machines", MODEL)] = False
    """Allow addresses of other machines without TLS."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", tuple(self.endpoint))
        super().__post_init__()
        endpoints_of(self.endpoint, insecure=self.insecure_endpoint)


def is_served(model: str) -> bool:
    """Return whether a server runs the model of that name."""
    return model.startswith(SERVED)


def check_served(config: Any) -> None:
    """Check that model and addresses of a configuration belong together, and that no option is
    given that has no effect on a server. Raises UsageError."""
    if not is_served(config.model):
        own = ("endpoint", "endpoint_keys", "insecure_endpoint")
        if given := [name for name in own if getattr(config, name)]:
            raise UsageError(
                f"--{given[0].replace('_', '-')}: {config.model} runs on this machine",
                hint="Add --model openai:NAME, with the name that the server uses",
            )
        return
    if not config.model.removeprefix(SERVED).strip():
        raise UsageError("--model openai: names no model", hint="Write openai:NAME")
    if not config.endpoint:
        raise UsageError(
            f"{config.model} is run by a server, whose address is missing",
            hint="Add --endpoint to `penstock caption` or `penstock ask`; other commands need a "
            "model on this machine",
        )
    for why, names in REFUSED.items():
        defaults = type(config)
        if given := [n for n in names if getattr(config, n, 0) != getattr(defaults, n, 0)]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(
                f"{flags}: not possible with {config.model} ({why})", hint="Leave it out"
            )
