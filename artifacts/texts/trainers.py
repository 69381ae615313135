"""Writes data sets of captioned media in the formats of five groups of trainers.

The formats share the parts of a data set that are common to all trainers. They are:

1. diffusion-pipe: a folder of images and one of videos, each with its captions, and a TOML file
   that lists them. Every file of a folder is used, and `captions.json` holds a list of captions by
   file name. Source: `DirectoryDataset` in tdrussell/diffusion-pipe `utils/dataset.py`.
2. Hugging Face `datasets`: one data set of images and one of videos, each with a card.
   `imagefolder` and `videofolder` list the suffixes. One of the two reads a data set, so images and
   videos are separate data sets. Source: `FolderBasedBuilder` in huggingface/datasets
   `src/datasets/packaged_modules`.
3. kohya's sd-scripts: image metadata, and a TOML file that names it. Latents are cached next to an
   image, by its path without suffix. Source: `FineTuningDataset` in kohya-ss/sd-scripts
   `library/train_util.py`, and its `docs/config_README-en.md`.
4. The trainers of LTX-Video and LTX-2: JSON lines of media and captions. Paths must lie below the
   folder of the JSON lines. A file that is neither PNG nor JPEG is opened as a video. Derived files
   are named by the media path without suffix. Sound is read from the video, and cut or padded to
   the length of its frames. Source: `MediaDataset` in Lightricks/LTX-2
   `packages/ltx-trainer/scripts/process_videos.py`, and the same in Lightricks/LTX-Video-Trainer.
5. musubi-tuner: JSON lines of images and of videos, and a TOML file that names them. A cache file
   is named by the media's stem only. Sound is read from the video, joined whatever its times are,
   and refused with gaps or too short. Source: kohya-ss/musubi-tuner `docs/dataset_config.md`,
   `get_latent_cache_path` in `src/musubi_tuner/dataset/image_video_dataset.py`, and `decode_audio`
   in its `audio_utils.py`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from artifacts.disk.files import json_text
from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Caption, one_line
from artifacts.texts.shards import DATASET, media_suffix
from artifacts.texts.tables import utf8
from artifacts.texts.trainer_models import TrainerModel

IMAGES, VIDEOS = "images", "videos"
"""Folders, inside that of a data set, of media of each kind."""
FOLDERS = {"image": IMAGES, "video": VIDEOS}
"""Kind of media → its folder."""
PILLOW = frozenset(
    ["avif", "bmp", "jfif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)
"""Suffixes of pictures that Pillow opens without a plugin: HEIC is not among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerEntry:
    """One image or video for a trainer, with its caption."""

    kind: str
    """`image` or `video`."""
    path: str
    """Absolute path, or relative to the folder of the data set where media must lie in it."""
    rows: tuple[Caption, ...]
    """Its caption, or the captions of the named prompts."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels; 0: not known."""
    rate: float = 0.0
    """Frames per second of a video; 0: not known."""
    frames: int = 0
    """Number of frames of a video; 0: not known."""

    @property
    def row(self) -> Caption:
        """Return the caption for a trainer that takes one: that of the first prompt."""
        return self.rows[0]

    @property
    def caption(self) -> str:
        """Return that caption on one line: some trainers read the first line alone."""
        return one_line(self.row.caption)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSetup:
    """What a configuration is set for."""

    model: TrainerModel | None = None
    """The model that is trained; None: not known, so that what depends on it is left to the user.
    """
    trigger: str = ""
    """The word that every caption begins with; empty: none."""
    clip_frames: int = 0
    """Number of frames that clips were made for; 0: they have any length."""

    def unset(self, trainer: str, what: str) -> str:
        """Return the comment that says `what` is not set, if the model is not known."""
        hint = f"penstock caption … --trainer {trainer}:MODEL sets it for a model"
        return "" if self.model else f"# Not set: {what}. {hint}\n"


