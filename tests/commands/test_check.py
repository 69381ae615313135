"""`penstock check`: what a trainer would not see of a data set."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

import penstock
import penstock_demo
from artifacts.texts.trainer_limits import limits_of, text_limits
from artifacts.texts.trainer_models import MODELS, form_of
from flows.commands.report.facts import facts
from flows.interfaces.cli.main import main
from flows.interfaces.studio.captions_routes import sets_in
from flows.outputs.seen.check import is_copied
from flows.outputs.seen.settings import KohyaSettings, MusubiSettings
from flows.outputs.seen.tokens import (
    is_mended,
    load_tokenizer,
    lost,
    mended,
    quoted,
    tokenizer_folder,
)
from scripts.pages.limits import PAGE, page
from tests.support.media import write_video
from tests.support.saying import Saying, run
from tests.support.stand_ins import config_in
from tests.support.trainers import kohya_bucket

TRIGGER, SIDE = "ohwx", 512
NAMES = ("kohya:sd1.5", "musubi:z-image", "diffusion-pipe:sd3", "ltx:ltx2", "onetrainer:sd1.5")
MORE_SIDES = {"musubi:z-image": 1024, "diffusion-pipe:sd3": 1024}
PICTURES = 8
Found = dict[str, set[str]]
"""Stem of a medium → rules that it breaks."""


@dataclass(frozen=True)
class DataSet:
    """A data set that a run wrote, whose captions are then set."""

    out: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.out / form_of(self.name.partition(":")[0])

    def edit(self, change: Callable[[str, str], str]) -> None:
        """Set the caption of each medium to what `change` makes of its name and caption."""
        trainer = self.name.partition(":")[0]
        if trainer == "kohya":
            path = self.folder / "metadata.json"
            rows = json.loads(path.read_text())
            rows = {p: {"caption": change(_stem(p), row["caption"])} for p, row in rows.items()}
            path.write_text(json.dumps(rows))
        elif trainer == "diffusion-pipe":
            for path in self.folder.glob("*/captions.json"):
                rows = json.loads(path.read_text())
                path.write_text(json.dumps({n: [change(_stem(n), *t)] for n, t in rows.items()}))
        elif trainer == "onetrainer":
            for path in self.out.glob("p*.txt"):
                path.write_text(change(path.stem, path.read_text().rstrip("\n")))
        else:
            for path in self.folder.glob("[!.]*.jsonl"):
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                for row in rows:
                    medium = next(value for key, value in row.items() if key.endswith("_path"))
                    row["caption"] = change(_stem(medium), row["caption"])
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def replace_medium(self, stem: str, content: bytes) -> None:
        """Write another content into what the data set shows of a medium."""
        paths = [*(self.out.parent / "photos").glob(f"{stem}.*"), *self.folder.rglob(f"{stem}*")]
        for path in paths:
            if path.suffix == ".png" and not path.is_symlink():
                path.unlink()
                path.write_bytes(content)

    def check(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
        """The exit code of the command, and what it prints as JSON."""
        capsys.readouterr()
        code = main(["check", str(self.out), "--trainer", self.name, "--json", *words])
        (values,) = json.loads(capsys.readouterr().out)
        return code, values


def _stem(path: str) -> str:
    """The name of a source. The name of a link in a data set begins with it."""
    return re.sub(r"-[0-9a-f]{12}-\d{5,}(-\d+)?$", "", Path(path).stem)


def found_in(values: dict[str, Any]) -> Found:
    found: Found = {}
    for fault in values["faults"]:
        found.setdefault(_stem(fault["path"]), set()).add(fault["rule"])
    return found


def png(size: tuple[int, int], seed: int, *, plain: bool = False) -> Image.Image:
    """A picture of this (width, height) that is no other's; `plain`: of one colour."""
    across = np.linspace(0, 200, size[0], dtype=np.uint8)
    pixels = np.repeat(np.tile(across, (size[1], 1))[..., None], 3, axis=2)
    if plain:
        pixels[:] = 7
    pixels[:8, :8] = (seed * 37) % 251 if not plain else 7
    return Image.fromarray(pixels)


def clean(stem: str, _: str = "") -> str:
    return f"{TRIGGER}, a red ball on table {stem}"


@pytest.fixture(params=NAMES)
def data_set(request: pytest.FixtureRequest, tmp_path: Path) -> DataSet:
    return made(tmp_path, request.param)


