"""Sound beside pictures and videos, from samples to captions: the two thinkers, with their
processors. What is expected comes of the processor and the whole model alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from artifacts.errors import UsageError
from artifacts.records.packs import Record
from artifacts.records.tensors import pack_tree, unpack_tree
from stages.decode.generation import DecodeItem
from stages.hear.run import run as hear
from stages.models import describe, load_half
from stages.models.encoding import EncodeItem, EncodingJob
from stages.models.encoding.batch import encode_batches
from stages.models.halves.features import Features
from stages.models.halves.generate import generate
from stages.models.halves.model_class import SOUNDS
from stages.models.halves.records import FeatureRecord
from stages.models.processors.blank_clips import Clip, video_metadata
from stages.models.processors.loading import load_processor, takes_videos
from stages.models.processors.prepare import prepare, rebuild
from stages.models.processors.side_inputs import hearing_profile, prepare_sound
from tests.support.builders.jobs import own_of
from tests.support.builders.words import hf
from tests.support.clips import clips, joint_model, without_pixels
from tests.support.omni import (
    HEARD_SECONDS,
    OMNI,
    TALKER_BYTES,
    hearing_processor,
    omni_checkpoint,
    omni_whole,
)
from tests.support.omni import HEARING as SEPARATE
from tests.support.processors import processor_folder
from tests.support.tiny_families.verdict import GREEDY
from tests.support.waves import (
    CAPTIONS,
    OTHER,
    THIRD,
    Wave,
    keys_told,
    noted,
    told_by,
    words,
)

Sounds = Sequence[NDArray[np.int16]]
SOUND, HEARD, RATE = "55" * 32, "66" * 32, 16_000
PIXELS = 1024
"""Limit of a frame: the processors enlarge frames else."""
PROMPT = "Say what is heard."
SPANS = (0.9, 3.2, 4.0)
"""Lengths of sound in seconds beside a clip of four."""
SMALL_PATCH = 4
"""Side of a patch whose projection has the same bits in any batch."""
JOINT_BOUND = 5e-4
"""What the second one's encoder makes of rows that are encoded together differs by rounding."""


def small(folder: Path) -> Any:
    """The processor, which makes few tokens of a frame."""
    return load_processor(folder, max_pixels=PIXELS)


def samples(seconds: float, seed: int = 0) -> NDArray[np.int16]:
    """Noise and a tone."""
    count = int(seconds * RATE)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(count) / RATE)
    sound = tone + 0.1 * np.random.default_rng(seed).standard_normal(count)
    return (sound * 20_000).astype(np.int16)


def wave(found: NDArray[np.int16]) -> NDArray[np.float32]:
    return found.astype(np.float32) / np.float32(32_768)


def seen_at(fps: float, kind: str = "video", seed: int = 0) -> Clip:
    """Four seconds of noise."""
    clip = clips(kind, seed + 1, frames=int(4 * fps), height=32, width=32)[seed]
    if kind == "image":
        return clip
    times = tuple(step / fps for step in range(len(clip.frames)))
    return replace(clip, times=times, seconds=4.0)


def turn_of(processor: Any, prompt: str, *media: str) -> Any:
    content = [*({"type": kind} for kind in media), {"type": "text", "text": prompt}]
    turn = {"role": "user", "content": content}
    return processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)


def whole_inputs(
    processor: Any, batch: Sequence[Clip], sounds: Sounds, prompts: Sequence[str]
) -> dict[str, Any]:
    """What the processor gives for media, sound and prompts at once."""
    kind = batch[0].kind
    media = [kind] if kind == "video" else [kind, "audio"]
    texts = [turn_of(processor, each, *media) for each in prompts]
    options: dict[str, Any] = {"images": [list(clip.frames) for clip in batch]}
    if kind == "video":
        options = {
            "videos": [clip.frames for clip in batch],
            "video_metadata": [[video_metadata(clip)] for clip in batch],
            "do_sample_frames": False,
            "fps": 1 / (batch[0].times[1] - batch[0].times[0]),
            "load_audio_from_video": True,
            "audio_from_video_indices": [*range(len(batch))],
        }
    made = processor(
        text=texts, audio=[*map(wave, sounds)], padding=True, return_tensors="pt", **options
    )
    return {name: value for name, value in dict(made).items() if name != "video_metadata"}


