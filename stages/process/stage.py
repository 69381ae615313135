"""The declaration of a stage, for planning, running and displaying it. Imports no library."""

from dataclasses import dataclass
from typing import Any

from artifacts.schema import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage's declaration; it is in the `__init__` of the stage's package."""

    name: str
    reads: str
    """The kind of records that it reads; empty: files, or what its job holds."""
    writes: str
    """The kind of records that it makes."""
    part: Part | None = None
    """Part of a checkpoint that it loads; None: nothing, and it runs on the host."""
    job: type[Any]
    """Class of the job that its process is told."""
    of_media: bool = True
    """Whether it is run over media, and not once in a run."""
    vectors: bool = False
    """Whether its part is of a dual encoder, which makes vectors, and not of a model that
    captions."""
    mixes_image_sizes: bool = False
    """Whether pictures of any size are alike to it, so that they share a batch."""
    shrinks: bool = False
    """Whether pictures may be made smaller while they are decoded, as far as it does not show."""
    supports_tiles: bool = False
    """Whether it may look at the parts of a picture, each by itself."""
    prompted: bool = False
    """Whether its records are made of a prompt too, and rows with prompts of like length share a
    batch."""
    uses_token_limit: bool = False
    """Whether its records are cut at so many tokens, which then decide their bytes."""
    can_reject_items: bool = False
    """Whether it may find that a model does not take an item, which it notes among the failures."""
    deletes_inputs: bool = False
    """Whether what it read is not kept once it is through with it."""
    output_version: int
    """Raised when its own output changes for the same inputs; part of every key below it."""
    entry: str
    """The function that its process calls: `package.module:function`."""
    verb: str
    """The verb by which people are told what it does."""
