"""Layers and weights on a GPU that runs late and out of step: nothing is computed with a layer that
is not there yet, or not any more, and weights have the bits of the files. Needs no GPU and no
luck."""

import json
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from artifacts.errors import CannotFit, EnvironmentFault
from penstock_demo import CHECKPOINT
from stages.models.halves import ranged_reads
from stages.models.halves.ranged_reads import PinnedBuffer, PinnedReader, WholeTensorFile
from stages.models.hub.headers import TensorPlace
from stages.models.streaming import layers as streamed
from stages.models.streaming.layers import (
    DeviceLayerBuffer,
    FileLayer,
    FileTensor,
    LayerBuffers,
    LayersInTurn,
    buffered_files,
)
from stages.models.streaming.pinned import PinnedLayer, Pinning, buffered_pinned, piece_sizes
from tests.support import gpus
from tests.support.families import BUILDERS

LAYERS, STEPS, READS = 7, 60, 3
"""Reads of each layer that is brought, in so many steps."""
SIZE = 64
SEEDS = range(8)
Work = Callable[[], None]


class LateEvent:
    """As CUDA's: who waits for it waits for its last record, and for nothing if there is none."""

    def __init__(self, device: "LateDevice") -> None:
        self._device, self._passed = device, [True]

    def record(self, stream: "LateStream") -> None:
        passed = self._passed = [False]
        stream.then(lambda: passed.__setitem__(0, True))

    def last(self) -> Callable[[], bool]:
        passed = self._passed
        return lambda: passed[0]

    def synchronize(self) -> None:
        self._device.run_until(self.last())


class LateStream:
    """Work in its order, of which nothing is done before the device gets to it."""

    def __init__(self, device: "LateDevice") -> None:
        self._device = device
        self.waiting: deque[tuple[Callable[[], bool], Work]] = deque()
        device.streams.append(self)

    def then(self, work: Work, ready: Callable[[], bool] = lambda: True) -> None:
        self.waiting.append((ready, work))
        self._device.step()

    def wait_event(self, event: LateEvent) -> None:
        self.then(lambda: None, event.last())

    def wait_stream(self, other: "LateStream") -> None:
        event = LateEvent(self._device)
        event.record(other)
        self.wait_event(event)

    def can_run(self) -> bool:
        return bool(self.waiting) and self.waiting[0][0]()


