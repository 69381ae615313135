"""A row's cache takes what its layers see of it, and their states."""

import pytest

from stages.models.cache_memory import LayerMemory, RowMemory
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of


def test_a_row_takes_what_its_layers_see_and_their_states() -> None:
    states = LayerMemory(kind="states", layers=3, state_bytes=10, state_bytes_32=30)
    window = LayerMemory(kind="window", layers=2, token_bytes=4, window=8)
    memory = RowMemory(kept=(states, window, LayerMemory(kind="full", token_bytes=6)), words=5)
    assert memory.bytes(5, 2) == 5 * (2 * 4 + 6)
    assert memory.bytes(100, 2) == 2 * 8 * 4 + 100 * 6
    assert memory.bytes(100, 4) == 2 * memory.bytes(100, 2)
    assert (memory.states(2), memory.states(4)) == (30, 90)
    assert memory.largest(5, 2) == 30 and memory.largest_states(4) == 30


@pytest.mark.slow
def test_a_profile_tells_it_but_for_a_model_with_an_encoder_of_prompts() -> None:
    memory = profile_of(whole_checkpoint("gemma3")).language.row_memory
    assert memory is not None
    windows = {kind.kind: kind.window for kind in memory.kept}
    assert windows == {"DynamicSlidingWindowLayer": 16, "DynamicLayer": 0}
    assert profile_of(whole_checkpoint("florence2")).language.row_memory is None
