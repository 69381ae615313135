"""Nested values with tensors, compared to the last bit."""

from typing import Any

import torch


def assert_equal(found: Any, wanted: Any) -> None:
    """Types, names and their order, numbers and dtypes."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
        assert found.dtype == wanted.dtype
    elif hasattr(wanted, "items"):
        assert list(found.keys()) == list(wanted.keys())
        for name, value in wanted.items():
            assert_equal(found[name], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_equal(left, right)
    else:
        assert found == wanted
