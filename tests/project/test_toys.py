"""What another stage, store, engine or option takes is counted in files, and then run, in copies of
the program: toys put there by patches that are kept in tests/data/toys."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import penstock_demo
from artifacts.records.packs import Record
from tests.project.test_layers import PACKAGES, ROOT, lint
from tests.support.clips import PROMPTS
from tests.support.commands import completed
from tests.support.embedding import items
from tests.support.waves import CAPTIONS, OTHER, keys_told, mixed_wave, noted, words

pytestmark = pytest.mark.slow
TOYS = ROOT / "tests" / "data" / "toys"


def patched(toy: str, folder: Path) -> tuple[Path, list[str]]:
    """A copy of the program in `folder` with a toy in it, and the names of the files that took.
    One that does not apply any more is made anew: apply it by hand, mend it, `git diff`."""
    copy = folder / "penstock"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    patch = TOYS / f"{toy}.patch"
    # Outside of any repository git applies a patch to the folder that it stands in.
    apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)}
    done = completed(["git", "apply", "-C1", str(patch)], cwd=copy, env=apart)
    assert done.returncode == 0, done.stderr
    names = [line.split("/", 1)[1] for line in patch.read_text().splitlines() if line[:4] == "+++ "]
    return copy, names


def inside(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command in the copy, with its modules and nobody else's."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return completed([sys.executable, *command], cwd=copy, env=environment)


def test_a_command_is_one_folder_and_one_line(tmp_path: Path) -> None:
    copy, names = patched("command", tmp_path)
    folder = "flows/commands/count/"
    assert [name for name in names if not name.startswith(folder)] == [NAMES]
    line = '    "count": ("count the media of a folder", "flows.commands.count"),'
    assert _added(copy / NAMES, ROOT / NAMES) == [line]
    assert lint(copy).returncode == 0
    assert penstock(copy, "count", str(penstock_demo.CLIPS)).stdout == "12\n"
    assert "count the media of a folder" in penstock(copy, "--help").stdout


CLIPS = ("clip-01.mp4", "clip-02.mp4", "clip-03.mp4")
NAMES = "flows/core/commands.py"
"""The file that names all commands."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(penstock_demo.CLIPS / name, folder / "clips")
    copy, names = patched("stage", folder)
    folders = {"flows/commands/thumb", "stages/thumb"}
    others = [name for name in names if name.rpartition("/")[0] not in folders]
    assert sorted(others) == [NAMES, "pyproject.toml"]
    assert [len(_added(copy / name, ROOT / name)) for name in others] == [1, 1]
    return copy


def _added(copy: Path, original: Path) -> list[str]:
    """Lines of a file that the original does not have."""
    old = original.read_text().split("\n")
    return [line for line in copy.read_text().split("\n") if line not in old]


