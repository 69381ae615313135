"""A whole run on a machine with a GPU, which is stood in for: the same captions as on the CPU, and
a parent that leaves the card alone."""

import json
import os
import shutil
from pathlib import Path

import pytest

import penstock_demo
from tests.support import gpus
from tests.support.commands import begun
from tests.support.fake_gpu.state import Machine
from tests.support.pipeline import SECONDS, place_below

CLIPS = ("clip-01.mp4", "clip-02.mp4")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_a_gpu_says_what_one_on_the_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clips, cards = tmp_path / "clips", gpus.plain().write(tmp_path / "gpu")
    clips.mkdir()
    for name in CLIPS:
        shutil.copy(penstock_demo.CLIPS / name, clips / name)
    captions = {}
    for how, environment in (
        ("cpu", {**os.environ, "CUDA_VISIBLE_DEVICES": ""}),
        ("forked", gpus.environment(cards)),
    ):
        place = place_below(tmp_path / how, clips)
        with begun(place.command(), env=environment) as running:
            printed, _ = running.communicate(timeout=SECONDS)
        assert running.returncode == 0, printed
        captions[how] = [caption["caption"] for caption in place.captions()]
        plan = json.loads((place.out / "run.json").read_text())["plan"]
    assert len(captions["cpu"]) == len(CLIPS)
    assert captions["forked"] == captions["cpu"]
    card = gpus.gpu().name
    assert plan["card"] == card
    packs = [path for path in (place.store / "captions").rglob("*") if path.is_file()]
    assert any(card.encode() in pack.read_bytes() for pack in packs)
    notes = place.stages()["decode"]["notes"]
    assert (notes["engine"], notes["rows"], notes["slots"]) == ("inflight", 64, len(CLIPS))
    notes = place.stages()["encode"]["notes"]
    assert notes["recorded"]["passes"] >= len(CLIPS) and "recorded_reason" not in notes
    assert notes["windows"]["together"] > 0 and notes["windows"]["one_by_one"] == []
    made = gpus.contexts(cards)
    assert len(set(made)) == len(made), "a process made two contexts"
    assert running.pid not in made, "the parent made a context"
    calls = gpus.calls(cards)
    limited = [call.pid for call in calls if call.name == "set_per_process_memory_fraction"]
    # Before any stage that runs a model, the card may be tried, by a process without a limit.
    assert set(limited) == set(made[-2:]) and len(limited) == 2 and len(made) <= 3
    machine = Machine(gpus=())
    (planned,) = {stage["context_bytes"] for stage in plan["memory"]["stages"]} - {0}
    # As the test of the card found, which multiplies and convolves, beside a few pages.
    assert 0 <= planned - machine.context_bytes - 2 * machine.lazy_bytes < 1 << 20
    assert place.stages()["decode"]["notes"]["beside"] == "encode"
    least = machine.context_bytes  # of the process alone
    peaks = {name: stage["peak_device_bytes"] for name, stage in place.stages().items()}
    assert sum(peak > least for peak in peaks.values()) == len(limited), peaks
