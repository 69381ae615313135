"""Points the hub's client of this process, which has read the environment already, to a hub and a
cache of a test's own."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def use_cache(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Let models be looked for and kept in that folder."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@contextlib.contextmanager
def client(patch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that connects the client to an address."""
    from huggingface_hub import close_session, constants

    def to(url: str) -> None:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    harnesses = str(Path(constants.HF_HUB_CACHE).parent / "harnesses.json")
    patch.setattr(constants, "AGENT_HARNESSES_PATH", harnesses, raising=False)
    close_session()
    yield to
    close_session()