Writer = Callable[[Sequence[TrainerEntry], Path, TrainerSetup], dict[str, str]]
"""A function of the entries, the folder of the data set, and what it is set for: name of a file in
the folder → its text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerForm:
    """The data set format of one trainer."""

    write: Writer
    names: tuple[str, ...]
    """All files that it may write, some as a pattern, so that one that is no longer needed can be
    removed."""
    folders: Mapping[str, str]
    """Kind of media that the trainer takes → folder of those that must lie in the data set."""
    own_media: bool
    """Whether all media must lie in the data set; else only those that another path hides."""
    apart: Callable[[PurePosixPath], str] = str
    """What of a path tells media apart for the trainer, such as the stem of what it caches."""
    several: bool = False
    """Whether it takes the captions of all prompts."""
    suffixes: Mapping[str, frozenset[str]]
    """Kind of media → suffixes that the trainer reads, where that is not any."""
    hears: bool = False
    """Whether it reads the sound of a video."""
    times: bool = False
    """Whether its files depend on the rate and the number of frames of videos."""
    keeps_rate: bool = False
    """Whether it takes the frames of a video as they come, whatever their rate."""

    def files_in(self, folder: Path) -> list[str]:
        """Return the names of those of its files that are in a folder."""
        paths = [path for name in self.names for path in sorted(folder.glob(name))]
        return [str(path.relative_to(folder)) for path in paths]

    def takes(self, kind: str, suffix: str) -> bool:
        """Return whether the trainer reads media of this kind and suffix."""
        return kind in self.folders and suffix in self.suffixes.get(kind, {suffix})

    def reads(self, kind: str, name: str) -> bool:
        """Return whether the trainer reads a file of this name, if it takes its kind at all."""
        return kind not in self.folders or self.takes(kind, media_suffix(name))


def by_kind(entries: Sequence[TrainerEntry]) -> Iterator[tuple[str, str, list[TrainerEntry]]]:
    """Yield each kind that there is, its folder, and its entries."""
    for kind, name in FOLDERS.items():
        if rows := [entry for entry in entries if entry.kind == kind]:
            yield kind, name, rows


def json_line(value: Json) -> str:
    return json_text(value) + "\n"


def toml_text(text: str) -> str:
    """Return a string as TOML has it, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


CAPTIONS, DIFFUSION_PIPE_CONFIG = "captions.json", "dataset.toml"
VIDEO_SUFFIXES = frozenset([
    "264", "265", "3g2", "3gp", "asf", "avi", "dv", "f4v", "flv", "gxf", "h264", "h265", "hevc",
    "ivf", "m1v", "m2t", "m2ts", "m2v", "m4v", "mj2", "mjpeg", "mjpg", "mk3d", "mkv", "mov",
    "mp4", "mpeg", "mpg", "mts", "mxf", "nut", "obu", "ogv", "rm", "ts", "vob", "webm", "wmv",
    "wtv", "y4m",
])  # fmt: skip
"""Suffixes of videos by imageio's `video_extensions`; the trainer takes others for pictures."""


MOST_BUCKETS = 8
"""Most lengths of clips in a data set: the trainer makes batches of one length."""


