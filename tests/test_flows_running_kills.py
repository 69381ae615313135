"""A stage that is killed from outside is started again in the same run, as long as that helps."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import flows.running.sequence
from artifacts.errors import Interrupted, Killed
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import StageCall
from flows.running.run import caption
from stages.process.outcome import StageOutcome
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.stand_ins import Answer, Stages, config_in


class KilledStages(Stages):
    """Each (stage, items) in turn ends that stage after it made so many items."""

    def __init__(self, *kills: tuple[str, int], error: type[Interrupted] = Killed) -> None:
        super().__init__()
        self.kills = list(kills)
        self._error = error

    def start(self, call: StageCall) -> Answer:
        if not self.kills or self.kills[0][0] != call.name:
            return super().start(call)
        _, items = self.kills.pop(0)
        self.calls.append(call)

        def work(outcome: StageOutcome) -> StageOutcome:
            if items:
                self.stop_after = {call.name: items}
                with pytest.raises(Interrupted):
                    self._answer(call, outcome)
                self.stop_after = {}
            if self._error is Killed:
                raise Killed(f"{call.name} was killed", items=outcome.items)
            raise self._error(f"{call.name} was stopped")

        return Answer(StageOutcome(name=call.name), work)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (tmp_path / "clips").mkdir()
    for number in range(4):
        # Another distance of keyframes makes other bytes: equal files would be one item.
        write_video(tmp_path / "clips" / f"{number}.mp4", ticks=range(10), gop=5 + number)
    return config_in(tmp_path, tmp_path / "clips", batch_size=1)


def run(config: CaptionConfig, stages: Stages) -> int:
    return caption(config, Display(quiet=True), stages.launcher).captions


@pytest.mark.parametrize(
    ("kills", "names"),
    [
        ([("frames", 0)], ["frames", "frames", "encode", "decode"]),
        ([("encode", 1)], ["frames", "encode", "encode", "decode"]),
        ([("decode", 3)], ["frames", "encode", "decode", "decode"]),
        ([("encode", 0), ("encode", 0)], ["frames", "encode", "encode", "encode", "decode"]),
        ([("decode", 1)] * 3, ["frames", "encode", *["decode"] * 4]),
    ],
)
def test_a_killed_stage_goes_on_where_it_was(
    config: CaptionConfig, kills: Sequence[tuple[str, int]], names: list[str]
) -> None:
    stages = KilledStages(*kills)
    assert run(config, stages) == 4
    assert stages.names() == names
    assert len(read_lines(Path(config.out) / "captions.jsonl")) == 4
    for stage in ("encode", "decode"):
        told = [len(c.arguments["batches"]) for c in stages.calls if c.name == stage]
        made = [items for name, items in kills if name == stage]
        assert told == [4 - sum(made[:before]) for before in range(len(told))]


def test_a_stage_that_is_killed_again_and_again_before_it_made_anything_ends_the_run(
    config: CaptionConfig,
) -> None:
    stages = KilledStages(("encode", 0), ("encode", 0), ("encode", 0))
    with pytest.raises(Killed):
        run(config, stages)
    assert stages.names() == ["frames", "encode", "encode", "encode"]
    assert run(config, Stages()) == 4


def test_describing_a_model_is_begun_again_when_it_is_killed(config: CaptionConfig) -> None:
    stages = KilledStages(("describe", 0), ("describe", 0))
    assert run(config, stages) == 4
    assert [call.name for call in stages.calls[:4]] == ["describe"] * 3 + ["frames"]


def test_describing_that_is_killed_again_and_again_ends_the_run(config: CaptionConfig) -> None:
    stages = KilledStages(*[("describe", 0)] * 3)
    with pytest.raises(Killed):
        run(config, stages)
    assert [call.name for call in stages.calls] == ["describe"] * 3
    assert run(config, Stages()) == 4


def test_a_stage_that_was_asked_to_stop_is_not_started_again(config: CaptionConfig) -> None:
    stages = KilledStages(("encode", 1), error=Interrupted)
    with pytest.raises(Interrupted):
        run(config, stages)
    assert stages.names() == ["frames", "encode"]


def test_an_error_nobody_thought_of_leaves_no_record_of_a_running_run(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    with monkeypatch.context() as patch:
        patch.setattr(flows.running.sequence, "write_outputs", wrong)
        with pytest.raises(RuntimeError):
            run(config, Stages())
    record = json.loads((Path(config.out) / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "something nobody thought of")
    assert run(config, Stages()) == 4
