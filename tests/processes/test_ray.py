"""Commands on a real Ray cluster of one node, with a simulated GPU."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import penstock
import penstock_demo
from scripts.prove.many_check import check_deaths
from scripts.run.ray_nodes import Nodes, ray_nodes
from tests.support.commands import completed
from tests.support.pipeline import PENSTOCK

pytest.importorskip("ray", reason="Ray is not installed: pip install 'penstock[ray]'")
SECONDS = 240


COUNTS = ("penstock_run_files", "penstock_run_rows", "penstock_run_items_done")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes() as started:
        started.start(gpus=1)
        yield started


def clips(folder: Path, count: int) -> Path:
    made = folder / "clips"
    made.mkdir()
    for path in sorted(penstock_demo.CLIPS.glob("*.mp4"))[:count]:
        shutil.copy(path, made)
    return made


@pytest.mark.slow
def test_partitions_are_made_once_and_the_outputs_are_those_of_the_plain_command(
    nodes: Nodes, tmp_path: Path
) -> None:
    sources, out = clips(tmp_path, 2), tmp_path / "out"
    driver = nodes.drive(sources, out)
    assert driver.wait(SECONDS) == 0, nodes.log("driver")
    record = penstock.status(out)
    assert record["state"] == "done"
    partitions = record["partitions"]
    assert (partitions["total"], partitions["done"], partitions["failed"]) == (2, 2, 0)
    assert [stage["items"] for stage in record["stages"]] == [0, 0, 0]  # the partitions made all
    tries = [json.loads(path.read_text()) for path in out.glob("portions/*-1/run.json")]
    assert sorted(each["stages"][-1]["items"] for each in tries) == [1, 1]
    assert not list(out.glob("portions/.*")) and not list(Path(f"{out}-store/shared").iterdir())
    plain = tmp_path / "plain"
    options = {"model": "demo", "out": plain, "store": f"{out}-store", "batch_size": 1}
    penstock.caption(sources, **options).result()  # type: ignore[arg-type]
    assert (out / "captions.jsonl").read_bytes() == (plain / "captions.jsonl").read_bytes()
    assert len(list(out.glob("*.txt"))) == 2


@pytest.mark.slow
def test_more_gpus_than_any_node_has_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    """In a process of its own: Ray changes the one that it is in."""
    code = "import sys, penstock.ray\n"
    code += "penstock.ray.caption(sys.argv[1], address=sys.argv[2], gpus='8', model='demo')"
    sources = clips(tmp_path, 1)
    words = [sys.executable, "-c", code, str(sources), nodes.address]
    done = completed(words, env=nodes.environment(), cwd=tmp_path)
    assert "no node of the Ray cluster has 8 GPUs, the largest has 1" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"), [("embed", ()), ("label", ("--labels", "red circle,blue square"))]
)
def test_vectors_and_labels_are_those_of_the_plain_command(
    nodes: Nodes, tmp_path: Path, command: str, words: tuple[str, ...]
) -> None:
    sources = clips(tmp_path, 2)
    made, counts = [], []
    for name, more in (("plain", ()), ("many", ("--ray", nodes.address))):
        out = tmp_path / name
        places = ["--out", str(out), "--store", f"{out}-store", *more]
        places += ["--metrics-file", str(out / "penstock.prom")]
        line = [*PENSTOCK, command, str(sources), "--model", "demo", *words, *places]
        done = completed(line, env=nodes.environment(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        file = "embeddings.npy" if command == "embed" else "labels.jsonl"
        made.append((out / file).read_bytes())
        families = text_string_to_metric_families((out / "penstock.prom").read_text())
        samples = [s for family in families for s in family.samples if s.name in COUNTS]
        counts.append([(s.name, s.labels.get("stage"), s.value) for s in samples])
    assert made[0] == made[1]
    assert counts[0] == counts[1]
    assert all(number for name, _, number in counts[0] if name != "penstock_run_rows")


RAY_DATA = """
import json, os, sys
import ray
from penstock import ray as penstock_ray

address, videos, store, counts = sys.argv[1:]

def counted(actor):
    class Counted(actor):
        def _on_begin(self, job, writer):
            super()._on_begin(job, writer)
            self.record = writer.record

        def __call__(self, batch):
            made = super().__call__(batch)
            stages = [(s.name, s.items, s.notes.get("load_seconds"))
                      for s in self.record.stages]
            with open(counts, "a") as file:
                file.write(json.dumps([actor.__name__, os.getpid(), stages]) + chr(10))
            return made
    return Counted

def stage(dataset, actor, **more):
    return dataset.map_batches(
        counted(actor), fn_constructor_kwargs={"model": "demo", "store": store, **more},
        batch_size=1, num_gpus=0.5, compute=ray.data.ActorPoolStrategy(size=1))

ray.init(address, log_to_driver=False)
paths = ray.data.from_items([{"path": path} for path in sorted(
    os.path.join(videos, name) for name in os.listdir(videos))])
first = stage(stage(paths, penstock_ray.Encode), penstock_ray.Write).take_all()
other = stage(paths, penstock_ray.Write, prompt="What moves?").take_all()
print(json.dumps([first, other]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_actor_of_ray_data_loads_its_half_once_and_a_new_prompt_encodes_nothing(
    nodes: Nodes, tmp_path: Path
) -> None:
    sources, counts, store = clips(tmp_path, 3), tmp_path / "counts", tmp_path / "store"
    words = [sys.executable, "-c", RAY_DATA, nodes.address, str(sources), str(store), str(counts)]
    done = completed(words, env=nodes.environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows, others = json.loads(done.stdout.splitlines()[-1])
    where: dict[str, Any] = {"out": tmp_path / "plain", "store": tmp_path / "other"}
    with penstock.caption(sources, model="demo", batch_size=1, **where) as plain:
        expected = {row.media_path: row.caption for row in plain}
    assert {Path(row["path"]).name: row["caption"] for row in rows} == expected
    assert {row["features"] for row in rows} == {row["features"] for row in others}
    batches = [json.loads(line) for line in counts.read_text().splitlines()]
    encode, write = (
        [stages for name, _, stages in batches if name == actor] for actor in ("Encode", "Write")
    )
    assert [[items for _, items, _ in stages] for stages in encode] == [[1, 1]] * 3
    assert [[items for _, items, _ in stages] for stages in write] == [[0, 0, 1]] * 6
    assert len({pid for _, pid, _ in batches}) == 3  # one actor of each of the three operators
    loads = [[stages[-1][2] > 0 for stages in each] for each in (encode, write[:3], write[3:])]
    assert loads == [[True, False, False]] * 3


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_after_any_death_the_same_call_continues() -> None:
    check_deaths(partitions=4, seconds=15)
