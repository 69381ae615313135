"""A turn is written as the model's own chat template writes it for who knows its form, and nothing
else is taken for one."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from stages.models import describe
from stages.models.processors.chat_template import system_form, write
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import load_processor, token
from stages.models.processors.prepare import prepare, rebuild
from tests.support.clips import clips
from tests.support.families import copy_of
from tests.support.keys_before import (
    CHECKPOINTS,
    COMMANDS,
    RECORDED,
    config_of,
    keys_of,
    namespaces,
)
from tests.support.processors import processor_folder
from tests.support.templates import AS_JSON, STYLES, Style

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = 'What\'s "it"? {x} Ünï'
SYSTEM = 'Don\'t say "image".'
QUICK = ("llava_next",)
FAMILIES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in (*QUICK, "glm4v", "pixtral", "qwen2_vl", "internvl", "idefics3")
]


@functools.cache
def asked_by(family: str, style: Style) -> Any:
    """The family's processor with a template of this style."""
    processor = load_processor(processor_folder(family))
    processor.chat_template = style.of(token(processor, "image"), token(processor, "video"))
    return processor


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_is_what_the_template_makes_of_its_proper_form(family: str, style: str) -> None:
    processor, how = asked_by(family, STYLES[style]), STYLES[style]
    layout = layout_of(processor, "images")
    assert (layout.form, layout.rewritten) == (how.question, "question" in how.rewritten)
    assert system_form(processor, layout.form) == how.system
    for system in ("", SYSTEM):
        turns = how.turns(token(processor, "image"), PROMPT, system)
        wanted = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert write(processor, layout.form, "images", 1, PROMPT, system) == wanted
        assert PROMPT in wanted and system in wanted and "'type'" not in wanted


@pytest.mark.parametrize("style", STYLES)
def test_a_stored_prompt_is_the_template_s_own(style: str) -> None:
    processor, how = asked_by("llava_next", STYLES[style]), STYLES[style]
    (clip,) = clips("image", 1)
    turns = how.turns(token(processor, "image"), PROMPT, SYSTEM)
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    begins = {"add_special_tokens": False} if text.startswith("<s>") else {}
    wanted = processor(text=[text], images=[list(clip.frames)], return_tensors="pt", **begins)
    found = rebuild(processor, [prepare(processor, clip)], [PROMPT], SYSTEM)
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()


def test_a_template_that_changes_every_question_is_refused() -> None:
    style = Style(template=AS_JSON, question="", system="")
    with pytest.raises(UsageError, match="prints a question as a list, or changes its text"):
        layout_of(asked_by("llava_next", style), "images")


def test_a_word_for_a_picture_in_the_system_s_text_is_refused() -> None:
    processor = asked_by("llava_next", STYLES["qwen"])
    row = prepare(processor, clips("image", 1)[0])
    with pytest.raises(UsageError, match="<image>"):
        rebuild(processor, [row], ["What?"], "You see <image>.")


@pytest.mark.parametrize(
    "style",
    ["glm", *(pytest.param(s, marks=pytest.mark.slow) for s in ("trimmed", "pixtral", "qwen"))],
)
def test_only_keys_of_what_was_written_otherwise_change(style: str, tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(STYLES[style].of("<image>"))
    profile = describe(folder)
    before = json.loads(RECORDED.read_text())["llava"]
    # A template that is given one picture has one frame of a video, so other frames are cut.
    same = ["frames", "features"] if profile.images_a_prompt != 1 else []
    changed = set(STYLES[style].rewritten)
    for command, options in COMMANDS.items():
        found = namespaces(profile, command)
        assert {kind: found[kind] for kind in same} == {k: before[command][k] for k in same}
        expected = "question" in changed or ("system" in changed and "system" in options)
        words = profile.turn_key_fields(system=bool(config_of(**options).system))
        assert bool(words) == expected
        if same:
            assert (found["captions"] != before[command]["captions"]) == expected, command


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "demo" else pytest.mark.slow) for f in CHECKPOINTS],
)
def test_all_other_keys_are_those_of_an_earlier_version(family: str) -> None:
    assert keys_of(family) == json.loads(RECORDED.read_text())[family]