def stored(record: FeatureRecord) -> FeatureRecord:
    """The record as it comes back from the store."""
    meta, payload = pack_tree(record.to_tree())
    return FeatureRecord.from_tree(unpack_tree(json.loads(json.dumps(meta)), payload))


def recorded(folder: Path, batch: Sequence[Clip], sounds: Sounds) -> list[FeatureRecord]:
    """The records of rows, each encoded alone, by two halves."""
    processor = small(folder)
    vision, audio = (load_half(folder, half) for half in ("vision", "audio"))
    seen = [encode_batches(vision, [[prepare(processor, clip)]])[0][0] for clip in batch]
    found = [prepare_sound(processor, wave(each)) for each in sounds]
    heard = [encode_batches(audio, [[each]], part="audio")[0][0] for each in found]
    pairs = zip(map(stored, seen), map(stored, heard), strict=True)
    return [replace(row, heard=sound) for row, sound in pairs]


def in_halves(
    folder: Path, batch: Sequence[Clip], sounds: Sounds, *prompts: str, **options: Any
) -> Any:
    """What the language half generates of the records."""
    records = recorded(folder, batch, sounds)
    assert len({record.joins_with(n) for n, record in enumerate(records)}) == 1
    inputs, language = rebuild(small(folder), records, prompts), load_half(folder, "language")
    return generate(language, inputs, Features.of(records), **options)


@pytest.mark.parametrize("prefix", OMNI)
@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seconds", SPANS)
def test_prompts_are_rebuilt_without_media(prefix: str, fps: float, seconds: float) -> None:
    processor = small(omni_checkpoint(prefix))
    sound = samples(seconds)
    for clip in (seen_at(fps), seen_at(1.0, "image")):
        prepared = prepare_sound(processor, wave(sound))
        row = replace(prepare(processor, clip), heard=_unencoded(prepared))
        found = rebuild(processor, [row], [PROMPT])
        expected = whole_inputs(processor, [clip], [sound], [PROMPT])
        assert found.pop("use_audio_in_video", False) is (clip.kind == "video")
        _assert_same(found, expected)
        if clip.kind == "video":
            assert found["video_second_per_grid"].tolist() == [2 / fps]


def _unencoded(prepared: Any) -> FeatureRecord:
    names = ("channel", "side", "replacements", "count")
    kept = {name: getattr(prepared, name) for name in names}
    return FeatureRecord(features={}, rules={}, needs=(), **kept)


def _assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    expected = {n: v for n, v in without_pixels(expected).items() if n not in SOUNDS}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
        assert torch.as_tensor(found[name]).dtype == torch.as_tensor(value).dtype


@pytest.mark.in_turn
@pytest.mark.parametrize("prefix", OMNI)
@pytest.mark.parametrize(("kind", "rows"), [("image", 1), ("video", 1), ("image", 2), ("video", 2)])
def test_three_halves_give_what_the_whole_model_gives(prefix: str, kind: str, rows: int) -> None:
    folder = omni_checkpoint(prefix, SMALL_PATCH)
    processor, model = small(folder), joint_model(folder)
    batch = [seen_at(2.0, kind, row) for row in range(rows)]
    sounds = [samples(4.0 - row, row) for row in range(rows)]
    prompts = ["Describe.", PROMPT][:rows]
    inputs = whole_inputs(processor, batch, sounds, prompts)
    flags = {"use_audio_in_video": True} if kind == "video" else {}
    with torch.inference_mode():
        expected = model.generate(**inputs, **flags, **GREEDY)
    found = in_halves(folder, batch, sounds, *prompts, **GREEDY)
    assert torch.equal(found.sequences, expected.sequences)
    bound = JOINT_BOUND if rows > 1 and prefix == OMNI[1] else 0.0
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)

    other_sounds = [sound[::-1].copy() for sound in sounds]
    with torch.inference_mode():
        inputs = whole_inputs(processor, batch, other_sounds, prompts)
        deaf = model.generate(**inputs, **flags, **GREEDY)
    assert not torch.equal(torch.stack(deaf.logits), torch.stack(expected.logits))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", OMNI)
