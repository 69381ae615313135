"""Several runs at once on one store, while it is looked after without a pause: the bytes are those
of an undisturbed run, and nothing is made twice."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import FolderStore, prepare_store
from penstock_demo.clips import write_clips
from tests.support.attacks import Outcome, attacked, seeded
from tests.support.commands import begun
from tests.support.pipeline import SECONDS, Place, read_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS = 16
RUNS = ("whole", "again", "some")
"""Two of all clips, and one of some of them in other batches."""
STAGES = ("frames", "encode", "decode")
CARE = {"gc": ("gc", "--max", "60MB"), "verify": ("verify",), "rebuild": ("rebuild",)}
OLD_PACKS, OLD_BYTES = 40, 2 << 20
"""What gc finds to delete: more than it may leave. What it deletes of anything else is rightly made
again, and would be counted as made twice."""
PAUSE_SECONDS = 0.5
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""More processes than cores: threads of one would wait for each other."""


@dataclass(kw_only=True)
class Scene:
    """What was left when everything had ended."""

    store: Path
    places: dict[str, Place]
    codes: dict[str, int]
    words: dict[str, str]
    care: dict[str, list[Outcome]]
    journals: dict[str, Counter[str]] = field(default_factory=dict)
    """Stage → key → how often anybody says that it published it."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("at-once")
    write_clips(folder / "whole", CLIPS, seed=5)
    (folder / "some").mkdir()
    for clip in sorted((folder / "whole").iterdir())[::2]:
        (folder / "some" / clip.name).symlink_to(clip)
    return folder


@pytest.fixture(scope="module")
def undisturbed(clips: Path) -> dict[str, str]:
    """Clip → caption."""
    place = Place(clips=clips / "whole", out=clips / "alone", store=clips / "alone-store")
    done = place.run("--batch-size", "2")
    assert done.returncode == 0, done.stderr
    return {line["media_path"]: line["caption"] for line in place.captions()}


@pytest.fixture(scope="module")
def scene(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Three runs, and the three ways of looking after a store in loops beside them; two of the
    runs are killed in the middle and given again."""
    folder = tmp_path_factory.mktemp("killed")
    store = folder / "store"
    whole = Place(clips=clips / "whole", out=folder / "whole", store=store)
    places = {name: replace(whole, out=folder / name) for name in RUNS}
    places["some"] = replace(places["some"], clips=clips / "some")
    prepare_store(FolderStore(store))
    old = RecordSet(FolderStore(store), "features", "0d" * 32)
    for number in range(OLD_PACKS):
        old.publish([Record(key=f"{number}", payload=bytes(OLD_BYTES))])
    for path in store.rglob("*.pack"):
        os.utime(path, (0, 0))
    care: dict[str, list[Outcome]] = {name: [] for name in CARE}
    codes, words = {}, {}
    with looked_after(store, clips / "whole", care):
        running = {name: started(place, name) for name, place in places.items()}
        time.sleep(seeded("kill").uniform(4, 9))
        for name in ("whole", "again"):
            running[name].send_signal(signal.SIGKILL)
            running[name].communicate()
            running[name] = started(places[name], name)
        for name, process in running.items():
            words[name], _ = process.communicate(timeout=SECONDS)
            codes[name] = process.returncode
    found = Scene(store=store, places=places, codes=codes, words=words, care=care)
    for stage in STAGES:
        paths = [place.out / "logs" / f"{stage}.items.jsonl" for place in places.values()]
        paths += (store / "logs").glob(f"rebuild-*/logs/{stage}.items.jsonl")
        lines = [line for path in paths if path.exists() for line in read_lines(path)]
        found.journals[stage] = Counter(line["key"] for line in lines)
    return found


def started(place: Place, name: str) -> "subprocess.Popen[str]":
    command = place.command("--batch-size", "3" if name == "some" else "2", "--quiet")
    return begun(command, env={**os.environ, **ONE_THREAD})


@contextlib.contextmanager
def looked_after(store: Path, clips: Path, values: dict[str, list[Outcome]]) -> Iterator[None]:
    """gc, verify and rebuild, each again and again until the block ends."""
    over = threading.Event()
    wrong: list[BaseException] = []

    def care(name: str) -> None:
        arguments = ["cache", *CARE[name], "--store", str(store)]
        if name == "rebuild":
            arguments += [str(clips), "--model", "demo"]
        try:
            while not over.is_set():
                values[name].append(attacked(*arguments, env=ONE_THREAD, seconds=SECONDS))
                over.wait(PAUSE_SECONDS)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=care, args=(name,)) for name in CARE]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong


@pytest.mark.parametrize("name", RUNS)
def test_every_run_ends_well_with_the_captions_of_a_run_alone(
    scene: Scene, undisturbed: dict[str, str], name: str
) -> None:
    place = scene.places[name]
    assert scene.codes[name] == 0, scene.words[name]
    assert "Traceback" not in scene.words[name]
    assert place.failures() == []
    lines = place.captions()
    texts = {line["media_path"]: line["caption"] for line in lines}
    assert len(lines) == len(texts) == (CLIPS // 2 if name == "some" else CLIPS)
    assert texts == {clip: undisturbed[clip] for clip in texts}
    record = json.loads((place.out / "run.json").read_text())
    assert (record["state"], record["rungs"]) == ("done", []), "no stage went down a rung"


@pytest.mark.parametrize("stage", STAGES)
def test_no_item_was_published_twice(scene: Scene, stage: str) -> None:
    twice = {key: count for key, count in scene.journals[stage].items() if count > 1}
    assert not twice, f"{len(twice)} of {len(scene.journals[stage])}"
    assert len(scene.journals[stage]) == CLIPS or stage == "frames"


@pytest.mark.parametrize("name", CARE)
def test_looking_after_the_store_ends_in_words(scene: Scene, name: str) -> None:
    assert scene.care[name]
    for outcome in scene.care[name]:
        outcome.holds(0, 1)


@pytest.mark.parametrize("kind", ["media", "features", "captions", "frames", "failures"])
def test_what_is_stored_is_stored_once_and_whole(scene: Scene, kind: str) -> None:
    scene.places["whole"].stored(kind)  # raises for a key that is in two packs


def test_nothing_is_left_over_and_nothing_was_set_aside(scene: Scene) -> None:
    prepare_store(FolderStore(scene.store))
    old = RecordSet(FolderStore(scene.store), "features", "0d" * 32)
    assert len(old) < OLD_PACKS, "what nobody wants was deleted meanwhile"
    assert not [path for path in (scene.store / "quarantine").rglob("*") if path.is_file()]
    # What was killed may leave a file, which the next run or gc removes.
    attacked("cache", "gc", "--max", "1TB", "--store", str(scene.store)).holds(0)
    assert not list((scene.store / "jobs").glob("*.json"))
