"""As many frames of a chunk are shown as the model's context holds beside a reserve for words, a
number of the model alone; frames and words that it has no room for are refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from artifacts.schema import ChunkIndex
from flows.core.checkpoint.frame_room import frame_bound, sampling_of
from flows.core.checkpoint.frame_sampling import requested_sampling
from flows.core.job.prepare import pipeline_with_sound
from flows.core.job.summary import context_note
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.tasks import Medium, task_of
from flows.core.media.media_file import MediaFile
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION, EMBED, Pipeline
from flows.core.plan.choose import plan_request_of_model
from flows.core.plan.context_check import refuse_beyond_context, standard_notes
from stages.models import describe
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import HearingProfile, ModelProfile, SamplingProfile, SeenSize
from tests.support.by_hand import PROFILE, images, model
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint

LLAVA = replace(PROFILE, context_tokens=4096, tokens_per_frame=1, tokens_per_prompt=19)
"""LLaVA-1.5: 576 tokens a frame and the end of a line, of whatever size it is."""
HEARING = HearingProfile(
    rate=16000, tokens_per_second=25.0, tokens_per_sound=2, max_seconds=0.0, interleaved=True
)


def config(**options: Any) -> CaptionConfig:
    return CaptionConfig(sources=("a",), **options)


def frames(profile: ModelProfile, **options: Any) -> int:
    sampling = sampling_of(profile, config(**options))
    return sampling.frames or sampling.max_frames


@pytest.mark.parametrize(
    ("context", "most"),
    # A quarter of a small context is kept for words, of a large one 1,024 tokens.
    [(1024, 1), (2048, 2), (4096, 5), (8192, 12), (16384, 26)],
)
def test_the_context_less_a_reserve_bounds_the_frames(context: int, most: int) -> None:
    assert frames(replace(LLAVA, context_tokens=context)) == most


def test_frames_that_a_user_asks_for_are_bounded_too() -> None:
    assert frames(LLAVA, frames=20) == 5 and frames(LLAVA, frames=4) == 4
    assert frames(LLAVA, max_frames=20) == 5 and frames(LLAVA, fps=0.1) == 32
    assert frames(replace(LLAVA, is_encoder_decoder=True)) == 32
    for tokens in (0, 1):  # cross attention: no token in the text, or a mark
        assert frames(replace(LLAVA, frame_tokens=tokens)) == 32


def test_words_do_not_change_the_frames() -> None:
    plain = sampling_of(LLAVA, config())
    for options in ({"prompt": "why? " * 300}, {"max_new_tokens": 1}, {"max_new_tokens": 3000}):
        assert sampling_of(LLAVA, config(**options)) == plain


@pytest.mark.parametrize(("longest", "chunk"), [(0.0, 30.0), (300.0, 30.0), (10.0, 10.0)])
def test_a_chunk_is_no_longer_than_sound_that_the_model_takes(longest: float, chunk: float) -> None:
    hears = replace(LLAVA, hearing=replace(HEARING, max_seconds=longest))
    for options in ({}, {"fps": 2.0}, {"shots": True}):
        assert requested_sampling(hears, config(**options)).chunk_seconds == chunk
    assert requested_sampling(hears, config(chunk=60.0)).chunk_seconds == 60.0


def test_the_context_holds_the_sound_of_a_full_chunk_beside_the_frames() -> None:
    silent = model(replace(LLAVA, hearing=HEARING))
    hears = replace(silent, settings={**silent.settings, "audio": silent.settings["vision"]})
    assert (silent.sound_tokens(30.0), hears.sound_tokens(30.0)) == (0, 752)
    assert silent.sampling(config()) == sampling_of(LLAVA, config())
    less = replace(LLAVA, context_tokens=4096 - 752)
    assert hears.sampling(config()) == sampling_of(less, config()) != silent.sampling(config())


def test_where_a_full_chunk_fits_the_sampling_is_as_it_was() -> None:
    for context in (0, 18500, 131072):
        profile = replace(LLAVA, context_tokens=context)
        assert sampling_of(profile, config()) == requested_sampling(profile, config())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mllama", "florence2", "git"])
def test_encoder_decoders_and_cross_attention_are_not_bounded(family: str) -> None:
    profile = replace(describe(whole_checkpoint(family)), context_tokens=64)
    assert profile.is_encoder_decoder == (family == "florence2")
    assert sampling_of(profile, config()) == requested_sampling(profile, config())
    assert frame_bound(profile, config()) is None
    assert context_note(model(profile), config()) == ""


def test_a_run_as_by_default_that_fits_beside_its_words_stays_as_it_was() -> None:
    """CogVLM2's captioner: 24 frames of 67 tokens leave 440 of 2,048; 30 of 257 in 8,192, 482."""
    stated = SamplingProfile(fps=1.0, max_frames=24, seconds=24)
    cogvlm = replace(LLAVA, context_tokens=2048, frame_tokens=66, sampling=stated)
    assert frames(cogvlm) == 24 and frames(cogvlm, max_frames=30, chunk=30.0) == 24
    assert frames(replace(cogvlm, context_tokens=1900)) == 21
    paligemma = replace(LLAVA, context_tokens=8192, frame_tokens=256)
    assert sampling_of(paligemma, config()) == requested_sampling(paligemma, config())
    assert frames(paligemma, max_frames=40, fps=2.0) == 30


