"""What computing takes is found out without weights, by families of every route; what a decoder
remembers of a row is told from one run of it, whatever its layers are."""

import pytest

from stages.models.dry_run import dry_run
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.routes import choose_route
from stages.models.inspection import frames_a_video
from stages.models.kv_profile import LayerMemory, RowMemory
from stages.models.processors.prepare import load_processor
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.clips import profile_of
from tests.support.families import BUILDERS, checkpoint

FEW = ("qwen2_5_vl", "blip_2", "florence2")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in FEW else pytest.mark.slow)
        for name in (*BUILDERS, *MODELS)
    ],
)
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


def test_a_row_takes_what_its_layers_see_and_their_states() -> None:
    states = LayerMemory(kind="states", layers=3, state_bytes=10, state_bytes_32=30)
    window = LayerMemory(kind="window", layers=2, token_bytes=4, window=8)
    memory = RowMemory(kept=(states, window, LayerMemory(kind="full", token_bytes=6)), words=5)
    assert memory.bytes(5, 2) == 5 * (2 * 4 + 6)
    assert memory.bytes(100, 2) == 2 * 8 * 4 + 100 * 6
    assert memory.bytes(100, 4) == 2 * memory.bytes(100, 2)
    assert (memory.states(2), memory.states(4)) == (30, 90)
    assert memory.largest(5, 2) == 30 and memory.largest_states(4) == 30


def test_a_profile_tells_it_but_for_a_model_with_an_encoder_of_prompts() -> None:
    memory = profile_of(whole_checkpoint("gemma3")).language.row_memory
    assert memory is not None
    assert {kind.kind: kind.window for kind in memory.kept} == {
        "DynamicSlidingWindowLayer": 16,
        "DynamicLayer": 0,
    }
    assert profile_of(whole_checkpoint("florence2")).language.row_memory is None
