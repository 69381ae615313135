"""What a decoder remembers of a row is told from one run of it, whatever its layers are."""

import json

from stages.models.inspection import describe
from stages.models.profile import ModelProfile
from stages.models.row_memory import LayerMemory, RowMemory
from tests.support.checkpoints import whole_checkpoint

STATE = LayerMemory(kind="states", layers=3, state_bytes=10, state_bytes_32=30)
WINDOW = LayerMemory(kind="window", layers=2, token_bytes=4, window=8)
FULL = LayerMemory(kind="full", token_bytes=6)
MEMORY = RowMemory(kept=(STATE, WINDOW, FULL), words=5)


def test_a_row_takes_what_its_layers_see_and_their_states() -> None:
    assert MEMORY.bytes(5, 2) == 5 * (2 * 4 + 6)
    assert MEMORY.bytes(100, 2) == 2 * 8 * 4 + 100 * 6
    assert MEMORY.bytes(100, 4) == 2 * MEMORY.bytes(100, 2)
    assert (MEMORY.states(2), MEMORY.states(4)) == (30, 90)
    assert MEMORY.largest(5, 2) == 30 and MEMORY.largest_states(4) == 30


def test_a_profile_tells_it_and_keeps_it_in_json() -> None:
    profile = describe(whole_checkpoint("gemma3"))
    memory = profile.language.row_memory
    assert memory is not None
    assert {kind.kind: kind.window for kind in memory.kept} == {
        "DynamicSlidingWindowLayer": 16,
        "DynamicLayer": 0,
    }
    again = ModelProfile.from_json(json.loads(json.dumps(profile.to_json())))
    assert again == profile


def test_nothing_is_told_of_a_model_with_an_encoder_of_prompts() -> None:
    assert describe(whole_checkpoint("florence2")).language.row_memory is None
