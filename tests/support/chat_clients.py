"""OpenAI's client, its next version beside the installed one, and what both are asked with."""

import base64
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.attacks import ROOT

PORT = "PENSTOCK_TEST_CHAT_PORT"
"""In the environment: the port of a server that is up already, which is then asked."""
NEXT_LOCK = ROOT / "requirements" / "openai3.txt"
PROMPT = "Describe this image in detail."


def messages(medium: bytes, kind: str = "image/png", prompt: str = PROMPT) -> Any:
    """One question about a picture, or about a clip."""
    data = f"data:{kind};base64,{base64.b64encode(medium).decode()}"
    name = "image_url" if kind.startswith("image/") else "video_url"
    parts = [{"type": "text", "text": prompt}, {"type": name, name: {"url": data}}]
    return [{"role": "user", "content": parts}]


def installer() -> list[str]:
    """The start of a command that installs packages; empty where there is none."""
    for uv in (shutil.which("uv"), str(ROOT / ".venv-uv" / "bin" / "uv")):
        if uv and os.access(uv, os.X_OK):
            return [uv, "pip", "install", "--python", sys.executable]
    pip = [str(Path(sys.base_prefix) / "bin" / "python3"), "-m", "pip"]
    found = subprocess.run([*pip, "--version"], capture_output=True, check=False)
    return [*pip, "install"] if found.returncode == 0 else []


@cache
def next_client() -> tuple[Path, str]:
    """The folder of the next version, installed as it is locked; or why it cannot be."""
    folder = ROOT / ".venv-openai3"
    version = NEXT_LOCK.read_text().split("openai==")[1].split()[0]
    if (folder / f"openai-{version}.dist-info").is_dir():
        return folder, ""
    command = [*installer(), "--no-deps", "--require-hashes", "--requirement", str(NEXT_LOCK)]
    if not installer():
        return folder, "nothing here installs packages"
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run(
        [*command, "--target", str(folder)], capture_output=True, text=True, check=False
    )
    return folder, made.stderr[-300:] if made.returncode else ""
