"""Folders that hold other files: a command that owns its folder refuses them, and one that adds to
a folder replaces nothing that it did not write."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import penstock_demo
from flows.cli.main import main
from tests.support.pickled import drawn, write_folder

pytestmark = pytest.mark.slow
PICTURE = Path(__file__).parent / "data" / "clips" / "small.png"
OWNERS = ("export", "tune", "index")
ADDERS = {"caption": "captions.jsonl", "label": "labels.jsonl", "embed": "embeddings.parquet"}
"""Command → one of the files that it writes."""
MINE = '{"mine": [1, 2]}\n'


class World:
    """A picture, a store, and the commands over them."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.out = root, root / "out"
        self._store = ["--store", str(store)]
        self.pictures = root / "pictures"
        self.pictures.mkdir(exist_ok=True)
        shutil.copyfile(PICTURE, self.pictures / "small.png")

    def place(self, command: str) -> Path:
        """The folder of a command."""
        return self.out if command not in ("label", "embed") else self.out / command

    def __call__(self, command: str, *more: str, out: Path | None = None) -> int:
        folder, dual = str(out or self.place(command)), str(penstock_demo.DUAL_CHECKPOINT)
        pictures = str(self.pictures)
        formats = ["--format", "csv,parquet,webdataset"]
        labels = ["--labels", "a red square,a blue circle", "--format", "csv,parquet,coco"]
        words = {
            "caption": ["caption", pictures, "--model", "demo", *formats],
            "label": ["label", pictures, "--model", dual, *labels],
            "embed": ["embed", pictures, "--model", dual],
            "export": ["export", "demo", "--to", "nf4"],
            "tune": ["tune", pictures, "--model", "demo"],
            "index": ["index", "build", pictures, "--model", dual],
        }[command]
        return main([*words, "--out", folder, *self._store, *more])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """Captions and a report in a folder, labels and vectors below it, and an index beside it."""
    world = World(tmp_path_factory.mktemp("real"), store)
    assert [world(command) for command in ADDERS] == [0, 0, 0]
    assert world("index", out=world.root / "index") == 0
    assert main(["report", str(world.out)]) == 0
    return world.root


@pytest.fixture
def world(tmp_path: Path, store: Path) -> World:
    return World(tmp_path, store)


@pytest.fixture
def used(real: Path, world: World) -> World:
    """The same after all commands wrote into their folders."""
    shutil.rmtree(world.pictures)
    world.pictures.symlink_to(real / "pictures")  # the same picture by its real path
    for name in ("out", "index"):
        shutil.copytree(real / name, world.root / name, symlinks=True)
    return world


