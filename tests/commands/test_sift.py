"""`penstock sift`: what it marks, groups, keeps and leaves out, and that nothing is made twice."""

import itertools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from artifacts.errors import MissingPackage, UsageError
from artifacts.index.near_duplicates import Alike, Pairs
from flows.commands.report.facts import limits_of
from flows.commands.sift import duplicates as sift_duplicates
from flows.commands.sift import run as running
from flows.commands.sift.duplicates import Fingerprint, near_pairs, pairs_of
from flows.commands.sift.marks import MARKS, MarkedFiles, kept_of, mark_copies, parse_keep
from flows.commands.sift.result import Sifted
from flows.commands.sift.run import sift
from flows.core.console.display import Display
from flows.core.media.media_file import Selection
from flows.core.media.sources import find_media
from flows.core.options.vectors import SiftConfig
from flows.interfaces.cli.main import main
from flows.outputs.run_status import run_status
from stages.sift.measures import NO_LOOK, SIDE
from stages.sift.run import image_marks
from tests.support.builders.planted import (
    CLIP_SIZE,
    KINDS,
    RATE,
    Plan,
    Planted,
    drawn,
    letterboxed,
    moving,
    write_clip,
    write_pictures,
)
from tests.support.described import spare_processes
from tests.support.pipeline import read_lines
from tests.support.plain_pictures import coloured, fields, other_words, shoe, slide, still

