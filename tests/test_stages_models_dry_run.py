"""What computing takes is found out without weights, by families of every route."""

import pytest

from stages.models.dry_run import dry_run
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.routes import choose_route
from stages.models.inspection import frames_a_video
from stages.models.processors.prepare import load_processor
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import BUILDERS, checkpoint

FEW = ("llava", "qwen2_5_vl", "blip_2", "florence2", "mllama")
REST = tuple(name for name in (*BUILDERS, *MODELS) if name not in FEW)


@pytest.mark.slow
@pytest.mark.parametrize("family", REST)
def test_batch_costs_are_found_of_every_family_with_a_processor(family: str) -> None:
    test_batch_costs_are_found_by_every_route(family)


@pytest.mark.parametrize("family", FEW)
def test_batch_costs_are_found_by_every_route(family: str) -> None:
    folder = checkpoint(family) if family in BUILDERS else whole_checkpoint(family)
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(config, cls)
    route = choose_route(skeleton).route
    processor = load_processor(folder, False)
    found = dry_run(skeleton, processor, route, frames_a_video(processor))
    batch_costs = found.batch_costs
    assert found.why == ""
    assert bool(batch_costs["vision"]) == (route != "joint")
    one, two = (next(w for w in batch_costs["language"] if w.rows == rows) for rows in (1, 2))
    assert two.peak_bytes > one.peak_bytes > 0
    assert all(work.flops > 0 for work in batch_costs["language"])
    for work in (*batch_costs["vision"], *batch_costs["language"]):
        assert 0 < work.outside_bytes <= work.peak_bytes
        assert work.outside_bytes_32 <= work.peak_bytes_32
        assert work.peak_bytes - work.mlp_bytes <= work.outside_bytes
    # What waits for a layer is less than what computes.
    assert all(0 <= work.waiting_bytes < work.peak_bytes for work in batch_costs["vision"])
    if route == "protocol" and (memory := found.row_memory) is not None:
        windowed = sum(kind.layers * kind.token_bytes for kind in memory.kept if kind.window)
        for work in (work for work in batch_costs["language"] if work.rows == 1):
            assert 0 <= memory.bytes(work.units, 2) - work.kept_bytes <= windowed
    # One family keeps nothing between tokens.
    assert all(work.kept_bytes > 0 for work in batch_costs["language"]) == (family != "pix2struct")
