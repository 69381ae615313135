"""Stock families are run as their weights were made: by the release of transformers that wrote
config.json, unless a command, an adapter or an export says otherwise."""

import json
from pathlib import Path

import pytest
import torch

from stages.models import describe, load_half
from stages.models.processors.calling import text_ids
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prepare, rebuild
from stages.models.published import (
    FIELD,
    PARITY,
    is_before,
    is_published_way,
    with_way,
)
from tests.support.clips import clips, profile_of
from tests.support.families import checkpoint, copy_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("version", "positions", "outer_pair"),
    [
        *((before, True, True) for before in ("4.41.2", "4.57.0.dev0", "5.2.9")),
        *((between, False, True) for between in ("5.3.0.dev0", "5.3.0", "5.9.1")),
        *((after, False, False) for after in ("5.10.0.dev0", "5.10.1", "6.0")),
        *((unread, False, False) for unread in ("newest", "", None, 4.41)),
    ],
)
def test_the_release_that_wrote_a_config_decides(
    version: object, positions: bool, outer_pair: bool, tmp_path: Path
) -> None:
    assert is_before(version, "5.3") is positions
    assert is_before(version, "5.10") is outer_pair
    for kind, expected in (("qwen2_5_vl", positions), ("qwen3_vl", outer_pair), ("llava", False)):
        config = {"model_type": kind, "transformers_version": version}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert is_published_way(tmp_path) is expected


def test_what_is_asked_goes_before_what_a_checkpoint_says_and_that_before_its_release(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.json"
    old = {"model_type": "qwen2_vl", "transformers_version": "4.45.0"}
    path.write_text(json.dumps(old))
    assert is_published_way(tmp_path)
    assert not is_published_way(tmp_path, as_published=False)
    path.write_bytes(with_way(path.read_bytes(), as_published=False))
    assert json.loads(path.read_bytes()) == {**old, FIELD: False}
    assert not is_published_way(tmp_path)
    assert is_published_way(tmp_path, as_published=True)
    path.write_text(json.dumps({**old, "transformers_version": "5.23.0", FIELD: True}))
    assert is_published_way(tmp_path)
    path.write_text(json.dumps(old))
    (tmp_path / PARITY).write_text("{}")  # an export that does not say is as stock
    assert not is_published_way(tmp_path)


def test_a_config_that_nobody_would_run_otherwise_keeps_its_bytes() -> None:
    content = b'{"model_type":  "llava"}'
    assert with_way(content, as_published=False) is content
    content = b'{"model_type":  "qwen2_vl", "transformers_version": "5.23.0"}'
    assert with_way(content, as_published=False) is content
    made = with_way(content, as_published=True)
    assert json.loads(made)[FIELD] is True
    assert json.loads(with_way(made, as_published=False))[FIELD] is False


def test_an_older_qwen_places_the_question_behind_a_long_video(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "model", transformers_version="4.49.0")
    ids = torch.zeros(1, 15 + 15 + 10, dtype=torch.long)
    types = torch.tensor([[0] * 15 + [2] * 15 + [0] * 10])
    grid = {"video_grid_thw": torch.tensor([[15, 2, 2]])}
    found = {}
    for way, as_published in (("rule", None), ("stock", False)):
        half = load_half(folder, "language", as_published=as_published)
        count = half.model.get_rope_index
        found[way], _ = count(ids, types, **grid, second_per_grid_ts=torch.tensor([2.0]))
    assert found["stock"][0, 0, 30] < found["stock"][0, 0, 15:30].max()
    assert found["rule"][0, 0, 30] == found["stock"][0, 0, 15:30].max() + 1
    assert torch.equal(found["rule"][..., :30], found["stock"][..., :30])


def test_an_older_qwen3_writes_no_pair_around_a_video_and_its_rows_serve_both(
    tmp_path: Path,
) -> None:
    folder = copy_of("qwen3_vl", tmp_path / "model", transformers_version="4.57.0.dev0")
    stock, published = (load_processor(folder, as_published=way) for way in (False, None))
    (clip,) = clips("video", 1, frames=6)
    start, end = (
        stock.tokenizer.convert_tokens_to_ids(f"<|vision_{e}|>") for e in ("start", "end")
    )
    row = prepare(stock, clip)
    written = [text_ids(rebuild(each, [row], ["What?"])) for each in (stock, published)]
    before, after = (ids[0].tolist() for ids in written)
    assert before.count(start) == before.count(end) == after.count(start) + 1
    first, last = before.index(start), len(before) - 1 - before[::-1].index(end)
    assert after == [*before[:first], *before[first + 1 : last], *before[last + 1 :]]
    assert prepare(published, clip).replacements == row.replacements
    picture = clips("image", 1)[0]
    alike = [text_ids(rebuild(p, [prepare(p, picture)], ["What?"])) for p in (stock, published)]
    assert torch.equal(*alike)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_profile_says_whether_a_model_is_run_as_published(family: str, tmp_path: Path) -> None:
    folder = copy_of(family, tmp_path / "model", transformers_version="4.49.0")
    profile = describe(folder)
    assert profile.as_published and profile.language.as_published
    assert not describe(folder, as_published=False).as_published
    stock = profile_of(checkpoint(family))
    assert not stock.as_published and stock.language.as_published