def frame_buckets(entries: Sequence[TrainerEntry], model: TrainerModel) -> list[int]:
    """Return the numbers of frames to which the trainer cuts clips for a model: those that the
    clips have at its rate. Unless they were made for it, that is one frame less, because it counts
    down and then asks for more than it reads. It appends 1, for pictures. Source:
    `_metadata_map_fn` in diffusion-pipe `utils/dataset.py`, and `round_frames` in
    `models/base.py`."""
    videos = [entry for entry in entries if entry.frames and entry.rate]
    spare = 0 if model.exact else 1
    counts = [int(entry.frames * model.fps / entry.rate) - spare for entry in videos]
    fitting = sorted({_trained(count, model) for count in counts})
    if len(fitting) > MOST_BUCKETS:  # the shortest one, which all clips have, is among them
        last = len(fitting) - 1
        fitting = [fitting[at * last // (MOST_BUCKETS - 1)] for at in range(MOST_BUCKETS)]
    return sorted({1, *fitting})


def _trained(frames: int, model: TrainerModel) -> int:
    """Return how many of the frames that a trainer has loaded it takes for a model."""
    return (min(max(frames, 1), model.frames) - 1) // model.step * model.step + 1


def diffusion_pipe_files(
    entries: Sequence[TrainerEntry], folder: Path, setup: TrainerSetup
) -> dict[str, str]:
    """Return the captions of each kind that there is, and the dataset configuration."""
    config_file, model = folder / DIFFUSION_PIPE_CONFIG, setup.model
    config = f"""\
# diffusion-pipe: dataset = {toml_text(str(config_file))} in the training configuration
{setup.unset("diffusion-pipe", "the model's resolution, and frames of clips at its rate")}\
resolutions = [{512 if model is None else model.side}]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = {[1, setup.clip_frames or 33] if model is None else frame_buckets(entries, model)}
"""
    files: dict[str, str] = {}
    for _, name, rows in by_kind(entries):
        # ASCII: the trainer opens the file in whatever encoding its machine has.
        captions = {row.name: [one_line(caption.caption) for caption in row.rows] for row in rows}
        files[f"{name}/{CAPTIONS}"] = json.dumps(captions, indent=1) + "\n"
        config += f"\n[[directory]]\npath = {toml_text(str(folder / name))}\nnum_repeats = 1\n"
    return {**files, DIFFUSION_PIPE_CONFIG: config}


DIFFUSION_PIPE = TrainerForm(
    write=diffusion_pipe_files,
    names=(*(f"{name}/{CAPTIONS}" for name in FOLDERS.values()), DIFFUSION_PIPE_CONFIG),
    folders=FOLDERS,
    own_media=True,
    several=True,
    suffixes={"image": PILLOW, "video": VIDEO_SUFFIXES},
    times=True,
)


HF_METADATA, CARD = "metadata.jsonl", "README.md"
READ = {"image": PILLOW - {"avif"}, "video": frozenset({"avi", "mkv", "mov", "mp4", "mpeg"})}
"""Suffixes that its two builders list."""
TASKS = {"image": "text-to-image", "video": "text-to-video"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's words for how many rows there are, each with the number that it ends before."""


def hf_files(entries: Sequence[TrainerEntry], folder: Path, setup: TrainerSetup) -> dict[str, str]:
    """Return metadata and card of each kind that there is."""
    files: dict[str, str] = {}
    for kind, name, rows in by_kind(entries):
        # The reader wants the same columns in every line.
        named = sorted({caption.name for row in rows for caption in row.rows if caption.name})
        lines = "".join(json_line(_line(row, named)) for row in rows)
        content = hashlib.sha256(lines.encode("utf-8", errors="replace")).hexdigest()
        files[f"{name}/{HF_METADATA}"] = lines
        files[f"{name}/{CARD}"] = _card(kind, rows, content[:16])
    return files


def _line(entry: TrainerEntry, named: Sequence[str]) -> dict[str, Json]:
    row, texts = entry.row, {caption.name: one_line(caption.caption) for caption in entry.rows}
    line: dict[str, Json] = {
        "file_name": entry.name,
        "text": utf8(entry.caption),
        "media_path": utf8(row.media_path),
        "model": _name(row.model),
        "prompt": utf8(row.prompt),
        "start": float(row.start),
        "end": float(row.end),
    }
    # A prompt may be called as one of these columns is.
    of_each = {f"caption_{name}" if name in line else name: texts.get(name, "") for name in named}
    return {**line, **{column: utf8(text) for column, text in of_each.items()}}


def _name(model: str) -> str:
    """Return what a model is called: where it lies on this machine is nobody else's matter."""
    return PurePosixPath(model).name if model.startswith("/") else model


def _card(kind: str, rows: Sequence[TrainerEntry], content: str) -> str:
    """Return the card of some rows. `datasets` keeps what it loaded by the name of the folder and
    the configuration, so that says what the rows are: else it would load those of another run."""
    size = next((word for below, word in SIZES if len(rows) < below), "n>1M")
    models = "\n".join(f"- `{model}`" for model in sorted({_name(row.row.model) for row in rows}))
    return f"""\
---
task_categories:
- {TASKS[kind]}
modalities:
- {kind}
- text
size_categories:
- {size}
configs:
- config_name: default
  description: rows {content}
  data_files:
  - split: train
    path: "*"
---

# Captioned {FOLDERS[kind]}

{len(rows):,} {FOLDERS[kind] if len(rows) > 1 else kind}, each with a caption in `text`, written by:

{models}

A row is about the part from `start` to `end` (seconds) of the file `media_path`. Its `prompt` is
the question that `text` answers.

    datasets.load_dataset("FOLDER")     # this folder, from outside it
    datasets.load_dataset("USER/NAME")  # once it is on the hub
"""


HF = TrainerForm(
    write=hf_files,
    names=tuple(f"{name}/{file}" for name in FOLDERS.values() for file in (HF_METADATA, CARD)),
    folders=FOLDERS,
    own_media=True,
    several=True,
    suffixes=READ,
)


KOHYA_METADATA, KOHYA_CONFIG = "metadata.json", "dataset.toml"


def kohya_files(
    entries: Sequence[TrainerEntry], folder: Path, setup: TrainerSetup
) -> dict[str, str]:
    """Return the metadata, a picture a line, and the dataset configuration. The largest side of a
    bucket is 1024 unless it is set, which would take wide pictures smaller than the resolution.
    Source: `BucketManager` in sd-scripts `library/train_util.py`."""
    side = 1024 if setup.model is None else setup.model.side
    parts = setup.trigger.count(",") + 1
    fixed = (
        f"  keep_tokens = {parts}  # the trigger stays first if you add shuffle_caption = true\n"
    )
    pairs = (
        f"{json_line(e.path).rstrip()}: {json_line({'caption': e.caption}).rstrip()}"
        for e in entries
    )
    config = f"""\
# sd-scripts: --dataset_config {KOHYA_CONFIG}
{setup.unset("kohya", "the model's resolution, 512 for Stable Diffusion 1.5")}\
[[datasets]]
resolution = {side}  # --resolution does not override this
enable_bucket = true
max_bucket_reso = {2 * side}  # without it, wide pictures would be trained smaller

  [[datasets.subsets]]
  metadata_file = {toml_text(str(folder / KOHYA_METADATA))}
  num_repeats = 1
{fixed if setup.trigger else ""}"""
    return {KOHYA_METADATA: "{\n" + ",\n".join(pairs) + "\n}\n", KOHYA_CONFIG: config}


KOHYA = TrainerForm(
    write=kohya_files,
    names=(KOHYA_METADATA, KOHYA_CONFIG),
    folders={"image": IMAGES},
    own_media=False,
    apart=lambda path: str(path.with_suffix("")),
    suffixes={"image": PILLOW},
)


LINES = "dataset.jsonl"


def ltx_files(entries: Sequence[TrainerEntry], folder: Path, setup: TrainerSetup) -> dict[str, str]:
    """Return the lines, which may mix pictures and videos."""
    rows = ({"caption": entry.caption, "media_path": entry.path} for entry in entries)
    return {LINES: "".join(map(json_line, rows))}


LTX = TrainerForm(
    write=ltx_files,
    names=(LINES,),
    folders=FOLDERS,
    own_media=True,
    suffixes={"image": frozenset({"png", "jpg", "jpeg"})},
    hears=True,
    times=True,
    keeps_rate=True,
)


MUSUBI_CONFIG = "dataset.toml"
FRAMES = 'target_frames = [1, 25, 45]\nframe_extraction = "head"\n'
"""What the sample of its documentation takes of each video."""
MUSUBI_RATE = 24
"""Frames per second to which it brings the videos of most models."""


RATES = (23.976, 24.0, 25.0, 29.97, 30.0, 48.0, 50.0, 59.94, 60.0)
"""Usual frames per second."""


def listed_rate(rate: float) -> float:
    """Return the rate with which a video is listed: a usual one, or else a whole number, so that
    videos of varying rates are not a data set each."""
    usual = min(RATES, key=lambda frames: abs(frames - rate))
    if abs(usual - rate) < 0.002 * usual:
        return usual
    return max(1.0, float(round(rate))) if rate else 0.0


def rate_text(rate: float) -> str:
    """Return a rate with at most three digits behind the point: 23.976, 30."""
    return f"{rate:.3f}".rstrip("0").rstrip(".")


def musubi_files(
    entries: Sequence[TrainerEntry], folder: Path, setup: TrainerSetup
) -> dict[str, str]:
    """Return the lines of each kind that there is, and the dataset configuration. Videos of
    different rates are different data sets: the trainer takes one `source_fps` for each, and frames
    as they come without it."""
    model = setup.model
    sides = "960, 544" if model is None or model.frames else f"{model.side}, {model.side}"
    config = f"""\
# musubi-tuner: --dataset_config {MUSUBI_CONFIG}
{setup.unset("musubi", "the model's resolution, and frames of clips at its rate")}\
[general]
resolution = [{sides}]
batch_size = 1
enable_bucket = true
"""
    files: dict[str, str] = {}
    for kind, folder_name, of_kind in by_kind(entries):
        for rate in sorted({listed_rate(row.rate) for row in of_kind}):
            rows = [row for row in of_kind if listed_rate(row.rate) == rate]
            name = f"{folder_name}-{rate_text(rate)}fps" if rate else folder_name
            files[f"{name}.jsonl"] = "".join(
                json_line({f"{kind}_path": row.path, "caption": row.caption}) for row in rows
            )
            config += f"""
[[datasets]]
{kind}_jsonl_file = {toml_text(str(folder / f"{name}.jsonl"))}
cache_directory = {toml_text(str(folder / "cache" / name))}
{_musubi_frames(rate, setup) if kind == "video" else ""}"""
    return {**files, MUSUBI_CONFIG: config}


def _musubi_frames(rate: float, setup: TrainerSetup) -> str:
    """Return the settings of the frames of videos of this rate; 0: not known. The trainer leaves
    out frames of a video that is faster than its model, by `source_fps`. Of a slower one it takes
    each frame once, and with `source_fps` it would miscount them. Source: `load_video` in
    `src/musubi_tuner/dataset/media_utils.py`."""
    model = setup.model
    is_faster = rate >= (MUSUBI_RATE if model is None else model.fps)
    source = f"source_fps = {float(rate_text(rate))}\n" if rate and is_faster else ""
    full_extraction = (
        "" if model is None else f'frame_extraction = "full"\nmax_frames = {model.frames}\n'
    )
    clips = f'target_frames = [{setup.clip_frames}]\nframe_extraction = "head"\n'
    return source + (full_extraction or (clips if setup.clip_frames else FRAMES))


MUSUBI = TrainerForm(
    write=musubi_files,
    names=(*(f"{name}.jsonl" for name in FOLDERS.values()), f"{VIDEOS}-*fps.jsonl", MUSUBI_CONFIG),
    folders=FOLDERS,
    own_media=False,
    apart=lambda path: PurePosixPath(path).stem,
    suffixes={"image": PILLOW},
    hears=True,
    times=True,
)


def taken_frames(
    form: str, entries: Sequence[TrainerEntry], model: TrainerModel
) -> list[tuple[TrainerEntry, int, float]]:
    """Return, of each video whose frames and rate are known, how many frames its trainer takes if
    the data set is set for a model, and at how many per second: from its start, as many as it has
    up to the model's. Less than two frames are a picture, or nothing."""
    videos = [entry for entry in entries if entry.frames and entry.rate]
    if form == "musubi":
        rates = [min(model.fps, entry.rate) for entry in videos]
        return [(e, musubi_takes(e, model), r) for e, r in zip(videos, rates, strict=True)]
    if form == "ltx":
        counts, sizes = [entry.frames for entry in videos], ltx_frames(entries, model)
        rates = [entry.rate for entry in videos]
    else:
        counts = [int(entry.frames * model.fps / entry.rate) for entry in videos]
        sizes, rates = frame_buckets(entries, model), [model.fps] * len(videos)
    taken = [max((size for size in sizes if size <= count), default=0) for count in counts]
    return list(zip(videos, taken, rates, strict=True))


def musubi_takes(entry: TrainerEntry, model: TrainerModel) -> int:
    """Return how many frames of a video musubi-tuner takes for a model. It leaves out frames of one
    that is faster than the model, and by how it adds up it may have one less, but not of clips that
    were made for it."""
    faster = entry.rate > model.fps
    fewer = int((entry.frames - 1) * model.fps / entry.rate) + model.exact
    loaded = fewer if faster else entry.frames
    return _trained(loaded, model)


LTX_AREA, LTX_STEP = 768 * 512, 32
"""Pixels of a frame in a bucket, and what its sides are multiples of."""


def ltx_buckets(
    entries: Sequence[TrainerEntry], model: TrainerModel
) -> tuple[tuple[int, int, int], ...]:
    """Return width, height and frames of the buckets that fit a data set: the shape in the middle
    of its media. Of two shapes the trainer would prefer the nearer one to more frames. Source:
    `_select_bucket` in ltx-trainer `scripts/process_videos.py`."""
    shapes = sorted(entry.size[0] / entry.size[1] for entry in entries if all(entry.size))
    shape = shapes[len(shapes) // 2] if shapes else 1.5
    height = max(1, round((LTX_AREA / shape) ** 0.5 / LTX_STEP)) * LTX_STEP
    width = max(1, round(height * shape / LTX_STEP)) * LTX_STEP
    return tuple((width, height, count) for count in ltx_frames(entries, model))


def ltx_option(entries: Sequence[TrainerEntry], model: TrainerModel) -> str:
    """Return these buckets as `--resolution-buckets` takes them: `parse_resolution_buckets` in the
    same file."""
    return ";".join("x".join(map(str, bucket)) for bucket in ltx_buckets(entries, model))


def ltx_frames(entries: Sequence[TrainerEntry], model: TrainerModel) -> list[int]:
    """Return the numbers of frames of these buckets: of the shortest video that has as many as one
    needs, of the middle one and of the longest one, and 1 for pictures."""
    videos = sorted(_trained(entry.frames, model) for entry in entries if entry.frames)
    counts = [count for count in videos if count > 1]
    chosen = {counts[0], counts[len(counts) // 2], counts[-1]} if counts else set[int]()
    has_pictures = any(entry.kind == "image" for entry in entries) or not counts
    return sorted(chosen | {1} if has_pictures else chosen)


TRAINERS: dict[str, TrainerForm] = {
    "kohya": KOHYA,
    "musubi": MUSUBI,
    "diffusion-pipe": DIFFUSION_PIPE,
    "ltx": LTX,
    "hf": HF,
}
WITH_CLIPS = frozenset(
    {DATASET, *(name for name, form in TRAINERS.items() if "video" in form.folders)}
)
"""Formats of data sets that may hold clips of videos."""
WITH_SOUND = frozenset(name for name, form in TRAINERS.items() if form.hears)
"""Formats of trainers that read the sound of clips."""
