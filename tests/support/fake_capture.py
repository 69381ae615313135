"""Lists what would keep a card from recording a decode step, without a card.

1. The step runs as it is. Every number that Python reads, and every shape that depends on data, is
   noted with its value.
2. It runs again on a copy whose tensors are all on `cuda:0` of a fake mode, which computes nothing.
   What was read is answered in the same order, and every operator is noted that copies between host
   and card, or makes a tensor on the host.
"""

import copy
import os
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.cpu_graph import READS, SHAPED, decomposed, indexes_by_mask, tensors_in

METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.numpy: "numpy"}
"""Methods that read without an operator."""
COPIES = ("aten._to_copy", "aten.copy_", "aten._copy_from")
CARD = "cuda:0"


def place() -> str:
    """The innermost lines of the model and of the project."""
    found = []
    for frame in reversed(traceback.extract_stack(limit=60)):
        if "/torch/" in frame.filename or "/tests/support/" in frame.filename:
            continue
        short = frame.filename.split("site-packages/")[-1].removeprefix(os.getcwd() + "/")
        found.append(f"{short}:{frame.lineno}")
    return " < ".join(found[:2])


class Pass(TorchDispatchMode):
    """What one pass of a step reads, copies and makes: each with its place, and how often."""

    def __init__(self, answers: list[tuple[str, Any]] | None = None) -> None:
        """`answers` are the values that another pass has noted; None: this one notes them."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[tuple[str, Any]] = []
        self.reads: Counter[str] = Counter()
        self.shaped: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        """Tensors that are made on the host."""
        self._answers = None if answers is None else deque(answers)

    def noted(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value that Python gets: computed, or as in the other pass."""
        if self._answers is None:
            value = compute()
            self.values.append((name, value))
            return value
        if not self._answers or self._answers[0][0] != name:
            raise RuntimeError(f"the passes differ: {name} at {place()}")
        return self._answers.popleft()[1]

    def read(self, name: str, compute: Callable[[], Any]) -> Any:
        self.reads[f"{name} at {place()}"] += 1
        return self.noted(name, compute)

    def __torch_dispatch__(self, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named, name = named or {}, str(func)
        found = decomposed(self, func, given, named)
        if found is not NotImplemented:
            return found
        if name.startswith(READS):
            return self.read(name, lambda: func(*given, **named))
        if name.startswith(SHAPED) or indexes_by_mask(name, given):
            return self._of_data(name, func, given, named)
        out = func(*given, **named)
        if self._answers is not None:
            self._note_places(name, tensors_in(given, named), tensors_in(out))
        return out

    def _of_data(self, name: str, func: Any, given: Any, named: Any) -> Any:
        self.shaped[f"{name} at {place()}"] += 1
        if self._answers is None:
            out = func(*given, **named)
            self.noted(name, lambda: [(t.shape, t.dtype) for t in tensors_in(out)])
            return out
        made = [
            torch.empty(shape, dtype=dtype, device=tensors_in(given)[0].device)
            for shape, dtype in self.noted(name, list)
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _note_places(self, name: str, taken: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        kinds = {tensor.device.type for tensor in (*taken, *made)}
        if len(kinds) > 1 and (
            name.startswith(COPIES) or any(t.device.type == "cpu" and t.ndim for t in taken)
        ):
            self.copies[f"{name} at {place()}"] += 1
        elif made and kinds == {"cpu"} and not taken:
            self.made[f"{name} at {place()}"] += 1


class Methods(TorchFunctionMode):
    """Notes `tolist` and `numpy`, which no dispatch mode sees."""

    def __init__(self, noted: Pass) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if (name := METHODS.get(func)) is None:
            return func(*given, **(named or {}))
        return self._noted.read(name, lambda: func(*given, **(named or {})))


@contextmanager
def watching(noted: Pass) -> Iterator[None]:
    """Note what is done in the block."""
    before = FakeTensor.tolist  # a method in Python, which no mode sees
    FakeTensor.tolist = lambda tensor: noted.read("tolist", lambda: before(tensor))  # type: ignore[method-assign, assignment]
    try:
        with noted, Methods(noted):
            yield
    finally:
        FakeTensor.tolist = before  # type: ignore[method-assign]


@contextmanager
def _copies_on_card() -> Iterator[None]:
    """Have `copy.deepcopy` make each tensor one on the card."""

    def made(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if id(tensor) in memo:
            return memo[id(tensor)]  # type: ignore[no-any-return]
        shape, stride = tensor.shape, tensor.stride()
        twin = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=CARD)
        if isinstance(tensor, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, requires_grad=False)
        memo[id(tensor)] = twin
        return twin

    kinds: tuple[Any, ...] = (torch.Tensor, torch.nn.Parameter)
    before = [kind.__deepcopy__ for kind in kinds]
    for kind in kinds:
        kind.__deepcopy__ = made
    try:
        yield
    finally:
        for kind, own in zip(kinds, before, strict=True):
            kind.__deepcopy__ = own


def faults_of(owner: Any, compute: Callable[[Any], object]) -> dict[str, dict[str, int]]:
    """What would keep a card from recording `compute(owner)`: `reads`, `shaped`, `copies`, `made`,
    each with its places; and `error`, if the second pass fails by another cause."""
    first = Pass()
    with torch.inference_mode(), watching(first):
        compute(owner)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.inference_mode(), mode, _copies_on_card():
        twin = copy.deepcopy(owner)
    second, error = Pass(first.values), ""
    try:
        with torch.inference_mode(), mode, watching(second):
            compute(twin)
    except Exception as raised:  # of the model's code on fake tensors
        error = f"{type(raised).__name__}: {raised}"[:200]
    found = {
        "reads": first.reads,
        "shaped": first.shaped,
        "copies": second.copies,
        "made": second.made,
        "error": Counter([error] if error else []),
    }
    return {kind: dict(each) for kind, each in found.items() if each}
