"""What a processor gives for a prompt without media equals what it gives with them, called as its
family documents it, which is found out by trying."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import MissingPackage, UsageError
from stages.models.processors import images
from stages.models.processors.blank_clips import Clip, video_metadata
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import (
    is_image_output,
    load_processor,
    takes_images,
    takes_videos,
)
from stages.models.processors.prepare import prepare, rebuild
from stages.models.processors.side_inputs import without_images
from tests.support.builders.jobs import whole
from tests.support.builders.words import hf
from tests.support.clips import PROMPTS, clips, joint_inputs, without_pixels
from tests.support.families import BUILDERS, checkpoint, copy_of
from tests.support.processors import KINDS, plain_call, processor_folder, render

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CASES = [
    (family, kind)
    for family in KINDS
    for kind in ("image", "video")
    if kind == "video" or KINDS[family].image
]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
        else:
            assert str(found[name]) == str(value), name


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_prompt_is_rebuilt_from_what_was_kept(family: str, kind: str) -> None:
    processor = load_processor(checkpoint(family))
    batch = clips(kind, 4)
    joint = joint_inputs(processor, batch, PROMPTS)
    rows = [prepare(processor, clip) for clip in batch]
    assert_same(rebuild(processor, rows, PROMPTS), without_pixels(joint))
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


def test_the_step_between_frames_reaches_the_grid() -> None:
    clip = clip_at([0.0, 0.25, 0.5, 0.75], 1.0)
    side = prepare(load_processor(checkpoint("qwen2_5_vl")), clip).side
    assert side["second_per_grid_ts"] == [0.5]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in KINDS if KINDS[name].rated])
def test_seconds_of_a_grid_follow_from_the_rate_of_the_frames(family: str) -> None:
    processor, prompts = load_processor(processor_folder(family)), PROMPTS[:3]
    batch = [clip_at([frame / rate for frame in range(4)], 4 / rate) for rate in (1, 2, 4)]
    expected = [2.0, 1.0, 0.5]  # of two frames, which share a grid
    together = whole(processor, batch, prompts)
    assert together["video_second_per_grid"].tolist() == expected
    rows = [prepare(processor, clip) for clip in batch]
    assert rebuild(processor, rows, prompts)["video_second_per_grid"].tolist() == expected
    pixels = torch.cat([row.inputs["pixel_values_videos"] for row in rows])
    assert torch.equal(together["pixel_values_videos"], pixels)


@pytest.mark.slow
def test_no_other_processor_is_given_a_rate() -> None:
    rated = set()
    for name in KINDS:
        processor = load_processor(processor_folder(name))
        if takes_videos(processor) and "fps" in layout_of(processor, "videos").options:
            rated.add(name)
    assert rated == {name for name in KINDS if KINDS[name].rated}


@pytest.mark.parametrize("rate", [1, 1.5, 3, 6, 7, 12, 30, 30000 / 1001])
def test_the_rate_of_frames_at_even_steps_is_exact(rate: float) -> None:
    metadata = video_metadata(clip_at([5 + index / rate for index in range(60)], 60 / rate))
    assert metadata["fps"] == pytest.approx(rate, rel=1e-8)
    assert metadata["fps"] == rate or rate != round(rate, 1)


def test_a_folder_without_a_processor_fails(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(UsageError, match="holds no tokenizer"):
        load_processor(tmp_path)


def test_a_processor_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
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


@pytest.mark.parametrize("family", ["blip_2", "idefics2", "kosmos2"])
def test_a_large_picture_s_prompt_is_written_with_a_small_one(family: str) -> None:
    processor = load_processor(processor_folder(family))
    batch = clips("image", 2, height=LARGE[0], width=LARGE[1])
    rows = [prepare(processor, clip) for clip in batch]
    assert [row.side["outline"]["shape"] for row in rows] == [[1, 256, 512]] * 2
    expected = without_images(plain_call(family, processor, batch, PROMPTS[:2]))
    assert_same(rebuild(processor, rows, PROMPTS[:2]), expected)


def test_a_picture_whose_size_is_in_the_prompt_keeps_it() -> None:
    class TellsSizes(hf.Blip2Processor):  # type: ignore[misc]
        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            messages = [f"{row[0].size} {prompt}" for row, prompt in zip(images, text, strict=True)]
            return super().__call__(images=images, text=messages, **options)

    plain = load_processor(processor_folder("blip_2"))
    processor = TellsSizes(plain.image_processor, plain.tokenizer, num_query_tokens=4)
    (clip,) = clips("image", 1, height=LARGE[0], width=LARGE[1])
    row = prepare(processor, clip)
    assert row.side["outline"]["shape"] == [1, *LARGE]
    ids = rebuild(processor, [row], PROMPTS[:1])["input_ids"][0]
    assert "(1200, 600)" in processor.tokenizer.decode(ids)


@functools.cache
def processor_of(family: str) -> Any:
    return load_processor(processor_folder(family))


def rebuilt(processor: Any, batch: list[Clip], prompts: tuple[str, ...]) -> dict[str, Any]:
    return rebuild(processor, [prepare(processor, clip) for clip in batch], prompts)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_prompts_without_pictures_and_pictures_equal_the_documented_call(
    family: str, kind: str
) -> None:
    processor, batch, prompts = processor_of(family), clips(kind, 2), PROMPTS[:2]
    expected = plain_call(family, processor, batch, prompts)
    assert_same(whole(processor, batch, prompts), expected)
    assert_same(rebuilt(processor, batch, prompts), without_images(expected))
    expected = plain_call(family, processor, batch[:1], prompts[:1])
    inputs = prepare(processor, batch[0]).inputs
    shown = [name for name in expected if is_image_output(name)]
    assert shown
    assert_same({name: inputs[name] for name in shown}, {name: expected[name] for name in shown})


@pytest.mark.parametrize(
    "family", [name for name in KINDS if name not in ("instructblipvideo", "perception_lm")]
)
def test_rows_of_different_sizes_share_a_batch(family: str) -> None:
    processor, prompts = processor_of(family), PROMPTS[:2]
    kind = "image" if KINDS[family].image else "video"
    batch = [clips(kind, 1)[0], clips(kind, 1, height=96, width=40)[0]]
    expected = plain_call(family, processor, batch, prompts)
    assert_same(rebuilt(processor, batch, prompts), without_images(expected))


@pytest.mark.parametrize("family", KINDS)
def test_how_many_pictures_a_prompt_takes_is_found_out(family: str) -> None:
    processor = processor_of(family)
    assert takes_videos(processor) == (KINDS[family].video is not None)
    if takes_images(processor):
        assert layout_of(processor, "images").alone == (not KINDS[family].many)


def test_a_video_goes_in_as_its_middle_frame_where_a_prompt_takes_one_picture() -> None:
    processor, (clip,) = processor_of("blip_2"), clips("video", 1)
    row, middle = prepare(processor, clip), prepare(processor, clip.middle())
    assert row.count.media == 1
    assert torch.equal(row.inputs["pixel_values"], middle.inputs["pixel_values"])
    assert clip.middle().times == (clip.times[2],)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("blip", "Who?"),
        ("chameleon", "<image><image>\nWho?"),
        ("florence2", "Who?"),
        ("got_ocr2", "<imgpad><imgpad>\nWho?"),
        ("gemma3", "User: <boi><boi>Who?Assistant:"),
        ("paligemma", "<image><image>Who?"),
    ],
)
def test_without_a_chat_template_media_stand_where_the_processor_wants_them(
    family: str, text: str
) -> None:
    assert render(processor_of(family), "images", 2, "Who?") == text


def test_a_template_of_a_language_model_gets_the_words_for_pictures() -> None:
    processor = load_processor(processor_folder("chameleon"))
    processor.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert render(processor, "images", 1, "Who?") == "[<image>\nWho?]"


@pytest.mark.parametrize(
    ("family", "word"),
    [
        *(("gemma3", "<soft>"), ("instructblip", "<image>"), ("idefics3", "<image>")),
        ("qwen2_vl", "<|image_pad|>"),
    ],
)
def test_a_word_that_stands_for_a_picture_is_refused(family: str, word: str) -> None:
    with pytest.raises(UsageError, match=re.escape(word)):
        rebuilt(processor_of(family), clips("image", 1), (f"What is {word}?",))


@pytest.mark.parametrize(
    ("family", "texts"),
    [
        ("glm4v", ("<|end_of_image|>0<", "<|end_of_image|>61<")),
        ("qwen3_vl", ("<1.0 seconds>", "<61.8 seconds>")),
        ("smolvlm", ("a 0:01:04 [H:MM:SS] video", "00:00:", "00:01:", "01:01:", "01:02:")),
        ("video_llama_3", ("Time 0.5s:", "Time 1.5s:", "Time 61.0s:", "Time 62.5s:")),
    ],
)
def test_true_times_stand_in_the_prompt(family: str, texts: tuple[str, ...]) -> None:
    folder = checkpoint(family) if family in BUILDERS else processor_folder(family)
    processor = load_processor(folder)
    row = prepare(processor, clip_at([0.5, 1.5, 61.0, 62.5], 64.0))
    (ids,) = rebuild(processor, [row], ["What happens?"])["input_ids"]
    line = processor.tokenizer.decode(ids)
    assert all(text in line for text in texts), line


def test_a_processor_that_takes_one_prompt_a_call_is_called_for_each() -> None:
    processor = load_processor(processor_folder("idefics2"))
    compute = type(processor).__call__

    class Single(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            assert len(kwargs["text"]) == 1, "one at a time"
            return compute(self, *args, **kwargs)

    processor.__class__ = Single
    batch, prompts = clips("image", 2), PROMPTS[:2]
    expected = plain_call("idefics2", processor_of("idefics2"), batch, prompts)
    assert not layout_of(processor, "images").batched
    assert_same(whole(processor, batch, prompts), expected)
    assert_same(rebuilt(processor, batch, prompts), without_images(expected))


@pytest.mark.parametrize(
    ("error", "fault", "says"),
    [
        (RuntimeError("not today"), UsageError, "takes images in no known layout: not today"),
        (
            ImportError("Package `x` is missing.\nInstall it."),
            MissingPackage,
            "missing. Install it",
        ),
    ],
)
def test_a_processor_that_fails_on_every_picture_is_refused_in_one_line(
    error: Exception, fault: type[Exception], says: str
) -> None:
    processor = load_processor(processor_folder("git"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    processor.image_processor.preprocess = refuse
    with pytest.raises(fault, match=says) as caught:
        prepare(processor, clips("image", 1)[0])
    assert "\n" not in str(caught.value)


def test_a_processor_whose_text_depends_on_what_is_shown_is_refused() -> None:
    processor = load_processor(processor_folder("kosmos2"))
    compute = type(processor).__call__

    class Telling(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            outputs = compute(self, *args, **kwargs)
            outputs["brightness"] = outputs["pixel_values"].sum()[None]
            return outputs

    processor.__class__ = Telling
    with pytest.raises(UsageError, match="no prompt can be written without"):
        prepare(processor, clips("image", 1)[0])


def test_a_very_large_part_is_seen_as_it_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    size: Any = {"height": 32, "width": 32}
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    rows, columns = np.mgrid[:701, :1003]
    waves = 127 + 60 * np.sin(rows / 90) + 60 * np.cos(columns / 70)
    frame = np.stack([waves, 255 - waves, waves / 2], 2).astype(np.uint8)
    clip = Clip(frames=frame[None], times=(0.0,), seconds=0.0, kind="image")
    boxes = [(0, 0, 1003, 701), (100, 100, 400, 400)]
    whole = images.prepare_parts(processor, clip, boxes).inputs["pixel_values"]
    monkeypatch.setattr(images, "LARGE", 50_000)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(images, "STRIP", 50)

    def message(**given: Any) -> Any:
        seen.extend(image.size for image in given["images"])
        return processor(**given)

    noting: Any = message
    divided = images.prepare_parts(noting, clip, boxes).inputs["pixel_values"]
    assert seen == [(251, 175), (150, 150)]
    assert whole.shape == divided.shape == (2, 3, 32, 32)
    assert torch.allclose(whole, divided, atol=0.03)
