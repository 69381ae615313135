"""The declarations of all decode engines. Imports no model library.

No file outside this package compares an engine's name: callers read the fields of its declaration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from artifacts.errors import UsageError

AUTO = "auto"
"""What is asked for by who leaves the choice of the engine to a trial."""
AUTO_SHARED = f"{AUTO}-shared"
"""The same choice where a chunk has several prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """The declaration of one decode engine."""

    name: str
    entry: str
    """Its class, which a job makes a `DecodeEngine` of: `package.module:name`."""
    output_version: int
    """Raised when its own output changes for the same inputs; 0: it says what was said before
    engines had names."""
    depends_on_batch: bool
    """Whether the bytes of a caption depend on which others are made with it."""
    offered: bool = True
    """Whether it is a value of `--engine`."""
    slots: bool = False
    """Whether rows have slots, so that one begins as soon as another has ended."""
    costs: str = ""
    """Function that yields the memory terms of its slots for a `SlotLoad`, in a module that imports
    no model library: `package.module:name`. Empty without slots: a plan counts batches."""
    cache_layers: frozenset[str] | None = None
    """Names of the classes of transformers' cache layers of which it has slots, with windows of one
    width; None: of any."""
    refused_precisions: frozenset[str] = frozenset()
    """Precisions in which it makes no captions."""
    beams: bool = False
    """Whether it searches by beams."""
    kv: bool = False
    """Whether its KV cache may lie in host memory or be quantized."""
    compiled: bool = False
    """Whether its step is compiled, with all layers on the device, and so rounded otherwise."""
    by_chunk: bool = False
    """Whether it reads what prompts of one chunk share once, so that it is best given all that is
    asked of one chunk in a row."""
    multi_prompt: str = ""
    """Engine in its place where a chunk has several prompts; empty: itself."""
    fallback: str = ""
    """Engine in its place where a trial refuses it and the choice was left open. `auto` begins with
    the first engine that has one."""
    accepted: bool = False
    """Whether its stored captions answer who leaves the choice open."""

    @property
    def key_fields(self) -> tuple[str | int, ...]:
        """Return what it adds to a key. It is nothing where captions are those of before."""
        return (self.name, self.output_version) if self.output_version else ()

    @property
    def meta(self) -> dict[str, str | int]:
        """Return what is stored of it beside each caption."""
        return {"engine": self.name} | (
            {"engine_version": self.output_version} if self.output_version else {}
        )


_TRANSFORMERS = EngineSpec(
    name="transformers",
    entry="stages.decode.engines.transformers:TransformersEngine",
    output_version=0,
    depends_on_batch=True,
    beams=True,
    kv=True,
    accepted=True,
)
_INFLIGHT = EngineSpec(
    name="inflight",
    entry="stages.decode.engines.inflight.engine:InflightEngine",
    output_version=1,
    depends_on_batch=False,
    slots=True,
    costs="stages.decode.engines.inflight.costs:slot_terms",
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
    refused_precisions=frozenset({"int8"}),  # its products in 8 bit look at all rows
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
        replace(_INFLIGHT, name="inflight-compiled", compiled=True, multi_prompt="", fallback=""),
    )
}
ENGINE_CHOICES = (AUTO, *(engine.name for engine in ENGINES.values() if engine.offered))
"""What people may ask for."""


def engines_for(name: str) -> tuple[EngineSpec, ...]:
    """Return the engines that may answer who asks so, the best first; it is started, and tells
    which of them speaks. Raises UsageError where there are none."""
    if name in ENGINES:
        return (ENGINES[name],)
    first = next(engine for engine in ENGINES.values() if engine.fallback)
    begins = {AUTO: first, AUTO_SHARED: ENGINES[first.multi_prompt or first.name]}
    if name not in begins:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(ENGINE_CHOICES)}")
    return begins[name], ENGINES[begins[name].fallback]


def accepted_by(name: str) -> tuple[EngineSpec, ...]:
    """Return the engines whose stored captions answer a choice: its own, the best first, and where
    it is left open all that are accepted."""
    own = engines_for(name)
    more = [engine for engine in ENGINES.values() if engine.accepted and engine not in own]
    return own if name in ENGINES else (*own, *more)


def choice_for(choice: str, *, beams: int, prompts: int) -> str:
    """Return the choice that serves what is asked for with so many beams and so many prompts a
    chunk. Raises UsageError where none does."""
    if beams == 1:
        multi_prompt = AUTO_SHARED if choice == AUTO else engine_of(choice).multi_prompt
        return multi_prompt or choice if prompts > 1 else choice
    able = [engine.name for engine in engines_for(choice) if engine.beams]
    if not able:
        other = next(engine.name for engine in ENGINES.values() if engine.beams)
        raise UsageError(f"--engine {choice} follows no beams", hint=f"Use --engine {other}")
    return able[0]


def engine_of(name: str) -> EngineSpec:
    """Return the engine of that name. Raises UsageError where there is none."""
    if name not in ENGINES:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(ENGINES)}")
    return ENGINES[name]
