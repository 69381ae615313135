"""Functions of the operating system that fail."""

import os
from collections.abc import Callable
from typing import Any


def failing(
    code: int,
    real: Callable[..., Any] | None = None,
    when: Callable[..., bool] = lambda *_, **__: True,
) -> Callable[..., Any]:
    """A function that fails with this error; with `real`, that function where `when` says no."""

    def call(*given: Any, **more: Any) -> Any:
        if real is not None and not when(*given, **more):
            return real(*given, **more)
        named = [str(each) for each in given[:1] if isinstance(each, str | os.PathLike)]
        raise OSError(code, os.strerror(code), *named)

    return call
