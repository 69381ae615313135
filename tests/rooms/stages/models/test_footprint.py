"""What computing takes is told from runs without weights at a few sizes, and the context of a model
from its configuration, with its RoPE scaling in it once."""

from collections.abc import Callable
from typing import Any

import pytest
import transformers

from stages.models.dry_run import dry_run
from stages.models.footprint import (
    BatchCost,
    LayerMemory,
    RowMemory,
    at_size,
    context_tokens,
    kept_bytes,
    peak_bytes,
)
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.split_route import choose_route
from stages.models.inspection import frames_per_video
from stages.models.processors.loading import load_processor
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.clips import profile_of
from tests.support.families import BUILDERS, checkpoint

SIZES = ((1, 100), (1, 400), (1, 1000), (2, 400), (2, 1000))


def batch_costs(
    peak: Callable[[int, int], int], sizes: tuple[tuple[int, int], ...] = SIZES
) -> list[BatchCost]:
    made = []
    for rows, units in sizes:
        count, most = rows * units, peak(rows, units)
        size: dict[str, Any] = {"kind": "image", "rows": rows, "units": units, "step_flops": rows}
        size |= {"kept_bytes": 8 * count, "mlp_bytes": 4 * count, "step_bytes": 8 * count + 500}
        size |= {"peak_bytes": most, "peak_bytes_32": 2 * most - 1000, "flops": 7 * count}
        made.append(BatchCost(**size))
    return made


@pytest.mark.parametrize(
    "peak",
    [
        lambda rows, units: 5000 + 60 * rows * units,
        lambda rows, units: 5000 + 60 * rows * units + 3 * rows * units**2,
        lambda rows, units: 100 + 9000 * rows + 60 * rows * units,
        lambda rows, units: 10 + 60 * rows * units + (2 * rows * units**2 if rows > 1 else 0),
    ],
)
@pytest.mark.parametrize(("rows", "units"), [(1, 250), (1, 4000), (8, 700), (3, 5000)])
def test_growth_is_told_from_a_few_sizes(
    peak: Callable[[int, int], int], rows: int, units: int
) -> None:
    found = peak_bytes(batch_costs(peak), kind="image", rows=rows, units=units)
    assert found == pytest.approx(peak(rows, units), rel=0.01)


def test_two_sizes_give_a_line_and_one_a_proportion() -> None:
    def line(rows: int, units: int) -> int:
        return 100 + rows * units

    two = batch_costs(line, ((1, 500), (2, 500)))
    assert peak_bytes(two, kind="image", rows=8, units=500) == pytest.approx(4100)
    one = batch_costs(line, ((1, 500),))
    assert peak_bytes(one, kind="image", rows=4, units=500) == pytest.approx(2400)
    assert peak_bytes((), kind="image", rows=4, units=500) == 0


def test_a_kind_that_was_not_run_is_told_by_the_other() -> None:
    known = batch_costs(lambda rows, units: rows * units)
    assert peak_bytes(known, kind="video", rows=2, units=200) == pytest.approx(400)


def test_wider_numbers_tokens_and_pieces_change_the_peak() -> None:
    known = batch_costs(lambda rows, units: 60 * rows * units)
    size: dict[str, Any] = {"kind": "image", "rows": 4, "units": 1000}
    assert peak_bytes(known, **size, item_bytes=4) == pytest.approx(2 * 240_000 - 1000, rel=0.01)
    assert kept_bytes(known, **size, item_bytes=4) == pytest.approx(64_000)
    pieces = peak_bytes(known, **size, mlp_chunk=500)
    assert pieces == pytest.approx(240_000 - 16_000 * (1 - 500 / 4000), rel=0.01)
    long = peak_bytes(known, **size, new_tokens=20_000)
    assert long == pytest.approx(8 * 4 * 21_000, rel=0.01)
    assert at_size(known, lambda work: work.flops, **size) == pytest.approx(28_000)


