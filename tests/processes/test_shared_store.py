"""Two users of one group share a store and a folder of outputs: each may write what the other
wrote, nobody takes the other's texts for a person's, and only members are believed."""

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.provenance import NOTES, proof_by
from artifacts.schema import values_of
from artifacts.texts.edits import CORRECTIONS, EDITS, UNTOUCHED, read_edits
from flows.commands.review.folder_captions import EditRefused
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from flows.interfaces.studio.runs import QueuedRun, run_id
from flows.interfaces.studio.session import Studio
from flows.outputs.marker import own_marker
from flows.outputs.record.run_read import load_record
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

PLACES = [Path(sys.base_prefix), Path(np.__file__), Path(__file__)]
MODES = [each.stat().st_mode for place in PLACES for each in place.resolve().parents]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become two other users"),
    pytest.mark.skipif(
        not all(mode & 0o001 for mode in MODES), reason="other users cannot reach this Python"
    ),
]
GROUP, ONE, TWO = 5000, 5001, 5002


def picture(place: Path, name: str, level: int) -> None:
    Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(place / "clips" / name)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody can enter; those for outputs and the store are of the group."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    (place / "clips").mkdir()
    picture(place, "a.png", 90)
    picture(place, "b.png", 200)
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


def captioned(config: CaptionConfig, suffix: str = " ONE") -> None:
    assert run(replace(config, suffix=suffix)).exit_code == 0
    texts = [path.read_text() for path in Path(config.out).glob("*.txt")]
    assert len(texts) >= 2 and all(text.rstrip().endswith(suffix) for text in texts), texts
    sets = READERS["musubi"](Path(config.out)).values()
    assert all(caption.endswith(suffix) for caption in sets), sets


def corrected(config: CaptionConfig) -> None:
    captioned(config)
    with closing(opened(config)) as studio:
        assert apply(studio, "by the first") == ""


def test_two_users_write_one_folder_and_no_text_counts_as_a_person_s(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config))
    as_user(TWO, 0o002, shared, lambda: captioned(config, " TWO"))
    as_user(ONE, 0o002, shared, lambda: captioned(config))
    for path in filter(Path.is_file, (shared / "store").rglob("*")):
        assert path.stat().st_mode & 0o060 == 0o060, path


def test_who_may_only_read_the_store_is_told_before_any_stage(shared: Path) -> None:
    config = made(shared, ONE, 0o2755)
    as_user(ONE, 0o022, shared, lambda: captioned(config))
    elsewhere = replace(config, out=str(shared / f"home of {TWO}" / "out"))

    def refused() -> None:
        with pytest.raises(EnvironmentFault, match="store cannot be written"):
            run(elsewhere)
        assert load_record(Path(config.out)).state == "done"

    as_user(TWO, 0o022, shared, refused)


def test_folders_that_another_user_s_umask_closed_are_named(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o022, shared, lambda: captioned(config))
    elsewhere = replace(config, out=str(shared / f"home of {TWO}" / "out"))

    def refused() -> None:
        closed = r"store/\w+.*, a part of .*store that"
        with pytest.raises(EnvironmentFault, match=closed) as caught:
            run(elsewhere)
        assert "umask 002" in caught.value.hint

    as_user(TWO, 0o002, shared, refused)


def test_only_members_of_the_named_store_are_believed(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: corrected(config))
    out, store = Path(config.out), str(config.store)

    def believed() -> None:
        assert own_marker(out, store) is not None
        assert own_marker(out, str(shared / "another")) is None
        assert read_edits(out, proof_by(store)).unproved == 0
        assert read_edits(out, proof_by("")).unproved == 1
        copy = Path(shutil.copytree(out, shared / f"home of {TWO}" / "copy"))
        (copy / "media.jsonl").write_text("")
        assert own_marker(copy, store) is None
        with pytest.raises(UsageError, match="another user or machine"):
            run(replace(config, out=str(copy), store=store))

    as_user(TWO, 0o002, shared, believed)
    os.unlink(shared / "store" / NOTES)
    as_user(TWO, 0o002, shared, lambda: _none(own_marker(out, store)))


def test_what_may_only_be_read_is_searched_shown_and_reported(shared: Path) -> None:
    config = made(shared, ONE, 0o2755)
    as_user(ONE, 0o022, shared, lambda: captioned(config))
    out, mine = Path(config.out), shared / f"home of {TWO}" / "report.html"

    def read() -> None:
        assert main(["status", str(out)]) == 0
        assert main(["report", str(out), "--to", str(mine)]) == 0
        assert main(["cache", "ls", "--store", str(config.store)]) == 0

    before = set(map(str, shared.rglob("*")))
    as_user(TWO, 0o022, shared, read)
    assert mine.stat().st_uid == TWO
    added = {*map(str, shared.rglob("*"))} - before
    assert not [path for path in added if str(mine.parent) not in path]


