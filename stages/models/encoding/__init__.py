"""Runs the vision half over stored frames, for every stage that needs it. This module has the
fields of its jobs and their pass modes; it imports no model library.

A row's bytes may depend on how many rows pass the half with it, because products of other sizes
are rounded differently. They do not depend on it where the number of rows is always the same: each
input passes alone, or, as small inputs use a processor badly when they are alone, FIXED_ROWS of one
shape pass together, and copies fill up the last pass.

Servers, and halves whose rows do depend on it, compute batches: all inputs of a batch pass
together, so the bytes of each depend on the others. These have cache namespaces of their own.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from artifacts.records.claims import Share
from stages.models.half_job import HalfJob


class EncodeItem(NamedTuple):
    """A chunk to encode."""

    key: str
    """Key of the resulting record."""
    frames: str
    """Key of its frames, or of its sound."""
    kind: str
    """`video` or `image`."""
    prompt: str = ""
    """Prompt of the chunk, if the encoder reads it."""
    shown: int = 0
    """How many of its frames the encoder sees; 0: all."""
    rows: int = 0
    """Rows of the passes that its inputs take part in (see above); 0: its batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingJob:
    """Chunks to encode with the same settings. For an audio half, its `frames` are sounds."""

    half: HalfJob
    store: str
    frames_namespace: str
    namespace: str
    """Cache namespace of the results."""
    batches: list[list[EncodeItem]]
    requests: str = ""
    """Pipe over which batches are sent (stages/process/requests.py); empty: encode `batches`."""
    for_clients: bool = False
    """Whether clients wait for what is sent. Then faults are reported and not stored, and inputs
    are deleted."""
    share: Share = field(default_factory=Share)
    """What this process may claim until those on other devices work, too."""
    in_passes: bool = False
    """Whether items pass the half in the `rows` that they name; otherwise they pass with their
    batch."""
    frames_store: str = ""
    """Store of the frames, if different."""
    block: int = 0
    """Chunks that pass through each layer before the next layer is read; 0: all layers are
    loaded."""
    workers: int = 1
    """Threads that read and prepare chunks. They do not affect the results."""


BATCHES: Final = "batches"
FIXED_ROWS = 8
"""Rows of a fixed pass."""
FRAMES_PER_BATCH = 64
"""A batch has fewer chunks when they hold more frames than this together."""
