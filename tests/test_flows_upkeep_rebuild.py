"""What a rebuild encodes, what it says of why, and what it removes."""

import shutil
import subprocess
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Interrupted, UsageError
from artifacts.packs import RecordSet
from artifacts.store import FolderStore
from flows.console.display import Display
from flows.machine.leases import leased
from flows.options.commands import CaptionConfig
from flows.options.rebuild import RebuildConfig
from flows.running.run import caption
from flows.upkeep.rebuild import RebuildOptions, RebuildResult, rebuild
from penstock_demo.clips import write_clips
from stages.process.lock import try_hold
from tests.support import stand_ins
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT, Place
from tests.support.rebuilds import rebuilding
from tests.support.stand_ins import Stages, config_in


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Three videos of one chunk each and a model of two files."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(3):
        write_video(clips / f"{number}.mp4", ticks=range(10), gop=5 + number)
    return config_in(tmp_path, clips, batch_size=2)


def answered(
    config: CaptionConfig | RebuildConfig, stages: Stages | None = None, **options: Any
) -> RebuildResult:
    """A rebuild with stages that answer at once."""
    told = stages or Stages()
    return rebuild(
        rebuilding(config), RebuildOptions(**options), Display(quiet=True), told.launcher
    )


def features(config: CaptionConfig) -> int:
    """How many feature records are stored, over all namespaces."""
    store = FolderStore(Path(config.store))
    namespaces = {name.split("/")[2] for name in store.list("features")}
    return sum(len(RecordSet(store, "features", namespace).keys()) for namespace in namespaces)


def counts(result: RebuildResult) -> tuple[int, int, int, int]:
    found = result.difference
    return (found.unchanged, found.added, found.changed, found.removed)


def snapshot(store: str) -> dict[str, bytes]:
    packs = Path(store).rglob("*.pack")
    return {str(path): path.read_bytes() for path in packs}


def in_use(config: CaptionConfig, kind: str) -> AbstractContextManager[object]:
    """Another running job holds the only namespace of these records."""
    store = FolderStore(Path(config.store))
    (namespace,) = {name.split("/")[2] for name in store.list(kind)}
    return leased(store, [namespace], Path("elsewhere"))


def other_weights(config: CaptionConfig) -> None:
    Path(config.model, "model.safetensors").write_text("others")


def test_the_server_refuses_bad_parameters_before_a_run() -> None:
    from prefect.utilities.schema_tools import ValidationError, validate

    from flows.deployments.rebuild import rebuild_features

    schema = rebuild_features.parameters.model_dump()
    good: dict[str, Any] = {"config": {"sources": ["a"]}}
    validate({**good, "prune": True}, schema, raise_on_error=True)
    wrong = ({"fps": 0}, {"prune": True}, {"out": "elsewhere"})
    bad = [{"config": {**good["config"], **field}} for field in wrong]
    for parameters in ({}, {**good, "prune": "perhaps"}, *bad):
        with pytest.raises(ValidationError):
            validate(parameters, schema, raise_on_error=True)


def test_a_rebuild_makes_what_a_caption_run_then_finds(config: CaptionConfig) -> None:
    stages = Stages()
    result = answered(config, stages)
    assert (counts(result), result.encoded) == ((0, 3, 0, 0), 3)
    assert stages.names() == ["frames", "encode"]
    assert list(FolderStore(Path(config.store)).list("frames")) == []
    after = Stages()
    assert caption(config, Display(quiet=True), after.launcher).captions == 3
    assert after.names() == ["decode"]
    shutil.rmtree(Path(config.store) / "features")
    assert answered(config).encoded == 3, "though there are captions"


def test_a_dry_run_changes_nothing_and_tells_time_once_it_is_known(config: CaptionConfig) -> None:
    told = answered(config, dry_run=True)
    assert (told.missing.chunks, told.missing.files, told.exit_code) == (3, 3, 0)
    assert "time: unknown" in told.plan_lines()[-1]
    assert told.to_json()["removed_bytes"] == 0
    fetched = replace(told, fetch_bytes=2 * 10**9).plan_lines()
    assert fetched == ["to download: 2.0 GB of weights", *told.plan_lines()]
    assert features(config) == 0
    answered(config)
    write_video(Path(config.sources[0]) / "0.mp4", ticks=range(11))
    before = snapshot(config.store)
    stages = Stages()
    sampled = answered(replace(config, fps=1.0), stages, dry_run=True)
    assert sampled.missing.chunks == 3
    assert sampled.difference.why == ("sampling changed (fps 2.0 → 1.0)",)
    told = answered(config, stages, dry_run=True, prune=True)
    assert (counts(told), told.missing.chunks, told.removed) == ((2, 0, 1, 0), 1, 1)
    assert "time: about" in told.plan_lines()[-1]
    assert stages.names() == [] and snapshot(config.store) == before


def test_what_another_recorded_job_refers_to_stays(config: CaptionConfig) -> None:
    clips = Path(config.sources[0])
    answered(config)
    one = replace(config, sources=(str(clips / "0.mp4"),))
    assert answered(one).encoded == 0
    for number in range(2):
        (clips / f"{number}.mp4").rename(clips / f"{number}.txt")
    result = answered(config, prune=True)
    assert (counts(result), result.removed, features(config)) == ((1, 0, 0, 2), 1, 2)