def test_of_frames_that_are_more_tokens_the_larger_they_are_the_size_bounds_the_number() -> None:
    """Qwen2.5-VL as stock, whose frames of 1280 pixels square are 1,058 tokens each."""
    sizes = ((64, 2), (224, 32), (448, 128), (720, 338))
    qwen = replace(
        LLAVA,
        modalities=("image", "video"),
        context_tokens=32768,
        frame_tokens=1058,
        frame_sizes=tuple(SeenSize(edge=e, tokens=t, pixel_bytes=1) for e, t in sizes),
        fit_video=FrameFit(),
        tokens_per_frame=0,
    )
    assert frames(qwen) == 32, "the sampling is as it was"
    bound = frame_bound(qwen, config())
    assert bound is not None
    sizes_of_videos = ((360, 640), (720, 1280), (1080, 1920), (2160, 3840))
    assert [bound.of(size) for size in sizes_of_videos] == [215, 53, 23, 5]
    assert frame_bound(replace(qwen, context_tokens=0), config()) is None
    most = replace(qwen, pixels_per_video=25_165_824)
    assert frame_bound(most, config()) is None, "all frames of a video together are fewer tokens"
    capped = replace(qwen, fit_video=FrameFit(long_edges=((1.0, 448),)), frame_tokens=128)
    capped = replace(capped, frame_sizes=qwen.frame_sizes[:2])
    assert frame_bound(capped, config()) is None, "a full chunk of the largest frames fits"
    assert frame_bound(capped, config(max_frames=400, fps=20.0)) is not None


def test_a_chunk_with_fewer_frames_has_keys_of_its_own_and_its_frames_stay() -> None:
    sizes = (SeenSize(edge=64, tokens=10, pixel_bytes=1),)
    profile = replace(LLAVA, context_tokens=4096, frame_tokens=1000, frame_sizes=sizes)
    bound = frame_bound(replace(profile, fit_video=FrameFit()), config())
    assert bound is not None
    of = {"frames": "a", "features": "b", "captions": "c"}
    free = Variant(of=of, prompted=frozenset(["captions"]))
    medium = Medium(digest="d", path="a.mp4", kind="video", prompt="why?")
    times = tuple(map(float, range(30)))
    large = ChunkIndex(index=0, start=0.0, end=30.0, times=times, height=1280, width=1280)
    small = replace(large, height=64, width=64)
    task, plain = (task_of(medium, large, each) for each in (replace(free, bound=bound), free))
    assert task.chunk.times == (0.0, 10.0, 20.0) and task.whole == large
    assert task["frames"] == plain["frames"]
    assert task["features"] != plain["features"] and task["captions"] != plain["captions"]
    assert task_of(medium, task.whole, replace(free, bound=bound)) == task
    alike = [task_of(medium, small, each) for each in (replace(free, bound=bound), free)]
    assert alike[0].keys == alike[1].keys and alike[0].stored is None


