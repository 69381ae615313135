"""What the processor gives for a prompt without media equals what it gives with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import UsageError
from stages.models.processors.prepare import (
    Clip,
    load_processor,
    prepare,
    rebuild,
    takes_videos,
    video_metadata,
)
from stages.models.processors.side_inputs import without_pictures
from tests.support.clips import PROMPTS, clips, joint_inputs, without_pixels
from tests.support.families import BUILDERS, checkpoint, hf
from tests.support.processors import plain_call, processor_folder, render


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_prompt_is_rebuilt_from_what_was_kept(family: str, kind: str, count: int) -> None:
    processor = load_processor(checkpoint(family))
    batch, prompts = clips(kind, count), PROMPTS[:count]
    joint = joint_inputs(processor, batch, prompts)
    rows = [prepare(processor, clip) for clip in batch]

    assert_same(rebuild(processor, rows, prompts), without_pixels(joint))

    pixels = {name: value for name, value in joint.items() if name.startswith("pixel_")}
    names = {name for name in rows[0].inputs if name.startswith("pixel_")}
    assert_same({n: torch.cat([row.inputs[n] for row in rows]) for n in names}, pixels)


@pytest.mark.parametrize("family", BUILDERS)
def test_placeholders_are_counted_as_the_tokenizer_counts_them(family: str) -> None:
    processor = load_processor(checkpoint(family))
    for kind in ("image", "video"):
        row = prepare(processor, clips(kind, 1)[0])
        ids = rebuild(processor, [row], ["Describe."])["input_ids"]
        tokens = [getattr(processor, f"{k}_token_id", -1) for k in ("image", "video")]
        assert row.count.tokens == int(torch.isin(ids, torch.tensor(tokens)).sum()) > 0


def test_the_processor_is_left_as_it_was() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    before = dict(processor.__dict__)
    row = prepare(processor, clips("video", 1)[0])
    rebuild(processor, [row], ["Describe."])
    assert processor.__dict__.keys() == before.keys()


def test_frames_go_in_as_images_without_a_video_processor() -> None:
    processor = load_processor(checkpoint("llava"))
    assert not takes_videos(processor)
    row = prepare(processor, clips("video", 1, frames=3)[0])
    assert (row.channel, row.count.media) == ("images", 3)


def clip_at(times: list[float], seconds: float) -> Clip:
    frames = np.zeros((len(times), 32, 32, 3), np.uint8)
    return Clip(frames=frames, times=tuple(times), seconds=seconds, kind="video")


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([0.0, 1.0, 2.0, 3.0], 4.0),
        ([0.1, 0.4, 0.7, 1.0], 1.3),
        ([0.0, 1.001, 2.002, 3.003], 4.004),
        ([0.5, 1.7, 1.9, 29.0], 30.0),
        ([2.9999999999, 4.0, 60.0], 61.0),
        ([7.0], 8.0),
    ],
)
def test_processors_read_the_true_times(times: list[float], seconds: float) -> None:
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(**video_metadata(clip_at(times, seconds)))
    assert metadata.timestamps == pytest.approx(times, abs=1e-6)
    assert [int(t) for t in metadata.timestamps] == [int(round(t, 6)) for t in times]
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else seconds
    assert 1 / metadata.sampled_fps == pytest.approx(step, abs=1e-6)


def test_times_stand_in_the_prompt_as_they_are() -> None:
    clip = clip_at([0.0, 1.0, 60.0, 62.0], 63.0)
    smol = prepare(load_processor(checkpoint("smolvlm")), clip).replacements[0]
    assert all(text in smol for text in ("0:01:03", "00:00:", "00:01:", "01:00:", "01:02:"))
    qwen = prepare(load_processor(checkpoint("qwen3_vl")), clip).replacements[0]
    assert "<0.5 seconds>" in qwen and "<61.0 seconds>" in qwen


def test_the_step_between_frames_reaches_the_grid() -> None:
    clip = clip_at([0.0, 0.25, 0.5, 0.75], 1.0)
    side = prepare(load_processor(checkpoint("qwen2_5_vl")), clip).side
    assert side["second_per_grid_ts"] == [0.5]


@pytest.mark.parametrize("rate", [1, 1.5, 3, 6, 7, 12, 30, 30000 / 1001])
def test_the_rate_of_frames_at_even_steps_is_exact(rate: float) -> None:
    """Or a position that the time of a video gives is one less, of every third pair of frames."""
    metadata = video_metadata(clip_at([5 + index / rate for index in range(60)], 60 / rate))
    assert metadata["fps"] == pytest.approx(rate, rel=1e-8)
    assert metadata["fps"] == rate or rate != round(rate, 1)


def test_a_prompt_with_a_placeholder_of_the_model_fails() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    row = prepare(processor, clips("image", 1)[0])
    with pytest.raises(UsageError, match=r"<\|image_pad\|>"):
        rebuild(processor, [row], ["What is <|image_pad|>?"])


def test_a_checkpoint_without_a_chat_template_gets_media_then_prompt() -> None:
    processor = load_processor(checkpoint("llava"))
    processor.chat_template = processor.tokenizer.chat_template = None
    assert render(processor, "images", 2, "Describe.") == "<image><image>\nDescribe."


def test_a_folder_without_a_processor_fails(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(UsageError, match="processor"):
        load_processor(tmp_path)


def test_a_processor_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    (folder / "code.py").write_text("raise SystemExit('must not run')\n")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings |= {"processor_class": "Own", "auto_map": {"AutoProcessor": "code.Own"}}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="brings its own Python code") as caught:
        load_processor(folder)
    assert "--trust-remote-code" in caught.value.hint


def test_frames_without_their_times_fail() -> None:
    with pytest.raises(ValueError, match="2 times for 1 frames"):
        Clip(frames=np.zeros((1, 4, 4, 3), np.uint8), times=(0.0, 1.0), seconds=1.0, kind="video")


LARGE = (600, 1200)


def sizes_in(media: Any) -> list[str]:
    """Width x height of each picture, however they are nested."""
    if isinstance(media, list):
        return [size for part in media for size in sizes_in(part)]
    return [f"{media.width}x{media.height}"]


class TellsSizes(hf.Blip2Processor):  # type: ignore[misc]
    """Writes into each prompt how large its picture is."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        told = [f"{size} {prompt}" for size, prompt in zip(sizes_in(images), text, strict=True)]
        return super().__call__(images=images, text=told, **options)


