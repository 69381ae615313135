"""A job on its way to a stage's process: what is told is exactly the job, or it is refused."""

import json
import time
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest

from artifacts.model_files import ModelFiles
from artifacts.schema import FrameFit, Sampling
from artifacts.stamps import ModelFileStamp, Stamp
from flows.pipelines import STAGES
from stages.decode.generation import SamplingParams
from stages.decode.job import DecodeItem, DecodeJob
from stages.embed_texts.job import TextsItem
from stages.encode.job import EncodeJob
from stages.export.jobs import CaptionedItem, MergeJob, TimingJob
from stages.frames.job import FramesItem, FramesJob
from stages.models.encoding.job import EncodeItem
from stages.models.half_job import HalfJob
from stages.process.job import items_of, job_fields, parse_job
from stages.summarize.job import SummaryItem, SummaryJob
from stages.summarize.packing import TimedText
from stages.tune.job import TuneItem

JOBS = sorted({stage.job for stage in STAGES.values()} | {MergeJob, TimingJob}, key=str)
FRAMES: dict[str, Any] = {
    "store": "s", "namespace": "n", "sampling": {"chunk_seconds": 1, "fps": 1, "max_frames": 2},
    "fit_video": {}, "fit_image": {}, "media": [["p", "d", "video", [1], [1, 2, 3]]], "workers": 2,
}  # fmt: skip
ENCODE: dict[str, Any] = {
    "half": {"model": "m"}, "store": "s", "frames_namespace": "f", "namespace": "n",
    "batches": [[["k", "f", "image", "", 0, 0]]],
}  # fmt: skip
ITEMS = (DecodeItem, EncodeItem, FramesItem, TuneItem, CaptionedItem, SummaryItem, TextsItem)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A job with each kind of type that fields have."""

    rate: float = 0.0
    count: int = 0
    whole: bool = False
    name: str | None = None
    parts: tuple[str, ...] = ()


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.__name__)
def test_a_field_that_a_job_does_not_have_or_lacks_is_named(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__} has no field colour$"):
        parse_job(kind, {"colour": "red"})
    required = next(
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    )
    with pytest.raises(TypeError, match=f"^{kind.__name__} needs the field {required}$"):
        parse_job(kind, {})


@pytest.mark.parametrize(
    ("kind", "told", "words"),
    [
        (FramesJob, {**FRAMES, "workers": "2"}, "FramesJob.workers is str, not int"),
        (FramesJob, {**FRAMES, "workers": True}, "FramesJob.workers is bool, not int"),
        (FramesJob, {**FRAMES, "media": {}}, "FramesJob.media is dict, not list"),
        (FrameFit, {"shrinks": 1}, "FrameFit.shrinks is int, not bool"),
        (FramesJob, {**FRAMES, "store": None}, "FramesJob.store is NoneType, not str"),
        (EncodeJob, {**ENCODE, "batches": "k"}, "EncodeJob.batches is str, not list"),
        (HalfJob, {"model": "m", "route": "odd"}, "HalfJob.route is str, not .*protocol"),
        (HalfJob, {"model": "m", "adapted": []}, "HalfJob.adapted is list, not .*Mapping"),
        (HalfJob, {"model": "m", "attention": 3}, r"HalfJob.attention is int, not str \| None"),
        (Measured, {"rate": "fast"}, "Measured.rate is str, not float"),
        (Measured, {"count": 1.0}, "Measured.count is float, not int"),
        (Measured, {"parts": "vision"}, "Measured.parts is str, not tuple"),
        (EncodeJob, {**ENCODE, "half": {"model": "m", "colour": 1}}, "HalfJob has no field colour"),
        (EncodeJob, {**ENCODE, "half": {}}, "HalfJob needs the field model"),
        (EncodeJob, {**ENCODE, "half": None}, "EncodeJob.half is NoneType, not HalfJob"),
        (EncodeJob, {**ENCODE, "batches": [["k"]]}, "EncodeJob.batches holds 'k', not a Enc"),
        (EncodeJob, {**ENCODE, "batches": [3]}, "EncodeJob.batches is int, not list"),
    ],
)
def test_a_value_of_another_type_is_refused_with_field_and_class_wherever_it_stands(
    kind: type[Any], told: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        parse_job(kind, told)


def test_what_json_makes_of_a_job_is_the_job_again() -> None:
    half = HalfJob(
        model="m",
        pieces=("projector",),
        adapted={"a": "b"},
        files=ModelFiles(stamps={"w": ModelFileStamp(1, 2, 3, 4, 5)}, names={"f": ("a", "b")}),
    )
    items = [[EncodeItem("k", "f", "image"), EncodeItem("l", "g", "video", "why?", 4)]]
    places: dict[str, Any] = {"store": "s", "namespace": "n"}
    encoding = EncodeJob(half=half, frames_namespace="f", batches=items, **places)
    captions = SummaryItem("d", "k", [TimedText(0.0, 1.5, "a ball")])
    summing = SummaryJob(
        half=half,
        media=[captions],
        context=9,
        max_new_tokens=2,
        generation=SamplingParams(top_p=0.5, avoid=("a",)),
        **places,
    )
    cutting = FramesJob(
        sampling=Sampling(chunk_seconds=2, fps=1.5, max_frames=4),
        fit_video=FrameFit(long_edges=((1.0, 32), (2.0, 64))),
        fit_image=FrameFit(shrinks=True),
        media=[FramesItem("p", "d", "video", [1], Stamp(1, 2, 3)), FramesItem("q", "e", "image")],
        workers=2,
        **places,
    )
    measured = Measured(rate=1, name="n", parts=("vision", "language"))
    for job in (encoding, summing, cutting, measured):
        assert parse_job(type(job), json.loads(json.dumps(job_fields(job)))) == job


@pytest.mark.parametrize("kind", ITEMS, ids=lambda kind: kind.__name__)
def test_an_item_is_exactly_its_fields_by_name_or_in_order(kind: Any) -> None:
    named = dict.fromkeys(kind._fields, "x")
    with pytest.raises(TypeError, match=f"^{kind.__name__} has no field colour$"):
        items_of(kind, [{**named, "colour": "red"}])
    with pytest.raises(TypeError, match=f"^{kind.__name__} needs the field {kind._fields[0]}$"):
        items_of(kind, [{}])
    for wrong in ([], ["x"] * (len(kind._fields) + 1), "x" * len(kind._fields), 3):
        with pytest.raises(
            TypeError, match=f"^the line holds .*not a {kind.__name__} of {kind._fields[0]}, "
        ):
            items_of(kind, [wrong])
    with pytest.raises(TypeError, match=f"^{kind.__name__}.{kind._fields[0]} is int, not str$"):
        items_of(kind, [[3] * len(kind._fields)])


def test_a_hundred_thousand_items_are_read_in_a_moment() -> None:
    batches = [[["k" * 64, "f" * 64, "prompt", "", "", False, False, "video", ""]] * 10] * 10_000
    half = {"model": "m"}
    told = {"half": half, "store": "", "features_namespace": "", "namespace": "", "engine": ""}
    started = time.process_time()
    job = parse_job(DecodeJob, {**told, "max_new_tokens": 1, "batches": batches})
    assert time.process_time() - started < 2.0  # it takes 0.1 s
    assert job.batches[-1][-1].prompt == "prompt"
