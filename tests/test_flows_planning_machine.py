"""What is kept of a measured machine, and when it is not used."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.machine.launch import DirectLauncher
from flows.planning.machine import Machine, find_machine, measure
from stages.process.device import device_name

DEVICE = device_name()
pytestmark = pytest.mark.slow  # the machine is really measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Machine]]:
    """The file of this machine's figures, and the figures: measured once, really."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("measured")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        made = measure(DEVICE, cache / "store", DirectLauncher(lambda *_: None))
        (file,) = cache.glob("penstock/machines/*.json")
        yield file, made


@pytest.fixture
def file(measured: tuple[Path, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that file where this test looks for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = tmp_path / "penstock" / "machines" / measured[0].name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(measured[0].read_bytes())
    return copy


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_figures_are_those_of_a_machine_and_are_found_again_and_told(
    file: Path, measured: tuple[Path, Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = measured[1]
    assert find_machine(DEVICE).machine == machine
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "GFLOP/s in prefill" in shown and "frames/s of 720p" in shown
    file.unlink()
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "this machine was not measured" in shown and "penstock doctor --measure" in shown
    assert machine.cores == len(os.sched_getaffinity(0))
    assert 0.1 < machine.python_seconds < 60
    assert machine.flops("fp32") > 1e8
    for points in machine.passes.values():
        assert [tokens for tokens, _ in points] == [1, 8, 256]
        # One pass of 256 tokens is cheaper than 256 passes. Alone it may be as fast as one of one
        # token, where unpacking the weights takes most of the time.
        assert 0 < points[-1][1] < 256 * points[0][1]
    assert min(machine.disk_read, machine.disk_write, machine.prepare) > 1e5
    assert {*machine.passes, *(name.split()[-1] for name in machine.missing)} >= {
        "fp32", "bf16", "fp16", "int8", "nf4"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"torch": "1.0"}, "it was measured with torch 1.0"),
        ({"cores": 4711}, "it was measured with 4711 cores"),
        ({"format": 0}, "this machine was not measured"),
        ({"passes": 3}, "this machine was not measured"),
    ],
)
def test_an_old_measurement_is_not_used(changed: dict[str, object], says: str, file: Path) -> None:
    change(file, **changed)
    known = find_machine(DEVICE)
    assert known.machine is None and says in known.why


def test_the_measurement_of_another_machine_is_not_used(file: Path) -> None:
    change(file, cpu="Some other CPU")
    file.rename(file.with_name("0123456789abcdef.json"))
    known = find_machine(DEVICE)
    assert known.machine is None and "only another machine was measured (Some other" in known.why


def test_a_busy_machine_s_figures_are_used_and_that_is_said(file: Path) -> None:
    change(file, load=7.0)
    known = find_machine(DEVICE)
    assert known.machine is not None and "machine was busy" in known.why