@pytest.mark.slow
def test_a_store_that_may_only_be_read_is_searched(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = made(shared, ONE, 0o2755)
    store, index = ["--store", str(config.store)], str(shared / "out" / "index")
    build = ["index", "build", str(shared / "clips"), "--model", "demo", "--out", index, *store]
    as_user(ONE, 0o022, shared, lambda: _zero(main([*build, "--quiet"])))
    before = set(map(str, (shared / "store").rglob("*")))
    capfd.readouterr()

    def searched() -> None:
        for what in ("a red ball", str(shared / "clips" / "a.png")):
            _zero(main(["search", what, "--index", index, *store]))

    as_user(TWO, 0o022, shared, searched)
    found = capfd.readouterr().out.splitlines()
    places = [line.split()[-1] for line in found]
    assert len(places) == 4 and places[2] == f"{shared}/clips/a.png", found
    assert set(map(str, (shared / "store").rglob("*"))) == before


@pytest.mark.parametrize("what", ["all", "edits.jsonl", ".studio/server.lock"])
def test_a_review_of_what_may_only_be_read_shows_it_and_refuses_edits(
    what: str, shared: Path
) -> None:
    """Of all, of a journal, or of a lock that another user made with umask 022."""
    config = made(shared, ONE, 0o2755 if what == "all" else 0o2775)
    out = Path(config.out)
    as_user(ONE, 0o022, shared, lambda: corrected(config))
    for path in () if what == "all" else (EDITS, ".studio", ".studio/server.lock"):
        (out / path).chmod(0o664 if "." in path[1:] else 0o2775)
    if what != "all":
        (out / what).chmod(0o644)
    kept = (out / EDITS).read_bytes()

    def viewed() -> None:
        with closing(opened(config)) as studio:
            studio.queue.start()
            captions = studio.of(run_id(out))
            body = json.loads(b"".join(captions.body("")))
            assert [len(medium["captions"]) for medium in body["media"]] == [1, 1]
            texts = {edit["caption"] for edit in body["edits"].values()}
            assert "by the first" in texts
            assert studio.thumbnails.get(shared / "clips" / "a.png", None)
            where = EDITS if what != ".studio/server.lock" else ""
            refused = f"{out / where} cannot be written (Permission denied), so edits are refused"
            assert apply(studio, "by the second") == (refused if where else "")
            if what != EDITS:
                with pytest.raises(UsageError, match="cannot be written"):
                    studio.queue.add(QueuedRun(kind="write", out=str(out), words=[], folder="/"))

    as_user(TWO, 0o022, shared, viewed)
    assert (out / EDITS).read_bytes() == kept or what == ".studio/server.lock"


def opened(config: CaptionConfig) -> Studio:
    """A review, as the command opens it."""
    out = Path(config.out)
    return Studio(folder=out, out=out, store=str(config.store), config_of=lambda _: config)


def apply(studio: Studio, text: str) -> str:
    """Edit the first caption; returns why that is refused."""
    captions = studio.of(run_id(studio.out))
    key = next(iter(captions.reviewed.folder.rows))
    was = values_of(captions.reviewed.edits().get(key, UNTOUCHED))
    change: Json = {"of": key, "caption": text, "review": "", "was": was}
    try:
        captions.apply({"id": text, "does": "correct", "changes": [change]})
    except EditRefused as error:
        return str(error)
    return ""


def test_edits_stay_in_the_folder_where_the_store_may_only_be_read(shared: Path) -> None:
    config = made(shared, ONE, 0o2775)
    as_user(ONE, 0o002, shared, lambda: corrected(config))
    for path in (shared / "store", *(shared / "store").rglob("*")):
        path.chmod(path.stat().st_mode & ~0o020)
    kept = (shared / "store" / CORRECTIONS).read_bytes()

    def edited() -> None:
        with closing(opened(config)) as studio:
            assert apply(studio, "by the second") == ""

    as_user(TWO, 0o002, shared, edited)
    assert b"by the second" in (Path(config.out) / EDITS).read_bytes()
    assert (shared / "store" / CORRECTIONS).read_bytes() == kept


@pytest.mark.parametrize("name", ["written.jsonl", CORRECTIONS])
def test_a_record_that_cannot_be_written_ends_the_run(name: str, shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config))
    record = shared / "store" / name
    record.touch()
    record.chmod(0o644)

    def ended() -> None:
        with closing(opened(config)) as studio:
            assert apply(studio, "by the second") == ""
        with pytest.raises(EnvironmentFault, match=f"{name} cannot be written") as caught:
            run(replace(config, suffix=" TWO"))
        assert caught.value.exit_code == 5

    as_user(TWO, 0o002, shared, ended)


def test_claims_that_cannot_be_written_end_a_run_before_its_first_stage(shared: Path) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config))
    picture(shared, "c.png", 9)
    (claims,) = (shared / "store" / "claims" / "captions").glob("*/*")
    claims.chmod(0o644)
    before = sorted((shared / "store").rglob("*.pack"))

    def ended() -> None:
        with pytest.raises(EnvironmentFault, match=f"{claims} cannot be written") as caught:
            run(config)
        assert caught.value.exit_code == 5

    as_user(TWO, 0o002, shared, ended)
    assert sorted((shared / "store").rglob("*.pack")) == before
    claims.chmod(0o664)
    as_user(TWO, 0o002, shared, lambda: captioned(config, " TWO"))


def test_caches_that_cannot_be_written_are_one_warning(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = made(shared, 0, 0o2775)
    as_user(ONE, 0o002, shared, lambda: captioned(config))
    picture(shared, "c.png", 9)
    picture(shared, "d.png", 5)
    (shared / "store" / "digests.jsonl").chmod(0o644)

    def warned() -> None:
        assert run(replace(config, suffix=" TWO")).exit_code == 0
        told = f"{shared}/store: what saves work there cannot be written; its owner may allow it"
        texts = [each.getMessage() for each in caplog.records]
        assert [text for text in texts if "saves work" in text] == [told]

    as_user(TWO, 0o002, shared, warned)


def _none(value: object) -> None:
    assert value is None


def _zero(code: int) -> None:
    assert code == 0
