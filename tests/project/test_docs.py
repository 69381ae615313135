"""The pages: every one is in the menu, every command and all Python that they show can be typed, or
run as printed, notebooks run, and no picture is older than what it shows."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import penstock_demo
from docs.conf import NAVIGATION
from flows.core.machine.versions import cpu_has_bfloat16
from scripts.pages.shown.commands import ROOT, Shown, commands, inline, pages
from scripts.pages.shown.parsing import wrong, wrong_inline
from scripts.prove.follow_docs import faults, read, run_on_terminal
from stages.models.halves.model_class import config_and_class
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.commands import completed
from tests.support.families import checkpoint
from tests.support.media import picture
from tests.support.tiny_families import FAMILIES

PAGES = [*pages(), ROOT / "CHANGELOG.md"]


def test_every_page_is_in_the_menu_once() -> None:
    listed = [name for names in NAVIGATION.values() for name in names]
    there = [page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES]
    assert sorted(listed) == sorted(set(there) - {"docs/index"})


def test_a_page_cites_each_section_of_the_log() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs" / "log.md").read_text("utf-8"), re.MULTILINE)
    known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections}
    others = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "log.md"]
    cited = {
        anchor
        for page in others
        for anchor in re.findall(r"\(log\.md#([\w-]+)\)", page.read_text("utf-8"))
    }
    assert known == cited and known


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_shown_can_be_typed(page: Path) -> None:
    assert read(page).wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "penstock caption VIDEOS/ --modle M",
        "penstock plan --for nothing",
        "penstock plan --model M --train full|lora|nothing",
        "penstock caption VIDEOS/ --format txt,pdf",
        "penstock convert SRC DST [--dtype fp16|fp64]",
        "penstock export MODEL --to nf4 --out DIR [--samples many]",
        "penstock cache ls && penstock cache sl",
        "make coffee",
        "make demo SUGAR=2",
        "python -m benchmarks.nothing",
        "python -m benchmarks.search --no-such-option",
        "prefect deployment run 'caption-videos/never'",
    ],
)
def test_a_command_that_nobody_can_type_fails(text: str) -> None:
    assert wrong(Shown(page="a.md", line=1, text=text))


def test_a_command_in_a_sentence_with_an_option_that_there_is_not_fails() -> None:
    assert not wrong_inline(Shown(page="a.md", line=1, text="penstock plan --explain"))
    assert wrong_inline(Shown(page="a.md", line=1, text="penstock plan --excuse"))
    assert wrong_inline(Shown(page="a.md", line=1, text="penstock paln"))


PAGE = """# A page

    penstock caption VIDEOS/ \\
        --model M          # a comment, "quoted"
    export NAME="a # b"

    no command, but indented

```sh
cd VIDEOS
```
Some `penstock status OUT` in a sentence.

    $ penstock cache ls
    what it prints

```python
import penstock
```

```text
penstock is no command here
```
"""


def test_commands_are_found_where_people_type_them(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(PAGE)
    found = [(one.line, one.text, one.comment) for one in commands(page, tmp_path)]
    assert found == [
        (3, "penstock caption VIDEOS/ --model M", 'a comment, "quoted"'),
        (5, 'export NAME="a # b"', ""),
        (10, "cd VIDEOS", ""),
        (14, "penstock cache ls", ""),
        (18, "import penstock", ""),
    ]
    assert [one.text for one in inline(page, tmp_path)] == ["penstock status OUT"]


def test_a_command_is_run_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "TERM": "xterm"}
    outcome = run_on_terminal("stty size; exit 3", tmp_path, env, seconds=60)
    assert (outcome.code, outcome.text.split()) == (3, ["24", "80"])


def test_ctrl_c_is_pressed_when_work_begins(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin"}
    script = "trap 'exit 4' INT; echo encoding; while :; do sleep 0.1; done"
    assert run_on_terminal(script, tmp_path, env, seconds=60, stopped=True).code == 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a " * 40 + "\n", 0),
        ("a" * 78 + " word\r\n", 1),
        ("\x1b[32m" + "a" * 78 + " \x1b[0mb\n", 0),
        ("/" + "path" * 30 + "\n", 0),
        (" " * 15 + "/" + "path" * 18 + "\n", 0),
        ("Traceback (most recent call last):\n", 1),
    ],
)
def test_a_broken_word_and_a_traceback_are_faults(text: str, count: int) -> None:
    assert len(faults(text)) == count


NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
HOSTED = ("colab", "kaggle")
"""Notebooks that go on in another session."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in HOSTED], ids=lambda path: path.stem
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert executed(path, tmp_path)


