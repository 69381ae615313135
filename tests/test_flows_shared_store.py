"""Two users of one group share a store and a folder of outputs: each may write what the other
wrote, nobody takes the other's texts for a person's, and only members are believed."""

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.signing import is_by_member
from flows.options.commands import CaptionConfig
from flows.results.marker import MARKER, own_marker
from flows.results.run_read import load_record
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

PLACES = [Path(sys.base_prefix), Path(np.__file__), Path(__file__)]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become two other users"),
    pytest.mark.skipif(
        not all(
            each.stat().st_mode & 0o001 for place in PLACES for each in place.resolve().parents
        ),
        reason="other users cannot reach this Python",
    ),
]
GROUP, ONE, TWO = 5000, 5001, 5002


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody can enter; those for outputs and the store are of the group."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    (place / "clips").mkdir()
    for name, level in (("a.png", 90), ("b.png", 200)):
        Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(place / "clips" / name)
    yield place
    shutil.rmtree(place)


def made(place: Path, owner: int, mode: int) -> CaptionConfig:
    """The configuration of a run, and folders with this owner and mode."""
    for name in ("out", "store"):
        (place / name).mkdir()
        os.chown(place / name, owner, GROUP)
        (place / name).chmod(mode)
    config = config_in(place, place / "clips", format=("txt", "musubi"))
    return replace(config, out=str(place / "out"), store=str(place / "store"))


def as_user(uid: int, umask: int, place: Path, work: Callable[[], object]) -> None:
    """Do something as another user of the group. Raises AssertionError if it raises."""
    home = place / f"home of {uid}"
    home.mkdir(exist_ok=True)
    os.chown(home, uid, uid)
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.setgroups([GROUP])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(umask)
            os.chdir(place)
            os.environ |= {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
            os.environ["XDG_CACHE_HOME"] = str(home / "cache")
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def captioned(config: CaptionConfig, suffix: str) -> None:
    result = run(replace(config, suffix=suffix))
    assert result.exit_code == 0
    texts = [path.read_text() for path in Path(config.out).glob("*.txt")]
    assert len(texts) == 2 and all(text.rstrip().endswith(suffix) for text in texts), texts
    sets = READERS["musubi"](Path(config.out)).values()
    assert all(caption.endswith(suffix) for caption in sets), sets


def test_two_users_write_one_folder_and_no_text_counts_as_a_person_s(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config, " ONE"))
    as_user(TWO, 0o002, shared, lambda: captioned(config, " TWO"))
    as_user(ONE, 0o002, shared, lambda: captioned(config, " ONE"))
    for path in (shared / "store").rglob("*"):
        if path.is_file() and not path.name.startswith("signing-key"):
            assert path.stat().st_mode & 0o060 == 0o060, path


def test_who_may_only_read_the_store_is_told_before_any_stage(shared: Path) -> None:
    config = made(shared, ONE, 0o2755)
    as_user(ONE, 0o022, shared, lambda: captioned(config, " ONE"))
    elsewhere = replace(config, out=str(shared / f"home of {TWO}" / "out"))

    def refused() -> None:
        with pytest.raises(EnvironmentFault, match="store cannot be written"):
            run(elsewhere)
        assert load_record(Path(config.out))["state"] == "done"

    as_user(TWO, 0o022, shared, refused)


def test_only_members_of_the_named_store_are_believed(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config, " ONE"))
    out, store = Path(config.out), str(config.store)

    def believed() -> None:
        assert is_by_member(out / MARKER, store)
        assert own_marker(out, store) is not None
        assert own_marker(out, str(shared / "another")) is None
        copy = Path(shutil.copytree(out, shared / f"home of {TWO}" / "copy"))
        assert own_marker(copy, store) is None, "a copy belongs to whoever made it"
        with pytest.raises(UsageError, match="another user or machine"):
            run(replace(config, out=str(copy), store=store))

    as_user(TWO, 0o002, shared, believed)
    assert not is_by_member(out / MARKER, store), "root believes no owner that a file states"
    os.unlink(shared / "store" / f"signing-key-{ONE}")
    as_user(TWO, 0o002, shared, lambda: _none(own_marker(out, store)))


def _none(value: object) -> None:
    assert value is None
