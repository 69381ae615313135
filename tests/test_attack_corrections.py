"""Data sets of trainers attacked by what people wrote and corrected: none of it is lost, and none
is put where it does not belong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.store import open_store
from flows.job.config import CaptionConfig
from flows.job.formats import TRAINER_FORMATS
from flows.reviewing.captions import ReviewedCaptions
from flows.upkeep.cache_gc import collect
from tests.support.saying import run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    folder = tmp_path / "clips"
    folder.mkdir()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "a.png")
    return config_in(tmp_path, folder)


def learned(config: CaptionConfig, form: str, **more: object) -> str:
    run(replace(config, format=(form,), **more))  # type: ignore[arg-type]
    (caption,) = READERS[form](Path(str(more.get("out", config.out)))).values()
    return caption


def correct(config: CaptionConfig, caption: str | None, does: str = "x") -> None:
    captions = ReviewedCaptions(Path(config.out))
    changes = [{"of": key, "caption": caption, "review": ""} for key in captions.rows]
    more = {} if does == "undo" else {"changes": changes}
    captions.do({"id": f"{does} {caption}", "does": does, **more})
    captions.close()


@pytest.mark.parametrize("form", TRAINER_FORMATS)
def test_a_correction_outlives_gc_and_its_undo_reaches_other_folders(
    config: CaptionConfig, tmp_path: Path, form: str
) -> None:
    model, other = learned(config, form), str(tmp_path / "other")
    correct(config, "mine")
    collect(open_store(config.store), 0, dry_run=False)
    assert learned(config, form, out=other, trigger="ohwx") == "ohwx, mine"
    correct(config, None, "undo")
    assert learned(config, form, out=other) == model


@pytest.mark.parametrize("form", TRAINER_FORMATS)
@pytest.mark.parametrize("rule", ["keep", "replace", "append", "prepend"])
def test_a_text_by_hand_follows_the_rule(config: CaptionConfig, form: str, rule: str) -> None:
    model = learned(config, form)
    text = Path(config.sources[0]) / "a.txt"
    text.write_text("by hand.")
    wanted = {"keep": "by hand.", "replace": model, "append": f"by hand. {model}"}
    assert learned(config, form, existing=rule) == wanted.get(rule, f"{model}, by hand.")
    assert text.read_text() == "by hand."


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf\r\n", b"\xff\xfe", b"x" * 70_000])
def test_what_is_no_text_is_not_learned(config: CaptionConfig, content: bytes) -> None:
    model = learned(config, "kohya")
    (Path(config.sources[0]) / "a.txt").write_bytes(content)
    assert learned(config, "kohya") == model
