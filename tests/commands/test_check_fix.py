"""`penstock check --fix`: captions that are too long for a trainer are made shorter."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.errors import Interrupted, UsageError
from artifacts.texts.edits import EDITS, read_edits
from artifacts.texts.trainer_limits import limits_of
from artifacts.texts.trainer_models import MODELS
from flows.commands.check.fix import cut_short, fits_in, shorten
from flows.commands.shared.arguments import recorded_run
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.core.options.text import LENGTHS
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from flows.outputs.folder.trust import command_in
from flows.outputs.record.recorded_command import command_of, words_of
from flows.outputs.seen.sets import samples_of
from stages.decode.generation import DecodeItem
from tests.commands.test_check import png
from tests.support.learning import decide_in
from tests.support.saying import Saying, lines, run
from tests.support.stand_ins import config_in

SD15, TRIGGER = MODELS["kohya"]["sd1.5"], "ohwx"
PICTURES, LONG = 40, 9
"""Pictures, and how many of their captions are too long: a third each fits in medium length, in
short length, and in none."""


class Talking(Saying):
    """Says too much of the first pictures."""

    numbers: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.numbers = {}

    def says(self, item: DecodeItem, number: int) -> str:
        at = self.numbers.setdefault(item.features, len(self.numbers))
        length = next((name for name, text in LENGTHS.items() if item.prompt.endswith(text)), "")
        is_long = at < LONG and (not length or (length == "medium" and at >= 3) or at >= 6)
        more = " The ball lies beside a large green box on a wooden table." * 12 * is_long
        return f"A red ball number {at} {length}.{more}"


@pytest.fixture
def tokenizers(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizers"
    for limit in limits_of("kohya", "sd1.5"):
        (folder / limit.tokenizer.name).mkdir(parents=True)
        shutil.copy(penstock_demo.CHECKPOINT / "tokenizer.json", folder / limit.tokenizer.name)
    return folder


@pytest.fixture
def stages() -> Talking:
    return Talking()


@pytest.fixture
def config(tmp_path: Path, stages: Talking) -> CaptionConfig:
    """A run over 40 pictures, whose command is recorded."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for at in range(PICTURES):
        png((512, 512), at).save(folder / f"p{at:02d}.png")
    made = config_in(tmp_path, folder, trainer=("kohya:sd1.5",), trigger=TRIGGER)
    run_as_command(made, stages)
    return made


def run_as_command(config: CaptionConfig, stages: Talking) -> None:
    """Run it as the command line does, which records its words."""

    def record(_: Any, writer: Any) -> None:
        writer.record.command = command_of(words_of(config))

    caption(config, Display(quiet=True), stages.launcher, record)


def fixed(config: CaptionConfig, stages: Talking, tokenizers: Path) -> str:
    out = Path(config.out)
    recorded = recorded_run(command_in(out))
    fits = fits_in(SD15, tokenizers)
    samples = samples_of(out, SD15)
    return shorten(recorded, SD15, samples, fits, Display(quiet=True), stages.launcher).line


def captions(config: CaptionConfig) -> dict[str, str]:
    metadata = json.loads((Path(config.out) / "kohya" / "metadata.json").read_text())
    return {Path(path).stem: row["caption"] for path, row in metadata.items()}


