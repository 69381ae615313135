"""What people wrote, corrected and decided is in every file of a run, and in what models learn."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.store import open_store
from artifacts.texts.edits import key_of
from flows.commands.report.facts import facts
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.review.folder_captions import EditRefused
from flows.commands.status.status_command import status_lines
from flows.commands.tune.training_data import examples_in
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import TRAINER_FORMATS
from flows.outputs.media_rows import OTHER, captioned_media
from flows.outputs.record.recorded_command import command_of, repeated
from flows.outputs.run_result import RunResult
from stages.decode.generation import DecodeItem
from tests.support.saying import LONG, Saying, lines, make, run, samples
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


def review(
    config: CaptionConfig, *changes: tuple[str, float, str | None, str], does: str = "correct"
) -> dict[str, Any]:
    """Review captions by file and start."""
    with closing(ReviewedCaptions(Path(config.out))) as captions:
        keys = {(r["media_path"], r["start"]): key for key, r in captions.folder.rows.items()}
        messages = [
            {"of": keys[name, start], "caption": text, "review": line}
            for name, start, text, line in changes
        ]
        return captions.apply({"id": f"{does} {changes}", "does": does, "changes": messages})


def shown_of(config: CaptionConfig) -> ReviewedCaptions:
    """What a review of the captions shows; it is closed again."""
    with closing(ReviewedCaptions(Path(config.out))) as captions:
        return captions


def of_long(config: CaptionConfig) -> list[dict[str, Any]]:
    return [row for row in lines(config) if row["media_path"] == LONG]


def texts(config: CaptionConfig, form: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(config.out).glob(f"*.{form}")}


@pytest.mark.slow
def test_every_output_takes_them_in_and_an_undo_gives_the_same_bytes(config: CaptionConfig) -> None:
    run(config)
    out = Path(config.out)
    kept = ("captions.jsonl", "captions.csv", "long.txt", "long.vtt", "photo.txt")
    before = {name: (out / name).read_bytes() for name in kept}
    first, second, third = of_long(config)
    photo = lines(config)[-1]
    review(
        config,
        (LONG, first["start"], "A person's words.", "accepted"),
        (LONG, second["start"], None, "rejected"),
        ("photo.PNG", 0.0, None, "rejected"),
    )
    result = run(config)
    assert "1 corrected, 1 accepted, 2 rejected" in result.line()
    assert " in jsonl" not in result.line()
    counts = "captions written, 1 corrected, 1 accepted, 2 rejected"
    assert any(counts in line for line in status_lines(out))
    about = dict(facts(out, out)["about"])
    assert (about["corrected"], about["accepted"], about["rejected"]) == ("1", "1", "2")
    assert "not in data sets: 2 captions (rejected)" in result.warnings
    text = "2 captions rejected: these media get no text, but a trainer"
    assert not any(text in note for note in result.warnings)
    assert any(text in note for note in run(config, format=("txt",), beside=True).warnings)
    for path in Path(config.sources[0]).glob("*.txt"):
        path.unlink()
    run(config)
    now = of_long(config)
    corrected = {"caption": "A person's words.", "original": first["caption"]}
    assert now[0] == {**first, **corrected, "review": "accepted"}
    assert now[1] == {**second, "review": "rejected"} and now[2] == third
    assert texts(config, "txt")["long.txt"].splitlines()[0] == "A person's words."
    assert len(texts(config, "txt")["long.txt"].splitlines()) == 2
    assert "photo.txt" not in texts(config, "txt"), "all that it said was rejected"
    assert "photo.vtt" not in texts(config, "vtt")
    assert "A person's words." in texts(config, "vtt")["long.vtt"]
    assert "A person's words." in (out / "captions.csv").read_text()
    found = {row["json"]["caption"] for row in samples(config)}
    assert "A person's words." in found and not {first["caption"], photo["caption"]} & found
    review(config, (LONG, first["start"], None, ""), (LONG, second["start"], None, ""))
    review(config, ("photo.PNG", 0.0, None, ""))
    run(config)
    assert {name: (out / name).read_bytes() for name in kept} == before


@pytest.mark.slow
def test_they_hold_for_words_whatever_stands_before_them(config: CaptionConfig) -> None:
    run(config, prefix="ohwx, ", suffix=" #a")
    first = of_long(config)[0]
    text = first["caption"].removeprefix("ohwx, ").removesuffix(" #a")
    assert key_of(first["features"], "", first["prompt"], text) in shown_of(config).folder.rows
    review(config, (LONG, 0.0, "better", "accepted"), ("photo.PNG", 0.0, None, "rejected"))
    run(config, prefix="sks, ")
    assert of_long(config)[0]["caption"] == "sks, better"
    assert of_long(config)[0]["original"] == f"sks, {text}"
    assert not any("edits.jsonl" in note for note in run(config).warnings)
    notes = run(config, prompt="Another?").warnings
    assert "original" not in of_long(config)[0], "another question has another answer"
    expected = (
        "1 rejection and 1 correction in edits.jsonl belong to another prompt, model, sampling or "
        "file. They do not apply here: 1 rejected medium is in the data sets again. The same run "
        "as before brings them back"
    )
    assert expected in notes
    assert shown_of(config).unused() == expected, "the page says the same"
    run(config)
    assert of_long(config)[0]["caption"] == "better"


@pytest.mark.slow
def test_media_rejected_in_another_folder_are_named(config: CaptionConfig, tmp_path: Path) -> None:
    run(config, format=("kohya",))
    first = of_long(config)[0]
    review(config, (LONG, first["start"], None, "rejected"), ("photo.PNG", 0.0, None, "rejected"))
    run(config, format=("kohya",))
    expected = (
        "2 media are in the data sets that you rejected in another folder, under another prompt, "
        "model or sampling. Reject them in the review of this folder too"
    )
    elsewhere = replace(config, prompt="Another?", out=str(tmp_path / "other"))
    assert expected in run(elsewhere).warnings
    assert shown_of(elsewhere).unused() == expected, "the page says the same"
    review(elsewhere, ("photo.PNG", 0.0, None, "rejected"))
    assert expected.replace("2 media are", "1 medium is") in run(elsewhere).warnings
    review(elsewhere, (LONG, first["start"], None, "rejected"))
    review(config, (LONG, first["start"], None, ""), ("photo.PNG", 0.0, None, ""))
    assert not any("another folder" in note for note in run(elsewhere).warnings)


class Steady(Saying):
    """Says the same of every chunk, in whatever batch it is."""

    def says(self, item: DecodeItem, number: int) -> str:
        return f"to {item.prompt}"


@pytest.mark.slow
def test_a_prompt_keeps_its_edits_when_others_join_it(config: CaptionConfig) -> None:
    run(config, Steady(), prompt="What?")
    start = of_long(config)[1]["start"]
    review(config, (LONG, 0.0, "mine", "accepted"), (LONG, start, None, "rejected"))
    notes = run(config, Steady(), prompts={"a": "What?", "b": "Which?"}).warnings
    assert not any("edits.jsonl" in note for note in notes)
    rows = {(row["name"], row["start"]): row for row in of_long(config)}
    assert rows["a", 0.0]["caption"] == "mine" and rows["a", start]["review"] == "rejected"
    assert not any("review" in row for (name, _), row in rows.items() if name == "b")
    counts = shown_of(config).counts()
    assert counts == {"captions": 10, "corrected": 1, "accepted": 1, "rejected": 1}


@pytest.mark.slow
def test_a_model_learns_what_was_accepted_not_the_rejected(config: CaptionConfig) -> None:
    run(config)
    data, message = str(Path(config.out) / "captions.jsonl"), list[str]()
    shown_of(config)  # opened, and left as it was
    everything = examples_in(data)
    review(config, (LONG, 0.0, None, "rejected"))
    with pytest.raises(UsageError, match=r"captions\.jsonl lacks corrections"):
        examples_in(data)
    run(config)
    assert len(examples_in(data, message.append)) == len(everything) - 1
    review(config, (LONG, 2.0, "mine", "accepted"))
    run(config)
    assert [each.caption for each in examples_in(data, message.append)] == ["mine"]
    assert message[-1] == f"training on 1 of {len(everything)} captions: those accepted"


def test_edits_made_while_a_model_learns_are_of_the_words_that_were_shown(
    config: CaptionConfig,
) -> None:
    run(config)
    path = Path(config.out) / "captions.jsonl"
    with closing(ReviewedCaptions(Path(config.out))) as captions:
        first, second, third = list(captions.folder.rows)[:3]
        text = captions.folder.rows[first]["said"]
        captions.release()
        with pytest.raises(EnvironmentFault, match="a model is learning"):
            captions.apply(change(first, None, "accepted"))
        shown_of(config)  # the journal is free
        rows = [{**row, "caption": f"New {row['caption']}"} for row in lines(config)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        captions.take_back()
        changes: list[dict[str, Any]] = [
            {"of": first, "caption": None, "review": "accepted"},
            {"of": second, "caption": "mine\x0b", "review": "accepted"},
            {"of": third, "caption": None, "review": "rejected"},
        ]
        edits = captions.apply({"id": "2", "does": "x", "changes": changes})["edits"]
        now = list(captions.folder.rows)
    assert first not in now and set(edits) == set(now[:3])
    said = [edit["caption"] for edit in edits.values()]
    assert said == [text, "mine ", None], "control characters"


def change(of: str, caption: Any, review: str = "") -> dict[str, Any]:
    return {"id": "1", "does": "x", "changes": [{"of": of, "caption": caption, "review": review}]}


REFUSED: list[tuple[Any, str]] = [
    ({"id": "1", "does": "x", "changes": []}, "no caption given"),
    (change("?", "a"), "load"),
    (change("K", " "), "reject"),
    (change("K", 1), "expected text or null, got whole number"),
    (change("K", "a", "?"), "review"),
    ({"does": "x"}, "missing required field `id`"),
    ([], "expected object, got list"),
]


def test_what_cannot_be_done_is_not_written(config: CaptionConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run has written"):
        ReviewedCaptions(tmp_path / "none")
    run(config)
    with closing(ReviewedCaptions(Path(config.out))) as captions:
        key = next(iter(captions.folder.rows))
        for params, says in REFUSED:
            params = json.loads(json.dumps(params).replace('"K"', json.dumps(key)))
            with pytest.raises(EditRefused, match=says):
                captions.apply(params)
        assert captions.journal.path.read_bytes() == b""
        with pytest.raises(EnvironmentFault, match="another review"):
            ReviewedCaptions(Path(config.out))


def test_the_same_command_writes_files_and_does_nothing_more() -> None:
    words = ["caption", "clips", "--prefect", "--format", "txt", "--retry-failed"]
    assert repeated(words) == ["caption", "clips", "--format", "txt"]


def test_a_record_has_no_place_to_report_to() -> None:
    report = ["--notify", "https://me:pw@host/x", "--metrics-file=a.prom", "--notify=https://host"]
    words = ["caption", *report, "clips", "--", "--notify", "x"]
    plain = ["caption", "clips", "--", "--notify", "x"]
    assert repeated(words) == plain
    command = command_of(words)
    assert command is not None and [*command.words] == plain


def picture(path: Path, shade: int) -> None:
    Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> CaptionConfig:
    """Write two pictures, one with a text that a person wrote."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        picture(folder / name, 50 * number + 20)
    (folder / "a.txt").write_text("by hand, a\n")
    return config_in(tmp_path, folder)


