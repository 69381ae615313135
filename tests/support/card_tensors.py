"""Tensors that say they are on a card, and are computed on the CPU: so what waits for the card can
be told from what the host does with tensors of its own.

As on a card, an operator takes no tensors of the host beside those of the card, but for numbers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.support.cpu_graph import READS, indexes_by_mask
from tests.support.fake_capture import place
from tests.support.host_reads import WAITING

CARD = torch.device("cuda:0")
WHOLE = ("aten.scaled_dot_product_attention.", "aten.linear.", "aten.matmul.", "aten.conv")
"""Composite operators that are computed as one: on a CPU, they consist of other parts."""
MIXING = ("aten.copy_.", "aten._to_copy.", "aten.index.", "aten.index_put")
"""Operators that take tensors of two devices."""
ONE_TYPE = ("aten.bitwise_", "aten.__")
"""Operators whose CUDA kernels write no numbers of another type, as those of a CPU do."""


class CardTensor(torch.Tensor):
    """A tensor whose numbers are in another one."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "CardTensor":
        made: CardTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device("meta"), requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of Card")


class Card(TorchDispatchMode):
    """Computes on card tensors, and counts what waits for them, by place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that torch looks for no driver
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), str(func)
        taken = [t for t in tree_flatten((args, kwargs))[0] if torch.is_tensor(t)]
        there = any(isinstance(t, CardTensor) for t in taken)
        if there and func.namespace == "aten" and not name.startswith((*READS, *WHOLE)):
            with self:
                out = func.decompose(*args, **kwargs) if func._can_decompose() else NotImplemented
            if out is not NotImplemented:
                return out
        devices = [d for d in tree_flatten((args, kwargs))[0] if isinstance(d, torch.device)]
        target = devices[0] if devices else CARD if there else torch.device("cpu")
        if there and not name.startswith(MIXING):
            beside = [t for t in taken if not isinstance(t, CardTensor) and t.ndim]
            assert not beside, f"{name} takes a tensor of the host and one of the card at {place()}"
        if there and (
            name.startswith(WAITING)
            or indexes_by_mask(name, args)
            or target.type == "cpu"
            or (name.startswith("aten.copy_.") and not isinstance(args[0], CardTensor))
        ):
            self.waits[f"{name} at {place()}"] += 1
        return self._computed(func, args, kwargs, target)

    def _computed(self, func: Any, args: Any, kwargs: Any, target: torch.device) -> Any:
        """The result on the CPU, which is said to be on a device; tensors that were changed in
        place stay the same objects."""
        objects = {
            id(t.held): t for t in tree_flatten((args, kwargs))[0] if isinstance(t, CardTensor)
        }
        args, kwargs = tree_map(_held, (args, kwargs))
        if "out" in kwargs and str(func).startswith(ONE_TYPE):
            types = {t.dtype for t in (*args, kwargs["out"]) if torch.is_tensor(t)}
            assert len(types) == 1, f"{func} has no kernel for {types} at {place()}"

        def placed(value: Any) -> Any:
            if not torch.is_tensor(value) or target.type == "cpu":
                return value
            known = objects.get(id(value))
            return CardTensor(value) if known is None else known

        return tree_map(placed, func(*args, **kwargs))


@contextmanager
def card() -> Iterator[Card]:
    """Compute on card tensors in the block."""
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes it here, and then moves it
    try:
        with Card() as found:
            yield found
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _held(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, CardTensor) else value


def on_card(value: Any) -> Any:
    """A nest of tensors on the card; a module is changed in place."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for kind in (module._parameters, module._buffers):
                kind.update({n: on_card(t) for n, t in kind.items()})
        return value
    if isinstance(value, torch.nn.Parameter):
        with Card():
            return torch.nn.Parameter(CardTensor(value.data), requires_grad=False)
    return tree_map(lambda t: CardTensor(t) if torch.is_tensor(t) else t, value)
