"""Reads the data sets of trainers by the rules of the trainers' own readers, which are named, and
asserts what those would refuse or silently do wrong. Each returns path → caption."""

import io
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence, Set
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

IMAGES = "bmp jfif jpeg jpg pgm png ppm tif tiff webp"
"""Of the suffixes that `imagefolder` lists those that can be captioned."""
IMAGEIO = frozenset([
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".gxf", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg",
    ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu",
    ".ogv", ".rm", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m", ".j2k", ".mpo",
])  # fmt: skip
"""Of our suffixes those in `video_extensions` of imageio 2.38.1, by which diffusion-pipe tells
videos from pictures."""


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def kohya(out: Path) -> dict[str, str]:
    """`FineTuningDataset.__init__` in kohya-ss/sd-scripts library/train_util.py, and the schema in
    its config_util.py."""
    config = _toml(out / "kohya" / "dataset.toml")
    (dataset,) = config["datasets"]
    known = {"enable_bucket", "resolution", "batch_size", "max_bucket_reso"}
    assert set(dataset) <= {*known, "subsets"}
    assert dataset["resolution"], "without it, sd-scripts needs --resolution"
    (subset,) = dataset["subsets"]
    assert set(subset) - {"keep_tokens"} == {"metadata_file", "num_repeats"}
    with open(subset["metadata_file"], encoding="utf-8") as file:
        metadata = json.load(file)
    cached = [str(Path(path).with_suffix("")) for path in metadata]
    assert len(set(cached)) == len(cached)
    for path in metadata:
        assert Path(path).is_absolute() and Path(path).is_file()
    return {path: message["caption"] for path, message in metadata.items()}


def musubi(out: Path) -> dict[str, str]:
    """`ImageJsonlDatasource`, `VideoJsonlDatasource` and `get_latent_cache_path` in
    kohya-ss/musubi-tuner src/musubi_tuner/dataset; docs/dataset_config.md."""
    config = _toml(out / "musubi" / "dataset.toml")
    assert set(config["general"]) <= {"resolution", "batch_size", "enable_bucket"}
    found: dict[str, str] = {}
    caches = [dataset["cache_directory"] for dataset in config["datasets"]]
    assert len(set(caches)) == len(caches)
    for dataset in config["datasets"]:
        kind = "video" if "video_jsonl_file" in dataset else "image"
        rows = []
        with open(dataset[f"{kind}_jsonl_file"], encoding="utf-8") as file:
            for line in file:
                data = json.loads(line)
                rows.append((data[f"{kind}_path"], data["caption"]))
        stems = [Path(path).stem for path, _ in rows]
        assert len(set(stems)) == len(stems)
        assert all(Path(path).is_absolute() and Path(path).is_file() for path, _ in rows)
        found |= dict(rows)
    return found


def diffusion_pipe(out: Path) -> dict[str, str]:
    """`DirectoryDataset._get_ungrouped_metadata` in tdrussell/diffusion-pipe utils/dataset.py."""
    skipped = (".txt", ".npz", ".json", ".parquet", ".bak", ".db")
    config = _toml(out / "diffusion-pipe" / "dataset.toml")
    assert config["resolutions"] and 1 in config["frame_buckets"]
    found: dict[str, str] = {}
    for directory in config["directory"]:
        path = Path(directory["path"])
        with open(path / "captions.json", encoding="ascii") as file:
            record = json.load(file)
        media = [f for f in sorted(path.glob("*")) if f.is_file() and f.suffix not in skipped]
        assert len({each.stem for each in media}) == len(media) == len(record)
        for each in media:
            captions = record[each.name]
            assert isinstance(captions, list)
            found[str(each)] = captions[0]
    return found


def ltx(out: Path) -> dict[str, str]:
    """`MediaDataset` and `CaptionsDataset` in Lightricks/LTX-2 packages/ltx-trainer/scripts; the
    paths of what it makes are relative to the folder of the lines."""
    root = out / "ltx"
    found: dict[str, str] = {}
    made = set()
    for line in (root / "dataset.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        path = root / Path(entry["media_path"].strip())
        assert path.is_file() and ".." not in path.relative_to(root).parts
        made.add(Path(entry["media_path"]).with_suffix(".pt"))
        found[str(path)] = entry["caption"]
    assert len(made) == len(found)
    return found


def hf(out: Path) -> dict[str, str]:
    """`FolderBasedBuilder` in huggingface/datasets src/datasets/packaged_modules; the card is read
    by huggingface_hub."""
    from huggingface_hub import DatasetCard

    suffixes = {
        "images": {f".{suffix}" for suffix in IMAGES.split()},
        "videos": {".mkv", ".mp4", ".avi", ".mpeg", ".mov"},
    }
    found: dict[str, str] = {}
    for folder in sorted((out / "hf").iterdir()):
        if folder.name.startswith("."):
            continue
        card = DatasetCard.load(folder / "README.md").data.to_dict()
        assert card["configs"][0]["data_files"] == [{"split": "train", "path": "*"}]
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_bytes().splitlines()]
        assert len({tuple((k, type(v)) for k, v in row.items()) for row in rows}) == 1
        there = {f.name for f in folder.iterdir() if f.suffix in suffixes[folder.name]}
        assert there == {row["file_name"] for row in rows} and len(there) == len(rows)
        found |= {str(folder / row["file_name"]): row["text"] for row in rows}
    return found


