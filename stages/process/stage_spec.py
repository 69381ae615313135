"""Declares a stage: what it reads and writes, its job, and where its code is."""

from dataclasses import dataclass
from typing import Any

from artifacts.schema import Part

CHUNK = "chunk"
"""Noun of what most stages make one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage's declaration, in the `__init__` of its package."""

    name: str
    reads: tuple[str, ...] = ()
    """Record kinds that it reads, if the pipeline has a stage that writes them; empty: files, or
    the content of its job."""
    writes: str = ""
    """Record kind that it writes; empty: none."""
    part: Part | None = None
    """Model part that it loads; None: none, and the stage runs on the host."""
    job: type[Any]
    """Class of its job."""
    of_media: bool = True
    """Whether it processes media; otherwise it runs once."""
    vectors: bool = False
    """Whether its model part belongs to a dual encoder, which makes vectors, and not to a
    captioning model."""
    needs_weights: bool = False
    """Whether it trains a model, or writes its weights in another form."""
    mixes_image_sizes: bool = False
    """Whether images of any sizes may share a batch."""
    shrinks: bool = False
    """Whether images may be downscaled while they are decoded, if that does not affect the
    result."""
    supports_tiles: bool = False
    """Whether it can process tiles of an image separately."""
    prompted: bool = False
    """Whether its records depend on a prompt. Items whose prompts have similar lengths share a
    batch."""
    uses_token_limit: bool = False
    """Whether a token limit cuts its records, and so decides their bytes."""
    can_reject_items: bool = False
    """Whether a model may reject an item, which is then recorded as a failure."""
    deletes_inputs: bool = False
    """Whether the records that it read are deleted afterwards."""
    fans_out: bool = False
    """Whether processes on several GPUs may share its work."""
    output_version: int
    """Raised when its output changes for the same inputs; part of every cache key that depends on
    it."""
    entry: str
    """Function that its process calls: `package.module:function`."""
    verb: str
    """Verb for what it does, shown to the user."""
    counts: str = CHUNK
    """Noun of what it makes one by one, shown with numbers of them; empty: none."""
