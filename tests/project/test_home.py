"""What the program leaves below the home of a user, and that docs/remove.md names all of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.support.media import write_video

ROOT = Path(__file__).resolve().parents[2]
PENSTOCK = [sys.executable, "-m", "penstock"]
MODEL = ["--model", "demo"]
COMMANDS = (
    ["demo", "--clips", "1"],
    ["doctor"],
    ["plan", "media", *MODEL],
    ["caption", "media", *MODEL, "--frames", "2", "--format", "txt,kohya,parquet"],
    ["status"],
    ["report"],
    ["embed", "media", *MODEL],
    ["label", "media", *MODEL, "--labels", "red,blue", "--format", "csv"],
    ["sift", "media"],
    ["index", "build", "media", *MODEL],
    ["search", "a red square"],
    ["tune", "penstock-out/captions.jsonl", *MODEL, "--out", "adapter", "--steps", "1"],
    ["export", "demo", "--to", "onnx", "--out", "onnx", "--calibrate", "media", "--accept"],
    ["cache", "ls"],
    ["completion", "bash"],
)
SERVERS = (
    ["serve", *MODEL, "--caption-model", "demo", "--port", "0"],
    ["review", "--port", "0"],
    ["studio", "media", "--port", "0"],
)
ENDED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def home_of(folder: Path) -> dict[str, str]:
    """The environment of a user whose home is empty."""
    home = folder / "home"
    home.mkdir()
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def left_in(home: Path) -> set[str]:
    """Files, and empty folders, below a home, by the folder of the program that made them."""
    found = {path for path in home.rglob("*") if path.is_file() or not any(path.iterdir())}
    places = (path.relative_to(home).parts for path in found)
    return {"/".join(parts[: 3 if parts[0] == ".local" else 2]) for parts in places}


def named() -> set[str]:
    """The folders below the home that docs/remove.md has in its table."""
    text = (ROOT / "docs/remove.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return {found for row in rows for found in re.findall(r"`~/([^`]+)`", row.split("|")[1])}


def served(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a server, wait until it prints its address, and end it."""
    made = subprocess.Popen(
        [*PENSTOCK, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert made.stdout is not None
    said = next((line for line in made.stdout if "http://" in line), "")
    time.sleep(1.0)
    made.send_signal(signal.SIGTERM)
    rest = made.communicate(timeout=120)[0]
    assert said and made.returncode in ENDED, (words, said, rest)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_setup_leaves_nothing_in_the_home(tmp_path: Path) -> None:
    """The import of some libraries writes an id of the machine, or an empty folder."""
    environment = home_of(tmp_path)
    compiled = [sys.executable, "scripts/run/compile_imports.py"]
    subprocess.run(compiled, cwd=ROOT, env=environment, check=True)
    assert left_in(tmp_path / "home") == set()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_commands_leave_in_the_home_is_on_the_page_about_removing(tmp_path: Path) -> None:
    environment, media = home_of(tmp_path), tmp_path / "media"
    media.mkdir()
    Image.new("RGB", (64, 48), "red").save(media / "a.png")
    write_video(media / "b.mp4", ticks=range(0, 60, 6))
    environment["PYTHONPATH"] = str(ROOT)
    for words in COMMANDS:
        done = subprocess.run(
            [*PENSTOCK, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stderr[-800:])
    for words in SERVERS:
        served(words, tmp_path, environment)
    found = left_in(tmp_path / "home")
    assert found and found <= named(), (found, named())