SMALL = Plan(copied=12, blurred=4, letterboxed=4, black=2, single=8)
Marks = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    """Drawn pictures with copies, blurs, bars and black ones."""
    folder = tmp_path_factory.mktemp("planted") / "pictures"
    return folder, write_pictures(folder, SMALL, None, 3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving clip, and the same with a black stretch, a frozen one, bars, and a still one."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(5)
    body = moving(next(drawn(rng)), rng)
    low, high = RATE, 3 * RATE
    other = moving(next(drawn(rng)), rng)
    still = moving(next(drawn(rng)), rng)[:1]
    black = [np.zeros((CLIP_SIZE[1], CLIP_SIZE[0], 3), np.uint8)] * (high - low)
    pictures = (letterboxed(Image.fromarray(each), np.random.default_rng(1)) for each in other)
    write_clip(folder / "moving.mp4", body)
    write_clip(folder / "copy.mp4", body, quality=34)
    write_clip(folder / "black.mp4", [*other[:low], *black, *other[high:]])
    frozen = [*body[:low], *[body[low]] * (high - low), *body[high:]]
    write_clip(folder / "frozen.mp4", frozen[::-1])
    write_clip(folder / "bars.mp4", [np.asarray(each) for each in pictures][::-1])
    write_clip(folder / "still.mp4", still * (2 * RATE))
    return folder


def run(source: Path, out: Path, **options: Any) -> tuple[Sifted, Marks]:
    result = sift(SiftConfig(sources=(str(source),), out=str(out), **options), Display(quiet=True))
    return result, {row["media_path"]: row for row in read_lines(out / "marks.jsonl")}


def items_of(out: Path) -> int:
    stages: list[dict[str, Any]] = json.loads((out / "run.json").read_text())["stages"]
    return int(stages[0]["items"])


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_blur_bars_and_black_pictures_are_found(
    planted: tuple[Path, list[Planted]], tmp_path: Path, mirrored: bool
) -> None:
    """Mirrored copies are found on request alone."""
    folder, truth = planted
    _, marks = run(folder, tmp_path / "out", mirrored=mirrored)
    group = {one.name: marks[one.name]["group"] for one in truth}
    originals = {one.group: one.name for one in truth if one.kind == "original"}
    for one in truth:
        row = marks[one.name]
        if one.kind in KINDS[:-1] or (one.kind == "mirrored" and mirrored):
            assert group[one.name] == group[originals[one.group]] is not None, one
        elif one.kind in ("mirrored", "single", "black"):
            assert group[one.name] is None, one
        assert row["blurred"] == (None if one.kind == "black" else int(one.kind == "blur")), one
        assert (row["black"] == 1) == (one.kind == "black"), one
        assert (row["letterbox"] > 0) == (one.kind == "letterbox"), one
    best = [row["media_path"] for row in marks.values() if row["group"] and not row["duplicate"]]
    assert len(best) == len({row["group"] for row in marks.values() if row["group"]})


@pytest.mark.slow
def test_clips_are_marked(clips: Path, tmp_path: Path) -> None:
    _, marks = run(clips, tmp_path / "out", format=("csv", "parquet"), chunk=2.0)
    assert [name for name, row in marks.items() if row["black"] > 0] == ["black.mp4"]
    frozen = {name for name, row in marks.items() if row["frozen"] > 0}
    assert frozen == {"frozen.mp4", "still.mp4"}
    assert 1.5 <= marks["frozen.mp4"]["frozen_seconds"] <= 2.5
    assert marks["black.mp4"]["black_seconds"] == pytest.approx(2, abs=0.5)
    assert {name for name, row in marks.items() if row["letterbox"] > 0} == {"bars.mp4"}
    assert marks["moving.mp4"]["motion"] > 0.005 > marks["still.mp4"]["motion"]
    copies = [name for name, row in marks.items() if row["duplicate"]]
    assert copies in (["copy.mp4"], ["moving.mp4"])
    chunks = read_lines(tmp_path / "out" / "chunk_marks.jsonl")
    black = [row["black"] for row in chunks if row["media_path"] == "black.mp4"]
    assert len(black) == 3 and black[2] == 0 < black[0]
    import pandas

    table, csv = (tmp_path / "out" / f"marks.{form}" for form in ("parquet", "csv"))
    assert list(pandas.read_parquet(table).columns) == list(pandas.read_csv(csv).columns)
    assert list(pandas.read_parquet(table)["media_path"]) == list(marks)


@pytest.mark.slow
def test_a_second_run_marks_nothing_and_a_changed_file_alone_is_marked_anew(
    planted: tuple[Path, list[Planted]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for path in sorted(planted[0].iterdir())[:6]:
        (folder / path.name).write_bytes(path.read_bytes())
    run(folder, out)
    assert items_of(out) == 6
    first = (out / "marks.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        compared: list[object] = []
        patch.setattr(running, "pairs_of", compared.append)
        run(folder, out, keep="sharpness > 0.6")
        assert items_of(out) == 0 and not compared
    run(folder, out)
    assert (out / "marks.jsonl").read_bytes() == first
    changed = sorted(folder.iterdir())[2]
    Image.open(changed).filter(ImageFilter.GaussianBlur(12)).save(changed)
    _, marks = run(folder, out)
    assert items_of(out) == 1 and marks[changed.name]["blurred"] == 1


@pytest.mark.slow
def test_what_is_left_out_is_said_and_the_list_is_a_source(
    planted: tuple[Path, list[Planted]], tmp_path: Path
) -> None:
    folder, _ = planted
    result, marks = run(folder, tmp_path / "out", keep="blurred = 0 and black = 0")
    left = read_lines(tmp_path / "out" / "left_out.jsonl")
    assert {row["why"] for row in left} == {
        "not blurred = 0 (blurred 1)",
        "not blurred = 0 (blurred null); not black = 0 (black 1.0)",
    }
    count = Counter(row["why"].partition(" (")[0] for row in left)
    assert f", {len(left)} left out: " in result.line()
    assert all(f"{number} {text}" in result.line() for text, number in count.items())
    selection = Selection(recursive=False, extensions=())
    files, failures = find_media([str(result.kept_list)], selection, None)
    assert not failures and len(files) == result.kept == len(marks) - len(left)


def table(*rows: dict[str, Any], pairs: Sequence[Sequence[int]] = ()) -> MarkedFiles:
    """Files with these marks. `pairs`: those that are copies of each other."""
    found = MarkedFiles(coloured=[True] * len(rows))
    sized = {"width": 1, "height": 1, "faults": 0, "bilevel": 0}
    for at, row in enumerate(rows):
        names = {n: f"/{at}" for n in ("media_path", "path", "digest")} | {"source": "s"}
        found.rows.append({**dict.fromkeys(MARKS), "kind": "video", **names, **sized, **row})
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    for flag, same in (("exact", ends[:0]), ("duplicate", ends)):
        mark_copies(found, flag, Pairs(contents=found.contents, pairs=same))
    return found


@pytest.mark.parametrize(
    ("condition", "kept", "nulls"),
    [
        ("motion > 0.1", [0], {"motion": 1}),
        ("motion > 0.1 or motion is null", [0, 2], {}),
        ("not (motion > 0.1)", [1], {"motion": 1}),
        ("motion > 0.1 or kind = 'image'", [0], {"motion": 1}),
        ("motion > 0.1 or path like '/2'", [0, 2], {}),
        ("motion > 0.1 and path like '/0'", [0], {}),
        ("path like '/b'", [], {}),
    ],
)
def test_a_null_meets_no_comparison(condition: str, kept: list[int], nulls: dict[str, int]) -> None:
    files = table({"motion": 0.5}, {"motion": 0.0}, {"motion": None})
    found, left = kept_of(files, parse_keep(condition))
    assert found == kept and set(left.why) == {0, 1, 2} - set(kept)
    assert sum(left.firsts.values()) == len(left.why) and left.nulls == nulls
    assert all(text.startswith("not ") for text in left.why.values())


CONDITIONS = [
    "duplicate = 0",
    "blurred = 0 and duplicate = 0",
    "duplicate = 0 and (motion > 0.5 or motion is null) and faults = 0",
    "blurred = 0 or duplicate = 0",
    "duplicate = 0 and exact = 0 and path like '%1%'",
    "not (duplicate = 1 or motion < 0.3)",
    "similar = 0 and duplicate = 0 and blurred = 0",
    "similar = 0 and sharpness > 0.3",
    "group is null or duplicate = 0",
    "blurred = 1",
]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("seed", range(6))
def test_a_file_is_left_out_as_a_copy_of_one_that_is_kept_alone(condition: str, seed: int) -> None:
    draw, count = np.random.default_rng(seed), 40
    rows = [
        {
            "digest": f"d{draw.integers(30)}",
            "width": int(draw.integers(1, 4)),
            "faults": int(draw.integers(2)),
            "sharpness": [None, *draw.random(2)][draw.integers(3)],
            "motion": [None, draw.random()][draw.integers(2)],
            "blurred": [None, 0, 1][draw.integers(3)],
        }
        for _ in range(count)
    ]
    contents = len({row["digest"] for row in rows})
    linked = np.argwhere(np.triu(draw.random((contents, contents)) < draw.choice([0.03, 0.2]), 1))
    files = table(*rows, pairs=linked.tolist())
    near = draw.standard_normal((count, 3)).astype(np.float32)
    mark_copies(files, "similar", Alike(vectors=near, threshold=0.9))
    cosines = (unit := near / np.linalg.norm(near, axis=1, keepdims=True)) @ unit.T
    edges = {tuple(sorted(pair)) for pair in linked.tolist()}
    number = {digest: at for at, digest in enumerate(dict.fromkeys(r["digest"] for r in rows))}

    def are_copies(flag: str, one: int, other: int) -> bool:
        a, b = (number[rows[at]["digest"]] for at in (one, other))
        if flag == "similar":
            return bool(cosines[one, other] > 0.899)
        return a == b or (flag == "duplicate" and tuple(sorted((a, b))) in edges)

    flags = [flag for flag in ("exact", "duplicate", "similar") if flag in condition]
    kept, left = kept_of(files, parse_keep(condition, similar=True))
    # Which files pass: with contents of their own, none is a copy.
    alone = table(*({**row, "digest": f"d{at}"} for at, row in enumerate(rows)))
    alone.copies["similar"] = alone.copies["exact"]
    for at, row in enumerate(alone.rows):
        row |= {"similar": 0, "group": files.rows[at]["group"]}
    passing, _ = kept_of(alone, parse_keep(condition, similar=True))
    assert set(kept) <= set(passing)
    for at in set(passing) - set(kept):
        others = [one for one in kept if any(are_copies(flag, at, one) for flag in flags)]
        assert others, f"{left.why[at]}, and no copy of it is kept"
    if "or" not in condition:  # no two that are kept are copies
        for one, other in itertools.combinations(kept, 2):
            assert not any(are_copies(flag, one, other) for flag in flags)


def test_groups_are_a_best_file_and_its_direct_copies() -> None:
    """Neighbours in a fade of five steps are copies; the second step is the sharpest."""
    fade = [{"sharpness": value} for value in (0.5, 0.9, 0.6, 0.7, 0.8)]
    files = table(*fade, pairs=[(0, 1), (1, 2), (2, 3), (3, 4)])
    assert [row["duplicate"] for row in files.rows] == [1, 0, 1, 1, 0]
    assert [row["group"] for row in files.rows] == [1, 1, 1, 2, 2]
    kept, left = kept_of(files, parse_keep("duplicate = 0 and sharpness < 0.85"))
    assert kept == [0, 2, 4]
    copy = "not duplicate = 0 (a copy of /4)"
    assert left.why == {1: "not sharpness < 0.85 (sharpness 0.9)", 3: copy}
    assert [row["kept_duplicate"] for row in files.rows] == [0, None, 0, 1, 0]
    assert [row["kept_group"] for row in files.rows] == [None, None, None, 1, 1]
    assert kept_of(files, parse_keep("duplicate = 1"))[0] == [0, 2, 3]


@pytest.mark.parametrize("text", ["sharp > 1", "sharpness >", "path > 3", "a" * 20_000])
def test_a_condition_that_cannot_be_read_fails(text: str) -> None:
    with pytest.raises(UsageError, match="--keep"):
        parse_keep(text)


def test_bands_find_the_pairs_that_a_comparison_of_all_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    ones = rng.integers(0, 1 << 63, 3000, np.uint64)
    others = ones.copy()
    for at in range(0, 3000, 3):
        for bit in rng.choice(64, int(rng.integers(0, 13)), replace=False):
            others[at] ^= np.uint64(1) << np.uint64(bit)
    every = near_pairs(ones, others, 10)
    monkeypatch.setattr(sift_duplicates, "ALL_PAIRS", 0)
    assert np.array_equal(near_pairs(ones, others, 10), every) and len(every) > 2700


@pytest.mark.slow
def test_unreadable_files_are_listed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    (folder / "b.mp4").write_bytes(b"not a video")
    words = ["sift", str(folder), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 1
    (failed,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert failed["media_path"] == "b.mp4"
    assert main(words) == 1 and items_of(tmp_path / "out") == 0
    (status,) = run_status(tmp_path / "out")["stages"]
    assert (status["done"], status["failed"], status["pending"]) == (1, 1, 0)


@pytest.mark.parametrize("keep", ["width > 9", "width > 9999"])
def test_only_what_is_kept_is_to_be_captioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: str
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    assert main(["sift", str(tmp_path / "a.png"), "--keep", keep, "--out", str(tmp_path)]) == 0
    kept = len(read_lines(tmp_path / "kept.jsonl"))
    assert capsys.readouterr().out.count("penstock caption") == kept


def test_marks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sift", "--marks"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in MARKS) and "0 to 1" in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"similar": 0.9}, "--similar needs"),
        ({"model": "demo", "similar": 1.5}, "invalid --similar 1"),
    ],
)
def test_options_on_vectors_that_make_no_sense_fail(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SiftConfig(sources=("a",), **options)


@pytest.mark.slow
def test_near_vectors_of_a_model_are_marks(
    tmp_path: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spare_processes(monkeypatch)
    words = ["sift", str(here / "videos"), "--out", str(tmp_path / "all")]
    assert main(words) == main([*words, "--model", "demo", "--similar", "0.02"]) == 0
    assert "made again" not in capsys.readouterr().err
    _, marks = run(here / "videos", tmp_path / "all", model="demo", similar=0.01)
    assert sorted(row["similar"] for row in marks.values()) == [0, 1]
    assert len({row["similar_group"] for row in marks.values()}) == 1
    _, marks = run(here / "videos", tmp_path / "none", model="demo", similar=1.0)
    assert [row["similar"] for row in marks.values()] == [0, 0]


def test_vectors_without_their_package_are_refused_in_one_line(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackage, match="needs the package faiss-cpu") as caught:
        run(here / "videos", tmp_path / "out", model="demo", similar=0.9)
    assert "penstock[sift]" in caught.value.hint


@pytest.mark.slow
def test_the_report_holds_marks_groups_and_pictures_and_nothing_from_elsewhere(
    planted: tuple[Path, list[Planted]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(planted[0], out, keep="blurred = 0")
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    text = page.split('id="data">')[1].split("</script>")[0]
    data = json.loads(text)
    names = [mark["name"] for mark in data["marks"]]
    assert {"sharpness", "duplicate", "letterbox"} <= set(names) and "group" not in names
    assert len(data["groups"]) >= SMALL.copied and data["groups"][0]["members"]
    assert all(data["thumbs"].values()) and len(data["left"]) == 4 * SMALL.blurred + SMALL.black
    limits = {mark["name"]: mark["limit"] for mark in data["marks"]}
    assert limits.pop("blurred") == 0 and set(limits.values()) == {None}
    assert data["keep"] == "blurred = 0"
    named = {data["files"][at]: why for at, why in data["pictures"]}
    assert named == dict(data["left"])
    assert all(data["thumbs"][str(at)] for at, _ in data["pictures"])
    assert main(["report", str(out)]) == 0  # its own page is replaced
    for name in ("marks.jsonl", "left_out.jsonl"):
        whole = (out / name).read_text(encoding="utf-8")
        for line in ("[]\n", "{}\n", "{\n"):
            (out / name).write_text(whole + line, encoding="utf-8")
            assert main(["report", str(out)]) == 5
            assert f"{name} cannot be read" in capsys.readouterr().err
        (out / name).write_text(whole, encoding="utf-8")


@pytest.mark.parametrize(
    ("keep", "limits"),
    [
        ("clipped <= 0.3 and sharpness >= 0.4", {"clipped": 0.3, "sharpness": 0.4}),
        ("clipped < 0.3 and sharpness > 0.4", {"clipped": 0.2999, "sharpness": 0.4001}),
        ("duplicate = 0", {"duplicate": 0}),
        ("duplicate = 1", {}),  # the page leaves high values out
        ("width = 640", {}),
        ("width >= 640 or seconds > 2", {}),
        ("sharpness >= 0.4 and path like '%.mp4'", {}),
        ("", {}),
    ],
)
def test_the_page_begins_at_the_comparisons_of_keep(keep: str, limits: dict[str, float]) -> None:
    assert limits_of(keep) == limits


@pytest.mark.slow
def test_captions_leave_out_what_does_not_meet_sift(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (320, 240)).save(here / "videos" / os.fsdecode(b"black\xff.png"))
    out = tmp_path / "out"
    words = ["caption", str(here / "videos"), "--model", "demo", "--out", str(out), "--quiet"]
    assert main([*words, "--sift", "black = 0"]) == 0
    named = {row["media_path"] for row in read_lines(out / "captions.jsonl")}
    assert named == {"clip-01.mp4", "clip-02.mp4"}
    (left,) = read_lines(out / "sift" / "left_out.jsonl")
    assert left["media_path"] == "black\ufffd.png"
    capsys.readouterr()
    assert main([*words[:-1], "--sift", "blurred = 0"]) == 0
    printed = "".join(capsys.readouterr())
    assert "; 1 as blurred is null (`or blurred is null` keeps such)" in printed
    assert main([*words, "--sift", "black = 5"]) == 2
    capsys.readouterr()

    def plan_of(condition: str) -> Any:
        main(["plan", *words[1:-1], "--json", "--sift", condition])
        return json.loads(capsys.readouterr().out)

    for condition, files, note in (
        ("black = 0", 2, "1 file left out by --sift, as marked before"),
        ("black < 9", 3, "files and chunks are those before the filter (--sift): marks come first"),
    ):
        # The store's marks were made under `black = 5` last, so those are made again.
        keep = ("--keep", "black = 0")
        assert main(["sift", str(here / "videos"), *keep, "--out", f"{out}/sift"]) == 0
        capsys.readouterr()
        plan = plan_of(condition)
        assert (plan["files"], plan["notes"][0]) == (files, note)
    record = json.loads((out / "sift" / "run.json").read_text())
    (out / "sift" / "run.json").write_text(json.dumps(record | {"state": "running"}))
    plan = plan_of("black = 0")
    assert plan["files"] == 3 and plan["notes"][0].endswith("(--sift): it is running")


@pytest.mark.slow
def test_what_cannot_be_marked_is_named_once_and_not_captioned(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "videos" / "broken.jpg").write_bytes(b"no picture")
    words = ["caption", str(here / "videos"), "--model", "demo", "--out", str(tmp_path / "out")]
    assert main([*words, "--sift", "black = 0"]) == 0
    printed = "".join(capsys.readouterr())
    assert printed.count("broken.jpg") == 1 and "1 file that failed left out" in printed
    assert read_lines(tmp_path / "out" / "failures.jsonl") == []
    (failed,) = read_lines(tmp_path / "out" / "sift" / "failures.jsonl")
    assert failed["media_path"] == "broken.jpg"
    main(["plan", *words[1:], "--json", "--sift", "black = 0"])
    plan = json.loads(capsys.readouterr().out)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (plan["files"], plan["failed"]) == (run["media"]["total"], 0)
    assert plan["notes"][0].endswith("; 1 file that failed then, too")


def test_of_equal_files_the_shorter_name_is_kept(here: Path, tmp_path: Path) -> None:
    copies = ("clip-01 (Kopie).mp4", "a copy of clip-01.mp4")
    for name in copies:
        shutil.copy(here / "videos" / "clip-01.mp4", here / "videos" / name)
    _, marks = run(here / "videos", tmp_path / "out")
    assert {name for name, row in marks.items() if row["duplicate"]} == {*copies}


def test_of_a_picture_and_its_grey_copy_the_coloured_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    scene = next(drawn(np.random.default_rng(4))).resize((320, 200))
    pale = ImageEnhance.Color(scene).enhance(0.05)
    pale.filter(ImageFilter.GaussianBlur(0.6)).save(tmp_path / "pictures" / "scene.png")
    pale.convert("L").save(tmp_path / "pictures" / "a.png")
    _, marks = run(tmp_path / "pictures", tmp_path / "out")
    assert marks["a.png"]["sharpness"] > marks["scene.png"]["sharpness"]
    assert {name for name, row in marks.items() if row["duplicate"]} == {"a.png"}


def test_a_video_that_turns_black_is_no_copy_of_one_that_does_not() -> None:
    thumbs = np.random.default_rng(3).integers(0, 255, (5, SIDE, SIDE), dtype=np.uint8)
    whole = [replace(NO_LOOK, thumb=thumb) for thumb in thumbs]
    black = [*whole[:3], NO_LOOK, NO_LOOK]
    items = [Fingerprint(looks=looks, seconds=10.0) for looks in (whole, black, [*whole])]
    assert pairs_of(items, mirrored=False).tolist() == [[0, 2]]


def pictures(rng: np.random.Generator) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Pairs that differ in what a caption would say."""
    white, shoes = Image.new("RGB", (1000, 700), "white"), []
    for colour in ("#e05040", "#3a9a3a"):  # both have a brightness of 120
        shoes.append(white.copy())
        shoe(ImageDraw.Draw(shoes[-1]), (120, 150), 500, colour)
    heart, liver = (
        slide(np.random.default_rng(1), [f"{title} surgery", "Bring your report", "Come early"])
        for title in ("Heart", "Liver")
    )
    found = {"shoe": (shoes[0], shoes[1]), "field": fields(rng), "slide": (heart, liver)}
    words = {"chat": "all words", "line": "a line"}
    return found | {name: other_words(rng, "chat", of) for name, of in words.items()}


def test_pictures_that_differ_in_colour_or_words_are_no_copies_and_their_copies_are(
    tmp_path: Path,
) -> None:
    folder, rng = tmp_path / "media", np.random.default_rng(4)
    folder.mkdir()
    for name, pair in pictures(rng).items():
        for which, picture in zip("ab", pair, strict=True):
            picture.save(folder / f"{name}-{which}.png")
            small = picture.resize((picture.width // 2, picture.height // 2))
            small.save(folder / f"{name}-{which}-small.jpg", quality=70)
    _, marks = run(folder, tmp_path / "out")
    members: dict[int, set[str]] = {}
    for path, row in marks.items():
        members.setdefault(row["group"], set()).add(path.split(".")[0].removesuffix("-small"))
    alone = [[f"{name}-{which}"] for name in sorted(pictures(rng)) for which in "ab"]
    assert sorted(map(sorted, members.values())) == alone


@pytest.mark.slow
def test_clips_that_differ_in_the_colour_of_a_thing_are_no_copies(tmp_path: Path) -> None:
    folder, rng = tmp_path / "clips", np.random.default_rng(6)
    folder.mkdir()
    for name, picture in zip("ab", coloured(rng, next(drawn(rng))), strict=True):
        write_clip(folder / f"{name}.mp4", still(picture, rng, 1.5))
        write_clip(folder / f"{name}-copy.mp4", still(picture, rng, 1.5), quality=32)
    _, marks = run(folder, tmp_path / "out")
    groups = {path: row["group"] for path, row in marks.items()}
    assert groups["a.mp4"] == groups["a-copy.mp4"] != groups["b.mp4"] == groups["b-copy.mp4"]
    assert None not in groups.values()


@pytest.mark.slow
def test_mirrored_and_cropped_slides_are_copies_on_their_words(tmp_path: Path) -> None:
    folder, rng = tmp_path / "media", np.random.default_rng(5)
    folder.mkdir()
    one, other = other_words(rng, "chat", "a line")
    one.save(folder / "one.png")
    one.crop((10, 16, 706, 1250)).save(folder / "cropped.png")
    for name, picture in (("mirrored", one), ("other", other)):
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{name}.png")
    _, marks = run(folder, tmp_path / "out", mirrored=True)
    groups = {path: row["group"] for path, row in marks.items()}
    assert groups == {"cropped.png": 1, "mirrored.png": 1, "one.png": 1, "other.png": None}


@pytest.mark.parametrize("share", range(90, 100))
def test_central_crops_of_90_to_99_percent_are_copies(share: int, tmp_path: Path) -> None:
    scenes = drawn(np.random.default_rng(share))
    looks = []
    for scene in itertools.islice(scenes, 3):
        size = [round(side * share / 100) for side in scene.size]
        left, top = ((of - side) // 2 for of, side in zip(scene.size, size, strict=True))
        for picture in (scene, scene.crop((left, top, left + size[0], top + size[1]))):
            picture.save(tmp_path / "picture.jpg", quality=90)
            looks.append(image_marks(tmp_path / "picture.jpg").looks)
    items = [Fingerprint(looks=each, seconds=0) for each in looks]
    assert pairs_of(items, mirrored=False).tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    "condition", ["duplicate = 0 or exact = 0", "not (duplicate=1 and exact=1)"]
)
def test_of_exact_copies_one_is_kept_whatever_else_is_a_copy_of_them(condition: str) -> None:
    small, large = {"digest": "small", "width": 1}, {"digest": "large", "width": 3}
    files = table(small, small, large, pairs=[[0, 1]])
    kept, left = kept_of(files, parse_keep(condition))
    assert kept == [0, 2] and [*left.why] == [1], "0 is a copy of 2, and no exact one"


def test_a_file_that_a_list_names_twice_is_no_copy_of_itself(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        picture = Image.new("RGB", (96, 64), colour)
        ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill="white")
        picture.save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "same.png")
    lines = [("a", "A?"), ("a", "B?"), ("b", "C?"), ("same", "D?")]
    text = [json.dumps({"path": str(tmp_path / f"{n}.png"), "prompt": p}) for n, p in lines]
    (tmp_path / "list.jsonl").write_text("\n".join(text))
    where = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    words = ["sift", str(tmp_path / "list.jsonl"), *where, "--keep", "duplicate = 0", "--quiet"]
    assert main(words) == 0
    rows = read_lines(tmp_path / "out" / "kept.jsonl")
    kept = {(row["media_path"], row["prompt"]) for row in rows}
    assert kept == {("a.png", "A?"), ("a.png", "B?"), ("b.png", "C?")}
    (left,) = read_lines(tmp_path / "out" / "left_out.jsonl")
    assert left["media_path"] == "same.png"
