"""Writes data sets for musubi-tuner: JSON lines of images and of videos, and a TOML file that names
them.

Source: kohya-ss/musubi-tuner `docs/dataset_config.md`, and `get_latent_cache_path` in
`src/musubi_tuner/dataset/image_video_dataset.py`, which names a cache file by the media's stem
only.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from artifacts.trainers.form import (
    FOLDERS,
    PILLOW,
    TrainerEntry,
    TrainerForm,
    json_line,
    of_kind,
    toml_text,
)

CONFIG = "dataset.toml"
FRAMES = 'target_frames = [1, 25, 45]\nframe_extraction = "head"\n'
"""What the sample of its documentation takes of each video."""


def musubi_files(entries: Sequence[TrainerEntry], folder: Path) -> dict[str, str]:
    """Return the lines of each kind that there is, and the dataset configuration."""
    config = f"""\
# musubi-tuner: --dataset_config {CONFIG}
[general]
resolution = [960, 544]
batch_size = 1
enable_bucket = true
"""
    files: dict[str, str] = {}
    for kind, name in FOLDERS.items():
        rows = of_kind(entries, kind)
        if not rows:
            continue
        lines = f"{name}.jsonl"
        files[lines] = "".join(
            json_line({f"{kind}_path": row.path, "caption": row.caption}) for row in rows
        )
        config += f"""
[[datasets]]
{kind}_jsonl_file = {toml_text(str(folder / lines))}
cache_directory = {toml_text(str(folder / "cache" / name))}
{FRAMES if kind == "video" else ""}"""
    return {**files, CONFIG: config}


MUSUBI = TrainerForm(
    write=musubi_files,
    names=(*(f"{name}.jsonl" for name in FOLDERS.values()), CONFIG),
    folders=FOLDERS,
    own_media=False,
    apart=lambda path: PurePosixPath(path).stem,
    suffixes={"image": PILLOW},
)
