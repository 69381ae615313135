"""A model of the hub is planned without its weights, and each half's are fetched when it has work
to do."""

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from artifacts.packs import Record
from flows.cli.main import main
from flows.console.display import READING, Display
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium
from flows.ledger.weights import stages_with_work
from flows.pipelines import parts_of
from stages.models import describe, load_half
from stages.models.hub import transfer
from stages.models.hub.fetching import fetch
from stages.models.hub.resolve import find_model
from tests.support.hub import COMMIT, Hub, client, serve, use_cache
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.refusals import one_line
from tests.support.sharded import repository, sharded
from tests.test_flows_ledger import ledger, medium

MODEL = "owner/name"
CLIP = ROOT / "penstock_demo" / "samples" / "clip-01.mp4"


def run(hub: Hub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`penstock` as a user runs it, with that hub and a home of its own."""
    environment = {name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), **more}
    environment |= {"NO_PROXY": "127.0.0.1,localhost", "PENSTOCK_STORE": str(home / "store")}
    return subprocess.run(
        [*PENSTOCK, *arguments, "--model", MODEL],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def halves(folder: Path) -> dict[str, set[str]]:
    """Half -> the files that hold it, read off the names of the tensors."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    of_text = ("language_model", "lm_head")
    vision = {file for name, file in index.items() if not any(w in name for w in of_text)}
    language = {file for name, file in index.items() if any(w in name for w in of_text)}
    return {"vision": vision, "language": language}


def size(files: set[str]) -> int:
    return sum((sharded() / name).stat().st_size for name in files)


def wanted(book: Ledger, media: list[Medium]) -> list[str]:
    return [*parts_of(stages_with_work(book, media))]


def test_a_half_is_wanted_when_the_store_lacks_what_it_makes(tmp_path: Path) -> None:
    one = medium("a")
    assert wanted(ledger(tmp_path / "new"), [one]) == ["vision", "language"]
    book = ledger(tmp_path, a=[8, 8])
    first, second = book.tasks([one])
    assert wanted(book, [one]) == ["vision", "language"]
    book["captions"].publish([Record(key=first["captions"])])
    book["features"].publish([Record(key=second["features"])])
    assert wanted(book, [one]) == ["language"]
    book["captions"].publish([Record(key=second["captions"])])
    assert wanted(book, [one]) == []


def test_what_the_model_refuses_or_nothing_can_read_wants_no_half(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8])
    book.refused["encode"].publish([Record(key=book.tasks([medium("a")])[0]["features"])])
    book.failures.publish([Record(key="b", meta={"kind": "no-video"})])
    assert wanted(book, [medium("a"), medium("b")]) == []


def test_a_vision_half_alone_costs_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(tmp_path / "hub", monkeypatch)
    held = halves(sharded())
    with serve({MODEL: repository(sharded())}) as hub, client(monkeypatch) as connect:
        connect(hub.url)
        monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
        hub.trouble.statuses += [503, 429]
        profile = describe(MODEL)
        assert set(profile.vision.shards) == held["vision"]
        found = find_model(MODEL)
        fetch(found, profile.vision.shards)
        assert hub.weights_sent() <= 1.05 * size(held["vision"])
        assert {file.name for file in found.missing()} == held["language"] - held["vision"]
        hub.forget()
        here = load_half(found.folder, "vision").state_dict()
        assert hub.asked == []
        load_half(found.folder, "language")  # of which too little is here
        assert hub.weights_sent() == size(held["language"] - held["vision"])
    whole = load_half(sharded(), "vision").state_dict()
    assert here.keys() == whole.keys()
    assert all(torch.equal(here[name], whole[name]) for name in whole)


def test_fine_tuning_of_a_model_of_the_hub_is_told_from_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_cache(tmp_path / "hub", monkeypatch)
    with serve({MODEL: repository(sharded())}) as hub, client(monkeypatch) as connect:
        connect(hub.url)
        assert main(["plan", "--model", MODEL, "--train", "lora", "--json"]) == 0
        assert hub.weights_sent() <= 5 * 100_001
    told = json.loads(capsys.readouterr().out)
    profile = describe(sharded())
    assert told["frozen_parameters"] == profile.vision.parameters + profile.language.parameters


def test_a_download_moves_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.REDRAW_SECONDS", 0.0)
    for terminal in (True, False):
        to = Terminal() if terminal else io.StringIO()
        display = Display(to=to)
        for here in range(11):
            display.fetched(here * 1_000_000, 10_000_000)
        last = to.getvalue().rsplit("\x1b[2K", 1)[-1]
        assert last.startswith("downloaded 10.0 MB in ") and last.endswith("\n")
        assert ("MB  " in to.getvalue()) == terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_a_run_fetches_each_half_when_it_has_work(tmp_path: Path) -> None:
    held, out = halves(sharded()), str(tmp_path / "out")
    assert held["vision"] - held["language"] and held["language"] - held["vision"]
    asked = (str(CLIP), "--revision", "v1", "--max-new-tokens", "4")
    caption = ("caption", *asked, "--out", out)
    with serve({MODEL: repository(sharded(), tags=("v1",))}) as hub:
        planned = run(hub, tmp_path, "plan", *asked, "--json")
        assert planned.returncode == 0, planned.stderr
        assert json.loads(planned.stdout)["fetch_bytes"] == size(held["vision"] | held["language"])
        assert hub.weights_sent() <= 5 * 100_001, "a plan reads headers alone"
        assert not Path(out).exists() and not (ROOT / "penstock-out").exists()
        hub.forget()

        first = run(hub, tmp_path, *caption)
        assert first.returncode == 0, first.stderr
        assert hub.weights_sent() == size(held["vision"] | held["language"])
        cache = tmp_path / "hf" / "hub"
        whole = size(held["vision"] | held["language"]) / 1e6
        announced = f"downloading {MODEL}, {whole:.1f} MB, into {cache} (once)"
        assert next(line for line in first.stderr.splitlines() if line != READING) == announced
        assert {line["model"] for line in read_lines(Path(out, "captions.jsonl"))} == {MODEL}
        assert json.loads(Path(out, "run.json").read_text())["plan"]["commit"] == COMMIT
        hub.forget()

        dropped = held["vision"] - held["language"]
        snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
        for name in dropped:
            (snapshot / name).resolve().unlink()
            (snapshot / name).unlink()
        again = run(hub, tmp_path, *caption, "--prompt", "Why?")
        assert again.returncode == 0, again.stderr
        assert hub.asked == []
        elsewhere = ("--fps", "3", "--out", str(tmp_path / "offline"))
        offline = run(hub, tmp_path, *caption, *elsewhere, HF_HUB_OFFLINE="1")
    assert offline.returncode == 5
    assert "HF_HUB_OFFLINE is set" in one_line(offline.stderr)
    assert next(iter(sorted(dropped))) in offline.stderr and "MB" in offline.stderr
