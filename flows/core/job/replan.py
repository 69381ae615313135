"""Plans a command again after a check of a half, or if a model file changed before it was loaded.

Results of the old files stay in the store under their digests. The next attempt starts from the
configuration, so nothing of the first one reaches its outputs.
"""

from collections.abc import Callable
from typing import TypeVar

from artifacts.errors import HalfChecked, ModelChanged

Result = TypeVar("Result")


def replanned_once(attempt: Callable[[], Result], announce: Callable[[str], object]) -> Result:
    """Return the result of `attempt`, which plans and runs a command. It is called once more after
    each check of a half, and once more if the model's files change. Raises ModelChanged if they
    change again."""
    checked, changed = set[str](), False
    while True:
        try:
            return attempt()
        except HalfChecked as error:
            if error.message in checked:
                raise
            checked.add(error.message)
            announce(error.message)
        except ModelChanged as error:
            if changed:
                raise second_change(error) from error
            changed = True
            announce(f"{error.message}: planning again with the changed model")


def second_change(error: ModelChanged) -> ModelChanged:
    return ModelChanged(f"the model changed twice: {error.message}", hint=error.hint)