def made(root: Path, name: str) -> DataSet:
    """A clean data set of pictures."""
    data, notes = made_with_notes(root, name)
    assert not any("not checked" in note for note in notes)
    return data


def made_with_notes(root: Path, name: str) -> tuple[DataSet, list[str]]:
    folder, side = root / "photos", MORE_SIDES.get(name, SIDE)
    folder.mkdir()
    size = (768, 512) if name.startswith("ltx") else (side, side)
    for at in range(PICTURES):
        png(size, at).save(folder / f"p{at}.png")
    config = config_in(root, folder)
    notes = run(replace(config, trainer=(name,), trigger=TRIGGER), Saying()).warnings
    data = DataSet(root / "out", name)
    data.edit(clean)
    return data, notes


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of the demo model in the place of every one that is published."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for limit in text_limits():
        place = folder / limit.tokenizer.name
        if not place.exists():
            place.mkdir()
            shutil.copy(penstock_demo.CHECKPOINT / "tokenizer.json", place)
    return folder


def test_a_clean_data_set_has_nothing_to_be_said_of(
    data_set: DataSet, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, values = data_set.check(capsys, "--tokenizers", str(tokenizers), "--forbid", "watermark")
    assert (code, values["faults"], values["samples"]) == (0, [], PICTURES)


def test_each_planted_fault_is_found_and_no_other(
    data_set: DataSet, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six captions with one fault each, a black picture, and a file that is none."""
    planted = {
        "p0": f"{TRIGGER}, {'a red ball and a blue box ' * 700}end",
        "p1": " ",
        "p2": clean("p3"),
        "p4": "a green box",
        "p5": f"{TRIGGER}, a box with a watermark and another <|im_end|>",
    }
    data_set.edit(lambda stem, text: planted.get(stem, text))
    buffer = data_set.out.parent / "black.png"
    with Image.open(data_set.out.parent / "photos" / "p6.png") as image:
        png(image.size, 6, plain=True).save(buffer)
    data_set.replace_medium("p6", buffer.read_bytes())
    data_set.replace_medium("p7", b"no picture")
    code, values = data_set.check(capsys, "--tokenizers", str(tokenizers), "--forbid", "watermark")
    assert code == 1
    assert found_in(values) == {
        "p0": {"tokens"},
        "p1": {"empty"},
        "p2": {"duplicate"},
        "p3": {"duplicate"},
        "p4": {"trigger"},
        "p5": {"forbidden", "mark"},
        "p6": {"one colour"},
        "p7": {"unreadable"},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a ball", "is missing"),
        (f"{TRIGGER}, a ball {TRIGGER}", "stands 2 times"),
        (f"a ball {TRIGGER}", "is not at the beginning"),
        (f"{TRIGGER}X, a ball", "is missing"),
    ],
)
def test_a_trigger_that_is_elsewhere_is_said(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    data.edit(lambda stem, old: text if stem == "p0" else old)
    (fault,) = data.check(capsys)[1]["faults"]
    assert fault["rule"] == "trigger" and says in fault["text"]


def test_what_a_user_wrote_into_the_settings_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    toml = data.folder / "dataset.toml"
    toml.write_text(
        toml.read_text()
        .replace("keep_tokens = 1", "keep_tokens = 0\n  shuffle_caption = true")
        .replace("resolution = 512", "resolution = 768")
    )
    code, values = data.check(capsys)
    assert code == 1 and values["rules"] == {"trigger": PICTURES, "enlarged": PICTURES}
    assert "set keep_tokens = 1" in values["faults"][0]["text"]
    toml.write_text("resolution = [")
    assert main(["check", str(data.out)]) == 5
    assert "cannot be read as TOML" in capsys.readouterr().err


def test_a_text_of_several_lines_is_said_where_lines_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, says in (("kohya:sd1.5", "first line"), ("onetrainer:sd1.5", "at random")):
        root = tmp_path / name.partition(":")[0]
        root.mkdir()
        data = made(root, name)
        data.edit(lambda stem, old: f"{old}\nA table." if stem == "p0" else old)
        (fault,) = data.check(capsys)[1]["faults"]
        assert fault["rule"] == "lines" and says in fault["text"]


def test_a_picture_that_is_cut_has_its_crop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, wide = made(tmp_path, "ltx:ltx2"), tmp_path / "wide.png"
    png((2400, 600), 1).save(wide)
    data.replace_medium("p0", wide.read_bytes())
    (fault,) = data.check(capsys)[1]["faults"]
    left, top, right, bottom = fault["crop"]
    assert (fault["rule"], top, bottom, left) == ("cropped", 0, 600, 2400 - right)
    assert (right - left) / 600 == pytest.approx(768 / 512, abs=0.01)


@pytest.mark.parametrize(
    ("size", "rules"),
    [((512, 512), {"small"}), ((900, 900), {"enlarged"}), ((1024, 1024), None), ((7000, 700), "")],
)
def test_small_pictures_are_said(
    tmp_path: Path, size: tuple[int, int], rules: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data, other = made(tmp_path, "diffusion-pipe:sd3"), tmp_path / "other.png"
    png(size, 1).save(other)
    data.replace_medium("p0", other.read_bytes())
    expected = {"cropped"} if rules == "" else rules
    assert found_in(data.check(capsys)[1]).get("p0") == expected


RATE, WAN = 30, MODELS["musubi"]["wan"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Clips of 0.1 s, 4 s and 12 s. At 16 frames a second, Wan takes the one of 4 s whole."""
    root = tmp_path_factory.mktemp("clips")
    (root / "photos").mkdir()
    for name, frames in (("short", 3), ("whole", 4 * RATE), ("long", 12 * RATE)):
        write_video(root / "photos" / f"{name}.mp4", ticks=range(frames), size=(544, 960))
    run(config_in(root, root / "photos", trainer=("musubi:wan",), chunk=30.0), Saying())
    data = DataSet(root / "out", "musubi:wan")
    data.edit(clean)
    return data


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", {"short": {"one frame"}, "long": {"unseen seconds"}}),
        (
            "source_fps = 30.0\n",
            "",
            {
                "short": {"one frame", "wrong rate"},
                "whole": {"unseen seconds", "wrong rate"},
                "long": {"unseen seconds", "wrong rate"},
            },
        ),
        (
            "source_fps = 30.0",
            "source_fps = 60.0",
            {
                "short": {"one frame", "wrong rate"},
                "whole": {"wrong rate"},
                "long": {"unseen seconds", "wrong rate"},
            },
        ),
        (
            'frame_extraction = "full"',
            'frame_extraction = "head"\ntarget_frames = [17]',
            {
                "short": {"never trained"},
                "whole": {"unseen seconds"},
                "long": {"unseen seconds"},
            },
        ),
        (
            'frame_extraction = "full"',
            'frame_extraction = "chunk"\ntarget_frames = [33]',
            {
                "short": {"never trained"},
                "whole": {"unseen seconds"},
                "long": {"unseen seconds"},
            },
        ),
    ],
)
def test_seconds_that_musubi_does_not_take_are_said(
    clips: DataSet,
    before: str,
    after: str,
    expected: Found,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At 16 of 30 frames a second, musubi takes 61 of the 64 frames of 4 s, and 12 s have 192."""
    toml = clips.folder / "dataset.toml"
    text = toml.read_text()
    assert before in text
    try:
        toml.write_text(text.replace(before, after) if before else text)
        assert found_in(clips.check(capsys)[1]) == expected
    finally:
        toml.write_text(text)


def test_what_cannot_be_known_without_a_tokenizer_is_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    data = made(tmp_path, "kohya:sd1.5")
    code, values = data.check(capsys)
    assert (code, values["notes"]) == (0, []), "fewer bytes than tokens are left"
    data.edit(lambda stem, old: {"p0": f"{old} {'ball ' * 40}", "p1": f"{old} {'x ' * 76}"}.get(
        stem, old
    ))  # fmt: skip
    code, values = data.check(capsys)
    assert code == 1 and found_in(values) == {"p1": {"tokens"}}
    (note,) = values["notes"]
    assert note.startswith("1 caption may be too long: the tokenizer of openai/clip-vit-large")
    assert "hf download openai/clip-vit-large-patch14 --include 'tokenizer*'" in note


SCRIPTS = (
    "a red ball on the table",
    "Größe naïve café",
    "日本語の赤いボール",
    "красный мяч на столе",
    "كرة حمراء على الطاولة",
    "लाल गेंद मेज पर",
)


def test_the_lost_words_are_those_of_the_tokens_that_do_not_fit() -> None:
    """The tokens that fit, joined to the words that are said to be lost, are the caption."""
    folder = penstock_demo.CHECKPOINT
    stock = Tokenizer.from_file(str(folder / "tokenizer.json"))
    limit = replace(limits_of("kohya", "sd1.5")[0], tokens=40)
    cut = 0
    for script in SCRIPTS:
        for count in range(1, 35):
            caption = " ".join([script] * count)
            fault = lost(load_tokenizer(folder), limit, caption)
            encoding = stock.encode(caption, add_special_tokens=False)
            fits = limit.tokens - stock.num_special_tokens_to_add(is_pair=False)
            if len(encoding.ids) <= fits:
                assert fault is None
                continue
            cut += 1
            assert fault is not None
            assert fault.words == caption[encoding.offsets[fits][0] :].strip()
            assert f"{len(encoding.ids):,} tokens" in fault.text
    assert cut > 150


def test_words_that_another_encoder_reads_are_not_lost(
    tmp_path: Path, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kohya's SD3 has CLIP for 75 tokens, and T5 for 255."""
    data = made(tmp_path, "kohya:sd1.5")
    data.edit(lambda stem, old: f"{old} {'ball ' * 60}" if stem == "p0" else old)
    data = replace(data, name="kohya:sd3")
    _, values = data.check(capsys, "--tokenizers", str(tokenizers))
    assert "tokens" not in values["rules"]
    assert values["notes"] == ["clip-l and -g reads the beginning of 1 caption"]


def test_a_tokenizer_is_found_where_programs_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = limits_of("musubi", "wan")[0].tokenizer
    cache = tmp_path / "hub"
    folder = cache / "models--Wan-AI--Wan2.1-T2V-14B"
    place = folder / "snapshots" / "abc" / "google" / "umt5-xxl"
    place.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    shutil.copy(penstock_demo.CHECKPOINT / "tokenizer.json", place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    found = tokenizer_folder(source, None)
    assert found is not None and found.samefile(place)
    kohya = tmp_path / "given" / "openai_clip-vit-large-patch14"
    kohya.mkdir(parents=True)
    (kohya / "vocab.json").write_text("{}")
    assert tokenizer_folder(limits_of("kohya", "sd1.5")[0].tokenizer, tmp_path / "given") == kohya


@pytest.mark.slow
def test_a_tokenizer_of_several_files_is_read(tmp_path: Path) -> None:
    """CLIP's is published as a vocabulary and merges, which transformers reads."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz,."]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "ba", "ball</w>", "ll</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = ["r e", "re d</w>", "l l</w>", "b a", "ba ll</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: at for at, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|startoftext|>"}))
    limit = replace(limits_of("kohya", "sd1.5")[0], tokens=7)
    stock = CLIPTokenizer.from_pretrained(tmp_path)
    fault = lost(load_tokenizer(tmp_path), limit, "A red ball, a red ball.")
    kept = stock("A red ball, a red ball.", truncation=True, max_length=7).input_ids[1:-1]
    assert stock.convert_ids_to_tokens(kept) == ["a</w>", "red</w>", "ball</w>", ",</w>", "a</w>"]
    assert fault is not None and fault.words == "red ball."


def test_a_folder_without_a_data_set_or_a_trainer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    for words, says in (
        (["check", str(data.out), "--trainer", "musubi:wan"], "no data set for musubi"),
        (["check", str(data.out), "--trainer", "kohya:sd9"], "unknown model 'sd9'"),
        (["check", str(data.out), "--tokenizers", str(tmp_path / "no")], "is no folder"),
        (["check", str(tmp_path / "photos")], "no run has written"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_every_model_of_a_trainer_has_its_limits() -> None:
    """But LTX-Video's first trainer, whose source was not read."""
    lacks = {
        model.label
        for models in MODELS.values()
        for model in models.values()
        if not limits_of(model.trainer, model.name)
    }
    assert lacks == {"ltx:ltx-video"}
    assert {(one.trainer, one.model) for one in text_limits()} <= {
        (trainer, name) for trainer, models in MODELS.items() for name in models
    }


@pytest.mark.parametrize("size", [(3000, 2000), (1600, 1200), (640, 480), (4000, 1000), (512, 512)])
def test_kohya_s_buckets_are_those_of_its_rule(size: tuple[int, int]) -> None:
    """As tests/support/trainers.py states it; `make readers SOURCES=` runs the trainer's own."""
    for side in (512, 768, 1024):
        settings = KohyaSettings(resolution=side, enable_bucket=True, max_bucket_reso=2 * side)
        dataset = {"resolution": side, "max_bucket_reso": 2 * side}
        assert settings.bucket(size, "image", 1) == kohya_bucket(*size, dataset)


def test_what_the_tokenizers_of_wan_and_of_kohya_mend_is_mended() -> None:
    wan, clip = limits_of("musubi", "wan")[0], limits_of("kohya", "sdxl")[0]
    assert mended("A &amp;amp; B\t \u201cso\u201d", wan) == 'A & B "so"'
    assert mended("\u201cIt\u2019s a dog\u2019s life\u201d", clip) == "\"It's a dog's life\""
    assert is_mended(wan) and is_mended(clip)
    assert not is_mended(limits_of("onetrainer", "sdxl")[0])


def test_many_words_are_quoted_in_part() -> None:
    assert quoted("a b") == "\u201ca b\u201d"
    assert quoted("x " * 50).endswith("x \u2026\u201d and 10 more words")


def test_uniform_parts_of_a_clip_begin_and_end_with_it() -> None:
    settings = MusubiSettings(frame_extraction="uniform", frame_sample=3, target_frames=[5])
    spans = settings.spans(25, 16.0, WAN)
    assert spans == [(0.0, 5 / 16, 5), (10 / 16, 15 / 16, 5), (20 / 16, 25 / 16, 5)]


def test_the_page_of_limits_is_that_of_the_table() -> None:
    """`python -m scripts.pages.limits` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_page_says_what_is_lost_of_captions(tmp_path: Path) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    assert sets_in(data.out, PICTURES, Counter())[0]["lost"] == []
    data.edit(lambda stem, old: clean("p3") if stem == "p2" else old)
    said = f"2 of 8 samples lose something: 2 duplicate (penstock check {data.out} names them)"
    assert sets_in(data.out, PICTURES, Counter())[0]["lost"] == [f"kohya:sd1.5: {said}"]
    assert ("trainer", f"kohya:sd1.5: {said}") in facts(data.out, data.out)["about"]
    (data.folder / "dataset.toml").write_text("x = [")
    (found,) = sets_in(data.out, PICTURES, Counter())
    assert "cannot be read as TOML" in str(found["problem"]) and not found["samples"]


CONFIG = {
    "kohya:sd1.5": [
        ("resolution = 512", "resolution = 0"),
        ("resolution = 512", "resolution = []"),
        ("resolution = 512", "resolution = [1, 2, 3]"),
        ("resolution = 512", "resolution = {a = 1}"),
        ("resolution = 512", "resolution = 1000000000000"),
        ("max_bucket_reso = 1024", "max_bucket_reso = 99999999999"),
        ("max_bucket_reso = 1024", "max_bucket_reso = 256"),
        ("max_bucket_reso = 1024", "bucket_reso_steps = 0"),
        ("max_bucket_reso = 1024", "min_bucket_reso = 4096"),
        ("metadata_file", "other_file"),
    ],
    "musubi:z-image": [
        ("resolution = [1024, 1024]", "resolution = [0, 0]"),
        ("resolution = [1024, 1024]", "resolution = [1000000000, 1000000000]"),
        ("image_jsonl_file", "image_directory"),
        ("enable_bucket = true", "enable_bucket = true\nsource_fps = inf"),
        ("enable_bucket = true", "enable_bucket = true\nframe_extraction = 'bogus'"),
    ],
    "diffusion-pipe:sd3": [
        ("resolutions = [1024]", "resolutions = []"),
        ("resolutions = [1024]", "resolutions = [-512]"),
        ("num_ar_buckets = 7", "num_ar_buckets = 0"),
        ("num_ar_buckets = 7", "num_ar_buckets = 3000000"),
        ("min_ar = 0.5", "min_ar = 0"),
        ("min_ar = 0.5", "min_ar = nan"),
        ("max_ar = 2.0", "max_ar = inf"),
        ("num_ar_buckets = 7", "ar_buckets = [0.0]"),
        ("frame_buckets = [1]", "frame_buckets = [0]"),
    ],
}


@pytest.mark.parametrize("name", CONFIG)
def test_a_value_that_a_trainer_cannot_use_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, name)
    toml = data.folder / "dataset.toml"
    text = toml.read_text()
    for before, after in (*CONFIG[name], ("", "a = " + "[" * 3000)):
        assert before in text
        toml.write_text(text.replace(before, after, 1))
        capsys.readouterr()
        assert main(["check", str(data.out)]) == 5, after
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "dataset.toml" in err and "unexpected" not in err


def test_words_that_the_settings_put_around_captions_count(
    tmp_path: Path, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kohya's prefix, and its tags behind a caption: `process_caption` in library/train_util.py."""
    data = made(tmp_path, "kohya:sd1.5")
    toml = data.folder / "dataset.toml"
    text = toml.read_text()
    words = ("--tokenizers", str(tokenizers))
    toml.write_text(text.replace("num_repeats = 1", f'caption_prefix = "{"ball " * 90}"'))
    values = data.check(capsys, *words)[1]
    assert values["rules"] == {"tokens": PICTURES, "trigger": PICTURES}
    toml.write_text(text.replace("num_repeats = 1", "num_repeats = 0"))
    assert data.check(capsys, *words)[1]["rules"] == {"never trained": PICTURES}
    toml.write_text(text)
    path = data.folder / "metadata.json"
    rows = json.loads(path.read_text())
    first = next(iter(rows))
    rows[first]["tags"] = ", ".join(["ball"] * 80)
    path.write_text(json.dumps(rows))
    assert found_in(data.check(capsys, *words)[1]) == {_stem(first): {"tokens"}}


def test_odd_texts_are_said_of_their_samples(
    tmp_path: Path, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    odd = {"p0": "ohwx, \ud83d half", "p1": f"{clean('p1')}\n{'ball ' * 90}"}
    data.edit(lambda stem, old: odd.get(stem, old))
    values = data.check(capsys, "--tokenizers", str(tokenizers))[1]
    assert found_in(values) == {"p1": {"lines"}}, "of what no trainer reads, no tokens are counted"


def test_texts_in_the_folder_of_the_run_are_read_as_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "onetrainer:sd1.5")
    for path in (data.out.parent / "photos").glob("*.txt"):
        path.unlink()
    texts = sorted(data.out.glob("p*.txt"))
    assert len(texts) == PICTURES
    for path in texts:
        path.write_text(clean(path.stem) + "\n")
    assert data.check(capsys)[0] == 0
    texts[0].write_bytes(b"\xff\xfe caf\xe9")
    texts[1].unlink()
    texts[2].write_text("one\ntwo")
    code, values = data.check(capsys)
    assert code == 1 and found_in(values) == {
        "p0": {"unreadable"},
        "p1": {"empty"},
        "p2": {"lines", "trigger"},
    }


def test_an_empty_data_set_and_a_list_that_is_gone_are_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "ltx:ltx2")
    (data.folder / "dataset.jsonl").write_text("")
    assert main(["check", str(data.out)]) == 1
    assert "the data set is empty" in capsys.readouterr().out
    (data.folder / "dataset.jsonl").unlink()
    assert main(["check", str(data.out)]) == 5
    assert "does not exist" in capsys.readouterr().err


def test_python_gets_what_the_command_prints(
    tmp_path: Path, tokenizers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    data.edit(lambda stem, old: f"{old} {'ball ' * 90}" if stem == "p0" else old)
    found = penstock.check(data.out, tokenizers=tokenizers, forbid="watermark")
    assert found == {"kohya:sd1.5": data.check(capsys, "--tokenizers", str(tokenizers))[1]}
    main(["check", str(data.out), "--tokenizers", str(tokenizers)])
    assert repr(found) + "\n" == capsys.readouterr().out
    with pytest.raises(penstock.PenstockError, match="unknown model"):
        penstock.check(data.out, trainer="kohya:sd9")


def test_a_copy_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made(tmp_path, "kohya:sd1.5")
    assert data.check(capsys)[1]["notes"] == []
    shutil.copytree(data.out, copy := tmp_path / "copy")
    (note,) = replace(data, out=copy).check(capsys)[1]["notes"]
    assert "names files of another folder" in note and f"--out {copy}" in note
    settings = (data.folder / "dataset.toml").read_text()
    for other in (f"/backup{data.folder}", f"{data.folder}-old"):
        (data.folder / "dataset.toml").write_text(settings.replace(str(data.folder), other))
        assert is_copied(data.folder), other