def test_what_a_running_job_needs_stays_until_the_next_prune(config: CaptionConfig) -> None:
    answered(config)
    other_weights(config)
    with in_use(config, "features"):
        result = answered(config, prune=True)
    assert (result.encoded, result.removed, features(config)) == (3, 0, 6)
    assert any("weights changed" in reason for reason in result.difference.why)
    assert answered(config, prune=True).removed == 3
    assert features(config) == 3


def test_what_a_rebuild_that_was_stopped_made_is_known_to_be_its_own(config: CaptionConfig) -> None:
    answered(config)
    other_weights(config)
    stages = Stages()
    stages.stop_after["encode"] = 2
    with pytest.raises(Interrupted):
        answered(config, stages)
    assert features(config) == 5
    Path(config.model, "model.safetensors").write_text("yet others")
    result = answered(config, prune=True)
    assert (result.encoded, result.removed, features(config)) == (3, 5, 3)


def test_frames_that_another_job_looks_at_are_left_for_it(config: CaptionConfig) -> None:
    store = FolderStore(Path(config.store))
    answered(config)
    other_weights(config)
    with in_use(config, "media"):
        answered(config)
    assert len(list(store.list("frames"))) == 3
    answered(config)
    assert list(store.list("frames")) == []


def test_frames_of_a_removed_file_go_with_its_features(config: CaptionConfig) -> None:
    store = FolderStore(Path(config.store))
    answered(config)
    other_weights(config)
    with in_use(config, "media"):
        answered(config)
        (Path(config.sources[0]) / "0.mp4").unlink()
        assert answered(config, prune=True).removed == 4, "the features of it and of old weights"
        assert len(list(store.list("frames"))) == 3
    assert answered(config, prune=True).removed == 1, "its frames"
    assert list(store.list("frames")) == []


def test_features_of_an_earlier_prompt_go_where_prompts_decide_them(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_ins, "PROFILE", replace(stand_ins.PROFILE, prompted=True))
    answered(config)
    asked = replace(config, prompt="Who is there?")
    result = answered(asked, prune=True)
    assert (counts(result), result.encoded, result.removed) == ((3, 0, 0, 0), 3, 3)
    assert "prompt changed" in result.difference.why[0]
    assert answered(asked).difference.why == ()


def test_two_jobs_over_the_same_sources_are_told_apart_by_name(config: CaptionConfig) -> None:
    answered(config, name="one")
    other_weights(config)
    result = answered(config, name="two", prune=True)
    assert (counts(result), result.removed, features(config)) == ((0, 3, 0, 0), 0, 6)


def test_nothing_is_removed_while_a_source_is_not_there(config: CaptionConfig) -> None:
    clips = Path(config.sources[0])
    more = replace(config, sources=(*config.sources, str(clips.parent / "disk")))
    shutil.copytree(clips, clips.parent / "disk")
    write_video(clips.parent / "disk" / "4.mp4", ticks=range(12))
    assert answered(more).encoded == 4
    shutil.rmtree(clips.parent / "disk")
    assert "--limit" in answered(replace(config, limit=1), prune=True).kept
    result = answered(more, prune=True)
    assert (result.exit_code, result.removed, features(config)) == (1, 0, 4)
    assert "nothing was removed" in result.line() and "disk" in result.kept


def test_two_rebuilds_of_one_job_are_refused(config: CaptionConfig) -> None:
    answered(config)
    (folder,) = (Path(config.store) / "logs").glob("rebuild-*")
    lock = try_hold(folder / ".lock")
    assert lock is not None
    with lock, pytest.raises(UsageError, match=r"already rebuilding, with its logs in .* --name"):
        answered(config)
    assert answered(config, name="another").encoded == 0


def test_a_file_that_cannot_be_used_fails_alone(config: CaptionConfig) -> None:
    (Path(config.sources[0]) / "bad.mp4").write_text("not a video")
    result = answered(config)
    assert (result.exit_code, result.encoded) == (1, 3)
    assert [failure.media_path for failure in result.failures] == ["bad.mp4"]
    stages = Stages()
    assert answered(config, stages).missing.chunks == 0
    assert stages.names() == []


def test_a_rebuild_of_a_deployment_has_a_folder_of_its_own(config: CaptionConfig) -> None:
    asked = RebuildConfig(sources=config.sources, model=config.model, store=config.store)
    result = answered(asked)
    assert (result.files, result.encoded) == (3, features(config))


@pytest.mark.slow
def test_the_flow_makes_the_bytes_of_the_plain_command(tmp_path: Path) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.deployments.rebuild import rebuild_features

    write_clips(tmp_path / "clips", 2, seed=6)
    plain = Place(clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "plain")
    where = [str(plain.clips), "--model", "demo", "--store", str(plain.store)]
    subprocess.run([*PENSTOCK, "cache", "rebuild", *where], cwd=ROOT, check=True)
    flow = Place(clips=plain.clips, out=plain.out, store=tmp_path / "flow")
    config = RebuildConfig(sources=(str(flow.clips),), model="demo", store=str(flow.store))
    with prefect_test_harness(server_startup_timeout=120):
        for encoded in (2, 0):
            state = rebuild_features(config, prune=True, return_state=True)
            assert state.is_completed()
            assert f"encoded {encoded} chunks" in str(state.message)
        (plain.clips / "late.txt").write_text("no medium")
        nothing = RebuildConfig(sources=(str(flow.clips / "*.txt"),), store=str(flow.store))
        assert rebuild_features(nothing, return_state=True).is_failed()
    assert flow.stored("features") == plain.stored("features")
    assert len(flow.stored("features")) == 2
