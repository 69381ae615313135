"""What a training step of a LoRA takes on stored features, and on pixels with the vision tower in
memory; prints parameters, peaks and their ratio.

Both are the same step of `transformers.Trainer`: the same rows, LoRA of the language half alone,
32 bit, one row at once. The model is random, with a tower as large as its half.

    python -m benchmarks.training [--small]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.builders.common import MIB, run_penstock, soft_jpegs
from tests.support.builders.models import Shape, build

HALF = Shape(layers=26, width=1024, tower_layers=34, tower_width=1024)
"""Half a billion parameters of language, and as many of vision."""
SMALL = Shape(layers=6, width=512, tower_layers=8, tower_width=512, vocabulary=8192)
PHOTOS, PIXELS = 2, 224
OPTIONS = ("--precision", "fp32", "--max-new-tokens", "2")
CHILD = "--way"
WORDS = "A red circle moves to the left, slowly, before a wall of grey stone."


def features_step(out: Path, photos: Path) -> tuple[Any, Any, Any]:
    """Return half, rows and collator."""
    import torch

    from penstock.training import FeatureCollator, captions, language_half, processor_of

    half = language_half(out, dtype=torch.float32)
    return half, captions(out, lambda _: None), FeatureCollator(out, processor_of(out))


def pixels_step(out: Path, photos: Path) -> tuple[Any, Any, Any]:
    """Return whole model, rows and collator, without anything of Penstock's."""
    import torch
    import transformers
    from PIL import Image

    folder = json.loads((out / "run.json").read_text())["plan"]["folder"]
    whole = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(folder)

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (row,) = rows
        parts = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
        turn = [{"role": "user", "content": parts}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        picture = Image.open(photos / row["media_path"]).convert("RGB")
        batch = dict(processor(text=[text + row["caption"]], images=[picture], return_tensors="pt"))
        return {**batch, "labels": batch["input_ids"]}

    lines = (out / "captions.jsonl").read_text().splitlines()
    return whole, [json.loads(line) for line in lines], collate


def step(way: str, out: Path, photos: Path) -> None:
    """Take one step in this process; prints parameters and peak as JSON."""
    import peft
    import transformers

    from penstock.training import language_half, lora_targets

    targets = lora_targets(language_half(out, device_map={"": "meta"}))
    make = features_step if way == "features" else pixels_step
    model, rows, collate = make(out, photos)
    lora = peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=1,
            per_device_train_batch_size=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trained = peft.get_peft_model(model, lora)
        trainer: Any = transformers.Trainer
        trainer(trained, arguments, train_dataset=rows, data_collator=collate).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"parameters": parameters, "peak": peak}))


def write_words(path: Path) -> None:
    """Give the rows a caption, where a random model has no words."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "caption": WORDS}) + "\n" for row in rows))


def measured(way: str, out: Path, photos: Path) -> dict[str, int]:
    words = [sys.executable, "-m", "benchmarks.training", CHILD, way, str(out), str(photos)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument(CHILD, nargs=3, metavar=("WAY", "OUT", "PHOTOS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        step(given.way[0], Path(given.way[1]), Path(given.way[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        photos = root / "photos"
        photos.mkdir()
        for at, photo in enumerate(soft_jpegs(PHOTOS, (PIXELS, PIXELS), 90)):
            (photos / f"{at}.jpg").write_bytes(photo)
        model = build(root / "model", SMALL if given.small else HALF, 24)
        run_penstock("caption", photos, model, root / "out", root / "store", *OPTIONS)
        write_words(root / "out" / "captions.jsonl")
        features, pixels = (measured(way, root / "out", photos) for way in ("features", "pixels"))
    for name, figures in (("stored features", features), ("pixels", pixels)):
        held = f"{figures['parameters'] / 1e6:8.1f} million parameters"
        print(f"{name:16} {held}, peak {figures['peak'] / MIB:8.0f} MiB")
    print(f"x {features['peak'] / pixels['peak']:.2f}")


if __name__ == "__main__":
    main()
