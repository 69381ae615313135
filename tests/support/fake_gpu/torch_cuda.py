"""What torch.cuda answers of cards that are not there, with the checks of arguments that torch 2.15
makes. Work on a stream is done at once, so streams and events only need to be there."""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.fake_gpu import graphs
from tests.support.fake_gpu.holding import holding
from tests.support.fake_gpu.state import log, read_machine
from tests.support.fake_gpu.torch_tensors import on_card
from tests.support.fake_gpu.visible import refusal


def number(device: Any, optional: bool = True) -> int:
    """The number of the card that is meant. Raises what torch does where none is."""
    if device is None and optional:
        return 0
    if device == "cuda" and not optional:
        raise ValueError(
            f"Expected a torch.device with a specified index or an integer, but got:{device}"
        )
    index = on_card(device)
    if index is None and (isinstance(device, str) or not isinstance(device, torch.device)):
        raise ValueError(f"Expected a cuda device, but got: {device}")
    return index or 0


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    if why := refusal(read_machine()):
        warnings.warn(f"CUDA initialization: {why}", stacklevel=2)
    return len(holding.slots())


def set_per_process_memory_fraction(fraction: Any, device: Any = None) -> None:
    holding.use()
    index = number(0 if device is None else device, optional=False)
    if not isinstance(fraction, float):
        raise TypeError("Invalid type for fraction argument, must be `float`")
    if fraction < 0 or fraction > 1:
        raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
    log("set_per_process_memory_fraction", fraction, index)
    holding.fraction = fraction


def get_per_process_memory_fraction(device: Any = None) -> float:
    holding.use(number(device))
    return holding.fraction


def get_device_properties(device: Any = None) -> SimpleNamespace:
    holding.use()
    index, slots = number(device), holding.slots()
    if not 0 <= index < len(slots):
        raise AssertionError("Invalid device id")
    slot = slots[index]
    major, minor = slot.gpu.capability
    return SimpleNamespace(
        name=slot.gpu.name,
        major=major,
        minor=minor,
        total_memory=slot.total_bytes,
        uuid=slot.uuid.partition("-")[2],
        multi_processor_count=46,
        is_integrated=0,
        warp_size=32,
    )


def get_device_capability(device: Any = None) -> tuple[int, int]:
    message = get_device_properties(device)
    return message.major, message.minor


def get_device_name(device: Any = None) -> str:
    return str(get_device_properties(device).name)


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Also by a card that has to emulate it, as torch says."""
    return is_available() and (including_emulation or get_device_capability()[0] >= 8)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    slot = holding.use(number(device))
    return holding.free_bytes(slot), slot.total_bytes


def memory_allocated(device: Any = None) -> int:
    """As with the real one, nothing, and no context, as long as there is none."""
    number(device)
    return holding.held_bytes()


def max_memory_allocated(device: Any = None) -> int:
    return max(memory_allocated(device), holding.peak_bytes)


def reset_peak_memory_stats(device: Any = None) -> None:
    holding.use(number(device))
    holding.peak_bytes = 0


def memory_stats(device: Any = None) -> dict[str, int]:
    now, most = memory_allocated(device), max_memory_allocated(device)
    kinds = ("allocated_bytes", "reserved_bytes")
    return {
        f"{kind}.all.{when}": n for kind in kinds for when, n in (("current", now), ("peak", most))
    }


def synchronize(device: Any = None) -> None:
    holding.use(number(device))


def empty_cache() -> None:
    if holding.made:
        holding.use()


class Stream:
    """A line of work, all of which is done as soon as it is asked for."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        holding.use(number(device))
        log("Stream", device)

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        holding.look()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Event:
    """A point in a line of work, which is passed as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._timed = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        holding.use()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        if not self._timed:
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return 1.0


@contextlib.contextmanager
def stream(chosen: Stream | None) -> Iterator[None]:
    yield


def current_stream(device: Any = None) -> Stream:
    holding.use(number(device))
    return Stream.__new__(Stream)


def current_device() -> int:
    holding.use()
    return 0


class CardContext(contextlib.nullcontext[None]):
    """In the place of `torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        super().__init__()
        self.idx = number(device)


def patch_cuda() -> None:
    """Change torch.cuda for this process."""
    ours = (
        is_available, device_count, set_per_process_memory_fraction,
        get_per_process_memory_fraction, get_device_properties, get_device_capability,
        get_device_name, is_bf16_supported, mem_get_info, memory_allocated, max_memory_allocated,
        reset_peak_memory_stats, memory_stats, synchronize, empty_cache, stream, current_stream,
        Stream, Event,
    )  # fmt: skip
    given: dict[str, Any] = {thing.__name__: thing for thing in ours}
    given |= dict.fromkeys(("manual_seed", "manual_seed_all"), lambda *_: None)
    given |= graphs.REPLACED
    graphs.happened.faults = lambda: read_machine().graphs
    graphs.happened.log = log
    given |= {
        "memory_reserved": memory_allocated,
        "max_memory_reserved": max_memory_allocated,
        "default_stream": current_stream,
        "device": CardContext,
        "set_device": lambda device: log("set_device", device),
        "current_device": current_device,
        "is_initialized": lambda: holding.made,
        "init": holding.use,
        "_lazy_init": holding.use,
    }
    torch.accelerator.current_stream = current_stream  # type: ignore[assignment]
    for name, thing in given.items():
        assert hasattr(torch.cuda, name), f"torch.cuda has no {name}"
        setattr(torch.cuda, name, thing)
        if hasattr(torch.cuda.memory, name):
            setattr(torch.cuda.memory, name, thing)
