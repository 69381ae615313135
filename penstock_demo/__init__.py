"""A demo model that captions moving shapes.

Importing the package imports neither torch nor numpy.
"""

from pathlib import Path
from typing import Final

CHECKPOINT: Final[Path] = Path(__file__).parent / "checkpoint"
"""Folder of the trained model: a plain transformers checkpoint of the qwen2_5_vl family."""

DUAL_CHECKPOINT: Final[Path] = Path(__file__).parent / "dual" / "checkpoint"
"""Folder of the trained dual encoder: a plain transformers checkpoint of the siglip family."""

CLIPS: Final[Path] = Path(__file__).parent / "samples"
"""Folder of a dozen clips that the model was not trained on, with captions in `truth.jsonl`."""

__all__ = ["CHECKPOINT", "CLIPS", "DUAL_CHECKPOINT"]
