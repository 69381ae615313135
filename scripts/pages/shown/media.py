"""Makes the folder in which the commands of a page are run: the demo's clips and pictures under the
names that the pages give to one's own."""

import json
import os
import shutil
from pathlib import Path

from scripts.pages.shown.commands import ROOT
from scripts.prove.follow_deploy import lend_environment
from scripts.run.warm import HOOK

LENT = ("Makefile", "scripts", "pyproject.toml", "requirements", "demo", "penstock_demo")
"""Of the clone, what commands name or need."""
CLIPS = ("clip-01.mp4", "clip-02.mp4")
PICTURES = ("PHOTOS", "PICTURES", "SCANS")
QUESTIONS = ROOT / "docs/questions.md"
TEXTS = {
    "questions.toml": (ROOT / "docs/questions.md")
    .read_text("utf-8")
    .split("```")[1][len("toml\n") :],
    "decisions.csv": "media_path,question,answer\nwide.png,shot,wide shot\n",
    "does.json": (
        '{"does": {"text": "What does the blue square do?", '
        '"labels": ["moves left", "moves right", "grows"]}}'
    ),
    "labels.txt": "red star\nblue ring\n",
    "parts.txt": "red star\nblue ring\n",
    "actions.txt": "red star\nblue ring\n",
    "templates.txt": "a photo of {}\n{}\n",
    "labels.yaml": "thing:\nred star: {parent: thing, prompts: [a red star]}\n",
    "form.json": json.dumps(
        {
            "type": "object",
            "properties": {
                "tags": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 20},
                    "maxItems": 4,
                }
            },
            "required": ["tags"],
        }
    ),
}
"""Files that a user would have written."""


def furnish(folder: Path) -> None:
    """Fill a new folder that looks like a clone, with media in it."""
    for name in LENT:
        (folder / name).symlink_to(ROOT / name)
    lend_environment(folder, code=ROOT)
    (packages,) = (folder / ".venv/lib").glob("python*/site-packages")
    (packages / "warm.pth").write_text(f"{HOOK}\n")  # after lent.pth, which leads to it
    samples = ROOT / "penstock_demo" / "samples"
    (folder / "VIDEOS").mkdir()
    for name in CLIPS:
        shutil.copy(samples / name, folder / "VIDEOS")
    (folder / "videos").symlink_to("VIDEOS")
    shutil.copytree(folder / "VIDEOS", folder / "nas/videos")
    paths = [str(path) for path in sorted((folder / "nas/videos").iterdir())]
    (folder / "nas/videos.csv").write_text("\n".join(["path", *paths]) + "\n")
    shutil.copytree(samples, folder / "MANY")
    shutil.copy(samples / CLIPS[0], folder / "two_hours.mp4")
    drawn = pictures(folder / "drawn")
    for name in PICTURES:
        (folder / name).mkdir()
        for path in drawn:
            shutil.copy(path, folder / name)
    for name in ("cat.jpg", "photo.jpg"):
        shutil.copy(drawn[0], folder / name)
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    pickled(folder / "SRC")


def pictures(folder: Path) -> list[Path]:
    """A few pictures of the demo's world."""
    from penstock_demo.dual.pictures import write_images

    write_images(folder, "several", 3, seed=5)
    return sorted(folder.glob("*.jpg"))


def pickled(folder: Path) -> None:
    """The demo's model as it would have been saved years ago."""
    import torch
    from safetensors.torch import load_file

    checkpoint = ROOT / "penstock_demo" / "checkpoint"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(checkpoint / "model.safetensors"), folder / "pytorch_model.bin")


def environment(folder: Path, store: Path) -> dict[str, str]:
    """What a command is run with: nothing of the user's, and a store."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PENSTOCK_"))}
    for name in ("PYTHONPATH", "COLUMNS", "LINES", "XDG_CACHE_HOME", "NO_COLOR"):
        kept.pop(name, None)
    return {
        **kept,
        "HOME": str(folder / "home"),
        "PATH": f"{folder}/.venv/bin:{kept['PATH']}",
        "PENSTOCK_STORE": str(store),
        "PREFECT_HOME": str(folder / "home" / ".prefect"),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "EDITOR": "true",
    }