def executed(path: Path, folder: Path) -> str:
    """Run a notebook in a folder, and return what it printed."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    done = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    ).execute()
    printed = [out for cell in done.cells for out in cell.get("outputs", ())]
    assert printed and not any(out.output_type == "error" for out in printed)
    return "".join(out.get("text", "") for out in printed)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTED)
def test_a_hosted_notebook_goes_on_in_another_session(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media, kept = tmp_path / "media", tmp_path / "kept"
    for folder in (media, kept):
        folder.mkdir()
    for clip in sorted(penstock_demo.CLIPS.glob("*.mp4"))[:3]:
        shutil.copy(clip, media)
    given = {"MODEL": "demo", "MEDIA": media, "BASE": kept, "WORK": kept}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = []
    for session in ("one", "two"):
        fast = tmp_path / session
        fast.mkdir()
        own = {"FAST": fast, "HOME": fast, "IPYTHONDIR": fast / "ipython", "PATH": path}
        own |= {"XDG_CACHE_HOME": fast / "cache"}
        if session == "two" and name == "kaggle":  # the output of the session before is an input
            own |= {"BEFORE": kept, "WORK": fast / "work"}
            (fast / "work").mkdir()
        for variable, value in (given | own).items():
            monkeypatch.setenv(variable, str(value))
        printed.append(executed(NOTEBOOKS[0].with_name(f"{name}.ipynb"), fast))
    for stage in ("encode", "decode"):
        assert f"{stage}: 3 made now, 0 were there" in printed[0]
        assert f"{stage}: 0 made now, 3 were there" in printed[1]
    for text in printed:
        assert "3 captions, 0 failures" in text
    assert "1 corrected" in printed[0] and "0 corrected" in printed[1], "a review stays as it is"
    assert "'encode': 0, 'decode': 3}" in printed[0], "a second prompt encodes nothing"
    assert list(tmp_path.rglob("musubi.zip"))


DOCS = ROOT / "docs"
KINDS = (".png", ".jpg", ".svg")
SHRUNK = 8
"""Pixels of a side that become one before two pictures are compared."""
DIFFERENT = 24
"""Levels of grey, of 256, by which a point of today's picture may differ."""
MOST = 0.03
"""Share of points that may differ more: times and names of folders do."""


def pictures() -> list[Path]:
    return sorted(path for path in DOCS.rglob("*") if path.suffix in KINDS)