def test_beams_hear_the_same(prefix: str) -> None:
    folder = omni_checkpoint(prefix)
    processor, model = small(folder), joint_model(folder)
    clip, sound = seen_at(2.0), samples(3.0)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    with torch.inference_mode():
        inputs = whole_inputs(processor, [clip], [sound], [PROMPT])
        expected = model.generate(**inputs, use_audio_in_video=True, **options)
    assert torch.equal(in_halves(folder, [clip], [sound], PROMPT, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", OMNI)
def test_sound_of_another_row_fails_unless_it_is_as_long(prefix: str) -> None:
    folder = omni_checkpoint(prefix)
    processor, language = small(folder), load_half(folder, "language")
    (row,) = recorded(folder, [seen_at(2.0)], [samples(3.0)])
    (other,) = recorded(folder, [seen_at(2.0)], [samples(3.5)])
    inputs = rebuild(processor, [row], [PROMPT])
    wrong = Features.of([replace(row, heard=other.heard)])
    for features in (wrong, Features.of([replace(row, heard=None)])):
        with pytest.raises(UsageError, match="placeholders of sound"):
            generate(language, inputs, features, max_new_tokens=1)


@pytest.mark.parametrize("prefix", OMNI)
def test_a_prompt_with_the_placeholder_of_sound_fails(prefix: str) -> None:
    processor = load_processor(omni_checkpoint(prefix))
    row = prepare(processor, seen_at(2.0))
    with pytest.raises(UsageError, match=r"contains <\|AUDIO\|>"):
        rebuild(processor, [row], ["What is <|AUDIO|>?"])


def test_a_template_without_a_place_for_sound_fails() -> None:
    processor = load_processor(processor_folder("qwen2_5_omni"))
    assert hearing_profile(processor) is None


@pytest.mark.slow
def test_what_planning_needs_of_hearing_is_found_without_weights() -> None:
    first, second = (describe(omni_checkpoint(prefix)) for prefix in OMNI)
    for profile, per_second, longest in ((first, 25.0, float(HEARD_SECONDS)), (second, 13.0, 0.0)):
        assert profile.hearing is not None
        assert (profile.hearing.rate, profile.hearing.interleaved) == (RATE, True)
        assert profile.hearing.max_seconds == longest
        assert profile.hearing.tokens_per_second == pytest.approx(per_second, abs=0.3)
        sound = prepare_sound(load_processor(Path(profile.folder)), wave(samples(8.0)))
        assert abs(profile.hearing.tokens(8.0) - sound.count.tokens) <= 1
        shares = [profile.parts[part].stored_bytes for part in ("vision", "audio", "language")]
        halves = [load_half(profile.folder, part) for part in ("vision", "audio", "language")]
        assert shares == [sum(w.nbytes for w in half.parameters()) for half in halves]
        assert sum(shares) == sum(w.nbytes for w in joint_model(Path(profile.folder)).parameters())
        assert type(profile).from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.slow
@pytest.mark.parametrize("prefix", OMNI)
def test_a_whole_omni_loads_its_thinker_alone(prefix: str) -> None:
    whole, thinker = omni_whole(prefix), omni_checkpoint(prefix)
    given = [seen_at(2.0)], [samples(3.0)], PROMPT
    expected, before = in_halves(thinker, *given, **GREEDY), bytes_read()
    found = in_halves(whole, *given, **GREEDY)
    assert bytes_read() - before < TALKER_BYTES / 2
    assert torch.equal(found.sequences, expected.sequences)
    for part in ("vision", "audio", "language"):
        own, same = (dict(load_half(each, part).named_parameters()) for each in (whole, thinker))
        assert own.keys() == same.keys()
        assert all(torch.equal(value, same[name]) for name, value in own.items())
    one, other = describe(whole), describe(thinker)
    assert (one.class_name, one.route) == (other.class_name, other.route)
    sizes = [[part.stored_bytes for part in each.parts.values()] for each in (one, other)]
    assert sizes[0] == sizes[1]
    assert {name for part in one.parts.values() for name in part.shards} == {"model.safetensors"}


def bytes_read() -> int:
    """What this process has read from files."""
    line = Path("/proc/self/io").read_text().split("\n", 1)[0]
    return int(line.removeprefix("rchar: "))


class HearingWave(Wave):
    """A wave some of whose clips have sound, under the keys `sound-N`."""

    def __init__(
        self,
        store: Path,
        model: Path,
        batches: Sequence[Sequence[Clip]],
        sounds: Sequence[NDArray[np.int16] | None],
        rate: int = RATE,
    ) -> None:
        super().__init__(store, model, batches, max_pixels=PIXELS)
        self.sounds = {n: sound for n, sound in enumerate(sounds) if sound is not None}
        for n, sound in self.sounds.items():
            meta = {"rate": rate, "samples": len(sound)}
            record = Record(key=f"sound-{n}", meta=meta, payload=sound.astype("<i2").tobytes())
            self.record_set("sound", SOUND).publish([record])

    def hear(self) -> list[dict[str, Any]]:
        numbers = [[n for n, _ in batch if n in self.sounds] for batch in self.batches]
        batches = [[EncodeItem(f"heard-{n}", f"sound-{n}", "audio") for n in b] for b in numbers]
        job = self._job(frames_namespace=SOUND, namespace=HEARD, batches=[b for b in batches if b])
        return told_by(hear, own_of(EncodingJob, job))

    def to_decode(
        self, prompts: Sequence[str], namespace: str = CAPTIONS, tokens: int = 8
    ) -> dict[str, Any]:
        job = super().to_decode(prompts, namespace, tokens)
        batches = [[self._with_sound(DecodeItem(*item)) for item in b] for b in job["batches"]]
        return {**job, "heard_namespace": HEARD, "batches": batches}

    def _with_sound(self, item: DecodeItem) -> DecodeItem:
        number = item.key.removeprefix("caption-")
        return item._replace(heard=f"heard-{number}") if int(number) in self.sounds else item


def a_wave(folder: Path, model: Path, **options: Any) -> HearingWave:
    batch = [seen_at(2.0, seed=n) for n in range(4)]
    sounds = [samples(4.0), None, samples(3.0, 1), None]
    made = HearingWave(folder, model, [batch[:2], batch[2:]], sounds, **options)
    made.encode()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("prefix", OMNI)
@pytest.mark.parametrize("engine", ["transformers", "inflight", "inflight-shared"])
def test_rows_with_and_without_sound_give_what_they_give_alone(
    prefix: str, engine: str, tmp_path: Path
) -> None:
    folder = omni_checkpoint(prefix)
    made = a_wave(tmp_path / "store", folder)
    assert keys_told(made.hear()) == ["heard-0", "heard-2"]
    made.settings["engine"] = engine
    note = noted(made.decode((PROMPT,)))
    assert note.get("engine", "transformers") == engine, note.get("engine_reason")
    assert engine != "inflight-shared" or note["shared_prefix"]
    found = made.captions()

    made.batches = [[one] for batch in made.batches for one in batch]
    made.settings["engine"] = "transformers"
    made.decode((PROMPT,), OTHER)
    assert words(made.captions(OTHER)) == words(found)

    every = [clip for batch in made.batches for _, clip in batch]
    silent = Wave(tmp_path / "store", folder, [every], max_pixels=PIXELS, engine=engine)
    silent.decode((PROMPT,), THIRD)
    unheard = silent.captions(THIRD)
    scores = [[one["logprob"] for one in some] for some in (found, unheard)]
    near = [abs(one - other) < 1e-5 for one, other in zip(*scores, strict=True)]
    assert near == [False, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "longest"), [(OMNI[0], HEARD_SECONDS), (OMNI[0], 300), (OMNI[1], 300)]
)
def test_sound_is_padded_no_further_than_its_spectra_reach(prefix: str, longest: int) -> None:
    folder = omni_checkpoint(prefix)
    processor, audio = small(folder), load_half(folder, "audio")
    extractor = type(processor.feature_extractor)(feature_size=20, chunk_length=longest)
    processor.feature_extractor, most = extractor, longest * RATE
    window, clip = extractor.n_fft, seen_at(1.0)
    near = [most - window - 1, most - window, most - window // 2, most - 1, most, most + window]
    for count in (1600, 52_345, *(near if longest == HEARD_SECONDS else [most])):
        sound = samples((count + 0.5) / RATE)
        found = prepare_sound(processor, wave(sound))
        expected = whole_inputs(processor, [clip], [sound], [PROMPT])
        mask, heard = expected["feature_attention_mask"], expected["input_features"]
        own, ones = found.inputs["feature_attention_mask"], int(mask.sum())
        assert int(own.sum()) == ones == int(own[0, :ones].sum())
        assert torch.equal(found.inputs["input_features"][..., :ones], heard[..., :ones])
        assert heard.shape[-1] == (longest * 100 if prefix == OMNI[0] else count // 160)
        assert own.shape[-1] <= -(-(count + window) // 160)
        row = replace(prepare(processor, clip), heard=_unencoded(found))
        rebuilt = rebuild(processor, [row], [PROMPT])
        assert rebuilt.pop("use_audio_in_video")
        _assert_same(rebuilt, expected)
        inputs = {"input_features": heard, "feature_attention_mask": mask}
        rows = [[replace(found, inputs=inputs)], [found]]
        made = encode_batches(audio, rows, part="audio")
        whole, own_record = (pack_tree(some[0].features) for some in made)
        assert own_record == whole


def test_frames_are_encoded_without_a_spectrum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.WhisperFeatureExtractor, "__call__", None)
    made = Wave(tmp_path, omni_checkpoint(OMNI[0]), [[seen_at(2.0)]], max_pixels=PIXELS)
    assert keys_told(made.encode()) == ["features-0"]


def test_sound_of_another_rate_fails(tmp_path: Path) -> None:
    made = a_wave(tmp_path, omni_checkpoint(OMNI[0]), rate=24_000)
    with pytest.raises(UsageError, match="24000 samples per second"):
        made.hear()


def test_bytes_of_what_is_heard_do_not_depend_on_batches(tmp_path: Path) -> None:
    folder = omni_checkpoint(OMNI[1])
    found = []
    for name, sizes in (("one", (1, 1, 1, 1)), ("all", (4,))):
        batch = [seen_at(1.0, seed=n) for n in range(4)]
        at = [sum(sizes[:n]) for n in range(len(sizes))]
        cut = [batch[start : start + size] for start, size in zip(at, sizes, strict=True)]
        made = HearingWave(tmp_path / name, folder, cut, [samples(n + 1.0, n) for n in range(4)])
        made.hear()
        records = made.record_set("heard", HEARD)
        found.append({key: bytes(records.read(key).payload) for key in sorted(records.keys())})
    assert found[0] == found[1] and len(found[0]) == 4


@pytest.mark.parametrize("family", SEPARATE)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_prompts_of_separate_sound_are_rebuilt_without_media(family: str, kind: str) -> None:
    processor = load_processor(hearing_processor(family))
    facts = hearing_profile(processor)
    assert facts is not None and not facts.interleaved
    if kind == "video" and not takes_videos(processor):
        kind = "image"
    clip = clips(kind, 1)[0]
    count = int(1.7 * facts.rate)
    sound = np.random.default_rng(1).normal(0, 0.1, count).astype(np.float32)
    prepared = prepare_sound(processor, sound)
    row = replace(prepare(processor, clip), heard=_unencoded(prepared))
    found = rebuild(processor, [row], [PROMPT])
    text = turn_of(processor, PROMPT, kind, "audio")
    media: dict[str, Any] = {"images": [list(clip.frames)]}
    if kind == "video":
        media = {"videos": [clip.frames], "do_sample_frames": False, "return_metadata": True}
        media["video_metadata"] = [[video_metadata(clip)]]
    media |= {"return_tensors": "pt", "padding": True}
    expected = dict(processor(text=[text], audio=[sound], **media))
    expected.pop("video_metadata", None)
    _assert_same(found, expected)
    assert prepared.count.tokens == facts.tokens(1.7)