READERS = {
    "kohya": kohya,
    "musubi": musubi,
    "diffusion-pipe": diffusion_pipe,
    "ltx": ltx,
    "hf": hf,
}


Shown = list[NDArray[Any]]
"""Frames in RGB, or one picture."""
SRGB, UNNAMED_SPACE = 1, 0xA001
"""The value of sRGB, and the number of the Exif tag that has it."""


def _in_rgb(image: Image.Image) -> Shown:
    return [np.asarray(image.convert("RGB"))]


def _frames_in(path: Path) -> Shown:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def plainly_shown(path: Path, kind: str) -> Shown:
    """`load_image` in sd-scripts 48d368f library/train_util.py; `get_image_data` and `load_video`
    in musubi-tuner 30c658c src/musubi_tuner/dataset. Nothing is turned or put on white."""
    if kind == "video":
        return _frames_in(path)
    with Image.open(path) as image:
        return _in_rgb(image)


def shown_by_diffusion_pipe(path: Path, _: str) -> Shown:
    """`PreprocessMediaFile` and `convert_crop_and_resize` in diffusion-pipe 8f83dbf models/base.py,
    and `_metadata_map_fn` in its utils/dataset.py; the suffix tells the kind."""
    if path.suffix in IMAGEIO:
        return _frames_in(path)
    with Image.open(path) as image:
        assert path.suffix != ".webp" or getattr(image, "n_frames", 1) == 1, "WebP videos"
        if image.mode not in ("RGB", "RGBA") and "transparency" in image.info:
            image = image.convert("RGBA")  # type: ignore[assignment]
        if image.mode != "RGBA":
            return _in_rgb(image)
        white = Image.new("RGBA", image.size, (255, 255, 255))
        white.alpha_composite(image)
        return _in_rgb(white)


def shown_by_ltx(path: Path, _: str) -> Shown:
    """`MediaDataset`, `open_image_as_srgb` and `read_video` in LTX-2 400fd31 packages/ltx-trainer;
    the suffix tells the kind."""
    if path.suffix.lower() not in STILLS:
        return _frames_in(path)
    with Image.open(path) as raw:
        image = ImageOps.exif_transpose(raw)
    profile = image.info.get("icc_profile")
    if profile is None:
        space = image.getexif().get(UNNAMED_SPACE)
        assert space in (None, SRGB), f"its Exif names colour space {space}"
        return _in_rgb(image)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    made = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert made is not None
    return _in_rgb(made)


def shown_by_hf(path: Path, kind: str) -> Shown:
    """`Image.decode_example` in datasets 5.2 features/image.py; the builder tells the kind."""
    if kind == "video":
        return _frames_in(path)
    with Image.open(path) as image:
        return _in_rgb(ImageOps.exif_transpose(image))


SHOWN: dict[str, Callable[[Path, str], Shown]] = {
    "kohya": plainly_shown,
    "musubi": plainly_shown,
    "diffusion-pipe": shown_by_diffusion_pipe,
    "ltx": shown_by_ltx,
    "hf": shown_by_hf,
    "webdataset": plainly_shown,
}
"""Format → what its reader shows of a file that the data set has as this kind of medium."""
STILLS = frozenset((".png", ".jpg", ".jpeg"))
"""Suffixes that LTX reads as pictures."""
BUCKETS = {"diffusion-pipe": (1, 33, 65, 81), "ltx": (25, 49, 97)}
"""Numbers of frames that a trainer cuts its clips to."""
RATE = 16
"""Frames a second that diffusion-pipe makes of videos, for Wan."""


