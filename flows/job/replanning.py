"""Plans a command again if a model file changed between planning and loading.

Results of the old files stay in the store under their digests. The second attempt starts from the
configuration, so nothing of the first one reaches its outputs.
"""

from collections.abc import Callable
from typing import TypeVar

from artifacts.errors import HalfTried, ModelChanged

Result = TypeVar("Result")


def replanned_once(attempt: Callable[[], Result], announce: Callable[[str], object]) -> Result:
    """Return the result of `attempt`, which plans and runs a command. It is called once more after
    each trial of a half, and once more if the model's files change. Raises ModelChanged if they
    change again."""
    tried, changed = set[str](), False
    while True:
        try:
            return attempt()
        except HalfTried as error:
            if error.message in tried:
                raise
            tried.add(error.message)
            announce(error.message)
        except ModelChanged as error:
            if changed:
                raise second_change(error) from error
            changed = True
            announce(f"{error.message}: planning again with the changed model")


def second_change(error: ModelChanged) -> ModelChanged:
    """Return the error of a model that changed again after the second plan."""
    return ModelChanged(f"the model changed twice: {error.message}", hint=error.hint)