class LateDevice:
    """Does the work of its streams in an order that is drawn, or that of one stream before that of
    the other wherever it may."""

    def __init__(self, seed: int, hasty: str) -> None:
        self.random = random.Random(seed)
        self.streams: list[LateStream] = []
        self.compute = self.current = LateStream(self)
        self._hasty = hasty

    @contextmanager
    def on(self, stream: LateStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def step(self) -> None:
        """What happens to be done between two calls of the host."""
        if self._hasty == "none":
            for _ in range(self.random.randrange(3)):
                self._run_one()
        else:
            while any(stream.can_run() for stream in self._hasty_ones()):
                self._run_one()

    def run_until(self, passed: Callable[[], bool]) -> None:
        while not passed():
            assert self._run_one(), "what the host waits for never comes"

    def finish(self) -> None:
        self.run_until(lambda: not any(stream.waiting for stream in self.streams))

    def _hasty_ones(self) -> list[LateStream]:
        return self.streams[:1] if self._hasty == "compute" else self.streams[1:]

    def _run_one(self) -> bool:
        able = [stream for stream in self.streams if stream.can_run()]
        if self._hasty != "none":
            able = [stream for stream in able if stream in self._hasty_ones()] or able
        if able:
            self.random.choice(able).waiting.popleft()[1]()
        return bool(able)


class Fill(Future[None]):
    """What is done at the latest when it is waited for."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> None:
        if not self.done():
            self._work()
            self.set_result(None)


class Reader:
    """In the place of the thread that reads: reads at once, or when it is waited for."""

    def __init__(self, device: LateDevice) -> None:
        self._device = device

    def submit(self, work: Callable[[int, int], None], room: int, layer: int) -> Fill:
        fill = Fill(lambda: work(room, layer))
        if self._device.random.random() < 0.5:
            fill.result()
        return fill


class NumberedLayer:
    """Full of its own number."""

    tensors = ()
    size, largest_cast = SIZE, 0

    def __init__(self, number: int) -> None:
        self.number = number
        self.room: torch.Tensor | None = None
        self.pieces = torch.full((SIZE,), number, dtype=torch.uint8).split((SIZE // 2, 3, 1, 28))

    def read(self, room: torch.Tensor, scratch: torch.Tensor, readers: object) -> None:
        room.fill_(self.number)

    def attach(self, room: torch.Tensor) -> None:
        self.room = room

    def detach(self) -> None:
        self.room = None


def wrong_reads(
    patch: pytest.MonkeyPatch,
    seed: int,
    hasty: str,
    buffered: Callable[[Any, str], LayerBuffers[Any]] = buffered_files,
) -> int:
    """How often a layer was computed with that was another one when its turn came."""
    device = LateDevice(seed, hasty)
    on_device(patch, device)
    layers = [NumberedLayer(number) for number in range(LAYERS)]
    kept = buffered(layers, "cuda:0")
    wrong: list[int] = []

    def read(layer: NumberedLayer) -> None:
        assert layer.room is not None
        number, room = layer.number, layer.room
        device.compute.then(lambda: None if bool((room == number).all()) else wrong.append(number))

    # In turn, as in a pass, and now and then somewhere else, as where a pass begins anew.
    order = [at % LAYERS for at in range(STEPS)]
    order = [n if device.random.random() < 0.8 else device.random.randrange(LAYERS) for n in order]
    for now, after in zip(order, [*order[1:], 0], strict=True):
        kept.load(now)
        kept.prefetch(after)
        for _ in range(READS):
            read(layers[now])
        kept.release(now)
    device.finish()
    return len(wrong)


def on_device(patch: pytest.MonkeyPatch, device: LateDevice) -> None:
    """Have what the rooms ask of torch done by a late device."""
    empty, copy = torch.empty, torch.Tensor.copy_

    def copy_later(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> None:
        if non_blocking:
            device.current.then(lambda: cast(None, copy(self, other)))
        else:  # within the host
            copy(self, other)

    def empty_here(*given: Any, dtype: torch.dtype, **_: object) -> torch.Tensor:
        return empty(*given, dtype=dtype)

    patch.setattr(torch, "empty", empty_here)
    patch.setattr(torch.Tensor, "copy_", copy_later)
    patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    patch.setattr(torch.cuda, "Stream", lambda _: LateStream(device))
    patch.setattr(torch.cuda, "Event", lambda: LateEvent(device))
    patch.setattr(torch.cuda, "stream", device.on)
    patch.setattr(torch.cuda, "current_stream", lambda _: device.current)
    patch.setattr(streamed, "ThreadPoolExecutor", lambda *_, **__: Reader(device))


@pytest.mark.parametrize("buffered", [buffered_files, buffered_pinned])
@pytest.mark.parametrize("hasty", ["none", "copies", "compute"])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_layer_is_there_when_it_is_computed_with(
    seed: int, hasty: str, buffered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong_reads(monkeypatch, seed, hasty, buffered) == 0


@pytest.mark.parametrize("buffered", [buffered_files, buffered_pinned])
def test_a_room_that_is_never_released_is_seen_to_be_overwritten(
    buffered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the test above: a device that is never late would pass it."""
    monkeypatch.setattr(DeviceLayerBuffer, "release", lambda self: None)
    assert wrong_reads(monkeypatch, 0, "copies", buffered) > 0


BUFFER_BYTES = 256


def wrong_tensors(file: Path, patch: pytest.MonkeyPatch, seed: int, hasty: str) -> list[str]:
    """The tensors that have other bits than those of the file, once the device has done all."""
    shapes = {"matrix": (37, 11), "vector": (640,), "number": (), "nothing": (0, 3)}
    drawn = torch.Generator().manual_seed(seed)
    given = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    given |= {f"{name} bf16": each.bfloat16() for name, each in given.items()}
    save_file({**given, "long": torch.arange(99)}, file)
    kept, device = load_file(file), LateDevice(seed, hasty)
    with patch.context() as late:
        on_device(late, device)
        reader = PinnedReader(BUFFER_BYTES)
        whole = WholeTensorFile(safe_open(file, "pt", backend="pread"), file)
        made = {
            (name, dtype): reader.read(whole.get_slice(name), "cuda:0", dtype)
            for name in kept
            for dtype in (None, torch.bfloat16, torch.float32)
        }
        device.finish()
    expected = {(name, dtype): kept[name].to(dtype or kept[name].dtype) for name, dtype in made}
    same = {at: each.dtype == made[at].dtype for at, each in expected.items()}
    return [at[0] for at in made if not same[at] or not torch.equal(made[at], expected[at])]


@pytest.mark.parametrize("hasty", ["none", "copies"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_buffer_is_not_filled_before_it_was_copied(
    seed: int, hasty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong_tensors(tmp_path / "a.safetensors", monkeypatch, seed, hasty) == []


def test_without_waiting_a_copy_would_read_the_next_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the test above."""
    monkeypatch.setattr(PinnedBuffer, "wait", lambda self: None)
    assert wrong_tensors(tmp_path / "a.safetensors", monkeypatch, 0, "copies")


LOADS = """
import hashlib, json, sys
import torch
from stages.models.halves import ranged_reads
from stages.models.halves.load import load_half
if sys.argv[2] == "unpinned":
    def refuse(self, size):
        raise RuntimeError("CUDA error: OS call failed")
    ranged_reads.PinnedBuffer.__init__ = refuse
found = {}
for keep in ("vision", "language"):
    for dtype in (torch.float32, torch.bfloat16):
        for device in ("cpu", "cuda:0"):
            half = load_half(sys.argv[1], keep, dtype=dtype, device_map={"": device})
            digest = hashlib.sha256()
            for name, value in half.state_dict().items():
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
            note = half.__dict__.get(ranged_reads.NOTE, "")
            found.setdefault(f"{keep} {dtype}", []).append([device, digest.hexdigest(), note])
print(json.dumps(found))
"""


def printed(cards: Path, script: str, *given: str) -> Any:
    """What a script prints that runs on these cards."""
    command = [sys.executable, "-c", script, *given]
    done = subprocess.run(command, env=gpus.environment(cards), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pinned", "unpinned"])
def test_a_half_on_a_gpu_has_the_weights_of_one_on_the_cpu(how: str, tmp_path: Path) -> None:
    cards = gpus.plain().write(tmp_path / "gpu")
    found = printed(cards, LOADS, str(CHECKPOINT), how)
    assert len(found) == 4
    for (_, on_cpu, silent), (_, on_gpu, note) in found.values():
        assert on_gpu == on_cpu and not silent
        assert ("OS call failed" in note) == (how == "unpinned")
    pins = [call for call in gpus.calls(cards) if call.name == "pin"]
    assert len(pins) == (0 if how == "unpinned" else 4 * ranged_reads.BUFFERS)


CAPTIONS = """
import json, sys
from pathlib import Path
from tests.support.clips import PROMPTS, clips
from tests.support.families import checkpoint
from tests.support.waves import OTHER, Wave, captions_of
folder, family, engine = sys.argv[1:]
settings = {"dtype": "bfloat16", "device": "cuda:0", "engine": engine}
wave = Wave(Path(folder, "store"), checkpoint(family), [clips("video", 2)], **settings)
wave.encode()
wave.decode(PROMPTS)
wave.settings |= {"offload": True, "prefill": 256}
told = wave.decode(PROMPTS, OTHER)
fetched = sum(note.get("bytes_fetched_a_pass", 0) for note in told)
print(json.dumps([captions_of(wave.captions()), captions_of(wave.captions(OTHER)), fetched]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "engine"),
    [
        ("qwen2_5_vl", "inflight"),
        *(pytest.param(name, "transformers", marks=pytest.mark.slow) for name in BUILDERS),
    ],
)
def test_captions_from_layers_in_pinned_memory_are_those_of_a_resident_half(
    family: str, engine: str, tmp_path: Path
) -> None:
    cards = gpus.plain().write(tmp_path / "gpu")
    resident, offloaded, fetched = printed(cards, CAPTIONS, str(tmp_path), family, engine)
    assert offloaded == resident and len(resident) == 2 and fetched > 0
    assert sum(call.name == "pin" for call in gpus.calls(cards)) > 2 * ranged_reads.BUFFERS


def test_pieces_hold_a_layer_and_waste_little() -> None:
    for size in (1, 1 << 20, (1 << 20) + 1, 121_700_352, 456_900_608, 1 << 30):
        pieces = [*piece_sizes(size)]
        assert all(piece.bit_count() == 1 for piece in pieces)
        assert size <= sum(pieces) < size + (1 << 20)


class Calling(nn.Module):
    """A layer that may call another."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(3, 3), [inner]

    def forward(self, x: torch.Tensor) -> Any:
        made = self.linear(x)
        return made if self.inner[0] is None else self.linear(self.inner[0](made))


class PlainBuffer:
    """A buffer of the host, filled as one of a GPU."""

    def __init__(self) -> None:
        self._bytes = torch.empty(4096, dtype=torch.uint8)

    def fill(self, layer: PinnedLayer) -> None:
        self._bytes.fill_(255)
        at = 0
        for piece in layer.pieces:
            self._bytes[at : at + len(piece)] = piece
            at += len(piece)

    def memory(self) -> torch.Tensor:
        return self._bytes

    def release(self) -> None:
        pass


def in_turn(*layers: nn.Module) -> LayersInTurn:
    pinning = Pinning()
    pinning.refused = "there is no GPU"
    waiting = [pinning.layer(layer, "cpu") for layer in layers]
    buffers = [PlainBuffer(), PlainBuffer()]
    return LayersInTurn(waiting, LayerBuffers(waiting, buffers, ThreadPoolExecutor(1)))


def test_layers_compute_the_same_in_any_order_and_after_one_failed() -> None:
    layers, x = [Calling() for _ in range(4)], torch.randn(2, 3)
    expected = [layer(x).detach() for layer in layers]
    in_turn(*layers)
    assert all(weight.is_meta for layer in layers for weight in layer.parameters())
    for at in (0, 1, 2, 3, 0, 3, 1, 1, 2, 0):
        assert torch.equal(layers[at](x), expected[at])
        with pytest.raises(RuntimeError):
            layers[at](x[:, :2])
    assert all(weight.is_meta for layer in layers for weight in layer.parameters())


def test_layers_that_call_each_other_or_share_weights_cannot_be_offloaded() -> None:
    inner = Calling()
    outer = Calling(inner)
    in_turn(inner, outer)
    with pytest.raises(CannotFit, match="calls another layer, a Calling"):
        outer(torch.ones(1, 3))
    one, other = Calling(), Calling()
    other.linear = one.linear
    with pytest.raises(CannotFit, match="share a Linear"):
        in_turn(one, other)


def test_a_read_that_fails_is_raised_after_all_others_have_ended(tmp_path: Path) -> None:
    file, size = tmp_path / "short", 3 * streamed.READ_BYTES
    place = TensorPlace(dtype="U8", shape=(size,), start=0, end=size)
    owner, shape = Calling(), torch.Size(place.shape)
    stored: Any = {"dtype": torch.uint8, "at": 0, "file": file, "place": place}
    tensor = FileTensor(owner=owner, name="weight", shape=shape, **stored)
    layer = FileLayer(module=owner, tensors=(tensor,), size=size)
    buffer, scratch = torch.zeros(size, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)
    file.write_bytes(b"7" * (streamed.READ_BYTES + 5))
    with ThreadPoolExecutor(3) as readers:
        with pytest.raises(EnvironmentFault, match="short is not a whole"):
            layer.read(buffer, scratch, readers)
        file.write_bytes(b"8" * size)
        layer.read(buffer, scratch, readers)
    assert bool((buffer == ord("8")).all())
