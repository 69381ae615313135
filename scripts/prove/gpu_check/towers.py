"""Times vision halves on the device as the product computes them to spare the host: windows of one
length in one call of attention, and passes that are recorded as CUDA graphs. Compares their bits
with those of transformers."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.core.checkpoint.precision import no_bfloat16
from scripts.prove.gpu_check.halves import Bench, numbers, timed
from scripts.prove.gpu_check.model import of_model
from scripts.prove.gpu_check.rows import TINY, Row, Setting, one_line, row, skipped
from scripts.prove.gpu_check.steps import SAME_BITS, work_of

GRIDS = ((1, 28, 36), (4, 28, 36), (8, 48, 64))
"""Frames, and patches of each as high and as wide: a picture, a clip, a clip of 768 tokens a
frame."""
TYPES = ("bfloat16", "float16", "float32")
TOWER = (32, 1280, 16)
"""Layers, width and heads of the vision half of Qwen2.5-VL-3B."""
TINY_TOWER, TINY_GRIDS = (2, 64, 2), GRIDS[:1]
"""The same for a stand-in, which computes on the CPU."""
REPEATS = 2
CLIPS = 4
"""Clips of one shape; the second is recorded, and the later ones are replayed."""


def windows(setting: Setting) -> Iterator[Row]:
    """Windows by length beside windows one by one, for some grids and types."""
    tiny = setting.size == TINY
    for name in TYPES:
        if name == "bfloat16" and no_bfloat16(setting.device):
            continue
        for grid in TINY_GRIDS if tiny else GRIDS:
            yield _windows_of(setting, name, grid, TINY_TOWER if tiny else TOWER)


def _windows_of(
    setting: Setting, name: str, grid: tuple[int, int, int], shape: tuple[int, int, int]
) -> Row:
    """Return whether one call per length of windows gives the bits of transformers' loop."""
    import torch

    from stages.models.halves.boundary import EQUAL, group_windows
    from stages.models.halves.recorded import HostGrid, keep_grids_on_host

    half, dtype = _tower(setting, getattr(torch, name), *shape), getattr(torch, name)
    patches = grid[0] * grid[1] * grid[2]
    channels = half.patch_embed.proj.weight[0].numel()
    pixels = torch.randn(patches, channels, device=setting.device, dtype=dtype)
    of_device = torch.tensor([grid], device=setting.device)

    def passed(where: Any) -> Any:
        made = half(pixels, grid_thw=where).pooler_output
        torch.cuda.synchronize()
        return made

    EQUAL.clear()  # of the row before
    with torch.inference_mode():
        expected = passed(of_device)
        loop = timed(partial(passed, of_device), REPEATS)
        group_windows(half)
        keep_grids_on_host(half)
        on_host = HostGrid(torch.tensor([grid]), torch.device(setting.device))
        passed(on_host)  # which compares
        made = passed(on_host)
        grouped = timed(partial(passed, on_host), REPEATS)
    apart = float((made.float() - expected.float()).abs().max())
    one_by_one = sorted(key for key, equal in EQUAL.items() if not equal)
    same = torch.equal(made, expected) and not one_by_one
    found = SAME_BITS if same else f"{apart:.1e} apart; one by one: {', '.join(one_by_one)}"
    found += f"; {1000 * loop:.1f} ms one by one, {1000 * grouped:.1f} by length"
    figures = {"apart": apart, "one_by_one": one_by_one, "loop_ms": 1000 * loop}
    figures["grouped_ms"] = 1000 * grouped
    title = f"windows of {' x '.join(map(str, grid))} patches, {name}"
    return row(title, SAME_BITS, one_line(found), same, **figures)


def _tower(setting: Setting, dtype: Any, layers: int, width: int, heads: int) -> Any:
    """Return a vision half of Qwen2.5-VL with random weights on the device."""
    import torch
    import transformers

    torch.manual_seed(0)
    config: Any = transformers.Qwen2_5_VLConfig().vision_config
    config.depth, config.hidden_size, config.num_heads = layers, width, heads
    config.intermediate_size, config.out_hidden_size = 3 * width, width
    config.fullatt_block_indexes = [at for at in range(layers) if at % 8 == 7 or at == layers - 1]
    config._attn_implementation = "sdpa"
    module: Any = import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    with torch.device(setting.device):
        made = module.Qwen2_5_VisionTransformerPretrainedModel(config)
    return made.to(dtype).eval()


@of_model("a recorded tower")
def recorded_tower(setting: Setting, folder: Path) -> Iterator[Row]:
    """Clips of one shape through the vision half, recorded and as it is."""
    import torch

    from stages.models.halves.recorded import RECORDER

    dtype = "float16" if no_bfloat16(setting.device) else "bfloat16"
    bench = Bench(str(folder), setting.device, dtype, large=True)
    half = bench.half("vision")
    if (recorder := half.__dict__.pop(RECORDER, None)) is None:
        yield skipped("a clip through the vision half, recorded", "its passes are not recorded")
        return
    clips = [_other(bench.prepared.inputs, seed) for seed in range(CLIPS)]
    with torch.inference_mode():
        expected = _features(half, clips)
        plain = work_of(lambda: bench.encode(half))
        half.__dict__[RECORDER] = recorder
        made = _features(half, clips)
        work = work_of(lambda: bench.encode(half))
    same = all(map(torch.equal, made, expected))
    notes = recorder.stats()
    reason, counts = notes.get("recorded_reason", ""), notes["recorded"]
    found = f"not recorded: {reason}; " if reason or not counts["replayed"] else ""
    found += f"{SAME_BITS if same else 'other bits'}; {work.words}; "
    found += f"x {plain.wall_ms / work.wall_ms:.2f}; {counts['recordings']} recorded, "
    found += f"{counts['replayed']} of {counts['passes']} replayed"
    figures = {"plain_ms": plain.wall_ms, "wall_ms": work.wall_ms, "reason": reason, **counts}
    good = same and not reason and counts["replayed"] > 0
    yield row("a clip through the vision half, recorded", SAME_BITS, found, good, **figures)


def _other(inputs: Any, seed: int) -> dict[str, Any]:
    """Return the same inputs with other pixels."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=chance).to(value.dtype)
        if torch.is_tensor(value) and value.is_floating_point() and value.ndim > 1
        else value
        for name, value in inputs.items()
    }


def _features(half: Any, clips: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the features of each clip, on the CPU."""
    from stages.models import encode

    return [numbers(encode(half, clip)) for clip in clips]