def test_the_line_says_how_many_and_what_shows_all() -> None:
    llava = model(LLAVA)
    fit = "5 frames of a chunk fit its context of 4,096 tokens"
    assert context_note(llava, config()) == f"llava: {fit}, of 30; --chunk 5 shows them all"
    assert "of 20; shorter chunks" in context_note(llava, config(frames=20))
    assert context_note(llava, config(frames=5)) == ""
    note = context_note(model(replace(LLAVA, context_tokens=0)), config())
    assert note == "llava does not state its context length, so it limits no frames"
    assert context_note(model(replace(LLAVA, is_encoder_decoder=True)), config()) == ""


@pytest.mark.parametrize("fps", [0.003, 1.0, 3.0, 7.0, 29.97, 50.0, 100.0])
def test_the_chunk_that_is_named_is_accepted_and_shows_all(fps: float) -> None:
    note = context_note(model(LLAVA), config(fps=fps, max_frames=1000, chunk=6000.0))
    if not (named := re.search(r"--chunk (\S+) shows them all", note)):
        assert fps == 100.0 and note.endswith("shorter chunks (--chunk) show more")
        return
    options = config(fps=fps, max_frames=1000, chunk=float(named[1]))
    assert context_note(model(LLAVA), options) == "", note
    assert float(named[1]) > 4 / fps, "a chunk of four frames is not the longest one"


LARGE = replace(
    LLAVA,
    frame_sizes=(SeenSize(edge=640, tokens=144, pixel_bytes=1),),
    fit_video=FrameFit(),
    least_pixels=784,
)
"""The profile of a model that makes more tokens of larger frames."""


def refused(profile: ModelProfile, prompt: str, *more: Any, **options: Any) -> str:
    """Message and hint of the refusal of a plan; empty where there is none. A byte is a token."""
    folder = Path(checkpoint("llava"))
    request = replace(model(profile), checkpoint=Checkpoint(name="llava", folder=folder))
    config = CaptionConfig(sources=("a",), **options)
    question = plan_request_of_model(request, config, "cpu", CAPTION, prompt)
    question = replace(question, workloads=more or question.workloads)
    try:
        refuse_beyond_context(question)
    except UsageError as error:
        assert error.exit_code == 2
        return f"{error.message}. {error.hint}"
    return ""


def test_the_largest_limit_that_fits_is_named() -> None:
    """4,096 less 5 frames of 577 tokens, 19 of the template and 92 of the prompt leave 1,100."""
    prompt = "w" * 92
    # Times count as they are written: `0.00s,1.00s,2.00s,3.00s,4.00s`.
    assert "--max-new-tokens 1163" in refused(LLAVA, "{times}", max_new_tokens=1164)
    assert refused(LLAVA, prompt, max_new_tokens=1100) == ""
    text = refused(LLAVA, prompt, max_new_tokens=1101)
    assert "with 5 frames (2,885) and the prompt (111)" in text
    assert text.endswith("Give --max-new-tokens 1100 or less")
    assert "--max-new-tokens 1090" in refused(LLAVA, prompt, max_new_tokens=1101, system="s" * 10)
    text = refused(LLAVA, "w" * 1300)
    assert text.endswith("Give --max-frames 4, or shorten the prompt")
    assert refused(LLAVA, "w" * 1300, max_frames=4) == ""
    text = refused(LLAVA, "w" * 1300, frames=1, max_new_tokens=2800)
    assert text.endswith("Give --max-new-tokens 2200 or less")
    assert refused(LLAVA, "w" * 3600).endswith("Shorten the prompt")
    text = refused(replace(LLAVA, frames_per_video=5), "w" * 1300, max_new_tokens=1400)
    assert text.endswith("Shorten the prompt, and give --max-new-tokens 596")
    assert refused(replace(LLAVA, context_tokens=0), prompt, max_new_tokens=9000) == ""
    assert refused(replace(LLAVA, is_encoder_decoder=True), prompt, max_new_tokens=9000) == ""


