"""A job on its way to a stage's process: what is told is exactly the job, or it is refused."""

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest

from flows.pipelines import STAGES
from stages.encode.job import EncodeJob
from stages.export.graph_job import TimingJob
from stages.export.merge_job import MergeJob
from stages.frames.job import FramesJob
from stages.models.half_job import HalfJob
from stages.process.job import job_of, part_of, told_of

JOBS = sorted({stage.job for stage in STAGES.values()} | {MergeJob, TimingJob}, key=str)
FRAMES: dict[str, Any] = {
    "store": "s", "namespace": "n", "sampling": {}, "fit": {}, "media": [], "workers": 2,
}  # fmt: skip
ENCODE: dict[str, Any] = {
    "model": "m", "store": "s", "frames_namespace": "f", "namespace": "n",
    "batches": [[{"key": "k", "frames": "f", "kind": "image"}]],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A job with each kind of type that fields have."""

    rate: float = 0.0
    count: int = 0
    whole: bool = False
    name: str | None = None
    parts: tuple[str, ...] = ()


def required(kind: type[Any]) -> list[str]:
    """Fields without a default."""
    return [
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    ]


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.__name__)
def test_a_field_that_a_job_does_not_have_is_refused_by_name(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__} has no field colour$"):
        job_of(kind, {"colour": "red"})


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.__name__)
def test_a_required_field_that_is_missing_is_named(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__} needs the field {required(kind)[0]}$"):
        job_of(kind, {})


@pytest.mark.parametrize(
    ("kind", "told", "words"),
    [
        (FramesJob, {**FRAMES, "workers": "2"}, "FramesJob.workers is str, and not int"),
        (FramesJob, {**FRAMES, "workers": True}, "FramesJob.workers is bool, and not int"),
        (FramesJob, {**FRAMES, "media": {}}, "FramesJob.media is dict, and not list"),
        (FramesJob, {**FRAMES, "shrinks": 1}, "FramesJob.shrinks is int, and not bool"),
        (FramesJob, {**FRAMES, "store": None}, "FramesJob.store is NoneType, and not str"),
        (EncodeJob, {**ENCODE, "batches": "k"}, "EncodeJob.batches is str, and not list"),
        (EncodeJob, {**ENCODE, "route": "odd"}, "EncodeJob.route is str, and not .*protocol"),
        (EncodeJob, {**ENCODE, "adapted": []}, "EncodeJob.adapted is list, and not .*Mapping"),
        (EncodeJob, {**ENCODE, "attention": 3}, r"EncodeJob.attention is int, and not str \| None"),
        (Measured, {"rate": "fast"}, "Measured.rate is str, and not float"),
        (Measured, {"count": 1.0}, "Measured.count is float, and not int"),
        (Measured, {"parts": "vision"}, "Measured.parts is str, and not tuple"),
    ],
)
def test_a_value_of_another_type_is_refused_with_field_and_class(
    kind: type[Any], told: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        job_of(kind, told)


def test_what_json_makes_of_a_job_is_the_job_again() -> None:
    job = EncodeJob(**ENCODE, pieces=("projector",), adapted={"a": "b"}, attention=None)
    assert job_of(EncodeJob, json.loads(json.dumps(told_of(job)))) == job
    measured = Measured(rate=1, name="n", parts=("vision", "language"))
    assert job_of(Measured, json.loads(json.dumps(told_of(measured)))) == measured


def test_members_are_handed_on_and_not_copied() -> None:
    assert job_of(EncodeJob, ENCODE).batches is ENCODE["batches"]


def test_a_half_is_taken_out_of_the_jobs_that_hold_one() -> None:
    half = part_of(HalfJob, {**ENCODE, "dtype": "float32", "block": 4})
    assert half == HalfJob(model="m", dtype="float32")
    with pytest.raises(TypeError, match="HalfJob needs the field model"):
        part_of(HalfJob, {"store": "s"})
    with pytest.raises(TypeError, match=r"HalfJob.offload is int, and not bool"):
        part_of(HalfJob, {"model": "m", "offload": 1})
