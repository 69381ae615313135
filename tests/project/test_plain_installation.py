"""What a plain installation brings is enough for the classes of docs/models.md, or they name what
they need before a run: tests in processes that find no other package."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers.dynamic_module_utils import check_imports
from transformers.utils.import_utils import BACKENDS_MAPPING

from artifacts import packages
from scripts.prove import try_classes
from tests.support.builders.words import hf
from tests.support.commands import completed
from tests.support.dual_encoders import save
from tests.support.embedding import write_images
from tests.support.hidden_modules import hiding, undeclared_modules
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS, read_lines
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_tokenizers import lines, sentences

LABELS = ("cat", "the sky over the sea", "Größe")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a process that finds what a plain installation brings."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(hiding(undeclared_modules()))
    offline = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), **offline}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def save_siglip(folder: Path) -> Path:
    """A tiny SigLIP with its own tokenizer, as published: spiece.model beside tokenizer.json."""
    save("siglip", folder)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(600, 1)),
        model_writer=made,
        vocab_size=200,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    words = hf.SiglipTokenizer(str(folder / "spiece.model"))
    part = hf.AutoImageProcessor.from_pretrained(folder)
    config = hf.SiglipConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(words)
    config.text_config.max_position_embeddings = words.model_max_length
    torch.manual_seed(0)
    hf.SiglipModel(config).eval().save_pretrained(folder)
    hf.SiglipProcessor(image_processor=part, tokenizer=words).save_pretrained(folder)
    sentences().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_siglip_labels_by_its_own_tokenizer(
    plain: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    model = save_siglip(tmp_path / "model")
    (tmp_path / "templates.txt").write_text("{} in a photo\n")
    words = ["label", str(pictures), "--model", str(model), "--labels", ",".join(LABELS)]
    words += ["--templates", "templates.txt", "--store", "store", "--out", "out"]
    done = completed([*PENSTOCK, *words], cwd=tmp_path, env=plain, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    rows = read_lines(tmp_path / "out" / "labels.jsonl")
    scores = [{label["label"]: label["score"] for label in row["labels"]} for row in rows]

    processor: Any = hf.AutoProcessor.from_pretrained(model)
    assert type(processor.tokenizer) is hf.SiglipTokenizer
    whole = hf.SiglipModel.from_pretrained(model).eval()
    images = [Image.open(pictures / row["media_path"]) for row in rows]
    texts = [f"{label} in a photo" for label in LABELS]
    with torch.inference_mode():
        inputs = processor(images=images, text=texts, padding="max_length", return_tensors="pt")
        logits = whole(**inputs).logits_per_image
        expected = (logits - whole.logit_bias) / whole.logit_scale.exp()
    found = [[score[label] for label in LABELS] for score in scores]
    assert np.allclose(found, expected, atol=2e-5)
    assert float(expected.std(dim=1).min()) > 1e-3  # texts that differ


NEEDS = {
    "kimi_k25": "tiktoken",
    "minicpm_ocr": "opencv-python",
    "udop": "pytesseract",
    "gemma3n": "timm",
}
"""Family → the package that one of its classes needs, which no plain installation brings."""
ENOUGH = ("siglip", "tipsv2", "metaclip_2", "ernie4_5_vl_moe", "idefics")
"""Families whose tokenizers are files of sentencepiece."""


@pytest.mark.slow
def test_classes_load_or_name_the_package_that_they_need(plain: dict[str, str]) -> None:
    command = [sys.executable, "scripts/prove/try_classes.py", *NEEDS, *ENOUGH]
    done = completed(command, env=plain, timeout=SECONDS)
    table = [line for line in done.stdout.splitlines() if " | " in line]
    steps = re.findall(r"^    \S.*", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(" | ")[0] for line in table if line.endswith("loads")] == [*ENOUGH]
    for step, package in zip(steps, NEEDS.values(), strict=True):
        assert f"needs the package {package}, which is not installed. Run " in step
        assert step.endswith(f"pip install {package}")


def test_the_page_has_the_families_that_are_tried() -> None:
    names = try_classes.families()
    assert {"siglip", "gemma3n", "udop", *NEEDS, *ENOUGH} <= {*names} and len(names) > 90
    assert not {"pi0", "evolla", "blip-2", "videoprism"} & {*names}
    table = try_classes.PAGE.read_text().partition("## Classes that need another package")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    for family, package in NEEDS.items():
        assert [row for row in rows if family in row and package in row], family


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "caption"])
def test_a_model_names_its_package_before_a_run(
    command: str, plain: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    FAMILIES["perception_lm"]()[0].save_pretrained(tmp_path / "model")
    words = [command, str(pictures), "--model", "model", "--store", "store"]
    words += ["--out", "out"] * (command == "caption")
    done = completed([*PENSTOCK, *words], cwd=tmp_path, env=plain, timeout=SECONDS)
    message = f"needs the package timm, which is not installed. Run {packages.install_command()}"
    expected = message.removesuffix("penstock") + "timm"
    assert done.stderr.splitlines()[-1].endswith(expected), done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "out" / "run.json").exists()


def missing_imports(folder: Path) -> ImportError:
    """What transformers raises of a checkpoint's own code that imports what is not installed."""
    (folder / "modeling.py").write_text("import no_einops\nimport no_flash\n")
    with pytest.raises(ImportError) as caught:
        check_imports(folder / "modeling.py")
    return caught.value


def test_the_packages_that_transformers_names_are_named_whole(tmp_path: Path) -> None:
    def named(error: Exception) -> str:
        message = str(packages.library_needs("It", error))
        assert message.startswith("It needs the package") and "\n" not in message
        return message.partition("pip install ")[2]

    def of_backend(name: str) -> ImportError:
        return ImportError(BACKENDS_MAPPING[name][1].format("Class"))

    assert named(of_backend("pytesseract")) == "pytesseract"
    assert named(of_backend("cv2")) == "opencv-python"
    assert named(of_backend("natten")) == "natten"
    assert named(missing_imports(tmp_path)) in ("no_einops no_flash", "no_flash no_einops")
    assert named(ModuleNotFoundError(name="no_scipy.optimize")) == "no_scipy"


def test_a_package_that_is_too_old_is_told_whole() -> None:
    text = "The architecture is not supported. Please upgrade timm with `pip install -U timm`."
    message = str(packages.library_needs("It", ImportError(text.replace(". ", ".\n"))))
    assert message.startswith(f"It needs a package that is missing or too old: {text} ")
