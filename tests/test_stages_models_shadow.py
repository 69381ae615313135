"""What computing takes is found out without weights, by families of every route."""

from pathlib import Path

import pytest

from stages.models.halves.load import config_and_class, skeleton_of
from stages.models.halves.routes import choose_route
from stages.models.processors.prepare import load_processor
from stages.models.shadow import works_of
from tests.checkpoints import whole_checkpoint
from tests.families import checkpoint


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "blip_2", "florence2", "mllama"])
def test_works_are_found_by_every_route(family: str) -> None:
    folder = Path(
        checkpoint(family) if family in ("llava", "qwen2_5_vl") else whole_checkpoint(family)
    )
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(config, cls)
    route = choose_route(skeleton).route
    works, why = works_of(skeleton, load_processor(folder, False), route)
    assert why == ""
    assert bool(works["vision"]) == (route != "joint")
    one, two = (next(w for w in works["language"] if w.rows == rows) for rows in (1, 2))
    assert two.peak_bytes > one.peak_bytes > 0
    assert all(work.flops > 0 and work.kept_bytes > 0 for work in works["language"])
