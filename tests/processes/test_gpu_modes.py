"""Every command on machines whose GPUs, or whose drivers, are not like others: each ends as its
help says, and none in a traceback."""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

import penstock_demo
from tests.support import gpus
from tests.support.commands import begun
from tests.support.fake_gpu.state import Machine
from tests.support.pipeline import PENSTOCK, SECONDS, place_below

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIP = "clip-01.mp4"
GIB = 1 << 30
WHOLE = {
    **{name: gpus.MODES[name] for name in ("mig", "two_unlike_cards", "wsl2")},
    "busy": gpus.busy(6 * GIB),
    "segments": gpus.plain(expandable_fails=True),
}
"""Machines on which a run ends well."""
BROKEN = {
    "old_driver": (gpus.old_driver(), "driver on your system is too old"),
    "no_kernels": (gpus.no_kernels(), "no kernel image is available"),
    "out_of_order": (gpus.plain(init_error="LibRmVersionMismatch"), "driver does not respond"),
}
"""Machines on which none begins, and what is said."""


class Desk:
    """A user at a machine."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.cards = machine.write(folder / "gpu")
        (folder / "clips").mkdir()
        shutil.copy(penstock_demo.CLIPS / CLIP, folder / "clips" / CLIP)
        self.place = place_below(folder)
        own = {name: str(folder / name) for name in ("XDG_CACHE_HOME", "PENSTOCK_LOCKS")}
        for name in own.values():
            Path(name).mkdir()
        own["PENSTOCK_STORE"] = str(self.place.store)
        self._environment = gpus.environment(self.cards, **own)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        words = [*PENSTOCK, *command] if command else self.place.command()
        return begun(words, env=self._environment)

    def says(self, *command: str) -> tuple[int, str]:
        """Exit status and words of a command; of `caption` when none is named."""
        with self.start(*command) as running:
            printed, _ = running.communicate(timeout=SECONDS)
        assert "Traceback" not in printed, printed
        assert running.pid not in gpus.contexts(self.cards), "a command made a context"
        return running.returncode, printed


@pytest.mark.parametrize("mode", WHOLE)
def test_every_command_ends_well(mode: str, tmp_path: Path) -> None:
    desk = Desk(WHOLE[mode], tmp_path)
    code, texts = desk.says("doctor")
    assert code == 0 and "cuda:0" in texts, texts
    code, planned = desk.says("plan", "--model", "demo")
    assert code == 0 and "fits" in planned, planned
    code, run = desk.says()
    assert code == 0, run
    code, status = desk.says("status", str(desk.place.out))
    assert code == 0 and "cuda:0" in status, status
    assert len(desk.place.captions()) == 1
    stages = desk.place.stages()
    assert all(stages[name]["peak_device_bytes"] for name in ("encode", "decode")), stages
    older = mode == "two_unlike_cards"
    assert [("fp16 is used" in text) for text in (planned, run)] == [older, older]


@pytest.mark.parametrize("mode", BROKEN)
def test_what_cannot_be_used_is_said_before_anything_is_done(mode: str, tmp_path: Path) -> None:
    machine, words = BROKEN[mode]
    desk = Desk(machine, tmp_path)
    for command in (("doctor",), ()):
        code, text = desk.says(*command)
        assert code == 5 and words in text, text
        assert "CUDA_VISIBLE_DEVICES=" in text, text
    assert not desk.place.out.exists(), "frames were cut, or looked for"
    code, text = desk.says("plan", "--model", "demo")
    assert code == (5 if machine.init_error else 0), text


def test_a_card_that_is_lost_in_the_middle_loses_nothing_that_is_done(tmp_path: Path) -> None:
    desk = Desk(gpus.plain(), tmp_path)
    assert desk.says("doctor")[0] == 0

    def lose() -> None:
        while not any(p.is_file() for p in desk.place.store.glob("features/**/*")):
            time.sleep(0.01)
        gpus.lose(desk.cards)

    threading.Thread(target=lose, daemon=True).start()
    code, text = desk.says()
    assert code == 5, text
    assert "captioning: 1 caption to do" in text and "dmesg" in text, text
    (desk.cards / "lost").unlink()
    features = desk.place.stored("features")
    assert features
    code, text = desk.says()
    assert code == 0, text
    assert desk.place.stored("features") == features
    assert len(desk.place.captions()) == 1