def seen(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder: each path with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def a_file(path: Path, text: str = MINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


FILLED: dict[str, Callable[[Path], object]] = {
    "a readme": lambda folder: a_file(folder / "README.md"),
    "graphs": lambda folder: a_file(folder / "onnx" / "model.onnx"),
    "a repository": lambda folder: a_file(folder / ".git" / "config"),
    "an empty folder": lambda folder: (folder / "later").mkdir(parents=True),
    "an adapter": lambda folder: [
        a_file(folder / name) for name in ("adapter_config.json", "tune.json", "run/run.json")
    ],
    "another's run": lambda folder: (a_file(folder / "run" / "run.json"), a_file(folder / "x")),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [("export", "graphs"), ("tune", "a readme"), *(("index", kind) for kind in FILLED)],
)
def test_a_command_that_owns_its_folder_refuses_one_with_other_content(
    world: World, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    FILLED[kind](world.out)
    before = seen(world.out)
    assert world(command) == 2
    assert seen(world.out) == before
    assert "holds other files" in capsys.readouterr().err.splitlines()[-1]


def test_weights_are_not_converted_into_a_folder_with_other_content(world: World) -> None:
    source = write_folder(world.root / "source", drawn())
    FILLED["a repository"](world.out)
    before = seen(world.out)
    assert main(["convert", str(source), str(world.out)]) in (2, 5)
    assert seen(world.out) == before


@pytest.mark.parametrize("command", OWNERS)
def test_a_link_is_judged_by_the_folder_to_which_it_leads(world: World, command: str) -> None:
    a_file(world.root / "elsewhere" / "README.md")
    world.out.symlink_to("elsewhere")
    assert world(command) == 2
    assert os.listdir(world.root / "elsewhere") == ["README.md"] and world.out.is_symlink()


@pytest.mark.parametrize("command", [*OWNERS, *ADDERS])
def test_a_file_in_the_place_of_the_folder_stays(
    world: World, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    a_file(world.out)
    assert world(command) in (2, 5)
    assert world.out.read_text() == MINE
    assert str(world.out) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", OWNERS)
def test_a_folder_that_another_command_wrote_is_refused(used: World, command: str) -> None:
    others = [used.out, used.root / "index"] if command != "index" else [used.out]
    before = seen(used.root)
    assert [world for other in others if (world := used(command, out=other)) != 2] == []
    assert seen(used.root) == before


def test_an_index_goes_on_in_its_own_folder_and_begins_in_an_empty_one(used: World) -> None:
    assert used("index", out=used.root / "index") == 0
    (used.root / "new" / "run").mkdir(parents=True)
    (used.root / "new" / ".penstock-half").touch()  # of a run that was killed
    assert used("index", out=used.root / "new") == 0


def test_somebody_s_index_json_is_no_index(world: World) -> None:
    a_file(world.out / "index.json")
    assert world("index") in (2, 5)
    assert (world.out / "index.json").read_text() == MINE


@pytest.mark.parametrize("command", ADDERS)
def test_a_file_of_an_output_s_name_that_no_run_wrote_stays(
    world: World, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = a_file(world.place(command) / ADDERS[command])
    assert world(command, *(["--overwrite"] if command == "caption" else [])) == 2
    assert path.read_text() == MINE
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in said and "--out" in said
    assert not (world.place(command) / ".lock").exists()  # no work was begun


def test_a_shard_of_somebody_s_in_our_data_set_is_not_deleted(used: World) -> None:
    path = used.out / "webdataset" / "000009.tar"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("cat.jpg")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"cat"))
    before = path.read_bytes()
    assert used("caption", "--prompt", "Another?") == 2
    assert path.read_bytes() == before


def test_commands_go_on_in_their_own_folders_and_share_none(used: World) -> None:
    assert [used(command) for command in ("embed", "label", "caption")] == [0, 0, 0]
    assert [used(command, out=used.out) for command in ("embed", "label")] == [2, 2]
    before = (used.out / "report.html").stat().st_mtime_ns
    assert main(["report", str(used.out)]) == 0
    assert (used.out / "report.html").stat().st_mtime_ns > before


@pytest.mark.parametrize("command", ADDERS)
def test_a_run_that_was_killed_between_its_outputs_is_gone_on_with(
    used: World, command: str
) -> None:
    lost = used.place(command) / ADDERS[command]
    lost.unlink()
    (used.place(command) / ".penstock-half").write_bytes(b"\0" * 100)
    (used.place(command) / "failures.jsonl").write_bytes(b"")
    assert used(command) == 0
    assert lost.is_file()


@pytest.mark.parametrize("name", ["report.html", "notes.txt", "link.html"])
def test_a_report_replaces_no_page_of_somebody_s(
    used: World, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mine = "<!doctype html>\n<title>Mine</title>\n"
    page = used.out / name
    if name == "link.html":  # nor writes through it
        page.symlink_to(a_file(used.root / "mine.html", mine))
    else:
        a_file(page, mine)
    told = [] if name == "report.html" else ["--to", str(page)]
    assert main(["report", str(used.out), *told]) == 2
    assert page.read_text() == mine
    assert str(page) in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["keep", "append"])
def test_a_text_beside_a_picture_keeps_its_words(world: World, rule: str) -> None:
    text = a_file(world.pictures / "small.txt", "by hand")
    assert world("caption", "--format", "txt", "--beside", "--existing", rule) == 0
    assert text.read_text().startswith("by hand") and (rule == "append") == (
        text.read_text() != "by hand"
    )
