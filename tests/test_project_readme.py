"""What the page for Python prints of halves runs as it is printed, and says what the whole model
says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.models.halves.classes import config_and_class
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import checkpoint
from tests.support.media import picture
from tests.support.tiny_families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 64
"""As the page says."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
