"""The job of reading off a half what it expects at each word of captions; imports no library."""

from dataclasses import dataclass

from stages.models.half_job import HalfJob


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeJob(HalfJob):
    """Captions, and the half that is asked what it expects of them."""

    store: str
    features_namespace: str
    members: list[dict[str, str]]
    """`key`, `features` (their key), `prompt` and `caption` of each chunk: the original's own, or
    what a person made of it."""
    folder: str
    """Folder where what the original expects is kept: it is written there, or compared with."""
    compared: bool = False
    """Whether this half is compared with what is there."""
    rounded: str = ""
    """Checkpoint in few bits whose weights take the place of the half's, as its own loader would
    have them; empty: it is as it was loaded."""