def test_a_page_shows_every_picture() -> None:
    shown = set[Path]()
    for page in pages():
        links = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / link).resolve() for link in links}
    assert sorted(shown) == pictures()


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the pages of today."""
    to = tmp_path_factory.mktemp("pictures")
    draw("pages", to)
    return to


def draw(part: str, to: Path) -> None:
    done = completed([sys.executable, "-m", "scripts.pages.pictures", part, "--to", str(to)])
    assert done.returncode == 0, done.stderr


def points(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """The points of a shrunk picture, in grey."""
    with Image.open(path) as picture:
        size = (picture.width // SHRUNK, picture.height // SHRUNK)
        return np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int64)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["report.png", "review.png", "studio.png"])
def test_a_picture_shows_the_page_of_today(today: Path, name: str) -> None:
    before, now = points(DOCS / name), points(today / name)
    assert before.shape == now.shape
    assert (abs(before - now) > DIFFERENT).mean() <= MOST, "run make pictures"


@pytest.mark.slow
def test_the_gallery_shows_the_captions_of_today(tmp_path: Path) -> None:
    draw("gallery", tmp_path)
    made = (tmp_path / "gallery.md").read_text()
    if not cpu_has_bfloat16():
        made = made.replace("in fp32 on a CPU", "in bf16 on a CPU")
    assert made == (DOCS / "gallery.md").read_text()


TOKENS = 64
"""As the page says."""

of_transformers = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def printed() -> tuple[str, str]:
    """The code under `A model in halves`: what asks the processor, and what runs the halves."""
    text = (ROOT / "docs" / "python.md").read_text()
    part = text.partition("\n## A model in halves\n")[2].partition("\n## ")[0]
    asking, halves = re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    return asking, halves


def stock(folder: Path, inputs: dict[str, Any]) -> torch.Tensor:
    """What the model's own `generate` gives."""
    cls = config_and_class(folder, trusted=False)[1]
    model = cls.from_pretrained(folder).eval()
    with torch.inference_mode():
        given = {n: v.to(model.dtype) if _is_float(v) else v for n, v in inputs.items()}
        tokens: torch.Tensor = model.generate(**given, max_new_tokens=TOKENS)
    return tokens


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@of_transformers
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", slow("llama4"), slow("perception_lm")])
def test_the_code_of_the_readme_runs_as_printed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another checkpoint under the name that the code itself gives it."""
    folder = whole_checkpoint(family) if family in MODELS else checkpoint(family)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(3)).save("picture.jpg")
    asking, halves = printed()
    code, changed = re.subn(
        r"^checkpoint = .*$", f"checkpoint = {str(folder)!r}", asking, flags=re.M
    )
    assert changed == 1
    names: dict[str, Any] = {}
    exec(compile(code + halves, "docs/python.md", "exec"), names)
    assert torch.equal(names["tokens"], stock(folder, names["inputs"]))


@of_transformers
@pytest.mark.parametrize(
    "variant",
    [
        "chameleon",
        *map(slow, ("perception_lm:video", "janus", "emu3", "gemma3n", "llama4")),
        *map(slow, ("perception_lm", "qwen3_vl", "idefics3")),
    ],
)
def test_the_halves_of_a_family_are_run_by_the_code_of_the_readme(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(tmp_path)
    names: dict[str, Any] = {"checkpoint": str(tmp_path), "inputs": inputs}
    exec(compile(printed()[1], "docs/python.md", "exec"), names)
    assert torch.equal(names["tokens"], stock(tmp_path, inputs))


CAPTION = "a ring\u2028moves left"


class Sample:
    """Stands for FiftyOne's: it keeps what a recipe gives it."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("page", ["datasets", "pipelines", "trainers"])
def test_recipes_keep_captions_with_unusual_line_separators(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "fiftyone", SimpleNamespace(Sample=Sample))
    row = json.dumps({"video_path": "/v/a.mp4", "caption": CAPTION}, ensure_ascii=False) + "\n"
    medium = json.dumps({"url": "file:///v/a.mp4", "captions": 2}) + "\n"
    files = dict.fromkeys(
        ("train/musubi/videos-30fps.jsonl", "juice/musubi/videos-30fps.jsonl"), row * 2
    )
    files |= {"shards/captions.jsonl": row * 4, "shards/media.jsonl": medium * 2}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text(encoding="utf-8")
    recipes = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "jsonl" in code]
    assert recipes
    forms = CAPTION, json.dumps(CAPTION)[1:-1]
    for code in recipes:
        names: dict[str, Any] = {}
        exec(compile(code, page, "exec"), names)
        made = {*tmp_path.rglob("*.json*")} - {tmp_path / name for name in files}
        kept = [path.read_text(encoding="utf-8") for path in made]
        if page == "datasets":
            kept += [json.dumps([sample.fields for sample in names.get("samples", ())])]
        assert sum(text.count(form) for text in kept for form in forms) >= 2, code
        for path in made:
            path.unlink()
