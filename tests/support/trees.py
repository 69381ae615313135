"""Nested values with tensors, compared to the last bit."""

from typing import Any

import torch


def assert_equal(found: Any, expected: Any) -> None:
    """Types, names and their order, numbers and dtypes."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
    elif hasattr(expected, "items"):
        assert list(found.keys()) == list(expected.keys())
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_equal(left, right)
    else:
        assert found == expected


def tensors_in(features: Any) -> list[torch.Tensor]:
    """All tensors of the records of features."""
    found = [torch.utils._pytree.tree_leaves(dict(record)) for record in features.values()]
    return [leaf for leaves in found for leaf in leaves if torch.is_tensor(leaf)]


class AllEqual(dict[str, bool]):
    """The results of comparisons, all of them equal."""

    def get(self, name: str, default: Any = None) -> Any:
        return True
