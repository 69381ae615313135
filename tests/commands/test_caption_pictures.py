"""From picture files to captions: what is said, and what a processor is given, is what the stock
processor and `generate` make of the file itself; pictures are stored whole, and planned for
so."""

import functools
import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import flows.core.plan.store_limit
from artifacts.frame_fit import MAX_PIXELS, FrameFit, stored_size
from artifacts.records.keys import content_key, hash_file
from artifacts.records.packs import RecordSet
from artifacts.records.store import FolderStore
from flows.core.job.prepare import Job, prepare
from flows.core.ledger.tasks import Medium
from flows.core.ledger.waves import cut_waves, waves_of
from flows.core.plan.sizes import Estimate, estimates
from flows.core.plan.workloads import COPIES, ChunkFrames, workload_of, workloads_of
from stages.frames import run as frames_stage
from stages.models.encoding import EncodeItem
from stages.models.encoding.run import read_clip
from stages.models.halves.generate import new_tokens
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import to_images
from stages.process.events import EventReporter
from tests.support.by_hand import PROFILE, model
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.clips import joint_model
from tests.support.families import BUILDERS, checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import picture, write_video
from tests.support.pipeline import Place
from tests.support.processors import plain_call

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

hf: Any = transformers
SIZES = {
    "1x1": (640, 640),
    "4x3": (768, 1024),
    "3x4": (1024, 768),
    "3x2": (800, 1200),
    "2x3": (1200, 800),
    "16x9": (720, 1280),
    "9x16": (1280, 720),
    "9x19.5": (1170, 540),
    "2x1": (600, 1200),
    "1x2": (1200, 600),
    "1x3": (1200, 400),
    "panorama": (400, 1600),
}
"""Width x height → height and width in pixels."""
MORE = ("blip_2", "florence2", "gemma3", "glm4v", "internvl", "llava_next", "paligemma")
"""Families that are run, beside those of `BUILDERS`."""
PROCESSORS: dict[str, Any] = {
    "blip": hf.BlipImageProcessor,
    "clip": functools.partial(
        hf.CLIPImageProcessor, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "gemma3": hf.Gemma3ImageProcessor,
    "glm4v": hf.Glm4vImageProcessor,
    "idefics2": hf.Idefics2ImageProcessor,
    "idefics3": hf.Idefics3ImageProcessor,
    "internvl": functools.partial(
        hf.GotOcr2ImageProcessor,
        size={"height": 448, "width": 448},
        crop_to_patches=True,
        max_patches=6,
    ),
    "llama4": hf.Llama4ImageProcessor,
    "llava_next": hf.LlavaNextImageProcessor,
    "mllama": hf.MllamaImageProcessor,
    "pix2struct": hf.Pix2StructImageProcessor,
    "pixtral": hf.PixtralImageProcessor,
    "qwen2_vl": functools.partial(
        hf.Qwen2VLImageProcessor, size={"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    ),
    "siglip": functools.partial(hf.SiglipImageProcessor, size={"height": 384, "width": 384}),
}
"""Image processors with the sizes of real checkpoints."""
TOKENS = 8
SEEN = [[0.3, 672], [1.0, 336], [3.0, 672]]
"""About what a CLIP of 336 pixels sees."""


def photo(seed: int, height: int, width: int) -> Image.Image:
    """Large shapes in colours of their own, small ones, and noise."""
    rng = np.random.default_rng(seed)
    found = np.full((height, width, 3), rng.integers(0, 100, 3).astype(float))
    for scale, strength in ((160, 120), (12, 40), (1, 20)):
        shape = (height // scale + 1, width // scale + 1, 3)
        coarse = Image.fromarray(255 * rng.integers(0, 2, shape, dtype=np.uint8))
        enlarged = coarse.resize((width, height), Image.Resampling.NEAREST)
        found += np.asarray(enlarged, float) * strength / 255
    return Image.fromarray(found.clip(0, 255).astype(np.uint8))


@functools.cache
def drawn(name: str) -> Image.Image:
    return photo([*SIZES].index(name), *SIZES[name])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each proportion, as JPEG and as PNG in turns."""
    folder = tmp_path_factory.mktemp("mixed")
    for at, name in enumerate(SIZES):
        drawn(name).save(folder / f"{name}.{('jpg', 'png')[at % 2]}", quality=92)
    return folder


@pytest.fixture(scope="module", params=["png", "jpg"])
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A picture of each proportion and a large one, all with one suffix."""
    folder = tmp_path_factory.mktemp("every")
    paths: list[Path] = []
    for name in (*SIZES, "photo"):
        image = drawn(name) if name in SIZES else photo(99, 3024, 4032)
        paths.append(folder / f"{name}.{request.param}")
        image.save(paths[-1], quality=92)
    return paths


def opened(path: Path) -> Image.Image:
    """As the documentation of every model opens a picture."""
    with Image.open(path) as image:
        return image.convert("RGB")


def folder_of(family: str) -> Path:
    return whole_checkpoint(family) if family in MODELS else checkpoint(family)


def stock_says(family: str, path: Path, prompt: str) -> str:
    """The stock processor of the file, and the whole model's own `generate`."""
    processor = hf.AutoProcessor.from_pretrained(folder_of(family))
    if family in MODELS:
        pixels = np.array(opened(path))[None]
        clip = Clip(frames=pixels, times=(0.0,), seconds=0.0, kind="image")
        inputs = plain_call(family, processor, [clip], [prompt])
    else:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        bos = processor.tokenizer.bos_token
        options = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        inputs = processor(text=[text], images=[[opened(path)]], return_tensors="pt", **options)
    model = joint_model(folder_of(family))
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    new = tokens if model.config.is_encoder_decoder else new_tokens(tokens, inputs["input_ids"])
    (text,) = processor.batch_decode(new, skip_special_tokens=True)
    return str(text).strip()


@pytest.mark.slow
@pytest.mark.parametrize("family", [*BUILDERS, *MORE])
def test_of_picture_files_stock_s_words_are_said(family: str, mixed: Path, tmp_path: Path) -> None:
    model, out, store = str(folder_of(family)), tmp_path / "out", tmp_path / "store"
    place = Place(clips=mixed, out=out, store=store, model=model)
    done = run_inside(place, max_new_tokens=TOKENS)
    assert not done.result.failures
    rows = place.captions()
    assert len(rows) == len(SIZES)
    for row in rows:
        said = stock_says(family, place.clips / row["media_path"], row["prompt"])
        assert row["caption"] == said, row["media_path"]
    assert len({row["caption"] for row in rows}) > 1, "or it speaks of nothing that it sees"


def stored_clips(paths: list[Path], store: Path) -> dict[Path, Clip]:
    """What the encode stage reads of pictures that the frames stage has stored."""
    media = [[str(path), content_key(hash_file(path), "image"), "image"] for path in paths]
    sampling, fit = {"chunk_seconds": 30.0, "fps": 1, "max_frames": 32}, {"long_edges": SEEN}
    job: dict[str, Any] = {"store": str(store), "namespace": "5c" * 32, "media": media}
    job |= {"sampling": sampling, "fit_video": fit, "fit_image": fit, "workers": 1}
    descriptor = os.memfd_create("events")
    with closing(os.fdopen(descriptor, "rb")) as events:
        frames_stage.run(json.loads(json.dumps(job)), EventReporter(descriptor))
        events.seek(0)
        values = [json.loads(line) for line in events]
    keys = {event["label"]: event["keys"][0] for event in values if event["event"] == "Answered"}
    record_set = RecordSet(FolderStore(store), "frames", "5c" * 32)
    members = {path: EncodeItem("", keys[path.name], "image") for path in paths}
    return {path: read_clip(record_set, member) for path, member in members.items()}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[n], expected[n]) for n in found)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def check_pixels(name: str, paths: list[Path], store: Path) -> None:
    processor = PROCESSORS[name]()
    for path, clip in stored_clips(paths, store).items():
        given = dict(processor(images=to_images(clip.frames), return_tensors="pt"))
        expected = dict(processor(images=[opened(path)], return_tensors="pt"))
        assert same(given, expected), path.name


@pytest.mark.parametrize("name", ["mllama", "qwen2_vl"])
def test_a_processor_is_given_what_it_makes_of_the_file(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / "2x3.jpg", tmp_path / "16x9.png"]
    for path in paths:
        drawn(path.stem).save(path, quality=92)
    check_pixels(name, paths, tmp_path / "store")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_given_what_it_makes_of_every_file(
    name: str, every: list[Path], tmp_path: Path
) -> None:
    check_pixels(name, every, tmp_path / "store")


LARGE, SMALL, VIDEO = "large.png", "small.png", "video.mp4"
SHOWN = (480, 640)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A picture larger than it is seen, one that is not, and a video of one chunk."""
    clips = tmp_path / "clips"
    clips.mkdir()
    Image.fromarray(picture(3, *SHOWN)).save(clips / LARGE)
    Image.fromarray(picture(4, 24, 32)).save(clips / SMALL)
    write_video(clips / VIDEO)
    model = str(checkpoint("llava"))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store", model=model)


def job_of(place: Place, **options: Any) -> Job:
    return prepare(place.config(max_new_tokens=4, **options), InsideLauncher())


@pytest.mark.parametrize(
    ("shown", "stored"),
    [((3000, 4000), (3000, 4000)), ((8192, 16384), (8192, 16384)), ((8193, 16385), (4097, 8193))],
)
def test_a_picture_is_stored_whole_as_long_as_it_can_be(
    shown: tuple[int, int], stored: tuple[int, int]
) -> None:
    assert stored_size(*shown) == stored
    assert (shown[0] * shown[1] <= MAX_PIXELS) == (shown == stored)


@pytest.mark.slow
def test_disk_and_waves_are_planned_for_whole_pictures(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.fromarray(picture(number, *SHOWN)).save(place.clips / f"more-{number}.jpg")
    job = job_of(place)
    found = dict(zip((Path(m.path).name for m in job.media), estimates(job), strict=True))
    whole = 3 * SHOWN[0] * SHOWN[1]
    whole = 3 * SHOWN[0] * SHOWN[1]
    limit = 2 * whole + whole // 2
    assert (found[LARGE].stored, found[LARGE].frame_bytes) == (SHOWN, whole)
    monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", limit)
    sizes = [e.bytes for e in found.values()]
    cut = waves_of(job.ledger, job.media, cut_waves(sizes, limit), as_recorded=True)
    assert max(sum(m.kind == "image" and SMALL not in m.path for m in wave) for wave in cut) == 2
    monkeypatch.undo()
    run_inside(place, max_new_tokens=TOKENS)
    again = estimates(job_of(place, prompt="Who is it?"))
    pictures = [e for m, e in zip(job.media, again, strict=True) if m.kind == "image"]
    assert len(pictures) == 5 and all(e.frame_bytes == 0 for e in pictures)


def test_memory_is_planned_for_the_picture_that_is_read_and_tokens_for_what_is_seen() -> None:
    def workload(height: int, width: int) -> Any:
        frames = ChunkFrames(1, (height, width), (height, width))
        return workload_of(model(), "image", 9, frames, "x")

    seen, huge = workload(336, 336), workload(8700, 11600)
    assert (huge.tokens, huge.units) == (seen.tokens, seen.units)
    assert huge.reading_bytes(8) == COPIES * 3 * 8700 * 11600
    assert "11600x8700" in huge.line()
    assert model().profile == PROFILE


def test_the_largest_pictures_and_those_of_most_tokens_are_both_planned_for() -> None:
    fit = FrameFit(long_edges=((0.1, 100), (0.5, 100), (0.51, 1000), (1.0, 1000)))
    request = model(replace(PROFILE, fit_image=fit))

    def one(height: int, width: int) -> Any:
        of: dict[str, Any] = {"frame_bytes": 3 * height * width, "feature_bytes": 0}
        of |= dict.fromkeys(("stored", "shown"), (height, width))
        of |= dict.fromkeys(("chunks", "frames", "chunk_frames"), 1)
        return Estimate(seconds=0.0, **of)

    media = [Medium(digest=str(n), path="", kind="image", prompt="x") for n in range(2)]
    workloads = workloads_of(request, media, [one(600, 600), one(1000, 4000)])
    assert {each.stored for each in workloads} == {(600, 600), (1000, 4000)}