@pytest.mark.parametrize("family", ["blip_2", "idefics2", "kosmos2"])
def test_a_large_picture_s_prompt_is_written_with_a_small_one(family: str) -> None:
    processor = load_processor(processor_folder(family))
    batch = clips("image", 2, height=LARGE[0], width=LARGE[1])
    rows = [prepare(processor, clip) for clip in batch]
    assert [row.side["outline"]["shape"] for row in rows] == [[1, 256, 512]] * 2
    wanted = without_pictures(plain_call(family, processor, batch, PROMPTS[:2]))
    assert_same(rebuild(processor, rows, PROMPTS[:2]), wanted)


def test_a_picture_whose_size_is_in_the_prompt_keeps_it() -> None:
    processor = processor_of_sizes()
    (clip,) = clips("image", 1, height=LARGE[0], width=LARGE[1])
    row = prepare(processor, clip)
    assert row.side["outline"]["shape"] == [1, *LARGE]
    ids = rebuild(processor, [row], PROMPTS[:1])["input_ids"][0]
    assert "1200x600" in processor.tokenizer.decode(ids)


def processor_of_sizes() -> Any:
    plain = load_processor(processor_folder("blip_2"))
    return TellsSizes(plain.image_processor, plain.tokenizer, num_query_tokens=4)
