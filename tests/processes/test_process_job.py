"""A job on its way to a stage's process: what is told is exactly the job, or it is refused."""

import json
import math
import re
import time
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest

from artifacts.disk.json_records import read_record, typed
from artifacts.disk.json_shapes import Json, ShapeError
from artifacts.disk.json_types import Count, Number
from artifacts.disk.stamps import ModelFileStamp, Stamp
from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from artifacts.index.manifest import Manifest
from artifacts.records.model_files import ModelFiles
from artifacts.schema import MediaIndex, Sampling
from flows.core.pipelines import STAGES
from stages.decode.generation import DecodeItem, DecodeJob, SamplingParams
from stages.embed_texts import TextsItem
from stages.encode import EncodeJob
from stages.export import CaptionedItem, MergeJob, TimingJob
from stages.frames.job import FramesItem, FramesJob
from stages.models.encoding import EncodeItem
from stages.models.half_job import HalfJob
from stages.process.job import items_of, job_fields, parse_job
from stages.summarize import SummaryItem, SummaryJob, TimedText
from stages.tune import TuneItem

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
    required = next(f.name for f in fields(kind) if f.default is f.default_factory is MISSING)
    lacks = f"^{kind.__name__}: .*missing required field `{required}`$"
    with pytest.raises(TypeError, match=lacks):
        parse_job(kind, {})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (FramesJob, {**FRAMES, "workers": "2"}, "Expected `int`, got `str` - at `$.workers`"),
        (FramesJob, {**FRAMES, "workers": True}, "Expected `int`, got `bool` - at `$.workers`"),
        (FramesJob, {**FRAMES, "media": {}}, "Expected `array`, got `object` - at `$.media`"),
        (FrameFit, {"shrinks": 1}, "Expected `bool`, got `int` - at `$.shrinks`"),
        (FramesJob, {**FRAMES, "store": None}, "Expected `str`, got `null` - at `$.store`"),
        (EncodeJob, {**ENCODE, "batches": "k"}, "Expected `array`, got `str` - at `$.batches`"),
        (HalfJob, {"model": "m", "route": "odd"}, "Invalid enum value 'odd' - at `$.route`"),
        (HalfJob, {"model": "m", "adapted": []}, "Expected `object`, got `array` - at `$.adapted`"),
        (HalfJob, {"model": "m", "adapted": {"a": 1}}, "Expected `str`, got `int` - at `$.adap"),
        (HalfJob, {"model": "m", "extra_modules": [1]}, "Expected `str`, got `int` - at `$.extra_"),
        (HalfJob, {"model": "m", "attention": 3}, "Expected `str | null`, got `int` - at `$.att"),
        (Measured, {"rate": "fast"}, "Expected `float`, got `str` - at `$.rate`"),
        (Measured, {"rate": True}, "Expected `float`, got `bool` - at `$.rate`"),
        (Measured, {"count": 1.0}, "Expected `int`, got `float` - at `$.count`"),
        (Measured, {"parts": "vision"}, "Expected `array`, got `str` - at `$.parts`"),
        (EncodeJob, {**ENCODE, "half": {}}, "Object missing required field `model` - at `$.half`"),
        (EncodeJob, {**ENCODE, "half": None}, "Expected `object`, got `null` - at `$.half`"),
        (EncodeJob, {**ENCODE, "batches": [["k"]]}, "Expected `array`, got `str` - at `$.batches["),
        (EncodeJob, {**ENCODE, "batches": [3]}, "Expected `array`, got `int` - at `$.batches[0]`"),
    ],
)
def test_a_value_of_another_type_is_refused_with_field_and_class_wherever_it_stands(
    kind: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__}: {re.escape(message)}"):
        parse_job(kind, values)


