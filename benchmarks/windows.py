"""How many operators the host starts for a clip through a vision half with windows, and how often
it waits for the device: window by window, one call a length, and one call a length with the grids
on the host. Prints a table; weights are random.

    OMP_NUM_THREADS=1 python benchmarks/windows.py [--layers 32] [--width 64] [--grid 8x48x64]
"""

import argparse
from collections import Counter
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from benchmarks._common import cells, heads
from stages.models.halves.boundary import group_windows
from stages.models.halves.recorded import READS, SHAPED, HostGrid, keep_grids_on_host

LISTS = (torch.Tensor.tolist, torch.Tensor.numpy)


class Operators(TorchDispatchMode):
    """Counts operators, each part of a composite one by itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func)
        if any(issubclass(kind, HostGrid) for kind in types):
            self.counts["operators"] += 1
            return HostGrid.__torch_dispatch__(func, types, args, kwargs)
        if func.namespace != "prim" and not name.startswith(READS) and func._can_decompose():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        self.counts["operators"] += 1
        self.counts["attention calls"] += "scaled_dot_product" in name
        self.counts["waits"] += name.startswith((*READS, *SHAPED))
        return func(*args, **kwargs)


class Lists(TorchFunctionMode):
    """Counts tensors that become lists, which is no operator."""

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self._operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operators.counts["waits"] += func in LISTS
        return func(*args, **(kwargs or {}))


def tower(layers: int, width: int) -> Any:
    """Return a vision half of Qwen2.5-VL; every eighth layer sees whole frames."""
    torch.manual_seed(0)
    config: Any = transformers.Qwen2_5_VLConfig().vision_config
    config.depth, config.hidden_size, config.num_heads = layers, width, max(1, width // 32)
    config.intermediate_size = config.out_hidden_size = width
    config.fullatt_block_indexes = list(range(7, layers, 8))
    config._attn_implementation = "sdpa"
    half: Any = qwen.Qwen2_5_VisionTransformerPretrainedModel(config)
    return half.to(torch.bfloat16).eval()


def counted(half: Any, pixels: torch.Tensor, grid: torch.Tensor) -> tuple[Counter[str], Any]:
    """Return what a pass takes, and its features."""
    operators = Operators()
    with torch.inference_mode(), operators, Lists(operators):
        made = half(pixels, grid_thw=grid).pooler_output
    return operators.counts, made


def reads_of(half: Any, pixels: torch.Tensor, grid: torch.Tensor) -> int:
    """Return 0 if a pass reads nothing of the device: the meta device has no numbers."""
    half.to("meta")
    with torch.inference_mode():
        half(pixels.to("meta"), grid_thw=HostGrid(grid, half.device))
    return 0


def main() -> int:
    """Print the table; the exit code says whether any features differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--grid", default="8x48x64", help="frames x rows x columns of patches")
    given = parser.parse_args()
    grid = torch.tensor([[int(size) for size in given.grid.split("x")]])
    half = tower(given.layers, given.width)
    pixels = torch.randn(int(grid.prod()), 1176).to(torch.bfloat16)
    rows = [("window by window", *counted(half, pixels, grid))]
    group_windows(half)
    counted(half, pixels, grid)  # compares
    rows.append(("one call a length", *counted(half, pixels, grid)))
    keep_grids_on_host(half)
    with torch.inference_mode():
        on_host = HostGrid(grid, half.device)
    counts, made = counted(half, pixels, on_host)
    rows.append(("and grids on the host", counts, made))
    counts["waits"] = reads_of(half, pixels, grid)
    names = ("attention calls", "operators", "waits")
    print(heads(f"| {' | '.join(names)} | fewer operators | same bits"))
    same = [torch.equal(made, rows[0][2]) for _, _, made in rows]
    for (name, found, _), equal in zip(rows, same, strict=True):
        ratio = rows[0][1]["operators"] / found["operators"]
        print(cells([name, *(f"{found[n]:,}" for n in names), f"x {ratio:.1f}", equal]))
    return 0 if all(same) else 1


if __name__ == "__main__":
    raise SystemExit(main())
