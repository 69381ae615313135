"""One output folder has one owner: no run takes a folder from another command, and none drops rows
of media that still exist."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import penstock
import penstock_demo
from artifacts.errors import UsageError
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from flows.outputs.folder.owners import refuse_taking
from flows.outputs.marker import MARKER, Marker, own_marker, write_marker
from tests.support.strangers import own_folder

DUAL = str(penstock_demo.DUAL_CHECKPOINT)
LABELS = ["--labels", "a red square,a blue circle", "--model", DUAL]
OTHERS: dict[str, list[str]] = {
    "label": ["label", "a", *LABELS],
    "embed": ["embed", "a", "--model", DUAL],
    "sift": ["sift", "a"],
    "sift by vectors": ["sift", "a", "--model", DUAL, "--similar", "0.9"],
}
PICTURES = {"a": ("1", "2", "3"), "b": ("4",)}


def caption(*sources: str, more: Sequence[str] = ()) -> int:
    """Caption into `out` with a kohya data set and a table."""
    formats = ["--format", "kohya,csv"]
    return main(["caption", *sources, "--model", "demo", "--out", "out", *formats, *more])


def kohya(out: str = "out") -> list[str]:
    """The pictures of the data set, by its own file."""
    paths = json.loads(Path(out, "kohya/metadata.json").read_text())
    return sorted(Path(path).name for path in paths)


def rows() -> list[str]:
    lines = Path("out/captions.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["media_path"] for line in lines)


def seen(folder: str = "out") -> dict[str, bytes]:
    """Each file of a folder with its bytes, but for locks."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != ".lock"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, and captions of the first with a data set."""
    root = tmp_path_factory.mktemp("made")
    for folder, names in PICTURES.items():
        (root / folder).mkdir()
        for name in names:
            Image.new("RGB", (64, 48), (60 * int(name), 20, 90)).save(root / folder / f"{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PENSTOCK_STORE", str(root / "store"))
        assert caption("a") == 0
    return root


