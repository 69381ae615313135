"""The program in an environment that lacks libraries which captions of images do not need."""

import json
import os
import sys
from pathlib import Path

import pytest

from artifacts.packages import EXTRAS
from scripts.prove.gpu_check.rows import pictures
from tests.support import gpus
from tests.support.commands import completed
from tests.support.hidden_modules import hiding
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS

BLOCKED = ("av", "num2words", "shtab", *(m for extra in EXTRAS.values() for m in extra.modules))


def environment(folder: Path, found: dict[str, str], then: str = "") -> dict[str, str]:
    """Return an environment whose processes cannot import BLOCKED."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(then + hiding(BLOCKED))
    paths = [str(folder), str(ROOT), found.get("PYTHONPATH", "")]
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.slow
def test_images_are_captioned(tmp_path: Path) -> None:
    media = pictures(tmp_path / "media")
    for path in sorted(media.iterdir())[2:]:
        path.unlink()
    out = tmp_path / "out"
    where = ["--out", str(out), "--store", str(tmp_path / "store")]
    found = environment(tmp_path / "site", dict(os.environ))
    _run([*PENSTOCK, "caption", str(media), "--model", "demo", *where], found)
    lines = (out / "captions.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(json.loads(line)["caption"] for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_checks_of_a_gpu_that_need_them_are_skipped_by_name(tmp_path: Path) -> None:
    machine = gpus.plain().write(tmp_path / "machine")
    fake = (gpus.FAKES / "sitecustomize.py").read_text()
    found = environment(tmp_path / "site", gpus.environment(machine), fake)
    only = [word for name in ("kernels, each", "model, LoRA, nf4") for word in ("--only", name)]
    command = [sys.executable, "-m", "scripts.prove.gpu_check", "--out", str(tmp_path), *only]
    _run(command, found)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    skipped = {each["name"]: each["found"] for each in rows if each["verdict"] == "skipped"}
    assert skipped["model, LoRA, nf4"].startswith("bitsandbytes is not installed")
    assert any(each["name"] == "attention of a step by math" for each in rows)


def _run(command: list[str], env: dict[str, str]) -> None:
    done = completed(command, env=env, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