def test_a_picture_that_exceeds_the_context_fails_alone() -> None:
    assert refused(LLAVA, "w", replace(images(tokens=9000), text_tokens=10)) == ""
    text = refused(LLAVA, "w", replace(images(tokens=2000), text_tokens=10), max_new_tokens=2200)
    assert "with the image (1,990)" in text and "--max-new-tokens 2086" in text


def test_one_frame_that_does_not_fit_is_refused_with_pixels_that_do() -> None:
    small = replace(LARGE, context_tokens=512)
    text = refused(small, "w", max_new_tokens=1)
    assert "but its context of 512 has room for 384 besides text" in text
    pixels = int(text.partition("--max-pixels ")[2].partition(",")[0])
    assert pixels % 784 == 0 and 0 < pixels < 1080 * 1920
    text = refused(replace(small, least_pixels=0), "w", max_new_tokens=1)
    assert text.endswith("Choose a model with a longer context")


def test_a_plan_of_a_model_alone_says_how_many_frames_of_full_hd_fit() -> None:
    config = CaptionConfig(sources=())
    (line,) = standard_notes(model(LARGE), config)
    assert line.startswith("llava: 4 frames of 1920x1080 fit its context of 4,096 tokens, of 30; ")
    question = plan_request_of_model(model(LARGE), config, "cpu", CAPTION)
    assert [workload.frames for workload in question.workloads] == [4]
    assert standard_notes(model(LLAVA), config) == []
    for few in (1, 4):  # these fit
        assert standard_notes(model(LARGE), replace(config, frames=few)) == []


def test_the_pixels_that_are_proposed_leave_room_for_prompt_and_answer() -> None:
    """10 frames in 4,096 tokens: 307 each beside the reserve, and 107 beside an answer of 3,000."""
    config = CaptionConfig(sources=(), frames=10)

    def proposed(limit: int) -> int:
        (line,) = standard_notes(model(LARGE), replace(config, max_new_tokens=limit))
        return int(line.partition("--max-pixels ")[2].partition(" ")[0] or 0)

    beside_reserve, beside_answer = proposed(8), proposed(3000)
    assert 0 < beside_answer < beside_reserve
    assert beside_answer / beside_reserve == pytest.approx(107 / 306, abs=0.02)
    assert proposed(4070) == 0, "no number of pixels leaves as much"


def choice(pipeline: Pipeline = CAPTION, longest: float = 10.0, **options: Any) -> tuple[bool, str]:
    """Whether a run uses sound, and the note on it."""
    found = model(replace(LLAVA, hearing=replace(HEARING, max_seconds=longest)))
    used, chosen = pipeline_with_sound(config(**options), found, pipeline)
    assert (chosen.profile.hearing is None) == (used == pipeline)
    return used != pipeline, " ".join(chosen.notes)


def test_sound_is_used_where_model_and_command_can() -> None:
    assert choice() == choice(sound="on") == choice(chunk=10.0) == (True, "")
    assert choice(sound="off") == choice(sound="off", chunk=60.0) == (False, "")
    used, note = choice(whole=True)
    assert not used and "with --whole a chunk may be longer" in note
    assert choice(whole=True, longest=0.0) == (True, "")
    used, note = choice(EMBED)
    assert not used and "this command does not use it yet" in note
    with pytest.raises(UsageError, match="hears 10 s at once") as error:
        choice(chunk=60.0)
    assert error.value.hint == "Give --chunk 10, or --sound off"
    for options in ({"sound": "on"}, {"sound_track": 2}):
        with pytest.raises(UsageError, match="with --whole a chunk may be longer"):
            choice(whole=True, **options)
        with pytest.raises(UsageError, match="hears nothing"):
            pipeline_with_sound(config(**options), model(LLAVA), CAPTION)
    images = [MediaFile(path=Path("a.png"), kind="image", media_path="a.png", source="a")]
    hears = model(replace(LLAVA, hearing=HEARING))
    assert pipeline_with_sound(config(), hears, CAPTION, images)[0] == CAPTION