@pytest.fixture(autouse=True)
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the outputs and the store, and links to the media, in which the test works."""
    for name in PICTURES:
        (tmp_path / name).symlink_to(made / name)
    for name in ("out", "store"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def own_media(work: Path, made: Path) -> None:
    """Copies of the media in the place of the links, captioned, which the test may change."""
    for name in PICTURES:
        (work / name).unlink()
        shutil.copytree(made / name, work / name)
    shutil.rmtree("out")
    assert caption("a") == 0
    assert rows() == kohya() == ["1.png", "2.png", "3.png"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_command_leaves_another_s_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = seen()
    for more in ([], ["--dry-run"]):
        code = main([*OTHERS[name], "--out", "out", *more])
        changed = [path for path, content in seen().items() if before.get(path) != content]
        assert (code, changed) == (2, []), f"{name} {more} ended with {code} and changed {changed}"
        assert "out is the output folder of `penstock caption`" in capsys.readouterr().err


@pytest.mark.slow
def test_captions_leave_the_folders_of_labels_vectors_and_marks_as_they_are() -> None:
    for name in ("label", "embed", "sift"):
        assert main([*OTHERS[name], "--out", name]) == 0
        assert main([*OTHERS[name], "--out", name]) == 0  # its own
        before = seen(name)
        assert main(["caption", "a", "--model", "demo", "--out", name]) == 2
        assert seen(name) == before


@pytest.mark.slow
def test_python_refuses_the_same() -> None:
    before = seen()
    with pytest.raises(UsageError, match="is the output folder of `penstock caption`"):
        penstock.label("a", model=DUAL, labels="a dog", out="out").result()
    with pytest.raises(UsageError, match="rows of 3 files that these sources do not name"):
        penstock.caption("b", model="demo", out="out").result()
    assert seen() == before


@pytest.mark.parametrize("source", ["b", "b/4.png", "broken.png"])
def test_other_media_empty_no_data_set(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.png").write_bytes(b"no picture")
    before = seen()
    for more in ([], ["--sift", "blurred = 0"], ["--dry-run"]):
        assert (caption(source, more=more), kohya()) == (2, ["1.png", "2.png", "3.png"])
        assert rows() == kohya() and seen() == before
        error = capsys.readouterr().err.splitlines()[-1]
        assert "rows of 3 files that these sources do not name" in error and "a/1.png" in error


@pytest.mark.slow
@pytest.mark.usefixtures("own_media")
def test_a_part_of_the_media_does_not_drop_the_others() -> None:
    assert caption("a/1.png", "a/2.png") == 2
    assert caption("a", "b", more=["--extensions", "jpg,gif,webp,bmp"]) == 2
    (Path("a") / "deep").mkdir()
    os.rename("b/4.png", "a/deep/4.png")
    assert caption("a", more=["--recursive"]) == 0
    assert caption("a") == 2 and len(rows()) == len(kohya()) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("own_media")
def test_what_drops_nothing_is_not_refused(work: Path) -> None:
    files = [f"a/{name}.png" for name in "123"]
    os.symlink("a", "link")
    Path("list.txt").write_text("a/1.png\na/2.png\na/3.png\n")
    for sources in (files, files[::-1], ["./a/../a/"], [str(work / "a")], ["link"], ["a/*.png"]):
        assert caption(*sources) == 0, sources
        assert len(kohya()) == 3
    assert caption("@list.txt") == 0
    assert caption("a", more=["--prompt", "What is it?"]) == 0
    assert caption("a", more=["--limit", "2"]) == 0 and len(kohya()) == 2
    assert caption("a", more=["--limit", "1"]) == 0 and len(kohya()) == 1
    assert caption("a", "b") == 0 and len(kohya()) == 4
    os.unlink("a/3.png")
    assert caption("a/1.png", "a/2.png", "b") == 0 and len(kohya()) == 3


@pytest.mark.slow
def test_a_data_set_keeps_media_that_a_smaller_run_did_not_name() -> None:
    shards = ["--format", "webdataset"]
    words = ["caption", "--model", "demo", "--out", "shards"]
    assert main([*words, "a", *shards]) == 0
    index = Path("shards/webdataset/index.json").read_bytes()
    assert main([*words, "a", "--limit", "1"]) == 0
    assert main([*words, "a/1.png", "b", *shards]) == 2
    assert Path("shards/webdataset/index.json").read_bytes() == index
    assert main([*words, "a/1.png", "b"]) == 0, "it leaves the shards as they are"


@pytest.mark.slow
def test_only_replace_drops_rows_and_takes_a_folder_over() -> None:
    for more in (["--overwrite"], ["--existing", "replace"]):
        assert caption("b", more=more) == 2 and len(kohya()) == 3
    assert caption("b", more=["--replace"]) == 0 and kohya() == rows() == ["4.png"]
    assert main([*OTHERS["label"], "--out", "out", "--replace"]) == 0
    assert caption("b") == 2, "it is the folder of the labels now"


@pytest.mark.slow
@pytest.mark.usefixtures("own_media")
def test_a_run_in_which_all_fails_leaves_data_sets_as_they_are() -> None:
    for name in "123":
        os.truncate(f"a/{name}.png", 60)
    before = seen()
    assert caption("a") == 1
    assert rows() == []
    assert kohya() == ["1.png", "2.png", "3.png"]
    for name in ("out/captions.csv", "out/kohya/metadata.json"):
        assert seen()[name] == before[name]


@pytest.mark.parametrize("change", ["changed", "of another", "malformed", "a link", "media"])
def test_a_folder_that_no_note_proves_is_a_stranger_s(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = Path("out", MARKER)
    value = json.loads(marker.read_text())
    if change == "changed":
        marker.write_text(json.dumps({**value, "folder": "/"}))
    elif change == "of another":
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "other store"))
    elif change == "malformed":
        marker.write_text("{}")
    elif change == "a link":
        marker.rename("moved")
        marker.symlink_to(tmp_path / "moved")
    else:
        Path("out/media.jsonl").write_text("")
    before = seen()
    for more in ([], ["--replace"], ["--dry-run"]):
        assert caption("a", more=more) == 2
        assert main([*OTHERS["label"], "--out", "out", *more]) == 2
        assert seen() == before
        assert "is the output folder of another user or machine" in capsys.readouterr().err


def test_a_folder_goes_on_with_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # another machine
    assert caption("a") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("own_media")
def test_captions_do_not_go_into_the_folder_of_labels(capsys: pytest.CaptureFixture[str]) -> None:
    os.renames("b", "c/labels")
    assert main([*OTHERS["label"], "--out", "all/labels"]) == 0
    words = ["caption", "a", "c", "--recursive", "--model", "demo", "--out", "all"]
    before = seen("all")
    assert main([*words, "--format", "txt"]) == 2
    assert seen("all") == before
    assert "all/labels, which is the output folder of another" in capsys.readouterr().err
    assert main(words) == 0
    assert main([*words[:-1], "new", "--format", "txt"]) == 0
    assert main([*OTHERS["label"], "--out", "new/labels"]) == 2
    assert list(seen("new/labels")) == ["new/labels/4.txt"]


@pytest.mark.slow
def test_labels_and_vectors_lie_below_the_captions_by_default() -> None:
    assert main(["caption", "a", "--model", "demo"]) == 0
    assert [main(OTHERS[name]) for name in OTHERS] == [0] * len(OTHERS)
    folders = {path.parent for path in Path("penstock-out").rglob(MARKER)}
    markers = {str(folder): own_marker(folder) for folder in folders}
    commands = {name: marker.command for name, marker in markers.items() if marker is not None}
    below = {"labels": "label", "sift": "sift", "vectors": "embed"}
    assert commands.pop("penstock-out") == "caption"
    assert commands == {f"penstock-out/{name}": command for name, command in below.items()}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "report"])
def test_runs_below_the_default_are_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(OTHERS["label"]) == 0
    capsys.readouterr()
    assert main([command]) == 2
    assert "penstock-out/labels" in capsys.readouterr().err
    assert main(["caption", "a", "--model", "demo"]) == main([command]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "other runs: penstock-out/labels"


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("s3://b/films/", "s3://b/films/gone.mp4"),
        ("s3://b/films", "s3://b/films/gone.mp4"),
        ("s3://b/films/**/*.mp4", "s3://b/films/of/1999/gone.mp4"),
        ("s3://b/films/*.mp4", "s3://b/films/gone.mp4"),
        ("https://host/gone.mp4?token=secret", "https://host/gone.mp4"),
    ],
)
def test_objects_below_these_sources_may_go(tmp_path: Path, source: str, address: str) -> None:
    entry = {"media_path": "gone.mp4", "source": source, "kind": "video", "url": "file:///x"}
    line = json.dumps({**entry, "captions": 1, "address": address})
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "media.jsonl").write_text(line + "\n")
    own_folder(tmp_path / "far")
    refuse_taking(CaptionConfig(sources=(source,), out=str(tmp_path / "far")), "caption")


def test_a_later_format_replaces_its_own_table_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/captions.parquet").write_text("mine")
    assert caption("a", more=["--format", "parquet"]) == 2
    assert "captions.parquet exists, and penstock did not write it" in capsys.readouterr().err
    assert Path("out/captions.parquet").read_text() == "mine"
    Path("out/captions.parquet").unlink()
    for _ in range(2):
        assert caption("a", more=["--format", "webdataset"]) == 0
    assert caption("a") == 0, "the table is its own"
    assert (marker := own_marker(Path("out"))) is not None
    assert {"captions.csv", "captions.jsonl", "webdataset"} <= set(marker.outputs)
    shutil.rmtree("out/webdataset")
    Path("out", MARKER).unlink()
    assert caption("a") == 2, "a folder without its marker is nobody's"


@pytest.mark.slow
def test_a_run_that_finds_nothing_to_read_does_not_close_its_folder() -> None:
    Path("gone.txt").write_text("nowhere.png\n")
    assert main(["caption", "@gone.txt", "--model", "demo", "--out", "new"]) == 2
    assert main(["sift", "@gone.txt", "--out", "new"]) == 2
    assert Path("new/failures.jsonl").read_text()
    assert main(["caption", "a", "--model", "demo", "--out", "new"]) == 0


@pytest.mark.parametrize("inside", ["hf", "logs", "clips/more"])
def test_no_run_writes_into_a_data_set_of_another(inside: str, tmp_path: Path) -> None:
    (out := tmp_path / "out of another").mkdir()
    write_marker(out, Marker(command="caption", outputs=("captions.jsonl", "clips")))
    config = CaptionConfig(sources=(str(tmp_path),), model="demo", out=str(out / inside))
    with pytest.raises(UsageError, match=f"another/{inside} holds what a run into .*another wrote"):
        refuse_taking(config, "caption")
    (out / "clips").mkdir()
    (out / "clips" / "index.json").write_text("{}")  # as an index has one
    with pytest.raises(UsageError, match=r"another/clips holds what a run into .*another wrote"):
        refuse_taking(replace(config, out=str(out / "clips")), "caption")
    refuse_taking(replace(config, out=str(out / "labels")), "caption")


@pytest.mark.parametrize("name", ["index.json", "adapter_config.json", "config.json"])
def test_no_run_writes_into_an_index_an_adapter_or_a_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    config = CaptionConfig(sources=(str(tmp_path),), model="demo", out=str(tmp_path))
    with pytest.raises(UsageError, match="is a folder of"):
        refuse_taking(config, "caption")


@pytest.mark.in_turn
@pytest.mark.parametrize("name", ["clips", "ltx", "hf"])
def test_media_of_a_person_in_the_place_of_a_data_set_end_the_run_before_any_work(
    work: Path, made: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "film" / name / "deep").mkdir(parents=True)
    shutil.copy(made / "a/1.png", work / "film" / name / "deep")
    shutil.copy(made / "a/2.png", work / "film")
    before = seen("film")
    form = "ltx" if name == "clips" else name
    words = ["caption", "film", "--recursive", "--model", "demo", "--out", "film"]
    assert main([*words, "--format", form]) == 2
    error = capsys.readouterr().err
    assert f"film/{name}" in error and "1.png" in error
    assert seen("film") == before
    assert main([*words, "--format", "kohya"]) == 0  # a data set without clips, beside them
    assert len(Path("film/captions.jsonl").read_text().splitlines()) == 2


def test_edited_files_of_rows_are_kept_by_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for name in ("captions.jsonl", "captions.csv"):
        (path := Path("out", name)).write_text(path.read_text().replace(" ", "  "))
        texts[name] = path.read_text()
    before = {*seen()}
    assert caption("a") == 0
    error = capsys.readouterr().err
    for name, text in texts.items():
        stem, _, suffix = name.partition(".")
        assert Path(f"out/{stem}.edited.{suffix}").read_text() == text
        assert f"out/{name} was changed since a run wrote it" in error
        assert Path("out", name).read_text() != text
    kept = {*seen()}
    assert caption("a") == 0
    assert "was changed" not in capsys.readouterr().err
    assert {*seen()} == kept > before
    Path("out/captions.jsonl").write_text("mine\n")
    assert caption("a") == 0
    assert Path("out/captions.edited-2.jsonl").read_text() == "mine\n"
    assert Path("out/captions.edited.jsonl").read_text() == texts["captions.jsonl"]


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("label", ["labels.jsonl", "labels.csv", "labels.coco.json"]),
        ("sift", ["marks.csv", "kept.jsonl", "left_out.jsonl"]),
    ],
)
def test_rows_of_labels_and_marks_that_a_person_edited_are_kept_too(
    command: str, names: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    forms = "csv,coco" if command == "label" else "csv"
    words = [*OTHERS[command], "--out", command, "--format", forms]
    assert main(words) == 0
    assert "was changed" not in capsys.readouterr().err
    for name in names:
        with Path(command, name).open("a") as file:
            file.write("mine\n")
    assert main(words) == 0
    for name in names:
        stem, _, suffix = name.rpartition(".")
        assert Path(f"{command}/{stem}.edited.{suffix}").read_text().endswith("mine\n")
        assert not Path(command, name).read_text().endswith("mine\n")
    before = seen(command)
    assert main(words) == 0
    assert {*seen(command)} == {*before}
