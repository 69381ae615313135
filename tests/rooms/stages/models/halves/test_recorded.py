"""Passes of a vision half that are recorded as CUDA graphs and replayed give the features of plain
passes, or are not replayed at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from artifacts.errors import UsageError
from stages.memory.meta_device import tensors
from stages.models.half_job import RECORDINGS
from stages.models.halves import boundary, recorded
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.boundary import group_windows
from stages.models.halves.features import encode, image_vectors
from stages.models.halves.recorded import RECORDER, HostGrid, PassRecorder, keep_grids_on_host
from tests.support import dual_encoders
from tests.support.fake_gpu import graphs
from tests.support.fake_gpu.graphs import Happened
from tests.support.fake_gpu.state import GraphFaults
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import cast, greedy
from tests.support.trees import AllEqual, tensors_in

QUICK = ("qwen2_5_vl:video", "llava_onevision", "internvl", "gemma4", "smolvlm")
PLAIN = {"smolvlm", "idefics3", "idefics2", "dots3_note"}
"""Families whose encoders leave out empty pictures, or assign pixels to experts."""
Faults = Callable[[GraphFaults], Happened]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Have torch.cuda record on the CPU, with the faults that are given."""
    monkeypatch.setattr(PassRecorder, "reason", "")
    for name in ("recordings", "replayed", "passes"):
        monkeypatch.setattr(PassRecorder, name, 0)
    monkeypatch.setattr(boundary, "EQUAL", {})
    for name, thing in {**graphs.REPLACED, "synchronize": lambda *_: None}.items():
        monkeypatch.setattr(torch.cuda, name, thing)

    def plant(planted: GraphFaults) -> Happened:
        happened = Happened(faults=lambda: planted)
        monkeypatch.setattr(graphs, "happened", happened)
        return happened

    return plant


@pytest.fixture
def happened(faults: Faults) -> Happened:
    return faults(GraphFaults())


