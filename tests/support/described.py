"""The demo model, described once in each process of the tests."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from artifacts.records.store import FolderStore, prepare_store
from flows.core.checkpoint.models import digests_in, open_model
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig
from stages.models.profile import ModelProfile
from tests.support.inside import InsideLauncher


@cache
def _described() -> tuple[Path, ModelProfile]:
    folder = Path(tempfile.mkdtemp(prefix="penstock-described-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = FolderStore(folder)
    prepare_store(store)
    config, launcher = CaptionConfig(sources=(), model="demo"), InsideLauncher()
    found = open_model(
        config,
        store=store,
        digests=digests_in(store),
        launcher=launcher,
        device="cpu",
        read_weights=False,
    )
    return folder, found.profile


def demo_profile() -> ModelProfile:
    return _described()[1]


def described(store: Path) -> Path:
    """Make a store there in which the demo is described, so that no process has to."""
    shutil.copytree(_described()[0], store)
    return store


def spare_processes(patch: pytest.MonkeyPatch) -> InsideLauncher:
    """Have commands run their stages as functions of this process."""
    inside = InsideLauncher()
    patch.setattr(DirectLauncher, "start", lambda _, call: inside.start(call))
    return inside
