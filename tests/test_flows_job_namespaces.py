"""What an earlier version made answers: namespaces of a real model stay what they were."""

from pathlib import Path

from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher
from flows.job.prepare import prepare
from penstock_demo import CLIPS
from stages.decode.engines import COMPILED, INFLIGHT, SHARED
from stages.decode.job import DEFAULT_ENGINE
from tests.support.described import described

FRAMES = "fd72770754985a5c7a68969356ac244d2a18b558a4668b6ee8826a3879ac846e"
"""Namespace of the demo's frames by default, since 0.1."""


def test_frames_of_the_demo_are_looked_for_where_they_were(tmp_path: Path) -> None:
    config = CaptionConfig(
        sources=(str(CLIPS),),
        model="demo",
        out=str(tmp_path / "o"),
        store=str(described(tmp_path / "s")),
    )
    job = prepare(config, DirectLauncher(lambda *_: None), lambda _: None)
    assert job.sampling.chunk_seconds == 30.0
    variants = job.ledger.variants
    assert [variant.engine for variant in variants] == [INFLIGHT, DEFAULT_ENGINE, SHARED, COMPILED]
    assert {variant["frames"] for variant in variants} == {FRAMES}
    assert len({variant["features"] for variant in variants}) == 1
    assert len({variant["captions"] for variant in variants}) == 4
