"""What two stages say with the processors of many families is what their whole models say when they
are called as documented."""

from pathlib import Path

import pytest
import torch

from stages.models.delivery import new_tokens
from stages.models.inspection import describe
from stages.models.prepare import Clip, load_processor
from tests.checkpoints import MODELS, whole_checkpoint
from tests.clips import PROMPTS, clips, joint_model
from tests.media import write_video
from tests.pipeline import Place
from tests.processors import KINDS, plain_call
from tests.waves import Wave

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def whole_says(family: str, batch: list[Clip], prompts: tuple[str, ...]) -> list[str]:
    folder = whole_checkpoint(family)
    processor = load_processor(folder)
    inputs = plain_call(family, processor, batch, prompts)
    with torch.inference_mode():
        tokens = joint_model(folder).generate(**inputs, do_sample=False, max_new_tokens=8)
    new = new_tokens(tokens, inputs["input_ids"])
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", MODELS)
def test_two_stages_say_what_the_whole_model_says(family: str, kind: str, tmp_path: Path) -> None:
    batch, prompts = clips(kind, 2), PROMPTS[:2]
    card = describe(whole_checkpoint(family))
    assert card.images_a_prompt == (not KINDS[family].many)
    wave = Wave(
        tmp_path / "store",
        whole_checkpoint(family),
        [batch],
        route=card.route,
        attention=card.language.attention,
    )
    wave.encode()
    wave.decode(prompts)
    found = [caption["caption"] for caption in wave.captions()]
    assert found == whole_says(family, batch, prompts)
    assert len(set(found)) == 2


@pytest.mark.slow
def test_a_model_of_one_picture_a_prompt_captions_a_video_by_its_middle_frames(
    tmp_path: Path,
) -> None:
    place = Place(
        clips=tmp_path / "clips",
        out=tmp_path / "out",
        store=tmp_path / "store",
        model=str(whole_checkpoint("git")),
    )
    place.clips.mkdir()
    write_video(place.clips / "one.mp4", ticks=range(120))
    done = place.run("--chunk", "2", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "sees the middle frame only" in done.stdout + done.stderr
    rows = place.captions()
    assert rows
    for row in rows:
        (time,) = row["frames"]
        assert abs(time - (row["start"] + row["end"]) / 2) <= 0.05
        assert any("middle frame" in warning for warning in row["warnings"])
