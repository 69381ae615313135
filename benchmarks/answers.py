"""Questions about stored features against captions of one token of the same prompts, and against
plain forward passes with pixels; prints ratios.

Each way computes 32 prompts about each photo, with a random half of some 30 million parameters in
32 bit. What a photo takes is the difference of CPU seconds between runs over few photos and over
more, so that loading and checks are left out. Features are stored before. Plain forward passes of
the whole model encode the photo for each prompt, as a pipeline without stored features does.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.builders.common import run_penstock, soft_jpegs
from tests.support.builders.models import Shape, build

SHAPE = Shape(layers=8, width=512, tower_layers=8, tower_width=384, vocabulary=8192)
FEW, MORE = 2, 6
PIXELS = 448
"""Height and width of a photo."""
THINGS = (
    *("car", "dog", "person", "tree", "text", "logo", "watermark", "border", "blur", "face"),
    *("hand", "cup", "book", "lamp", "boat", "bird"),
)
TEXTS = (
    *(f"Is there a {thing} anywhere in this picture, even a small one?" for thing in THINGS),
    *(f"Would somebody who describes this picture name a {thing} first?" for thing in THINGS),
)
INSTRUCTION = "Answer Yes or No only."
PRECISION = ("--precision", "fp32")


def takes_photos(model: Path) -> None:
    """Let the processor of a model read photos of PIXELS, which the demo's makes small."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(model)
    processor.image_processor.size = {"shortest_edge": 784, "longest_edge": PIXELS * PIXELS}
    processor.save_pretrained(model)


def children_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the processes that a call starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def per_photo(seconds_of: Callable[[Path], float], folders: tuple[Path, Path]) -> float:
    """CPU seconds of a photo more."""
    few, more = (seconds_of(folder) for folder in folders)
    return (more - few) / (MORE - FEW)


class Ways:
    """The three ways over folders of photos, whose features are stored."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._model = build(root / "model", SHAPE, 1)
        takes_photos(self._model)
        self._questions = root / "questions.json"
        tables = {f"q{at}": {"text": text} for at, text in enumerate(TEXTS)}
        self._questions.write_text(json.dumps(tables))

    def _store_of(self, photos: Path, name: str) -> Path:
        """Return a copy of a store that has the features of these photos."""
        filled = self._root / f"features-{photos.name}"
        if not filled.exists():
            one = ("--max-new-tokens", "1", *PRECISION)
            run_penstock("caption", photos, self._model, self._root / "first", filled, *one)
            shutil.rmtree(self._root / "first")
        store = self._root / f"{name}-{photos.name}"
        shutil.copytree(filled, store)
        return store

    def answers(self, photos: Path) -> float:
        store, out = self._store_of(photos, "answers"), self._root / "out-answers"
        options = ("--questions", str(self._questions), *PRECISION)
        seconds = children_seconds(
            lambda: run_penstock("ask", photos, self._model, out, store, *options)
        )
        rows = (out / "answers.jsonl").read_text().splitlines()
        assert sum(len(json.loads(row)["answers"]) for row in rows) == len(rows) * len(TEXTS)
        shutil.rmtree(out)
        return seconds

    def captions(self, photos: Path) -> float:
        store, out = self._store_of(photos, "captions"), self._root / "out-captions"
        options = ["--max-new-tokens", "1", *PRECISION]
        for at, text in enumerate(TEXTS):
            options += ["--prompts", f"q{at}={text} {INSTRUCTION}"]
        seconds = children_seconds(
            lambda: run_penstock("caption", photos, self._model, out, store, *options)
        )
        shutil.rmtree(out)
        return seconds

    def plain(self, photos: Path) -> float:
        """Forward passes of the whole model with pixels, in this process."""
        import torch
        import transformers
        from PIL import Image

        model = transformers.AutoModelForImageTextToText.from_pretrained(
            self._model, dtype=torch.float32
        )
        processor = transformers.AutoProcessor.from_pretrained(self._model)
        began = time.process_time()
        for path in sorted(photos.iterdir()):
            picture = Image.open(path).convert("RGB")
            for text in TEXTS:
                parts = [{"type": "image"}, {"type": "text", "text": f"{text} {INSTRUCTION}"}]
                turn = [{"role": "user", "content": parts}]
                prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
                inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
                with torch.inference_mode():
                    model(**inputs, logits_to_keep=1)
        return time.process_time() - began


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # waiting threads take seconds, too
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = root / "few", root / "more"
        for folder, count in zip(folders, (FEW, MORE), strict=True):
            folder.mkdir()
            for at, photo in enumerate(soft_jpegs(count, (PIXELS, PIXELS), 90)):
                (folder / f"{at}.jpg").write_bytes(photo)
        ways = Ways(root)
        answers = per_photo(ways.answers, folders)
        captions = per_photo(ways.captions, folders)
        plain = per_photo(ways.plain, folders)
    print(f"CPU seconds a photo, {len(TEXTS)} prompts of yes or no:")
    print(f"  answers from stored features      {answers:6.2f}")
    print(f"  captions of one token             {captions:6.2f}  x {answers / captions:.2f}")
    print(f"  whole model with pixels           {plain:6.2f}  {plain / answers:.1f} x answers")


if __name__ == "__main__":
    main()
