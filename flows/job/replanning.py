"""Plans a command again when a file of its model changed between its plan and its use.

What was computed with the old files stays in the store under their digests. The second attempt
begins from the configuration, so nothing of the first one gets into its outputs.
"""

from collections.abc import Callable
from typing import TypeVar

from artifacts.errors import ModelChanged

Result = TypeVar("Result")


def replanned_once(attempt: Callable[[], Result], say: Callable[[str], object]) -> Result:
    """Return the result of `attempt`, which plans and runs a command; it is made again, once, from
    the model's files as they are by then. Raises ModelChanged when they change again."""
    try:
        return attempt()
    except ModelChanged as error:
        say(f"{error.message}: it is planned again, from the model as it is now")
    try:
        return attempt()
    except ModelChanged as error:
        raise changed_twice(error) from error


def changed_twice(error: ModelChanged) -> ModelChanged:
    """Return the error of a model that changed after it was planned for a second time."""
    return ModelChanged(f"the model changed twice: {error.message}", hint=error.hint)
