"""Writes data sets for kohya's sd-scripts: image metadata, and a TOML file that names it.

Source: `FineTuningDataset` in kohya-ss/sd-scripts `library/train_util.py`, and its
`docs/config_README-en.md`. Latents are cached next to an image, by its path without suffix.
"""

from collections.abc import Sequence
from pathlib import Path

from artifacts.trainers.form import IMAGES, PILLOW, TrainerEntry, TrainerForm, json_line, toml_text

METADATA, CONFIG = "metadata.json", "dataset.toml"


def kohya_files(entries: Sequence[TrainerEntry], folder: Path) -> dict[str, str]:
    """Return the metadata, a picture a line, and the dataset configuration."""
    pairs = (
        f"{json_line(e.path).rstrip()}: {json_line({'caption': e.caption}).rstrip()}"
        for e in entries
    )
    config = f"""\
# sd-scripts: --dataset_config {CONFIG}
[[datasets]]
resolution = 1024  # 512 for models that were trained at it; --resolution does not override this
enable_bucket = true

  [[datasets.subsets]]
  metadata_file = {toml_text(str(folder / METADATA))}
  num_repeats = 1
"""
    return {METADATA: "{\n" + ",\n".join(pairs) + "\n}\n", CONFIG: config}


KOHYA = TrainerForm(
    write=kohya_files,
    names=(METADATA, CONFIG),
    folders={"image": IMAGES},
    own_media=False,
    apart=lambda path: str(path.with_suffix("")),
    suffixes={"image": PILLOW},
)