def test_nine_of_forty_are_made_shorter_and_nothing_else(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    before, fits = captions(config), fits_in(SD15, tokenizers)
    assert sum(not fits(text) for text in before.values()) == LONG
    stages.calls.clear()
    said = fixed(config, stages, tokenizers)
    assert said == (
        "too long: 3 made again in medium length, 3 made again in short length, 3 cut at the end "
        "of a sentence"
    )
    after = captions(config)
    assert all(map(fits, after.values()))
    assert sum(before[stem] != after[stem] for stem in before) == LONG
    assert all(text.startswith(f"{TRIGGER}, A red ball") for text in after.values())
    assert {call.name for call in stages.calls} <= {"decode"}, "nothing is encoded or opened"
    items = [len(batch) for c in stages.calls for batch in c.job.batches]  # type: ignore[attr-defined]
    assert sum(items) == 9 + 6, "nine in medium length, and six of them in short length"
    rows = {Path(row["media_path"]).stem: row for row in lines(config)}
    assert sum("original" in row for row in rows.values()) == LONG
    journal = (Path(config.out) / EDITS).read_text().splitlines()
    does = [json.loads(line)["does"] for line in journal]
    assert does == [f"shortened for kohya:sd1.5 ({how})" for how in ("medium", "short", "cut")]
    assert fixed(config, stages, tokenizers) == "too long: none"


def test_a_person_s_texts_are_kept(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    mine = "My own words of a long caption. " * 12
    decide_in(
        Path(config.out),
        lambda at, text: (mine, "accepted") if at == 0 else (None, "accepted") if at == 1 else None,
    )
    run_as_command(config, stages)
    said = fixed(config, stages, tokenizers)
    assert "2 kept, which a person wrote or accepted" in said and "1 made again in medium" in said
    assert captions(config)["p00"] == f"{TRIGGER}, {mine.strip()}"


def test_another_folder_with_the_same_store_keeps_its_captions(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    """It may be for a trainer that reads all."""
    before = captions(config)
    fixed(config, stages, tokenizers)
    other = replace(config, out=f"{config.out}-flux", trainer=("kohya:flux-dev",))
    run(other, stages)
    assert captions(other) == before


def test_the_review_takes_it_back_in_one_step_for_each_way(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    from contextlib import closing

    from artifacts.texts.edits import UNDO
    from flows.commands.review.captions import ReviewedCaptions

    before = captions(config)
    fixed(config, stages, tokenizers)
    with closing(ReviewedCaptions(Path(config.out), config.store)) as reviewed:
        assert all(edit.unread for edit in reviewed.edits().values())
        for at in range(3):
            reviewed.apply({"id": f"u{at}", "does": UNDO, "changes": []})
    run(config, stages)
    assert captions(config) == before


def test_what_a_kill_left_unwritten_is_written_by_the_next_one(
    config: CaptionConfig, stages: Talking, tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts are in the journal before the outputs are written."""

    def killed(*_: Any) -> None:
        raise Interrupted("killed")

    fits = fits_in(SD15, tokenizers)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr("flows.commands.check.fix.sift_first.caption", killed)
        fixed(config, stages, tokenizers)
    assert sum(not fits(text) for text in captions(config).values()) == LONG
    fixed(config, stages, tokenizers)
    assert all(map(fits, captions(config).values()))


def test_photos_that_are_gone_are_shortened_by_what_is_known_of_them(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    Path(config.sources[0], "p00.png").unlink()
    assert "4 cut at the end of a sentence" in fixed(config, stages, tokenizers)
    assert len(read_edits(Path(config.out)).now) == LONG


def test_a_prefix_that_leaves_no_room_is_refused_before_anything_is_made(
    config: CaptionConfig, stages: Talking, tokenizers: Path
) -> None:
    run_as_command(replace(config, prefix="a long prefix " * 40), stages)
    stages.calls.clear()
    with pytest.raises(UsageError, match="the trigger and the prefix alone are too long"):
        fixed(config, stages, tokenizers)
    assert not stages.calls


def test_without_the_tokenizer_nothing_is_made(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    before = captions(config)
    assert main(["check", config.out, "--fix"]) == 2
    assert "--fix counts tokens: the tokenizer of openai/clip-vit" in capsys.readouterr().err
    assert captions(config) == before


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("A ball. A box. A table.", 15, "A ball. A box."),
        ("A ball. A box.", 100, "A ball. A box."),
        ("A ball (red!) and a box", 10, None),
        ("Nr. 5 is 3.5 m long. It ends.", 20, "Nr. 5 is 3.5 m long."),
        ("赤いボール。青い箱。", 6, None),
        ("He said “no.” Then he left.", 14, "He said “no.”"),
    ],
)
def test_a_text_is_cut_at_the_end_of_a_sentence(text: str, most: int, expected: str | None) -> None:
    assert cut_short(text, lambda part: len(part) <= most) == expected
