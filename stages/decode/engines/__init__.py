"""The declarations of all decode engines. Imports no model library.

No file outside this package compares an engine's name: callers read the fields of its declaration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from artifacts.errors import UsageError

AUTO = "auto"
"""Choice of the engine by the check before use."""
AUTO_SHARED = f"{AUTO}-shared"
"""The same choice for chunks with several prompts."""
GPU_SLOTS = 64
"""Maximum number of slots on a GPU. A step reads all weights: 64 rows take about as long as 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """The declaration of one decode engine."""

    name: str
    entry: str
    """Its `DecodeEngine` class: `package.module:name`."""
    output_version: int
    """Increased when the engine's output changes for the same inputs."""
    depends_on_batch: bool
    """Whether the bytes of a caption depend on the other captions of its batch."""
    offered: bool = True
    """Whether it is a value of `--engine`."""
    slots: bool = False
    """Whether sequences run in slots, so that one starts as soon as another ends."""
    gpu_slots: int = 0
    """Maximum number of slots that a plan for a GPU starts with; 0: the batch size."""
    costs: str = ""
    """Function that yields the memory terms of the slots for a `SlotLoad`: `package.module:name`.
    Its module imports no model library. Empty for an engine without slots: a plan counts
    batches."""
    cache_layers: frozenset[str] | None = None
    """Class names of transformers' cache layers that have a slot version. Sliding windows must all
    have the same width. None: any cache layer."""
    refused_precisions: frozenset[str] = frozenset()
    """Precisions that the engine does not support."""
    kv: bool = False
    """Whether its KV cache can be in host memory or quantized."""
    by_chunk: bool = False
    """Whether it prefills what prompts of one chunk share only once. Requests about the same chunk
    should then be adjacent."""
    multi_prompt: str = ""
    """Name of its replacement when a chunk has several prompts; empty: itself."""
    fallback: str = ""
    """Name of its replacement when the check fails and the user named no engine. `auto` starts with
    the first engine that has one."""
    gguf: bool = False
    """Whether it runs language halves that are GGUF files, and no others."""
    accepted: bool = False
    """Whether its stored captions are accepted when the user named no engine."""

    @property
    def key_fields(self) -> tuple[str | int, ...]:
        """Return its fields of a cache key."""
        return self.name, self.output_version

    @property
    def meta(self) -> dict[str, str | int]:
        """Return what each stored caption records about the engine."""
        return {"engine": self.name, "engine_version": self.output_version}


_TRANSFORMERS = EngineSpec(
    name="transformers",
    entry="stages.decode.engines.transformers:TransformersEngine",
    output_version=1,
    depends_on_batch=True,
    kv=True,
    accepted=True,
)
_INFLIGHT = EngineSpec(
    name="inflight",
    entry="stages.decode.engines.inflight.engine:InflightEngine",
    output_version=1,
    depends_on_batch=False,
    slots=True,
    gpu_slots=GPU_SLOTS,
    costs="stages.decode.engines.inflight.pool_shape:slot_terms",
    cache_layers=frozenset(
        {
            "DynamicLayer",
            "DynamicSlidingWindowLayer",
            "DynamicIndexedLayer",
            "LinearAttentionLayer",
            "LinearAttentionAndFullAttentionLayer",
            "DummyLayer",
        }
    ),
    refused_precisions=frozenset({"int8"}),  # its 8-bit products depend on all rows
    multi_prompt="inflight-shared",
    fallback=_TRANSFORMERS.name,
    accepted=True,
)
ENGINES: Mapping[str, EngineSpec] = {
    engine.name: engine
    for engine in (
        _TRANSFORMERS,
        _INFLIGHT,
        replace(_INFLIGHT, name="inflight-shared", offered=False, by_chunk=True, multi_prompt=""),
        EngineSpec(
            name="gguf",
            entry=_INFLIGHT.entry,
            output_version=1,
            depends_on_batch=False,
            slots=True,
            costs="stages.decode.engines.slot_load:slot_terms",
            gguf=True,
        ),
    )
}
ENGINE_CHOICES = (AUTO, *(engine.name for engine in ENGINES.values() if engine.offered))
"""Values of `--engine`."""


def engines_for(name: str) -> tuple[EngineSpec, ...]:
    """Return the engines that may run for a choice, the best first. The first is started, and it
    selects the one that runs. Raises UsageError for an unknown choice."""
    if name in ENGINES:
        return (ENGINES[name],)
    first = next(engine for engine in ENGINES.values() if engine.fallback)
    begins = {AUTO: first, AUTO_SHARED: ENGINES[first.multi_prompt or first.name]}
    if name not in begins:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(ENGINE_CHOICES)}")
    return begins[name], ENGINES[begins[name].fallback]


def gguf_engine(choice: str) -> str:
    """Return the name of the engine that runs a GGUF file for a choice; empty: none does."""
    allowed = ENGINES.values() if choice == AUTO else engines_for(choice)
    return next((engine.name for engine in allowed if engine.gguf), "")


def accepted_by(name: str) -> tuple[EngineSpec, ...]:
    """Return the engines whose stored captions are accepted for a choice: its own, the best first,
    and then all accepted ones if the user named no engine."""
    own = engines_for(name)
    more = [engine for engine in ENGINES.values() if engine.accepted and engine not in own]
    return own if name in ENGINES else (*own, *more)


def choice_for(choice: str, prompts: int) -> str:
    """Return the choice that supports this number of prompts per chunk."""
    multi_prompt = AUTO_SHARED if choice == AUTO else engine_of(choice).multi_prompt
    return multi_prompt or choice if prompts > 1 else choice


def engine_of(name: str) -> EngineSpec:
    """Return the engine of a name. Raises UsageError for an unknown name."""
    if name not in ENGINES:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(ENGINES)}")
    return ENGINES[name]
