"""Earlier releases of transformers beside the installed one: each in a folder of its own that goes
before the installed packages, run in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.attacks import ROOT

FOLDERS = Path(os.environ.get("PENSTOCK_TEST_RELEASES", ROOT / ".venv-releases"))
"""Where the releases are installed, once for all test runs."""
REQUIREMENTS = {
    "4.45.0": ("tokenizers==0.20.3", "huggingface-hub==0.36.0"),
    "4.49.0": ("tokenizers==0.21.4", "huggingface-hub==0.36.0"),
    "4.57.1": ("tokenizers==0.22.1", "huggingface-hub==0.36.0"),
}
"""Release of transformers -> what it needs in another version than the installed one."""
RELEASES = {"qwen2_vl": "4.45.0", "qwen2_5_vl": "4.49.0", "qwen3_vl": "4.57.1"}
"""Family -> the release that its published weights are compared with."""
CHILD = (sys.executable, "-m", "tests.support.first_release_child")
SECONDS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """A picture or a video as a prompt holds it, its frames taken already."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    """Shape (frames, height, width, 3), RGB."""
    fps: float | None = None
    """Frames a second of a video; None: a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One prompt about some media, which the whole model answers."""

    prompt: str
    media: Sequence[Medium] = ()
    max_new_tokens: int = 12


def installer() -> list[str]:
    """The start of a command that installs packages; empty where there is none."""
    for uv in (shutil.which("uv"), str(ROOT / ".venv-uv" / "bin" / "uv")):
        if uv and os.access(uv, os.X_OK):
            return [uv, "pip", "install", "--python", sys.executable]
    pip = [str(Path(sys.base_prefix) / "bin" / "python3"), "-m", "pip"]
    found = subprocess.run([*pip, "--version"], capture_output=True, check=False)
    return [*pip, "install"] if found.returncode == 0 else []


@cache
def release(version: str) -> tuple[Path, str]:
    """Return the folder that a release is installed in, and why it cannot be (empty: it is)."""
    folder = FOLDERS / version
    if folder.is_dir():
        return folder, ""
    if not (command := installer()):
        return folder, "nothing here installs packages"
    FOLDERS.mkdir(parents=True, exist_ok=True)
    packages = (f"transformers=={version}", *REQUIREMENTS[version])
    with tempfile.TemporaryDirectory(dir=FOLDERS) as new:
        made = subprocess.run(
            [*command, "--no-deps", "--target", str(Path(new) / version), *packages],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            *_, last = made.stderr.strip().splitlines() or [""]
            return folder, f"transformers {version} cannot be installed: {last[-200:]}"
        if not folder.is_dir():  # or another test run has made it meanwhile
            shutil.move(Path(new) / version, folder)
    return folder, ""


def source(version: str, family: str) -> Path:
    """Return the file of a release that holds a family's model."""
    folder, _ = release(version)
    return folder / "transformers" / "models" / family / f"modeling_{family}.py"


def build(family: str, folder: Path) -> None:
    """Have a family's release write a tiny checkpoint, as its published ones were written."""
    _run(family, folder, [], "--build")


def answers(family: str, checkpoint: Path, questions: Sequence[Question]) -> list[str]:
    """Have a family's release load a checkpoint as a whole and answer questions one by one."""
    return _run(family, checkpoint, questions)


def _run(family: str, checkpoint: Path, questions: Sequence[Question], *options: str) -> list[str]:
    folder, why = release(RELEASES[family])
    assert not why, why
    with tempfile.TemporaryDirectory() as name:
        job = Path(name)
        _write(job, questions)
        ended = subprocess.run(
            [*CHILD, family, str(checkpoint), str(job), *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(folder), "TRANSFORMERS_VERBOSITY": "error"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        found: list[str] = json.loads((job / "answers.json").read_text())
        return found


def _write(job: Path, questions: Sequence[Question]) -> None:
    """Write questions as the child reads them."""
    requests: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for row, question in enumerate(questions):
        media = []
        for at, medium in enumerate(question.media):
            arrays[f"{row}-{at}"] = medium.frames
            media.append({"frames": f"{row}-{at}", "fps": medium.fps})
        most = question.max_new_tokens
        requests.append({"prompt": question.prompt, "media": media, "max_new_tokens": most})
    np.savez(job / "frames.npz", **arrays)
    (job / "questions.json").write_text(json.dumps(requests))