def test_growth_that_two_peaks_only_seem_to_lose_is_left_out() -> None:
    def bent(rows: int, units: int) -> int:
        return max(50_000, 60 * rows * units)

    found = peak_bytes(batch_costs(bent), kind="image", rows=8, units=8000)
    assert found >= 0.8 * bent(8, 8000)


@pytest.mark.parametrize(("mlp_chunk", "peak"), [(5, 70), (40, 88), (50, 100), (0, 100)])
def test_pieces_take_no_less_than_what_lives_beside_mlps(mlp_chunk: int, peak: int) -> None:
    """An MLP that is given 50 positions at once has 60 of 100 bytes inside."""
    size: dict[str, Any] = {"kind": "image", "rows": 1, "units": 1000}
    parts: Any = {"peak_bytes": 100, "mlp_bytes": 60, "outside_bytes": 70, "kept_bytes": 1}
    work = BatchCost(positions=50, flops=1, **parts, **size)
    assert peak_bytes([work], **size, mlp_chunk=mlp_chunk) == peak


FEW = ("qwen2_5_vl", "blip_2", "florence2")


@pytest.mark.in_turn
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
    found = dry_run(skeleton, processor, route, frames_per_video(processor))
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


@pytest.mark.slow
def test_a_profile_tells_it_but_for_a_model_with_an_encoder_of_prompts() -> None:
    memory = profile_of(whole_checkpoint("gemma3")).language.row_memory
    assert memory is not None
    windows = {kind.kind: kind.window for kind in memory.kept}
    assert windows == {"DynamicSlidingWindowLayer": 16, "DynamicLayer": 0}
    assert profile_of(whole_checkpoint("florence2")).language.row_memory is None


hf: Any = transformers
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stated", "scaling", "context"),
    [
        (4096, None, 4096),
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (2048, {"rope_type": "dynamic", "factor": 2.5}, 5120),
        (32768, {"type": "yarn", "factor": 4.0, ORIGINAL: 32768}, 131072),
        (32768, {"type": "yarn", "factor": 4.0}, 131072),
        (131072, {"rope_type": "yarn", "factor": 32.0, ORIGINAL: 4096}, 131072),
        (131072, {"rope_type": "llama3", "factor": 32.0, ORIGINAL: 8192, **LLAMA3}, 131072),
    ],
)
def test_rope_scaling_enlarges_the_context_once(
    stated: int, scaling: dict[str, Any] | None, context: int
) -> None:
    config = hf.LlamaConfig(max_position_embeddings=stated, rope_scaling=scaling)
    assert context_tokens(config) == context


@pytest.mark.filterwarnings("ignore")
def test_longrope_states_the_context_that_it_reaches() -> None:
    sizes = {"max_position_embeddings": 131072, ORIGINAL: 4096}
    config = hf.Phi3Config(rope_scaling={"type": "longrope", **FACTORS}, **sizes)
    assert context_tokens(config) == 131072


def test_of_layers_of_several_kinds_the_least_counts() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    text = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    config = hf.Gemma3Config(text_config=text)
    kinds = {name: each["rope_type"] for name, each in config.text_config.rope_parameters.items()}
    assert kinds == {"sliding_attention": "default", "full_attention": "linear"}
    assert context_tokens(config) == 131072


def test_sections_of_positions_enlarge_nothing() -> None:
    scaling = {"type": "mrope", "mrope_section": [16, 24, 24]}
    text = {"max_position_embeddings": 128000, "rope_scaling": scaling}
    assert context_tokens(hf.Qwen2_5_VLConfig(text_config=text)) == 128000


def test_what_makes_no_sense_as_a_scaling_is_passed_over() -> None:
    config = hf.LlamaConfig(max_position_embeddings=64)
    for most, scaling in (
        (64, {"rope_type": "linear", "factor": "4"}),
        (64, {"rope_type": "linear", "factor": float("inf")}),
        (128, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "64"}),
    ):
        config.rope_parameters = scaling
        assert context_tokens(config) == most
