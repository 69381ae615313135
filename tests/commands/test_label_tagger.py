"""`penstock label --tagger`: tags by tiny graphs in the forms of WD, CL, Camie and RAM++, as their
published code computes them; with other thresholds, of videos, killed, and in prompts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

import penstock
from artifacts.records.keys import hash_file
from artifacts.records.store import open_store
from flows.core.ledger.prompts import FilePlaceholders
from flows.core.media.media_file import MediaFile
from flows.interfaces.cli.main import main
from tests.support.builders.taggers import (
    SIZE,
    TinyGraph,
    write_graph,
    write_metadata,
    write_selected_tags,
    write_tag_mapping,
)
from tests.support.embedding import items
from tests.support.media import plain_frames, rgb, write_video
from tests.support.pipeline import Place, kill_at, read_lines

Said = pytest.CaptureFixture[str]
PAGE = Path(__file__).parents[2] / "docs" / "taggers.md"
FORMS = ("wd", "cl", "camie", "ram")
"""The declarations of the page, in its order."""
WD = [
    *(("general", 9), ("sensitive", 9), ("explicit", 9)),
    *(("1girl", 0), ("long_hair", 0), ("^_^", 0), ("sky", 0), ("tree", 0)),
    *(("hatsune_miku", 4), ("saber_(fate)", 4)),
]
CL = [
    *(("best_quality", "Quality"), ("general", "Rating"), ("1girl", "General")),
    *(("blue_eyes", "General"), ("rin", "Character"), ("vocaloid", "Copyright"), ("x", "Artist")),
]
CAMIE = [
    *(("1girl", "general"), ("long_hair", "general"), ("sky", "general"), ("rin", "character")),
    *(("vocaloid", "copyright"), ("rating_safe", "rating"), ("year_2020", "year")),
]
RAM = ["armchair", "beach", "traffic light", "dog", "night view"]
OWN = [0.71, 0.5, 0.02, 0.99, 0.65]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
Numbers = NDArray[np.float32]


def declared(form: str) -> str:
    """The declaration of the page, for the tiny graphs."""
    texts = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(texts) == len(FORMS)
    text, count = re.subn(r"size = \d+", f"size = {SIZE}", texts[FORMS.index(form)])
    assert count == 1
    return text


def on_white(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    canvas = Image.new("RGBA", image.size, (255, 255, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def padded(image: Image.Image) -> Image.Image:
    """White around a picture, as SmilingWolf's application does it, in NumPy."""
    pixels = np.asarray(image)
    side = max(pixels.shape[:2])
    top, left = ((side - length) // 2 for length in pixels.shape[:2])
    full = np.full((side, side, 3), 255, np.uint8)
    full[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Image.fromarray(full)


def of_wd(image: Image.Image) -> Numbers:
    square = padded(on_white(image)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[:, :, ::-1]


def of_cl(image: Image.Image) -> Numbers:
    square = padded(on_white(image)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    numbers = np.asarray(square, np.float32).transpose(2, 0, 1)[::-1] / 127.5 - 1
    return numbers.astype(np.float32)


def of_camie(image: Image.Image) -> Numbers:
    image, (mean, std) = on_white(image), IMAGENET
    aspect = image.width / image.height
    wide, high = (SIZE, round(SIZE / aspect)) if aspect > 1 else (round(SIZE * aspect), SIZE)
    canvas = Image.new("RGB", (SIZE, SIZE), (124, 116, 104))
    scaled = image.resize((wide, high), Image.Resampling.LANCZOS)
    canvas.paste(scaled, ((SIZE - wide) // 2, (SIZE - high) // 2))
    numbers = (np.asarray(canvas, np.float32) / 255 - mean) / std
    return numbers.transpose(2, 0, 1).astype(np.float32)


def of_ram(image: Image.Image) -> Numbers:
    mean, std = IMAGENET
    square = on_white(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    numbers = (np.asarray(square, np.float32) / 255 - mean) / std
    return numbers.transpose(2, 0, 1).astype(np.float32)


INPUTS: dict[str, Callable[[Image.Image], Numbers]] = {
    "wd": of_wd,
    "cl": of_cl,
    "camie": of_camie,
    "ram": of_ram,
}
NAMES = {
    "wd": [
        *("general", "sensitive", "explicit", "1girl", "long hair", "^_^", "sky", "tree"),
        *("hatsune miku", "saber (fate)"),
    ],
    "cl": [tag.replace("_", " ") for tag, _ in CL],
    "camie": [tag.replace("_", " ") for tag, _ in CAMIE],
    "ram": RAM,
}
GIVEN: dict[str, dict[str, float]] = {
    "wd": {"1girl": 0.35, "long hair": 0.35, "^_^": 0.35, "sky": 0.35, "tree": 0.35}
    | {"hatsune miku": 0.85, "saber (fate)": 0.85},
    "cl": {"1girl": 0.35, "blue eyes": 0.35, "rin": 0.6, "vocaloid": 0.6},
    "camie": dict.fromkeys(("1girl", "long hair", "sky", "rin", "vocaloid"), 0.61),
    "ram": dict(zip(RAM, OWN, strict=True)),
}
"""Tag → threshold, of the categories that the page's declarations give."""


def write_form(form: str, folder: Path) -> tuple[Path, TinyGraph]:
    """A tagger of this form, and its declaration."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{form}.toml"
    file.write_text(declared(form))
    graph = folder / ("camie-tagger-v2.onnx" if form == "camie" else "model.onnx")
    shape: tuple[int | str, ...] = ("N", 3, SIZE, SIZE)
    if form == "wd":
        write_selected_tags(folder / "selected_tags.csv", WD)
        tiny = write_graph(graph, ("N", SIZE, SIZE, 3), len(WD), spread=0.02, sigmoid=True)
    elif form == "cl":
        write_tag_mapping(folder / "tag_mapping.json", CL)
        tiny = write_graph(graph, shape, len(CL), spread=3)
    elif form == "camie":
        write_metadata(folder / "camie-tagger-v2-metadata.json", CAMIE)
        tiny = write_graph(graph, (1, *shape[1:]), len(CAMIE), outputs=3, index=1, spread=2)
    else:
        (folder / "ram_tag_list.txt").write_text("\n".join(RAM) + "\n")
        (folder / "ram_tag_list_threshold.txt").write_text("\n".join(map(str, OWN)) + "\n")
        tiny = write_graph(graph, shape, len(RAM), spread=2, width="tags")
    return file, tiny


def probabilities(form: str, tiny: TinyGraph, image: Image.Image) -> dict[str, float]:
    logits = tiny.logits(INPUTS[form](image)).astype(np.float64)
    return dict(zip(NAMES[form], (1 / (1 + np.exp(-logits))).tolist(), strict=True))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide, tall, square, of the graph's size, smaller; transparent, grey, and of 16 bits."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)

    def noise(*shape: int) -> NDArray[np.uint8]:
        return draw.integers(0, 256, shape, np.uint8)

    sizes = {"wide": (40, 90), "tall": (77, 31), "square": (50, 50), "exact": (SIZE, SIZE)}
    for name, (high, wide) in (sizes | {"small": (5, 9)}).items():
        Image.fromarray(noise(high, wide, 3)).save(folder / f"{name}.png")
    Image.fromarray(noise(30, 40, 4), "RGBA").save(folder / "alpha.png")
    Image.fromarray(noise(30, 40, 2), "LA").save(folder / "grey-alpha.png")
    Image.fromarray(noise(33, 20)).save(folder / "grey.png")
    deep = draw.integers(0, 1 << 16, (41, 30), np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    return folder


def label(sources: Path, file: Path, place: Path, *more: str) -> int:
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    return main(["label", str(sources), "--tagger", str(file), *where, *more])


def lines(place: Path) -> list[dict[str, Any]]:
    return read_lines(place / "out" / "labels.jsonl")


def scores_of(row: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in row["labels"]}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_tags_of_its_published_code(
    form: str, pictures: Path, tmp_path: Path
) -> None:
    file, tiny = write_form(form, tmp_path / "tagger")
    assert label(pictures, file, tmp_path, "--top", "50", "--format", "txt") == 0
    rows = lines(tmp_path)
    assert len(rows) == 9 and items(tmp_path) == {"frames": 9, "tag": 9}
    passed = 0
    for row in rows:
        expected = probabilities(form, tiny, Image.open(pictures / row["media_path"]))
        scores = scores_of(row)
        assert scores.keys() == GIVEN[form].keys()
        for one in row["labels"]:
            probability = expected[one["label"]]
            stored = probability if probability >= 0.01 else 0.0
            assert one["score"] == pytest.approx(stored, abs=1e-4), (row["media_path"], one)
            assert one["threshold"] == pytest.approx(GIVEN[form][one["label"]])
            assert one["passed"] == (stored >= one["threshold"])
        ranked = [one["label"] for one in row["labels"] if one["passed"]]
        text = (tmp_path / "out" / row["media_path"]).with_suffix(".txt")
        assert (text.read_text().strip() if text.exists() else "") == ", ".join(ranked)
        passed += len(ranked)
    assert 0 < passed < 9 * len(GIVEN[form])


def test_lines_have_the_fields_of_labels(pictures: Path, tmp_path: Path, capsys: Said) -> None:
    file, _ = write_form("wd", tmp_path / "tagger")
    assert label(pictures, file, tmp_path, "--top", "1", "--format", "csv,coco") == 0
    row = lines(tmp_path)[0]
    assert list(row) == [
        *("media_path", "source", "time", "labels", "top", "model", "precision", "features"),
        *("labels_digest", "tiles", "warnings"),
    ]
    assert row["time"] is None and row["model"] == str(file) and row["tiles"] == "off"
    assert row["precision"] == {"vision": "fp32"}
    first = row["labels"][0]
    assert (
        first["label"] == row["top"] and first["box"] is None and first["whole"] == first["score"]
    )
    assert first["why"] in ("general: at least 0.35", "character: at least 0.85")
    report = json.loads((tmp_path / "out" / "label_report.json").read_text())
    given = {one["label"] for row in lines(tmp_path) for one in row["labels"] if one["passed"]}
    assert {one["label"] for one in report["labels"]} == given
    coco = json.loads((tmp_path / "out" / "labels.coco.json").read_text())
    assert len(coco["images"]) == 9
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["status", str(tmp_path / "out")]) == 0
    store = ["--store", str(tmp_path / "store")]
    assert main(["cache", "verify", *store]) == 0 and main(["cache", "ls", *store]) == 0


def test_other_thresholds_categories_and_names_run_nothing(pictures: Path, tmp_path: Path) -> None:
    file, _ = write_form("wd", tmp_path / "tagger")
    assert label(pictures, file, tmp_path) == 0
    before = {row["media_path"]: scores_of(row) for row in lines(tmp_path)}
    text = file.read_text().replace("general = 0.35", 'general = 0.9\nrating = "best"')
    file.write_text(text)
    write_selected_tags(
        file.parent / "selected_tags.csv", [(f"t_{at}", of) for at, (_, of) in enumerate(WD)]
    )
    assert label(pictures, file, tmp_path, "--top", "50") == 0
    assert items(tmp_path) == {"frames": 0, "tag": 0}
    for row in lines(tmp_path):
        ratings = [one for one in row["labels"] if one["why"].startswith("rating")]
        assert [one["passed"] for one in ratings] == [True, False, False]
        assert ratings[0]["why"] == "rating: the first of its group"
        assert ratings[0]["threshold"] is None
        others = {one["label"]: one["score"] for one in row["labels"] if one not in ratings}
        assert others.keys() == {f"t {at}" for at in range(3, 10)}
        assert {before[row["media_path"]][n] for n in before[row["media_path"]]} <= {
            *others.values()
        }
    assert label(pictures, file, tmp_path, "--threshold", "0.99") == 0
    assert items(tmp_path) == {"frames": 0, "tag": 0}
    cut = {one["threshold"] for row in lines(tmp_path) for one in row["labels"]}
    assert cut <= {0.99, None}
    file.write_text(text.replace('"BGR"', '"RGB"'))
    assert label(pictures, file, tmp_path) == 0  # frames are gone; what decides is in the key
    assert items(tmp_path) == {"frames": 9, "tag": 9}


def test_a_graph_of_fixed_batches_of_16_bits_and_with_data_beside_it(
    pictures: Path, tmp_path: Path
) -> None:
    rows = {}
    for name in ("plain", "fixed", "narrow", "parted"):
        file, tiny = write_form("cl", tmp_path / name)
        if name == "fixed":
            write_graph(tiny.path, (4, 3, SIZE, SIZE), len(CL), spread=3)
        elif name == "narrow":
            shape = ("N", 3, SIZE, SIZE)
            write_graph(tiny.path, shape, len(CL), spread=3, dtype=TensorProto.FLOAT16)
        elif name == "parted":
            model = onnx.load(tiny.path)
            tiny.path.unlink()
            onnx.save(
                model, tiny.path, save_as_external_data=True, location="w.data", size_threshold=100
            )
        assert label(pictures, file, tmp_path / name, "--top", "50") == 0
        rows[name] = lines(tmp_path / name)
    plain = [scores_of(row) for row in rows["plain"]]
    assert [scores_of(row) for row in rows["parted"]] == plain
    assert {row["precision"]["vision"] for row in rows["narrow"]} == {"fp16"}
    for name, most in (("fixed", 1e-5), ("narrow", 0.02)):
        for row, expected in zip(rows[name], plain, strict=True):
            assert scores_of(row) == pytest.approx(expected, abs=most)
    assert len({row["features"] for some in rows.values() for row in some}) == 4 * 9
    (tmp_path / "parted" / "w.data").unlink()
    assert label(pictures, tmp_path / "parted" / "cl.toml", tmp_path / "parted") == 2


def test_frames_of_a_video_have_lines_and_chunks_have_texts(tmp_path: Path, capsys: Said) -> None:
    file, tiny = write_form("wd", tmp_path / "tagger")
    media = tmp_path / "media"
    media.mkdir()
    draw = np.random.default_rng(8)
    colours = draw.integers(0, 256, (32, 4, 4, 3), np.uint8)

    def blocks(index: int, high: int, wide: int) -> NDArray[np.uint8]:
        return np.kron(colours[index], np.ones((4, 4, 1), np.uint8))

    clip = write_video(media / "v.mp4", ticks=range(0, 960, 30), size=(SIZE, SIZE), draw=blocks)
    assert label(media, file, tmp_path, "--format", "txt", "--beside", "--top", "50") == 0
    seen = {round(float(f.time or 0), 3): rgb(f) for f in plain_frames(clip)}
    rows = lines(tmp_path)
    assert [row["time"] for row in rows] == [float(second) for second in range(32)]
    names, expected = [*GIVEN["wd"]], []
    for row in rows:
        of_frame = probabilities("wd", tiny, Image.fromarray(seen[row["time"]]))
        expected.append([of_frame[name] for name in names])
        assert scores_of(row) == pytest.approx(
            {n: p if p >= 0.01 else 0.0 for n, p in of_frame.items() if n in names}, abs=1e-4
        )
    spans = read_lines(tmp_path / "out" / "label_spans.jsonl")
    texts = (media / "v.txt").read_text().splitlines()
    for at, (span, text) in enumerate(zip(spans, texts, strict=True)):
        mean = np.mean(expected[16 * at : 16 * at + 16], axis=0)
        order = [n for at, n in sorted(enumerate(names), key=lambda one: -mean[one[0]])]
        given = [n for n in order if mean[names.index(n)] >= GIVEN["wd"][n]]
        assert (span["start"], span["labels"]) == (16.0 * at, given) and given
        assert text == ", ".join(given)
    assert len(spans) == 2
    of = MediaFile(path=clip, media_path="v.mp4", source=str(media), kind="video")
    placeholders = FilePlaceholders(open_store(str(tmp_path / "store")))
    filled = placeholders.fill("{tags}", of, hash_file(clip))
    assert filled.split(", ") == list(dict.fromkeys(", ".join(texts).split(", ")))


def test_tags_stand_in_the_prompts_of_captions(pictures: Path, tmp_path: Path) -> None:
    file, _ = write_form("ram", tmp_path / "tagger")
    copies = tmp_path / "media"
    copies.mkdir()
    for name in ("wide.png", "tall.png"):
        (copies / name).write_bytes((pictures / name).read_bytes())
    assert label(copies, file, tmp_path, "--format", "txt", "--beside") == 0
    place = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "captions")]
    prompt = ["--prompt", "With {tags}.", "--model", "demo", "--max-new-tokens", "2"]
    assert main(["caption", str(copies), *place, *prompt]) == 0
    for row in read_lines(tmp_path / "captions" / "captions.jsonl"):
        tags = (copies / row["media_path"]).with_suffix(".txt").read_text().strip()
        assert tags and row["prompt"] == f"With {tags}."


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["frames", "tag"])
def test_a_run_that_is_killed_gives_the_same_bytes(
    stage: str, pictures: Path, tmp_path: Path
) -> None:
    file, _ = write_form("wd", tmp_path / "tagger")
    assert label(pictures, file, tmp_path / "whole") == 0
    more = ("--tagger", str(file), "--batch-size", "2")
    out, store = tmp_path / "out", tmp_path / "store"
    place = Place(clips=pictures, out=out, store=store, model="", verb="label")
    assert kill_at(place, stage, 1, "group", *more) != 0
    done = len(place.stored("tags"))
    assert place.run(*more).returncode == 0
    assert items(tmp_path)["tag"] == 9 - done and (done > 0) == (stage == "tag")
    expected, resumed = (at / "out" / "labels.jsonl" for at in (tmp_path / "whole", tmp_path))
    assert resumed.read_bytes() == expected.read_bytes()


def test_numbers_that_are_no_probabilities_end_the_run(
    pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    file, tiny = write_form("cl", tmp_path / "tagger")
    file.write_text(file.read_text().replace('"sigmoid"', '"none"'))
    assert label(pictures, file, tmp_path) == 2
    message = capsys.readouterr().err
    assert f'{file} says activation = "none", but model.onnx gives -' in message
    assert "which are no probabilities. Set activation" in message
    file, tiny = write_form("ram", tmp_path / "other")
    write_graph(tiny.path, ("N", 3, SIZE, SIZE), len(RAM) + 1, width="tags")
    assert label(pictures, file, tmp_path) == 2
    message = capsys.readouterr().err
    assert "ram.toml lists 5 tags, but model.onnx gives 1x6 numbers for 1 pictures" in message


def test_a_file_of_which_the_graph_gives_nan_is_a_failure(
    pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    file, tiny = write_form("cl", tmp_path / "tagger")
    model = onnx.load(tiny.path)
    model.graph.node[1].CopyFrom(onnx.helper.make_node("MatMul", ["root", "weights"], ["sum"]))
    model.graph.node.insert(1, onnx.helper.make_node("Sqrt", ["row"], ["root"]))
    onnx.save(model, tiny.path)
    media = tmp_path / "media"
    media.mkdir()
    Image.new("RGB", (SIZE, SIZE), "white").save(media / "white.png")
    Image.new("RGB", (SIZE, SIZE), "black").save(media / "black.png")  # -1 has no root
    assert label(media, file, tmp_path) == 1
    assert "model.onnx gives NaN for this file" in (tmp_path / "out" / "failures.jsonl").read_text()
    assert [row["media_path"] for row in lines(tmp_path)] == ["white.png"]


def test_a_graph_that_does_not_fit_in_memory_is_refused(
    pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    file, tiny = write_form("wd", tmp_path / "tagger")
    write_graph(tiny.path, ("N", SIZE, SIZE, 3), 50_000, sigmoid=True)
    write_selected_tags(
        tiny.path.with_name("selected_tags.csv"), [(f"t{n}", 0) for n in range(50_000)]
    )
    file.write_text(file.read_text().replace("character = 0.85\n", ""))
    assert label(pictures, file, tmp_path, "--memory", "200MB", "--batch-size", "1") == 3
    assert "tag" in capsys.readouterr().err


def test_a_dry_run_computes_nothing_and_python_takes_it_too(
    pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    file, _ = write_form("wd", tmp_path / "tagger")
    assert label(pictures, file, tmp_path, "--dry-run") == 0
    assert "tag  " in capsys.readouterr().out and not (tmp_path / "out").exists()
    out, store = tmp_path / "out", tmp_path / "store"
    rows = [*penstock.label(pictures, tagger=file, out=out, store=store, progress=False)]
    assert len(rows) == 9 and any(row.given for row in rows)