def captions_of(pictures: CaptionConfig, name: str, out: str = "") -> dict[str, str]:
    """Stem of each medium in the order of the sources → what the trainer learns of it."""
    found = READERS[name](Path(out or pictures.out))
    return dict(zip(("a", "b"), (found[path] for path in sorted(found)), strict=True))


def write(pictures: CaptionConfig, *forms: str, **more: Any) -> RunResult:
    return run(pictures, format=forms or TRAINER_FORMATS, **more)


def write_odd(folder: Path, *turned: str) -> None:
    """Pictures of these names that are turned, and one that is transparent."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in turned:
        Image.new("RGB", (64, 48), name[0] == "c" and "red").save(folder / name, exif=exif)
    Image.new("RGBA", (64, 48), (255, 0, 0, 9)).save(folder / "d.png")


def test_every_trainer_learns_a_text_by_hand_always(
    pictures: CaptionConfig, tmp_path: Path
) -> None:
    result = write(pictures, "txt", *TRAINER_FORMATS, beside=True)
    kept = "kept 1 .txt file that users wrote or edited (a.txt); --overwrite replaces them"
    assert result.warnings == [kept]
    assert "edited texts in place of the model's: 1 in txt, 1 in kohya" in result.line()
    other = str(tmp_path / "other")
    write(pictures, out=other)
    for out in (pictures.out, other):
        for name in TRAINER_FORMATS:
            found = captions_of(pictures, name, out)
            assert found["a"] == "by hand, a" and found["b"] != "by hand, a"


def test_texts_by_hand_are_counted_in_data_sets_that_hold_them(pictures: CaptionConfig) -> None:
    folder, out = Path(pictures.sources[0]), Path(pictures.out)
    by_hand = folder / "a.txt"
    text = by_hand.read_text()
    by_hand.unlink()
    write(pictures)
    by_hand.write_text(text)
    edited = ("kohya/metadata.json", "hf/images/metadata.jsonl", "musubi/dataset.toml")
    for name in edited:
        (out / name).write_text((out / name).read_text().replace("\n", " \n", 1))
    line = write(pictures).line()
    holding = [name for name in TRAINER_FORMATS if captions_of(pictures, name)["a"] == text.strip()]
    assert {*TRAINER_FORMATS} - {*holding} == {"kohya", "hf"}
    assert [name for name in TRAINER_FORMATS if f"1 in {name}" in line] == holding


def test_a_correction_is_found_from_another_folder(pictures: CaptionConfig, tmp_path: Path) -> None:
    write(pictures, "txt")
    review(pictures, ("b.png", 0.0, "corrected b", ""))
    other = str(tmp_path / "other")
    assert "1 corrected" in write(pictures, "musubi", out=other).line()
    assert captions_of(pictures, "musubi", other)["b"] == "corrected b"
    with closing(ReviewedCaptions(Path(pictures.out))) as captions:
        captions.apply({"id": "back", "does": "undo"})
    write(pictures, "musubi", out=other)
    assert captions_of(pictures, "musubi", other)["b"] != "corrected b"


def test_an_empty_text_is_nobody_s(pictures: CaptionConfig) -> None:
    folder = Path(pictures.sources[0])
    for name, content in (("a.txt", b"\xef\xbb\xbf \r\n"), ("b.txt", b"")):
        (folder / name).write_bytes(content)
    result = write(pictures, "txt", "kohya", beside=True)
    assert result.warnings == [] and "your texts" not in result.line()
    assert (folder / "a.txt").read_text().strip() and (folder / "b.txt").read_text().strip()


def test_pictures_that_differ_only_in_their_suffix_are_named(pictures: CaptionConfig) -> None:
    folder = Path(pictures.sources[0])
    picture(folder / "b.jpg", 200)
    (note,) = [n for n in write(pictures, "txt", beside=True).warnings if "suffix" in n]
    assert note.startswith("b.jpg and b.png differ only in their suffix")
    assert (folder / "b.jpg.txt").exists() and (folder / "b.png.txt").exists()
    (folder / "b.txt").write_text("both")
    (note,) = [n for n in write(pictures, "kohya").warnings if "suffix" in n]
    assert "one .txt describes b.jpg and b.png" in note


def test_pictures_that_trainers_see_otherwise_beside_their_texts_are_counted(
    pictures: CaptionConfig,
) -> None:
    write_odd(Path(pictures.sources[0]), "c.jpg")
    (note,) = [n for n in write(pictures, "txt", beside=True).warnings if "trainer" in n]
    assert note.startswith("2 pictures beside new texts may be shown to a trainer otherwise")
    assert "(transparent 1, turned 1); --format kohya" in note
    assert not any("otherwise" in n for n in write(pictures, "txt", beside=True).warnings)


@pytest.mark.parametrize("form", ["webdataset", "musubi"])
def test_files_that_are_copied_into_data_sets_are_counted(
    form: str, pictures: CaptionConfig
) -> None:
    write_odd(Path(pictures.sources[0]), "c.jpg", "e.jpg")
    (note,) = [n for n in write(pictures, form).warnings if "exact" in n]
    assert note.startswith("data sets: 2 files as they are, 3 as exact copies (")
    assert note.endswith(": turned 2, transparent 1")


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_the_text_of_a_trainer_s_name_is_that_of_the_only_medium_of_the_name(
    pictures: CaptionConfig, together: bool
) -> None:
    """sd-scripts reads `b.txt` for `b.jpg`. It held the caption of the `b.png` of before, which was
    renamed as the note above asks for."""
    folder = Path(pictures.sources[0])
    if not together:
        write(pictures, "txt", beside=True, prefix="old ")
    picture(folder / "b.jpg", 200)
    write(pictures, "txt", beside=True, prefix="old ")
    (folder / "b.png").rename(folder / "c.png")
    notes = write(pictures, "txt", beside=True, prefix="new ").warnings
    assert not any("differ only" in note for note in notes)
    assert all((folder / name).read_text().startswith("new ") for name in ("b.txt", "c.txt"))
    assert not (folder / "b.jpg.txt").exists()


@pytest.mark.in_turn
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("moves", ["media", "out", "all"])
def test_a_text_of_a_run_is_nobody_s_after_folders_were_moved_and_media_renamed(
    pictures: CaptionConfig, tmp_path: Path, beside: bool, moves: str
) -> None:
    """Data sets took the caption of the picture that had the name before the move."""
    (before := tmp_path / "before" / "clips").mkdir(parents=True)
    (Path(pictures.sources[0]) / "a.txt").unlink()
    for name, of in (("b.png", "a.png"), ("c.png", "b.png")):
        (Path(pictures.sources[0]) / of).rename(before / name)
    first = replace(pictures, sources=(str(before),), out=str(tmp_path / "before" / "out"))
    write(first, "txt", "musubi", beside=beside, prefix="old ")
    after = tmp_path / "after"
    if moves == "all":
        (tmp_path / "before").rename(after)
    else:
        after.mkdir()
        name = "clips" if moves == "media" else "out"
        (tmp_path / "before" / name).rename(after / name)
    clips, out = (next(tmp_path.glob(f"*/{name}")) for name in ("clips", "out"))
    (clips / "b.png").rename(clips / "a.png")
    (clips / "c.png").rename(clips / "b.png")
    second = replace(first, sources=(str(clips),), out=str(out))
    result = write(second, "txt", "musubi", beside=beside, prefix="new ", replace=True)
    assert "by hand" not in result.line() and "edited by users" not in result.line()
    assert all(text.startswith("new ") for text in READERS["musubi"](out).values())
    assert ((clips if beside else out) / "b.txt").read_text().startswith("new ")


def test_a_text_by_hand_keeps_the_name_that_its_medium_needed(pictures: CaptionConfig) -> None:
    folder = Path(pictures.sources[0])
    picture(folder / "b.jpg", 200)
    write(pictures, "txt", beside=True)
    (folder / "b.jpg.txt").write_text("by hand, b")
    (folder / "b.png").unlink()
    write(pictures, "txt", "kohya", beside=True)
    assert (folder / "b.jpg.txt").read_text() == "by hand, b"
    assert captions_of(pictures, "kohya")["b"] == "by hand, b"


def test_a_medium_of_the_name_of_another_s_prompt_has_the_text_of_its_name(
    pictures: CaptionConfig,
) -> None:
    folder = Path(pictures.sources[0])
    prompts = {"short": "One.", "long": "Many words."}
    write(pictures, "txt", beside=True, prompts=prompts, prefix="old ")
    picture(folder / "b.long.png", 200)
    write(pictures, "txt", beside=True, prefix="new ")
    assert (folder / "b.long.txt").read_text().startswith("new ")


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ohwx, p a red circle s", "ohwx, p a red circle s"),
        ("ohwx, a red circle", "ohwx, p a red circle s"),
        ("p a red circle s", "ohwx, p a red circle s"),
        ("a red circle", "ohwx, p a red circle s"),
        ("ohwxx, a red circle", "ohwx, p ohwxx, a red circle s"),
    ],
)
def test_what_a_run_adds_is_not_doubled_if_it_is_typed(
    pictures: CaptionConfig, typed: str, expected: str
) -> None:
    affixes = {"trigger": "ohwx", "prefix": "p ", "suffix": " s"}
    write(pictures, "txt", **affixes)
    shown = lines(pictures)[1]
    review(pictures, (shown["media_path"], 0.0, typed, ""))
    write(pictures, "txt", **affixes)
    assert lines(pictures)[1]["caption"] == expected
    assert (Path(pictures.out) / "b.txt").read_text() == f"{expected}\n"
    review(pictures, (shown["media_path"], 0.0, shown["caption"], ""))  # as the file shows it
    write(pictures, "txt", **affixes)
    assert lines(pictures)[1] == shown, "it is the model's own caption"


def test_a_trigger_stands_before_every_caption_and_before_no_json(pictures: CaptionConfig) -> None:
    write(pictures, "txt", "musubi", trigger="ohwx", prefix="p ")
    found = captions_of(pictures, "musubi")
    assert found["b"].startswith("ohwx, p Describe") and found["a"] == "by hand, a"
    review(pictures, ("b.png", 0.0, "words", ""))
    write(pictures, "musubi", trigger="sks")
    assert captions_of(pictures, "musubi")["b"] == "sks, words"


def test_tune_learns_what_trainers_do_without_the_trigger(
    pictures: CaptionConfig, tmp_path: Path
) -> None:
    write(pictures, "txt", trigger="ohwx")
    data, store = str(Path(pictures.out) / "captions.jsonl"), open_store(pictures.store)
    other = str(tmp_path / "other")
    write(pictures, "txt", out=other)
    review(replace(pictures, out=other), ("b.png", 0.0, "corrected b", ""))
    messages: list[str] = []
    learned = [each.caption for each in examples_in(data, messages.append, store)]
    assert learned == ["by hand, a", "corrected b"]
    assert messages == ["1 caption of 2 are hand-written texts (.txt)"]
    review(replace(pictures, out=other), ("b.png", 0.0, None, "rejected"))
    assert [each.caption for each in examples_in(data, store=store)] == ["by hand, a"]


@pytest.mark.slow
def test_no_page_shows_other_content_in_the_place_of_what_was_captioned(
    config: CaptionConfig,
) -> None:
    """A picture that was replaced, and one of the same size that took its name, are not shown
    beside the captions of what was there: a correction of these would be of another picture."""
    run(config)
    folder, out = Path(config.sources[0]), Path(config.out)
    photo, other = folder / "photo.PNG", folder / "other.png"
    Image.new("RGB", (64, 48), (200, 10, 10)).save(other)
    run(config)

    def shown() -> dict[str, tuple[str, str]]:
        captions = shown_of(config)
        return {
            m["name"]: (m["gone"], captions.folder.place_shown(m["number"]))
            for m in captions.folder.media
        }

    assert shown()["other.png"] == ("", str(other))
    size, kept = other.stat(), other.read_bytes()
    Image.new("RGB", (64, 48), (10, 200, 10)).save(other)
    assert other.stat().st_size == size.st_size
    assert shown()["other.png"] == ("", "")  # found when it is asked for
    assert {m["name"]: m["gone"] for m in captioned_media(out, out)[0]}["other.png"] == OTHER
    other.write_bytes(kept)  # as a copy of the folder has it: another time, the same content
    assert shown()["other.png"] == ("", str(other))
    photo.write_bytes(kept)
    assert shown()["photo.PNG"] == (OTHER, "")


@pytest.mark.slow
def test_an_edit_of_one_copy_is_told_to_count_for_the_other(config: CaptionConfig) -> None:
    shutil.copy(Path(config.sources[0], "photo.PNG"), Path(config.sources[0], "z_copy.PNG"))
    run(config)
    assert not any("of the same content" in note for note in run(config).notes())
    review(config, ("z_copy.PNG", 0.0, None, "rejected"))
    (note,) = (note for note in run(config).notes() if "of the same content" in note)
    assert "that of photo.PNG also for z_copy.PNG. To leave out" in note


@pytest.mark.slow
def test_a_text_by_hand_that_goes_before_a_correction_is_named(config: CaptionConfig) -> None:
    run(config)
    (text,) = Path(config.out).glob("photo.txt")
    text.write_text("by hand")
    assert not any("move a text away to use" in note for note in run(config).warnings)
    review(config, ("photo.PNG", 0.0, "Better words.", "accepted"))
    (note,) = (note for note in run(config).warnings if "move a text away to use" in note)
    assert str(text) in note


def test_a_text_by_hand_is_shown_beside_the_caption(pictures: CaptionConfig) -> None:
    run(pictures)
    name = lines(pictures)[0]["media_path"]
    Path(pictures.sources[0], name).with_suffix(".txt").write_text("By hand.\n")
    media = shown_of(pictures).folder.media
    texts = {m["name"]: m["text"] for m in media if "text" in m}
    assert texts == {name: (Path(name).with_suffix(".txt").name, "By hand.")}