def penstock(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = inside(copy, "-m", "flows.interfaces.cli.main", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def thumb(copy: Path, *more: str) -> str:
    places = ["--store", str(copy.parent / "store"), "--out", str(copy.parent / "out")]
    clips = str(copy.parent / "clips")
    done = penstock(copy, "thumb", clips, "--model", "demo", *places, *more)
    return done.stdout + done.stderr


def test_the_layers_hold_with_it(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


def test_it_is_planned_run_shown_and_resumed(copy: Path) -> None:
    out = copy.parent / "out"
    planned = thumb(copy, "--dry-run")
    assert "  thumb " in planned and "decode" not in planned and not out.exists()
    message = thumb(copy)
    assert "making thumbs: 3 chunks to do" in message
    assert items(copy.parent) == {"frames": 3, "thumb": 3}
    for path in out.glob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG" and max(image.size) == 64
    first = {path.name: path.read_bytes() for path in out.glob("*.jpg")}
    assert len(first) == 3
    status = penstock(copy, "status", str(out)).stdout
    assert re.search(r"^thumb +3 ", status, re.MULTILINE) and "\ndecode" not in status
    penstock(copy, "report", str(out))
    assert "thumb" in (out / "report.html").read_text()

    assert thumb(copy) == "" and items(copy.parent) == {"frames": 0, "thumb": 0}
    # The frames are given back: of a record that is lost, and of it alone, all is made anew.
    packs = sorted((copy.parent / "store" / "thumbs").rglob("*.pack"))
    assert len(packs) == len(CLIPS)
    packs[0].unlink()
    thumb(copy)
    assert items(copy.parent) == {"frames": 1, "thumb": 1}
    assert {path.name: path.read_bytes() for path in out.glob("*.jpg")} == first


def test_captions_are_as_they_were_without_it(copy: Path, tmp_path: Path) -> None:
    clip = str(copy.parent / "clips" / CLIPS[0])
    texts = []
    for folder, name in ((copy, "with"), (ROOT, "without")):
        places = ["--store", str(tmp_path / name), "--out", str(tmp_path / f"out-{name}")]
        penstock(folder, "caption", clip, "--model", "demo", *places)
        texts.append((tmp_path / f"out-{name}" / "captions.jsonl").read_bytes())
    assert texts[0] == texts[1]


ENGINE = "row-by-row"
"""The engine that `engine.patch` adds, which has `generate` caption one row at a time."""
DECODE = """
import json, sys
from stages.decode.run import run, warm
from stages.process.events import EventReporter
job = json.loads(sys.argv[1])
warm(job)
run(job, EventReporter(1))
"""
"""The decode stage, with its events on stdout."""


def events_of(copy: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stage tells in the copy."""
    done = inside(copy, "-c", DECODE, json.dumps(job))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_engine_takes_two_files_and_captions_as_ours_do(tmp_path: Path) -> None:
    copy, files = patched("engine", tmp_path)
    assert files == ["stages/decode/engines/__init__.py", "stages/decode/engines/row_by_row.py"]
    wave = mixed_wave(tmp_path, 4)
    ours = wave.captions()  # of `inflight`, in fp32
    kept = Record(key="caption-1", meta={"caption": "kept", "tokens": 1, "ended": "stop"})
    wave.record_set("captions", OTHER).publish([kept])

    message = events_of(copy, wave.to_decode(PROMPTS, OTHER, 32) | {"engine": ENGINE})
    first, other, *rest = wave.captions(OTHER)
    assert other == kept.meta
    assert words([first, *rest]) == words([ours[0], *ours[2:]])
    assert {(one["engine"], one["engine_version"]) for one in (first, *rest)} == {(ENGINE, 1)}
    assert noted(message)["engine"] == ENGINE
    assert [*keys_told(message)] == [f"caption-{n}" for n in range(len(ours)) if n != 1]
    assert wave.captions(CAPTIONS) == ours


def test_another_engine_is_offered_planned_and_run_like_ours(tmp_path: Path) -> None:
    copy, _ = patched("engine", tmp_path)
    assert lint(copy).returncode == 0
    assert f"auto|transformers|inflight|gguf|{ENGINE} [auto]" in " ".join(
        penstock(copy, "caption", "--help").stdout.split()
    )
    clip, found = str(penstock_demo.CLIPS / CLIPS[0]), []
    requests = ["--model", "demo", "--precision", "fp32", "--store", str(tmp_path / "store")]
    for engine in ("inflight", ENGINE):
        out = tmp_path / engine
        more = [*requests, "--engine", engine, "--out", str(out)]
        assert "decode" in penstock(copy, "plan", clip, *more).stdout
        penstock(copy, "caption", clip, *more)
        run = json.loads((out / "run.json").read_text())
        (decode,) = (stage for stage in run["stages"] if stage["name"] == "decode")
        assert decode["items"] and decode["notes"]["engine"] == engine
        found.append((out / "captions.jsonl").read_bytes())
    assert found[0] == found[1]
    stored = {path.parent.name for path in (tmp_path / "store" / "captions").rglob("*.pack")}
    assert len(stored) == 2, "each has a namespace of its own"


OPTION = """
import json
from flows.interfaces.cli.main import parse
from flows.commands.shared.arguments import config_of
from flows.interfaces.prefect.commands import caption_videos
from flows.core.options.commands import CaptionConfig
from penstock.arguments import config_for
from scripts.pages import keywords
keywords.FILE.write_text(keywords.source())
from penstock.keywords import CaptionOptions
given = parse(["caption", "a.mp4", "--capitals"])
form = caption_videos.parameters.model_dump()["definitions"]["CaptionConfig"]["properties"]
known = CaptionOptions.__annotations__
print(json.dumps([
    config_of(given, CaptionConfig).capitals,
    form["capitals"]["description"],
    known["capitals"].__name__,
    config_for("a", {"capitals": True}, CaptionConfig, known).capitals,
]))
"""
"""What derives from the declaration of `--capitals`, the option that `option.patch` adds."""


def test_an_option_takes_its_declaration_and_who_reads_it(tmp_path: Path) -> None:
    copy, names = patched("option", tmp_path)
    assert names == ["flows/core/options/text.py", "flows/outputs/captions.py"]
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    done = inside(copy, "-c", OPTION)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, "Write every caption in capitals.", "bool", True]
    assert "--capitals" in penstock(copy, "caption", "--help").stdout
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    clip = str(penstock_demo.CLIPS / CLIPS[0])
    penstock(copy, "caption", clip, "--model", "demo", "--capitals", *places)
    row = json.loads((tmp_path / "out" / "captions.jsonl").read_text().splitlines()[0])
    assert row["caption"] == row["caption"].upper() != ""


def test_another_store_is_a_module_and_an_entry(tmp_path: Path) -> None:
    copy, names = patched("store", tmp_path)
    assert sorted(names) == ["artifacts/records/store.py", "artifacts/records/stores/memory.py"]
    # What is proved here is that of the store which test_artifacts_store_contract.py looks at.
    ours = ROOT / "tests" / "support" / "memory_store.py"
    assert (copy / "artifacts" / "records" / "stores" / "memory.py").read_text() == ours.read_text()
    code = "from artifacts.records.store import open_store; print(open_store('memory://x').list())"
    assert inside(copy, "-c", code).returncode == 0
