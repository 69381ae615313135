"""Which packages a checkpoint's own Python code lacks: those of the files that loading imports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from stages.models.halves.own_code import needs_trust

TRAIN = {"train.py": "import absent_train\nfrom .modeling import Own\n"}
"""A script that loading never imports."""
MODEL = {"config.json": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Own"}}


def folder_of(place: Path, auto_maps: dict[str, Any], sources: dict[str, str]) -> Path:
    for name, auto_map in auto_maps.items():
        place.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps({"auto_map": auto_map}))
    for name, source in sources.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(source)
    return place


def packages_of(folder: Path) -> set[str]:
    """Return the packages that the message names as lacking."""
    match = re.search("imports (.*), which this environment lacks", needs_trust(folder).message)
    return {*match[1].split(", ")} if match else set()


@pytest.mark.parametrize(
    ("auto_maps", "sources", "entries"),
    [
        (MODEL, {"modeling.py": "import absent_model, torch\n"}, ["modeling"]),
        (
            MODEL,
            {
                "modeling.py": "from .vision import Tower\nimport absent_model\n",
                "vision.py": "def build():\n    from .rotary import rotate\n",
                "rotary.py": "from .modeling import Own\nfrom absent_rotary.layers import apply\n",
            },
            ["modeling"],
        ),
        (
            MODEL,
            {
                "modeling.py": "from transformers.utils import is_flash_attn_2_available\n"
                "try:\n    import absent_tried\n    from .tried import x\nexcept ImportError:\n"
                "    pass\nif is_flash_attn_2_available():\n    import absent_flash\n",
                "tried.py": "import absent_in_tried\n",
            },
            ["modeling"],
        ),
        (
            {
                "config.json": {},
                "tokenizer_config.json": {"AutoTokenizer": ["words.Slow", None]},
                "processor_config.json": {"AutoProcessor": "processing.Own"},
                "preprocessor_config.json": {"AutoImageProcessor": "pictures.Own"},
            },
            {name: f"import absent_{name[:-3]}\n" for name in ("words.py", "pictures.py")}
            | {"processing.py": "import absent_first\nfrom .pictures import Own\n"},
            ["words", "processing", "pictures"],
        ),
        (
            {"config.json": {}, "tokenizer_config.json": [None, "words.Fast"]},
            {"words.py": "import absent_words\n"},
            ["words"],
        ),
    ],
    ids=["one file", "a cycle", "conditions", "each configuration", "an old tokenizer's list"],
)
def test_packages_are_those_of_the_files_that_transformers_copies(
    auto_maps: dict[str, Any], sources: dict[str, str], entries: list[str], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "model", auto_maps, sources | TRAIN)
    files = [str(folder / f"{entry}.py") for entry in entries]
    files += [file for path in files for file in get_relative_import_files(path)]
    imported = {package for file in files for package in get_imports(file)}
    expected = {package for package in imported if package.startswith("absent_")}
    assert expected and packages_of(folder) == expected


def test_packages_of_sub_packages_and_of_imported_modules_are_named(tmp_path: Path) -> None:
    sources = {
        "modeling.py": "from . import vision, absent_module\nfrom .layers.rotary import rotate\n",
        "vision.py": "import absent_vision\n",
        "layers/__init__.py": "from . import norm\nfrom .... import outside\n",
        "layers/norm.py": "from ..shapes import *\nimport absent_norm\n",
        "layers/rotary.py": "import absent_rotary\n",
        "layers/unused.py": "import absent_unused\n",
        "shapes.py": "import absent_shapes\n",
        "__init__.py": "import absent_root\n",
        "../outside.py": "import absent_outside\n",
    }
    folder = folder_of(tmp_path / "model", MODEL, sources | TRAIN)
    expected = {f"absent_{name}" for name in ("vision", "norm", "rotary", "shapes")}
    assert packages_of(folder) == expected


def test_a_module_that_is_missing_or_no_python_is_left_to_the_loader(tmp_path: Path) -> None:
    auto_map = {"AutoModel": "modeling.Own", "AutoConfig": "missing.Config", "AutoProcessor": 3}
    source = "from .absent_module import x\nfrom .broken import y\nimport absent_model\n"
    sources = {"modeling.py": source, "broken.py": "import absent_broken\nprint 1\n"}
    folder = folder_of(tmp_path / "model", {"config.json": auto_map}, sources | TRAIN)
    assert packages_of(folder) == {"absent_model"}


@pytest.mark.parametrize("reference", ["owner/other--modeling.Own", "../outside.Own", "", None])
def test_code_outside_the_folder_names_no_package(reference: str | None, tmp_path: Path) -> None:
    sources = {"modeling.py": "import absent_model\n", "../outside.py": "import absent_outside\n"}
    auto_maps = {"config.json": {"AutoModel": reference}}
    assert not packages_of(folder_of(tmp_path / "model", auto_maps, sources))
