"""Prepares sound for the audio half, and finds out how a checkpoint's processor takes it."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models.halves.records import SOUND, RowCount
from stages.models.halves.routes import SOUNDS
from stages.models.processors.input_layout import PROBES, channels_of, layout_of, noise
from stages.models.processors.loading import known
from stages.models.processors.processor_calls import INTERLEAVED, run, same
from stages.models.processors.side_inputs import Prepared
from stages.models.processors.sound import (
    DTYPE,
    HOOK,
    ONES,
    PROBE_SECONDS,
    WIDTH,
    answering_hook,
    mask_of,
    sound_layout,
    sound_noise,
    sound_places,
    sound_rate,
)
from stages.models.profile import HearingProfile
from stages.process.exit_diagnosis import out_of_memory


def prepare_sound(processor: Any, samples: NDArray[np.float32]) -> Prepared:
    """Run the processor on the sound of one row: mono samples from -1 to 1 at its rate."""
    width = known(processor, "width of padded sound", lambda: _padded_width(processor))
    return _prepared(processor, samples, width)


def _prepared(processor: Any, samples: NDArray[np.float32], width: int = 0) -> Prepared:
    """Run the processor. With a `width`, its mask has that width in the record, and the sound is
    padded only until no spectrum of it reaches the end, where they reflect what is before it."""
    channel = channels_of(processor)[0]
    extractor = processor._audio_processor
    padding = {}
    if width:
        padding["max_length"] = min(len(samples) + extractor.n_fft, extractor.n_samples)
    layout = sound_layout(processor, layout_of(processor, channel))
    kept: list[tuple[dict[str, Any], list[str]]] = []
    compute = getattr(processor, HOOK)

    def remember(*args: Any, **kwargs: Any) -> Any:
        found, replacements = compute(*args, **kwargs, **padding)
        kept.append((dict(found), [*replacements]))
        return found, replacements

    clip = replace(noise(channel), sound=samples)
    with answering_hook(processor, remember):
        outputs = run(processor, layout, [clip], PROBES[:1])
    ((found, replacements),) = kept
    return Prepared(
        inputs={name: value for name, value in outputs.items() if name in found},
        channel=SOUND,
        side={name: _kept(value, width) for name, value in found.items() if name not in SOUNDS},
        replacements=tuple(replacements),
        count=RowCount(tokens=sound_places(processor, outputs), media=1),
    )


def _kept(value: Any, width: int) -> Any:
    """Return a mask of one row as its lengths, and any other value as it is. `width`: that of the
    mask; 0: its own."""
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or len(value) != 1:
        return value
    ones, own = int((value != 0).sum()), value.shape[1]
    mask = {ONES: ones, WIDTH: width or own, DTYPE: str(value.dtype).removeprefix("torch.")}
    return mask if torch.equal(mask_of(mask, own), value) else value


def _padded_width(processor: Any) -> int:
    """Return the spectra in the mask of every sound, if the processor pads each to its longest one
    and gives the same with less padding: that of Qwen2.5-Omni pads to 300 s, which took 0.3 s of a
    core. Else 0."""
    sound = sound_noise(processor, PROBE_SECONDS[0])
    try:
        row = _prepared(processor, sound)
        ((ones, width),) = ((m[ONES], m[WIDTH]) for m in row.side.values() if isinstance(m, dict))
        less = _prepared(processor, sound, width)
    except Exception as error:  # most have no such option, and a processor may fail in any way
        if out_of_memory(error):
            raise
        return 0
    pairs = [(value, less.inputs[name]) for name, value in row.inputs.items()]
    is_padded = all(other.shape[-1] < value.shape[-1] == width for value, other in pairs)
    is_same = all(torch.equal(value[..., :ones], other[..., :ones]) for value, other in pairs)
    return width if is_padded and is_same and same(less.side, row.side) else 0


def hearing_profile(processor: Any) -> HearingProfile | None:
    """Return what planning needs of a processor's sound; None if it takes none beside pictures."""
    if not (rate := sound_rate(processor)):
        return None
    try:
        layouts = [
            sound_layout(processor, layout_of(processor, name)) for name in channels_of(processor)
        ]
        few, more = (_tokens(processor, seconds) for seconds in PROBE_SECONDS)
        longest = _longest(processor, rate)
    except Exception as error:  # a processor may fail in any way
        if out_of_memory(error):
            raise
        return None
    per_second = (more - few) / (PROBE_SECONDS[1] - PROBE_SECONDS[0])
    return HearingProfile(
        rate=rate,
        tokens_per_second=per_second,
        tokens_per_sound=max(0, few - int(PROBE_SECONDS[0] * per_second)),
        max_seconds=longest,
        interleaved=any(layout.sound == INTERLEAVED for layout in layouts),
    )


def _longest(processor: Any, rate: int) -> float:
    """Return the longest sound in seconds that the processor passes on; 0: any."""
    extractor = processor._audio_processor
    stated = inspect.signature(type(extractor).__call__).parameters.get("max_length")
    samples = getattr(extractor, "n_samples", None if stated is None else stated.default)
    if not isinstance(samples, int) or samples < rate:
        return 0.0
    row = prepare_sound(processor, sound_noise(processor, PROBE_SECONDS[0]))
    is_window = any(
        isinstance(kept, dict) and kept[WIDTH] >= samples // getattr(extractor, "hop_length", 1)
        for kept in row.side.values()
    )
    seconds = samples / rate
    if is_window or _tokens(processor, seconds) >= _tokens(processor, seconds + 1.0):
        return seconds
    return 0.0


def _tokens(processor: Any, seconds: float) -> int:
    return prepare_sound(processor, sound_noise(processor, seconds)).count.tokens
