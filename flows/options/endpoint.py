"""Options for models that a server runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from artifacts.endpoints import SERVED, endpoints_of
from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.headings import MODEL

REQUESTS = 32
"""Default maximum of requests to one address at once."""
REFUSED: Mapping[str, tuple[str, ...]] = {
    "the server loads the model": (
        "trust_remote_code", "adapter", "language_gguf", "precision",
        "vision_precision", "language_precision", "vision_backend", "today",
    ),
    "the server decides how the model runs": (
        "engine", "memory", "batch_size", "prepare_workers", "max_video_pixels",
        "sampling_as_card",
    ),
    "OpenAI's protocol has no such parameter": (
        "top_k", "beams", "repetition_penalty", "no_repeat_ngram", "avoid", "start_with",
        "retry_loops",
    ),
    "summaries need a model on this machine": ("summary",),
    "scores need a model on this machine": ("confidence",),
}  # fmt: skip
"""Why an option has no effect with a server → its fields."""


def parse_addresses(given: list[str]) -> tuple[str, ...]:
    """Return the addresses of several options, each with one or more."""
    return tuple(each for text in given for each in text.replace(",", " ").split())


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
    options = EndpointOptions.of(config)
    if not is_served(config.model):
        own = ("endpoint", "endpoint_keys", "insecure_endpoint")
        if given := [name for name in own if getattr(options, name)]:
            raise UsageError(
                f"--{given[0].replace('_', '-')}: {config.model} runs on this machine",
                hint="Add --model openai:NAME, with the name that the server uses",
            )
        return
    if not config.model.removeprefix(SERVED).strip():
        raise UsageError("--model openai: names no model", hint="Write openai:NAME")
    if not options.endpoint:
        raise UsageError(
            f"{config.model} is run by a server, whose address is missing",
            hint="Add --endpoint to `penstock caption`; other commands need a model on this "
            "machine",
        )
    for why, names in REFUSED.items():
        defaults = type(config)
        if given := [n for n in names if getattr(config, n, 0) != getattr(defaults, n, 0)]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(
                f"{flags}: not possible with {config.model} ({why})", hint="Leave it out"
            )
