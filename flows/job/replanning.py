"""Plans a command again if a model file changed between planning and loading.

Results of the old files stay in the store under their digests. The second attempt starts from the
configuration, so nothing of the first one reaches its outputs.
"""

from collections.abc import Callable
from typing import TypeVar

from artifacts.errors import ModelChanged

Result = TypeVar("Result")


def replanned_once(attempt: Callable[[], Result], announce: Callable[[str], object]) -> Result:
    """Return the result of `attempt`, which plans and runs a command. If the model's files change,
    it is called once more. Raises ModelChanged if they change again."""
    try:
        return attempt()
    except ModelChanged as error:
        announce(f"{error.message}: planning again with the changed model")
    try:
        return attempt()
    except ModelChanged as error:
        raise second_change(error) from error


def second_change(error: ModelChanged) -> ModelChanged:
    """Return the error of a model that changed again after the second plan."""
    return ModelChanged(f"the model changed twice: {error.message}", hint=error.hint)
