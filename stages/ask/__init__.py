"""Asks a server for captions of frames, or how probable the labels of questions are. Loads no
model."""

from dataclasses import dataclass, field
from typing import NamedTuple

from artifacts.frame_fit import FrameFit
from stages.process.stage_spec import StageSpec

OUTPUT_VERSION = 1
"""Raised when what a server is sent changes for the same inputs; part of every record's key."""
QUALITY = 90
"""JPEG quality of the frames that are sent; part of every record's key."""
UNANSWERED = "unanswered"
"""Kind of failure of an item that a server did not answer; the next run tries it again."""
UNSUPPORTED = "unsupported"
"""Kind of failure of a probe that a server answered without log probabilities."""


class AskItem(NamedTuple):
    """A chunk to caption: keys of its record and of its frames, `video` or `image`, and prompt.
    With `labels` it is a probe: how probable these are after the prompt, and no text."""

    key: str
    frames: str
    kind: str
    prompt: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class AskJob:
    """Chunks to caption or to probe with the same settings. It holds no key of a server."""

    store: str = ""
    frames_namespace: str = ""
    namespace: str = ""
    """Cache namespace of the captions or answers."""
    writes: str = "captions"
    """Kind of the records: `captions` or `answers`."""
    items: list[AskItem] = field(default_factory=list)
    model: str
    """Name of the model on the servers."""
    endpoints: list[str] = field(default_factory=list)
    """Addresses of the servers."""
    keys_file: str = ""
    """File of the servers' keys; empty: the environment has the key, if any."""
    fit: FrameFit = field(default_factory=FrameFit)
    """Size of the pictures that are sent."""
    video: bool = False
    """Whether several frames are sent as one video."""
    at_once: int = 1
    """Maximum requests to one server at once."""
    max_new_tokens: int
    system: str = ""
    schema: str = ""
    """JSON Schema that every caption follows, as text; empty: none."""
    made_by: dict[str, str] = field(default_factory=dict)
    """What each record says of model and program."""
    sampling: dict[str, float] = field(default_factory=dict)
    """Sampling parameters by OpenAI's names."""
    seed: int | None = None
    """Random seed, from which each item's own is derived; None: nothing is sampled."""
    seen: dict[str, list[str]] = field(default_factory=dict)
    """Address → model and fingerprint that it has stated in this run."""


STAGE = StageSpec(
    name="ask",
    reads=("frames",),
    writes="captions",
    job=AskJob,
    prompted=True,
    uses_token_limit=True,
    can_reject_items=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.ask.run:run",
    verb="captioning",
    counts="caption",
)
"""Captions chunks."""
PROBE = StageSpec(
    name="ask_probes",
    reads=("frames",),
    writes="answers",
    job=AskJob,
    prompted=True,
    can_reject_items=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.ask.run:run",
    verb="answering",
    counts="prompt",
)
"""Measures how probable the labels of questions are about chunks."""