def _frames(path: Path) -> tuple[int, int, Fraction]:
    """The frames that the header of a video counts, those that PyAV decodes, and their rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.base_rate or 24)
        return stream.frames, sum(1 for _ in container.decode(video=0)), rate


def _video_suffixes() -> Set[str]:
    try:
        extensions: Any = import_module("imageio.config.extensions")
    except ModuleNotFoundError:
        return IMAGEIO
    return {each.extension for each in extensions.video_extensions}


def diffusion_pipe_frames(path: Path) -> str:
    """What `_metadata_map_fn` and `PreprocessMediaFile` of diffusion-pipe 8f83dbf, by `get_frame_
    count` of ComfyUI 04dfab9, do wrong about a video; empty if nothing."""
    if path.suffix not in _video_suffixes():
        return "taken for a picture"
    header, shown, rate = _frames(path)
    counted = shown if path.suffix.lower() == ".mkv" else max(1, header)
    buckets = BUCKETS["diffusion-pipe"]

    def bucket(frames: int) -> int:
        return max((each for each in buckets if each <= frames), default=0)

    taken, fitting = (bucket(int(each * RATE / rate)) for each in (counted, shown))
    if taken > int(shown * RATE / rate):
        return f"asked for {taken} frames, shows {shown}"
    return f"{counted} frames counted, shows {shown}" if taken < fitting else ""


def ltx_frames(path: Path) -> str:
    """What `MediaDataset` of LTX-2 400fd31 does wrong about a video, with one bucket at a time;
    empty if nothing."""
    if path.suffix.lower() in STILLS:
        return ""
    header, shown, rate = _frames(path)
    if header <= 0:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            seconds = (stream.duration or 0) * Fraction(stream.time_base or 0)
        header = round(seconds * rate) or shown
    for bucket in BUCKETS["ltx"]:
        if header >= bucket > shown:
            return f"asked for {bucket} frames, shows {shown}"
        if header < bucket <= shown:
            return f"dropped by its header of {header} frames, shows {shown}"
    return ""


RULES: dict[str, Callable[[Path], str]] = {
    "diffusion-pipe": diffusion_pipe_frames,
    "ltx": ltx_frames,
}
"""Trainer → what it does wrong about the number of frames of a video."""


SOUND_RATE = 48_000
"""Samples a second at which the sound of clips is read: the more, the stricter is musubi's rule."""


def musubi_sound(path: Path, channels: int = 2) -> NDArray[np.float32]:
    """`decode_audio` and `assemble_audio_chunks` in musubi-tuner 6d4208d src/musubi_tuner/dataset/
    audio_utils.py: samples of shape (channels, samples), joined from the first one on, whenever
    that is; it refuses gaps and overlaps of more than two."""
    layout = {1: "mono", 2: "stereo"}[channels]
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=SOUND_RATE)
    parts: list[NDArray[np.float32]] = []
    expected: int | None = None
    with av.open(str(path)) as container:
        decoded = [*container.decode(audio=0), None]
        for frame in (made for each in decoded for made in resampler.resample(each)):
            assert frame.pts is not None and frame.time_base is not None
            begin = round(frame.pts * frame.time_base * SOUND_RATE)
            assert expected is None or abs(begin - expected) <= 2, f"{begin}, not {expected}"
            parts.append(frame.to_ndarray().astype(np.float32))
            expected = begin + frame.samples
    assert parts, "no sound"
    return np.concatenate(parts, axis=1)


def musubi_lacks(sound: NDArray[np.float32], seconds: float) -> bool:
    """Whether `slice_audio_window` in the same file refuses a clip: its sound ends more than 800
    samples before its frames."""
    return bool(round(seconds * SOUND_RATE) - sound.shape[1] > 800)


def kohya_bucket(width: int, height: int, dataset: Mapping[str, Any]) -> tuple[int, int]:
    """The size at which a picture is trained: `make_bucket_resolutions` in sd-scripts 48d368f
    library/model_util.py, and `BucketManager.select_bucket` in its library/train_util.py, with the
    defaults of its config_util.py. It need not be enlarged less."""
    side, most, step = dataset["resolution"], dataset.get("max_bucket_reso", 1024), 64
    square = side // step * step
    sizes = {(square, square)}
    for wide in range(256, most + 1, step):
        high = min(most, side * side // wide // step * step)
        sizes |= {(wide, high), (high, wide)} if high >= 256 else set()
    return min(sorted(sizes), key=lambda size: abs(size[0] / size[1] - width / height))


def musubi_picks(frames: int, source: float | None, target: float) -> list[int]:
    """The numbers of the frames that are taken of a video: `load_video` in musubi-tuner 30c658c
    src/musubi_tuner/dataset/media_utils.py, without an end."""
    if source is None:
        return [*range(frames)]
    taken: list[int] = []
    last, place = -1, 0.0
    for number in range(frames):
        at, place = int(place), place + target / source
        if at != last:
            taken.append(number)
            last = at
    return taken


def musubi_full(frames: int, dataset: Mapping[str, Any], target: float, step: int = 4) -> list[int]:
    """Those of `frame_extraction = "full"`: `retrieve` in its image_video_dataset.py. FramePack has
    steps of 36: its fpack_cache_latents.py."""
    picks = musubi_picks(frames, dataset.get("source_fps"), target)
    return picks[: (min(len(picks), dataset["max_frames"]) - 1) // step * step + 1]


def diffusion_pipe_takes(frames: int, rate: float, target: float, buckets: Sequence[int]) -> int:
    """The number of frames that a video is trained with, 0 if it is left out: `_metadata_map_fn`
    in diffusion-pipe 8f83dbf utils/dataset.py."""
    count = int(frames * target / rate)
    bucket = max((size for size in buckets if size <= count), default=0)
    return 0 if bucket == 1 and count > 1 else bucket
