"""`penstock embed` of a dual encoder that is computed by code of our own: its vectors, and plans at
full size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.main import main
from stages.models import load_half
from stages.models.processors.loading import load_processor
from tests.support.embedding import embed, vectors, write_images
from tests.support.evaclip import LAYOUTS, make_folder
from tests.support.plan_cases import make_folder as make_headers
from tests.support.plan_cases import plan_case

pytestmark = pytest.mark.slow
GIB = 1 << 30
PARAMETERS = 7_526_089_985
"""Of the vision half of EVA-CLIP-8B."""
LAYER = 234_917_888


def test_pictures_get_the_vectors_of_the_whole_model(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_images(folder)
    # As one that was converted from the original file: no tokenizer, and none is needed.
    # It sees 56 pixels, for which none of the pictures is decoded smaller.
    model = make_folder(tmp_path / "model", LAYOUTS["8B-448"], words=False)
    assert embed(folder, model, tmp_path) == 0
    processor: Any = load_processor(model)
    images = [Image.open(path) for path in sorted(folder.iterdir())]
    with torch.inference_mode():
        whole = load_half(model, "whole", dtype=torch.float32)
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())


def test_the_published_size_is_planned_from_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_size = make_headers(plan_case("eva-clip-8b"), tmp_path / "model")
    words = ["plan", "--model", str(full_size), "--store", str(tmp_path / "s"), "--json"]

    def planned(*options: str) -> tuple[dict[str, Any], dict[str, Any]]:
        code = main([*words, "--what-fits", "--for", "embed", "--precision", "bf16", *options])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["fits"] and code == 0
        (stage,) = (s for s in found["memory"]["stages"] if s["stage"] == "embed")
        return found, stage

    found, held = planned("--memory", "15GiB")
    assert found["halves"]["vision"]["parameters"] == PARAMETERS
    assert not held["by_dimensions"] and not found["notes"]
    assert held["weight_bytes"] == 2 * PARAMETERS and held["peak_bytes"] < 15 * GIB
    _, streamed = planned("--memory", "3GiB")
    assert streamed["rung"]["block"] and streamed["rung"]["precision"] == "bf16"
    # Two of 32 layers, and what is outside of them.
    assert streamed["weight_bytes"] == 2 * (PARAMETERS - 30 * LAYER)
    table = {
        row: {size for size, held in cells.items() if held}
        for row, cells in found["what_fits_gpu"].items()
    }
    assert {"4GiB", "24GiB"} <= table["bf16"] and "8GiB" in table["nf4"]
    assert "4GiB" not in table["nf4"], "what is quantized is not streamed"
