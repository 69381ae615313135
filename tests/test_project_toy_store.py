"""Another store takes a module and an entry: a copy of the program that has one keeps everything
there, and finds it again."""

import json
import shutil
from pathlib import Path

import pytest

from penstock_demo.clips import write_clips
from tests.support.toys import ROOT, inside, patched

SUPPORT = ROOT / "tests" / "support"
FILES = ["artifacts/store.py", "artifacts/stores/memory.py"]
TOGETHER = ("inside.py", "pipeline.py")
"""What of the tests runs a stage within the process: the memory of another would be another."""
RUN = """
import json, sys
from pathlib import Path

import artifacts.stores.memory
from artifacts.packs import stored_namespaces
from artifacts.store import open_store
from tests.support.inside import run_inside
from tests.support.pipeline import Place

folder = Path(sys.argv[1])
place = Place(clips=folder / "clips", out=folder / "out", store=folder / "ignored")
first, second = (run_inside(place, store="memory://x", max_new_tokens=4) for _ in range(2))
store = open_store("memory://x")
told = {
    "module": artifacts.stores.memory.__file__,
    "captions": [first.result.captions, second.result.captions, len(place.captions())],
    "started": [first.started, second.started],
    "kinds": list(store.list(levels=1)),
    "namespaces": len(stored_namespaces(store, "captions")),
    "beside": sorted(path.name for path in store.local.iterdir()),
    "local": str(store.local),
}
print(json.dumps(told))
"""


@pytest.mark.slow
def test_another_store_is_a_module_and_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, names = patched("store", tmp_path)
    assert sorted(names) == FILES and len(names) <= 3
    # What is proved here is that of the store which test_artifacts_store_contract.py looks at.
    assert (copy / FILES[1]).read_text() == (SUPPORT / "memory_store.py").read_text()
    (copy / "tests" / "support").mkdir(parents=True)
    for name in TOGETHER:
        shutil.copy(SUPPORT / name, copy / "tests" / "support")
    run = tmp_path / "run"
    write_clips(run / "clips", 1, seed=1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PENSTOCK_STORE", str(run / "default"))
    before = {path.name for path in copy.iterdir()}

    done = inside(copy, "-c", RUN, str(run))

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["module"]) == copy / FILES[1]
    assert told["started"] == [["describe", "frames", "encode", "decode"], []]
    first, second, lines = told["captions"]
    assert first == second == lines >= 1
    assert {"captions", "cards", "features", "media"} <= set(told["kinds"])
    assert told["namespaces"] == 1
    assert told["beside"] == ["claims", "digests.jsonl", "jobs", "tmp"]
    assert Path(told["local"]).parent == tmp_path / "state" / "penstock" / "stores"
    # No folder was taken for a store instead.
    assert {path.name for path in run.iterdir()} == {"clips", "out"}
    assert {path.name for path in copy.iterdir()} - before <= {"__pycache__"}
    assert not [path for path in tmp_path.rglob("*.pack")]


def test_nobody_but_the_stores_knows_which_store_there_is() -> None:
    sources = [path for top in ("flows", "stages") for path in (ROOT / top).rglob("*.py")]
    assert len(sources) > 100
    assert [path for path in sources if "FolderStore" in path.read_text()] == []