@pytest.mark.parametrize(
    ("kind", "values", "place"),
    [
        (EncodeJob, {**ENCODE, "half": {"model": "m", "colour": 1}}, "EncodeJob.half"),
        (EncodeJob, {**ENCODE, "half": {"files": {"colour": 1}}}, "EncodeJob.half.files"),
        (MediaIndex, {"chunks": [{}, {"colour": 1}]}, "MediaIndex.chunks"),
        (Manifest, {"measured": {"pictures": {"colour": 1}}}, "Manifest.measured"),
        (Manifest, {"deleted": {"colour": 1}}, "Manifest.deleted"),
    ],
)
def test_an_unknown_field_is_refused_with_its_place_at_any_depth(
    kind: type[Any], values: dict[str, Any], place: str
) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(place)} has no field colour$"):
        read_record(kind, values)


def test_text_that_is_not_unicode_is_refused_where_another_type_belongs() -> None:
    with pytest.raises(TypeError, match=r"^Measured: "):
        read_record(Measured, json.loads('{"count": "\\ud800"}'))


@pytest.mark.parametrize(
    "value", [pytest.param(10**400, id="large"), 1 << 63, math.inf, math.nan, True, "1"]
)
def test_what_no_number_may_be_is_no_number(value: Any) -> None:
    for kind in (Count, Number):
        with pytest.raises(ShapeError):
            typed(kind, value)


def test_numbers_and_texts_are_read_as_they_were_written() -> None:
    large, path = (1 << 53) + 1, "/media/\udcff.mp4"
    values = {"rate": 2, "count": large, "name": path}
    measured = read_record(Measured, json.loads(json.dumps(values)))
    assert (measured.count, measured.name, type(measured.rate)) == (large, path, float)
    assert read_record(Measured, {"count": 1 << 70}).count == 1 << 70
    assert math.isnan(read_record(Measured, json.loads('{"rate": NaN}')).rate)


def test_what_a_class_itself_refuses_keeps_its_error_and_hint() -> None:
    with pytest.raises(UsageError, match="give either --fps or --frames") as refused:
        read_record(FramesJob, {**FRAMES, "sampling": {"chunk_seconds": 1, "max_frames": 2}})
    assert refused.value.hint == "Leave one of them out"


def test_what_json_makes_of_a_job_is_the_job_again() -> None:
    half = HalfJob(
        model="m",
        extra_modules=("projector",),
        adapted={"a": "b"},
        files=ModelFiles(stamps={"w": ModelFileStamp(1, 2, 3, 4, 5)}, names={"f": ("a", "b")}),
    )
    items = [[EncodeItem("k", "f", "image"), EncodeItem("l", "g", "video", "why?", 4)]]
    places: dict[str, Any] = {"store": "s", "namespace": "n"}
    encoding = EncodeJob(half=half, frames_namespace="f", batches=items, **places)
    captions = SummaryItem("d", "k", [TimedText(0.0, 1.5, "a ball")])
    limits: dict[str, Any] = {"context": 9, "max_new_tokens": 2, **places}
    params = SamplingParams(top_p=0.5, avoid=("a",))
    summing = SummaryJob(half=half, media=[captions], generation=params, **limits)
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
def test_an_item_is_the_list_of_its_fields_in_order(kind: Any) -> None:
    wrong: Any
    for wrong in ([], ["x"] * (len(kind._fields) + 1), "x" * len(kind._fields), 3, {}):
        with pytest.raises(TypeError, match=rf"^list.{re.escape(kind.__module__)}.*`\$\[0\]`$"):
            items_of(kind, [wrong])
    with pytest.raises(TypeError, match=r"Expected `str`, got `int` - at `\$\[0\]\[0\]`$"):
        items_of(kind, [[3] * len(kind._fields)])


def test_a_hundred_thousand_items_are_read_in_a_moment() -> None:
    batches: Json = [[["k" * 64, "f" * 64, "prompt", "", "", False, False, "video"]] * 10] * 10_000
    half = {"model": "m"}
    messages: dict[str, Json] = {
        "half": half,
        "store": "",
        "features_namespace": "",
        "namespace": "",
        "engine": "",
    }
    started = time.process_time()
    job = parse_job(DecodeJob, {**messages, "max_new_tokens": 1, "batches": batches})
    assert time.process_time() - started < 2.0  # it takes 0.1 s
    assert job.batches[-1][-1].prompt == "prompt"
