"""The engines that captions can be made by; imports no model library.

They are told once for who makes a key of them and for the stage that starts one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from artifacts.errors import UsageError
from stages.decode.job import DEFAULT_ENGINE

INFLIGHT = "inflight"
SHARED = "inflight-shared"
"""Name of the engine that reads what several prompts have in common once."""
COMPILED = "inflight-compiled"
"""Name of the engine whose step is compiled, and so rounded otherwise."""
IN_SLOTS = frozenset({INFLIGHT, SHARED, COMPILED})
"""Names of the engines that have rows in slots."""
SEATED = frozenset(
    {
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "DynamicIndexedLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "DummyLayer",
    }
)
"""Names of the classes of transformers' cache layers of which there are slots."""
AUTO = "auto"
"""What is asked for by who leaves the choice of the engine to a trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """The declaration of how a language half is made to say captions."""

    name: str
    entry: str
    """Its class, which a job makes a `Speaker` of: `package.module:name`."""
    output_version: int
    """Raised when its own output changes for the same inputs; 0: it says what was said before
    engines had names."""
    batch_decides: bool
    """Whether the bytes of a caption depend on which others are made with it."""
    by_chunk: bool = False
    """Whether it is best given all that is asked of one chunk in a row."""

    @property
    def words(self) -> tuple[str | int, ...]:
        """Return what it adds to a key. It is nothing where captions are those of before."""
        return (self.name, self.output_version) if self.output_version else ()

    @property
    def meta(self) -> dict[str, str | int]:
        """Return what is stored of it beside each caption."""
        return {"engine": self.name} | (
            {"engine_version": self.output_version} if self.output_version else {}
        )


ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name=DEFAULT_ENGINE,
            entry="stages.decode.engines.transformers:Transformers",
            output_version=0,
            batch_decides=True,
        ),
        Engine(
            name=INFLIGHT,
            entry="stages.decode.engines.inflight.engine:InFlight",
            output_version=1,
            batch_decides=False,
        ),
        Engine(
            name=SHARED,
            entry="stages.decode.engines.inflight.engine:InFlight",
            output_version=1,
            batch_decides=False,
            by_chunk=True,
        ),
        Engine(
            name=COMPILED,
            entry="stages.decode.engines.inflight.engine:InFlight",
            output_version=1,
            batch_decides=False,
        ),
    )
}
CHOICES: Mapping[str, tuple[Engine, ...]] = {
    AUTO: (ENGINES[INFLIGHT], ENGINES[DEFAULT_ENGINE]),
    **{name: (engine,) for name, engine in ENGINES.items()},
}
"""What may be asked for → the engines that answer it, the best first; it is started, and tells
which of them speaks."""


SEVERAL = {AUTO: f"{AUTO}-shared", INFLIGHT: SHARED}
"""What may be asked for → the choice in its place where several things are asked of a chunk."""
CHOICES_OF_SEVERAL = {SEVERAL[AUTO]: (ENGINES[SHARED], ENGINES[DEFAULT_ENGINE])}
OFFERED = tuple(name for name in CHOICES if name != SHARED)
"""What people may ask for."""
ALSO: Mapping[str, tuple[Engine, ...]] = {
    AUTO: (ENGINES[SHARED], ENGINES[COMPILED]),
    SEVERAL[AUTO]: (ENGINES[INFLIGHT], ENGINES[COMPILED]),
}
"""Choice → engines of which captions that are there answer it, too."""


def choice_of(name: str) -> tuple[Engine, ...]:
    """Return the engines that may answer who asks so. Raises UsageError where there are none."""
    choices = {**CHOICES, **CHOICES_OF_SEVERAL}
    if name not in choices:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(OFFERED)}")
    return choices[name]


def engine_of(name: str) -> Engine:
    """Return the engine of that name. Raises UsageError where there is none."""
    if name not in ENGINES:
        raise UsageError(f"engine is {name}", hint=f"Use one of {', '.join(ENGINES)}")
    return ENGINES[name]
