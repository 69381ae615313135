"""What a trainer makes of media: what it enlarges, crops, or never shows."""

from collections.abc import Iterator, Sequence

from artifacts.texts.trainer_models import TrainerModel
from artifacts.texts.trainers import TrainerEntry, ltx_buckets
from flows.outputs.seen.sets import Fault, TrainedSample
from flows.outputs.seen.settings import LtxSettings, MusubiSettings, TrainerSettings

ENLARGED, SMALL = 1.1, 2.0
"""Scale from which media count as enlarged, and from which they are too small."""
CROPPED = 0.2
"""Share of a picture from which it counts as cropped."""
SEEN = 0.9
"""Share of a clip's seconds below which some count as unseen."""
BUCKET = 0.8
"""Share of the pixels of the largest bucket below which a picture is trained small."""
OTHER_RATE = 0.05
"""Difference of two rates, as a share, from which motion is faster or slower."""


def note_media(samples: Sequence[TrainedSample], model: TrainerModel) -> None:
    """Add the faults of what a trainer makes of the media that could be read."""
    readable = [sample for sample in samples if all(sample.size)]
    if model.trainer == "ltx":
        buckets = _buckets_of(readable, model)
        for sample in readable:
            sample.settings = LtxSettings(buckets=buckets)
    for sample in readable:
        if (settings := sample.settings) is None:
            continue
        sample.faults += _of_size(sample, settings)
        if sample.kind == "video" and sample.rate and sample.frames and model.frames:
            sample.faults += _of_time(sample, settings, model)


def _buckets_of(
    samples: Sequence[TrainedSample], model: TrainerModel
) -> tuple[tuple[int, int, int], ...]:
    """Return the buckets that a run names for its LTX data set."""
    entries = [
        TrainerEntry(
            kind=sample.kind,
            path=str(sample.path),
            rows=(),
            size=sample.size,
            rate=sample.rate,
            frames=sample.frames if sample.kind == "video" else 0,
        )
        for sample in samples
    ]
    return ltx_buckets(entries, model)


def _of_size(sample: TrainedSample, settings: TrainerSettings) -> Iterator[Fault]:
    """Yield what a trainer enlarges or crops, or trains at a small size."""
    (width, height), bucket = sample.size, settings.bucket(sample.size, sample.kind, sample.frames)
    if bucket is None:
        return
    if not all(bucket):
        text = f"{width} x {height} pixels are too few: the trainer ends with an error"
        yield Fault(rule="small", text=text)
        return
    scale = max(bucket[0] / width, bucket[1] / height)
    shown, trained = f"{width} x {height}", f"{bucket[0]} x {bucket[1]}"
    if scale >= ENLARGED:
        rule = "small" if scale >= SMALL else "enlarged"
        yield Fault(rule=rule, text=f"{shown} is enlarged {scale:.2f} x to {trained}")
    trained_part = bucket[0] / scale, bucket[1] / scale
    left, top = (width - trained_part[0]) / 2, (height - trained_part[1]) / 2
    crop = round(left), round(top), round(left + trained_part[0]), round(top + trained_part[1])
    cut = 1 - trained_part[0] * trained_part[1] / (width * height)
    sample.crop, sample.measures["cropped"], sample.measures["enlarged"] = crop, 100 * cut, scale
    if cut >= CROPPED:
        text = f"{cut:.0%} of {shown} is cut off for {trained}: {_sides_cut(crop, width, height)}"
        yield Fault(rule="cropped", text=text, crop=crop)
    share = bucket[0] * bucket[1] / settings.largest(sample.kind)
    if share < BUCKET and scale < ENLARGED:
        yield Fault(rule="small", text=f"trained at {trained}, {share:.0%} of the largest size")


def _sides_cut(crop: tuple[int, int, int, int], width: int, height: int) -> str:
    left, top, right, bottom = crop
    if left > top:
        return f"{left} pixels on the left, {width - right} on the right"
    return f"{top} pixels above, {height - bottom} below"


def _of_time(
    sample: TrainedSample, settings: TrainerSettings, model: TrainerModel
) -> Iterator[Fault]:
    """Yield what a trainer leaves out of a video, or plays at another speed."""
    count, rate = sample.frames, sample.rate
    spans, duration = settings.spans(count, rate, model), count / rate
    sample.measures["unseen seconds"] = duration
    if not spans:
        text = f"{count:,} frames at {rate:.4g} per second are too few: it is left out"
        yield Fault(rule="never trained", text=text)
        return
    seen, last = 0.0, 0.0
    for start, end, _ in sorted(spans):
        seen, last = seen + max(0.0, end - max(start, last)), max(last, end)
    sample.measures["unseen seconds"] = max(0.0, duration - seen)
    if max(taken.frames for taken in spans) == 1:
        text = f"of {count:,} frames only the first one is trained, as a picture"
        yield Fault(rule="one frame", text=text)
    elif seen < SEEN * duration:
        text = (
            f"the caption is about {duration:.1f} s, and {seen:.1f} s are trained, to {last:.1f} s"
        )
        yield Fault(rule="unseen seconds", text=text)
    if isinstance(settings, MusubiSettings) and model.fps:
        yield from _of_rate(rate, settings.source_fps, model)


def _of_rate(rate: float, stated: float, model: TrainerModel) -> Iterator[Fault]:
    """Yield that musubi-tuner takes a video for faster or slower than it is."""
    if stated and abs(rate / stated - 1) > OTHER_RATE:
        text = f"it has {rate:.4g} frames per second, and source_fps says {stated:.4g}"
        yield Fault(rule="wrong rate", text=text)
    elif not stated and abs(rate / model.fps - 1) > OTHER_RATE:
        text = (
            f"{rate:.4g} frames per second are played as {model.fps:g}: {model.fps / rate:.2f} x "
            "as fast"
        )
        yield Fault(rule="wrong rate", text=text)