def other(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with other pixels."""
    return {
        name: torch.randn_like(v) if torch.is_tensor(v) and v.is_floating_point() else v
        for name, v in inputs.items()
    }


def prepared(name: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    for module in model.modules():
        if hasattr(module, "config"):  # one family casts pixels to the dtype that its config states
            module.config.dtype = torch.bfloat16
    return greedy(model.to(torch.bfloat16)), cast(inputs, torch.bfloat16)


def as_on_card(half: Any) -> Any:
    """A half as it is loaded on a card."""
    if group_windows(half):
        keep_grids_on_host(half)
    half.__dict__[RECORDER] = PassRecorder()
    return half


def counts() -> tuple[int, int]:
    return PassRecorder.recordings, PassRecorder.replayed


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_replayed_features_of_other_pictures_are_those_of_plain_passes(
    name: str, happened: Happened
) -> None:
    model, inputs = prepared(name)
    pictures = [other(inputs) for _ in range(4)]
    try:
        expected = [tensors_in(encode(model, picture)) for picture in pictures]
    except (UsageError, NeedsWeights) as error:
        pytest.skip(str(error))
    as_on_card(model)
    found = [tensors_in(encode(model, picture)) for picture in pictures]
    for one, target in zip(found, expected, strict=True):
        assert len(one) == len(target) and all(map(torch.equal, one, target))
    if name.partition(":")[0] in PLAIN:
        assert PassRecorder.reason.startswith("NotRecordable: the host reads pixels")
        assert counts() == (0, 0) and happened.recordings == 0
    else:
        encoders = PassRecorder.passes // 4  # one, or one of images and one of videos
        assert (PassRecorder.reason, counts()) == ("", (encoders, 2 * encoders))
        assert happened.modes == ["thread_local"] * encoders


@pytest.mark.parametrize("name", ("clip", "siglip"))
def test_vectors_of_dual_encoders_are_replayed(name: str, happened: Happened) -> None:
    half = dual_encoders.tiny(name).eval()
    pictures = [other(dual_encoders.pictures(name, 8)) for _ in range(5)]
    expected = [image_vectors(half, picture) for picture in pictures]
    as_on_card(half)
    for picture, target in zip(pictures, expected, strict=True):
        assert torch.equal(image_vectors(half, picture), target)
    assert (PassRecorder.reason, counts()) == ("", (1, 3))
    assert PassRecorder.stats() == {"recorded": {"replayed": 3, "passes": 5, "recordings": 1}}


def test_only_shapes_seen_twice_are_recorded_and_few_are_kept_in_one_pool(
    happened: Happened,
) -> None:
    half = as_on_card(dual_encoders.tiny("clip").eval())
    pictures = dual_encoders.pictures("clip", RECORDINGS + 2)["pixel_values"]

    def encode_of(rows: int, rounds: int) -> None:
        for _ in range(rounds):
            image_vectors(half, {"pixel_values": pictures[:rows]})

    for rows in range(1, RECORDINGS + 3):
        encode_of(rows, 1)
    assert counts() == (0, 0)
    for rows in range(1, RECORDINGS + 2):
        encode_of(rows, 1)
    assert counts() == (RECORDINGS + 1, 0)
    encode_of(RECORDINGS + 1, 2)
    assert counts() == (RECORDINGS + 1, 2)
    encode_of(1, 2)  # the oldest was dropped, and is recorded again
    assert counts() == (RECORDINGS + 2, 3)
    assert len(set(happened.pools[1:])) == 1 and happened.pools[0] is None


def test_grids_of_the_same_number_of_patches_are_other_shapes(happened: Happened) -> None:
    model, inputs = prepared("qwen2_5_vl")
    inputs = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    inputs["image_grid_thw"] = torch.tensor([[1, 2, 8]])  # the 16 patches of 4 x 4
    turned = {**inputs, "image_grid_thw": torch.tensor([[1, 8, 2]])}
    expected = [tensors_in(encode(model, given)) for given in (inputs, turned)]
    assert not torch.equal(expected[0][0], expected[1][0])
    as_on_card(model)
    for _ in range(3):
        for given, target in zip((inputs, turned), expected, strict=True):
            assert all(map(torch.equal, tensors_in(encode(model, given)), target))
    assert counts() == (2, 2)


@pytest.mark.parametrize(
    ("planted", "reason", "replayed"),
    (
        (GraphFaults(failing=(1,)), "AcceleratorError: CUDA error: unspecified launch failure", 0),
        (GraphFaults(failing=(2,)), "AcceleratorError: CUDA error: unspecified launch failure", 2),
        (GraphFaults(other=(1,)), "NotRecordable: a replayed pass gives other features", 0),
        (GraphFaults(short=(2,)), "OutOfMemoryError: CUDA out of memory.", 2),
        (GraphFaults(replay=3), "AcceleratorError: CUDA error: unspecified launch failure", 1),
    ),
    ids=("fails", "second shape fails", "differs", "out of memory", "replay fails"),
)
def test_a_recording_that_fails_leaves_plain_passes(
    faults: Faults, planted: GraphFaults, reason: str, replayed: int
) -> None:
    faults(planted)
    half = dual_encoders.tiny("clip").eval()
    shapes = [dual_encoders.pictures("clip", rows) for rows in (2, 3)]
    pictures = [other(shape) for shape in shapes for _ in range(4)]
    expected = [image_vectors(half, picture) for picture in pictures]
    as_on_card(half)
    for picture, target in zip(pictures, expected, strict=True):
        assert torch.equal(image_vectors(half, picture), target)
    assert PassRecorder.reason.startswith(reason)
    assert PassRecorder.replayed == replayed and PassRecorder.passes == len(pictures)


def test_recordings_make_room_for_a_pass_that_runs_out_of_memory(
    happened: Happened, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = as_on_card(dual_encoders.tiny("clip").eval())
    small, large = (dual_encoders.pictures("clip", rows) for rows in (2, 8))
    for _ in range(3):
        image_vectors(half, small)
    assert counts() == (1, 1)
    expected = dual_encoders.tiny("clip").eval()
    real, known = type(half).get_image_features, half.__dict__[RECORDER]._known

    def short(self: Any, pixel_values: torch.Tensor, **options: Any) -> Any:
        if known:
            raise torch.OutOfMemoryError(graphs.SHORT)
        return real(self, pixel_values=pixel_values, **options)

    monkeypatch.setattr(type(half), "get_image_features", short)
    assert torch.equal(image_vectors(half, large), image_vectors(expected, large))
    assert PassRecorder.reason.startswith("OutOfMemoryError: CUDA out of memory") and not known


class Strict(TorchDispatchMode):
    """Raises at what a stream that captures does not permit. Numbers on the meta device are the
    card's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, HostGrid) for kind in types):
            return NotImplemented
        made = func(*args, **(kwargs or {}))
        # A number of no dimension goes along with a kernel.
        there = {t.device.type for t in tensors(args, kwargs, made) if t.ndim or t.is_meta}
        assert len(there) < 2, f"{func} copies between host and card"
        name = str(func)
        assert there == {"cpu"} or not name.startswith((*recorded.READS, *recorded.SHAPED)), name
        return made


@pytest.mark.parametrize("name", ("qwen2_5_vl:video", "qwen3_vl", "internvl", "siglip"))
def test_nothing_is_copied_to_or_read_from_the_card_in_a_recording(
    name: str, happened: Happened, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def capture(graph: Any, pool: Any = None, capture_error_mode: str = "") -> Iterator[None]:
        with Strict():  # type: ignore[no-untyped-call]
            yield

    if name == "siglip":
        model, inputs = dual_encoders.tiny(name).eval(), dual_encoders.pictures(name, 2)
    else:
        model, inputs = prepared(name)
    as_on_card(model).to("meta")
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(graphs.CUDAGraph, "replay", lambda graph: None)
    monkeypatch.setattr(boundary, "EQUAL", AllEqual())
    monkeypatch.setattr(recorded, "same_bits", lambda one, other: True)
    for _ in range(2):
        encode(model, inputs)
    assert (PassRecorder.reason, counts()) == ("", (1, 0))
