"""Compares what the program makes of a model with what transformers alone makes of it: the ids of
the prompt, the pixels and the text of captions, or the vectors, of the very frames of a run.

    1. `penstock caption` (or `embed`) runs in a process of its own and keeps its frames.
    2. transformers' own processor gets those frames with their true times, and the turn that the
       checkpoint's chat template writes, or the turn that the list quotes from a published page.
    3. The whole model generates greedily from it.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import PenstockError
from scripts.run.warm import HOOK, warm_process

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "What is shown here?"
TOKENS, FRAMES = 12, 2
VECTOR_DIFFERENCE = 1e-5
SECONDS = 600
"""Limit of one command."""


class Differs(Exception):
    """The program and transformers alone disagree, or one of them ended with an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What was compared of one folder."""

    media: tuple[str, ...]
    """Names of what was captioned or embedded."""
    pixel_difference: float
    """Largest difference of a number that a vision half gets."""
    vector_difference: float | None = None
    """Largest difference of a number of the vectors; None for a model that writes text."""

    def text(self) -> str:
        """Return the result in the words of the table."""
        pixels = f"pixels by {self.pixel_difference:.0e}" if self.pixel_difference else "pixels"
        if self.vector_difference is not None:
            return f"equal: {pixels}, vectors by {self.vector_difference:.0e}"
        return f"equal: ids, {pixels}, tokens ({', '.join(self.media)})"


def write_media(folder: Path) -> Path:
    """Write a picture and a video of two seconds."""
    from PIL import Image

    from tests.support.media import picture, write_video

    folder.mkdir(parents=True)
    Image.fromarray(picture(7, 320, 240)).save(folder / "picture.png")
    write_video(folder / "video.mp4", ticks=range(60))
    return folder


@contextlib.contextmanager
def warm_commands(place: Path) -> Iterator[None]:
    """Fork the stages of commands from one process for a `with` block: importing what they need
    takes half of their time."""
    # Python imports a module of this name at its start, where its folder is on the path.
    (place / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(place)
    with warm_process(place, OMP_NUM_THREADS="1") as lead:
        os.environ.update(lead)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def run_command(verb: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the program as a user does."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "penstock", verb, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the line that states why a command ended."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    stated = [line for line in lines if line.startswith("penstock: ")]
    return (stated or lines or [f"exit {done.returncode}"])[-1].strip()


def compare_captions(
    model: Path, work: Path, whole_class: Any, turn: str, *, inside: bool = False
) -> Compared:
    """Compare the captions of a picture and a video with what the whole model, of
    the class of transformers, makes of the same frames. `turn` is the text around media and prompt,
    with `{media}` and `{prompt}`; empty: the checkpoint's chat template. `inside`: the stages run
    in this process. Raises Differs."""
    from tests.support.pipeline import Place
    from tests.support.whole_model import frames_of

    place = Place(
        clips=write_media(work / "media"), out=work / "out", store=work / "store", model=str(model)
    )
    captioned = caption_inside if inside else caption_by_command
    captioned(place)
    whole = Whole.of(model, whole_class, turn)
    differences = [
        whole.difference(row, meta, pixels)
        for row, (meta, pixels) in zip(place.captions(), frames_of(place), strict=True)
    ]
    names = tuple(dict.fromkeys(Path(row["media_path"]).stem for row in place.captions()))
    return Compared(media=names, pixel_difference=max(differences))


def caption_by_command(place: Any) -> None:
    """Caption a place's media by the command. Raises Differs if it fails."""
    run(
        "caption",
        *(str(place.clips), "--model", place.model, "--prompt", PROMPT, "--precision", "fp32"),
        *("--max-new-tokens", str(TOKENS), "--keep-frames", "--frames", str(FRAMES)),
        *("--out", str(place.out), "--store", str(place.store)),
    )


def caption_inside(place: Any) -> None:
    """Caption a place's media by the same run with its stages in this process, which spares the
    imports of each of them. Raises Differs if it fails."""
    from tests.support.inside import run_inside

    try:
        ran = run_inside(
            place,
            prompt=PROMPT,
            precision="fp32",
            max_new_tokens=TOKENS,
            keep_frames=True,
            frames=FRAMES,
        )
    except PenstockError as error:
        raise Differs(error.message) from error
    if failures := ran.result.failures:
        raise Differs(f"the run fails for {failures[0].media_path}: {failures[0].message}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A model as transformers alone runs it, beside the program's own preparation."""

    processor: Any
    model: Any
    ours: Any
    """The processor as the program loads it."""
    turn: str

    @classmethod
    def of(cls, folder: Path, whole_class: Any, turn: str) -> "Whole":
        import torch
        from transformers import AutoProcessor

        from stages.models.processors.loading import load_processor

        model = whole_class.from_pretrained(folder, dtype=torch.float32).eval()
        processor: Any = AutoProcessor.from_pretrained(folder)
        # The pages of such models call an image processor and a tokenizer.
        if model.config.model_type == "vision-encoder-decoder":
            processor = Parts.of(folder)
        return cls(processor=processor, model=model, ours=load_processor(folder), turn=turn)

    def difference(self, row: Mapping[str, Any], meta: Mapping[str, Any], pixels: Any) -> float:
        """Return the largest difference of the pixels of one caption. Raises Differs if its prompt
        or its text differ."""
        from stages.models.processors.blank_clips import Clip
        from stages.models.processors.prepare import prepare, rebuild
        from stages.models.processors.processor_calls import text_ids

        kind: Any = "image" if row["start"] == row["end"] else "video"
        times = tuple(time - meta["start"] for time in meta["times"])
        clip = Clip(frames=pixels, times=times, seconds=row["end"] - row["start"], kind=kind)
        prepared = prepare(self.ours, clip)
        count = prepared.count.media if prepared.channel == "images" else 0
        expected = self.inputs(clip, row["prompt"], count)
        ids = text_ids(rebuild(self.ours, [prepared], [row["prompt"]]))[0].tolist()
        theirs = text_ids(expected)[0].tolist()
        name = Path(row["media_path"]).stem
        if ids != theirs:
            at = next((n for n, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), -1)
            raise Differs(f"ids of {name}: {len(ids)} and {len(theirs)}, the first at {at}")
        caption = self.caption(expected, row["prompt"])
        if row["caption"] != caption:
            raise Differs(f"text of {name}: {row['caption']!r} and {caption!r}")
        return pixel_difference(prepared.inputs, expected)

    def inputs(self, clip: Any, prompt: str, images: int) -> dict[str, Any]:
        """Return what transformers' processor makes of a clip, given as so many images, or as a
        video (0)."""
        from stages.models.processors.blank_clips import video_metadata
        from stages.models.processors.loading import to_images

        frames = list(clip.frames)
        if 0 < images < len(frames):
            frames = [frames[len(frames) // 2]]
        kind = "image" if images else "video"
        text = self.text(kind, len(frames) if images else 1, prompt)
        options: dict[str, Any] = {"images": to_images(np.stack(frames))}
        if not images:
            metadata = [video_metadata(clip)]
            options = {"videos": [clip.frames], "video_metadata": metadata}
            options["do_sample_frames"] = False
        bos = self.processor.tokenizer.bos_token
        if not self.turn and bos is not None and text.startswith(bos):
            options["add_special_tokens"] = False
        # Tokenizers that were saved while training may cut texts, also those with placeholders.
        options["truncation"] = False
        made = dict(self.processor(text=[text], return_tensors="pt", **options))
        if "video_second_per_grid" in made:  # such a processor takes the rate from its call alone
            options["fps"] = video_metadata(clip)["fps"]
            made = dict(self.processor(text=[text], return_tensors="pt", **options))
        return made

    def text(self, kind: str, count: int, prompt: str) -> str:
        """Return the turn with so many media of a kind."""
        if self.turn:
            return self.turn.format(media=f"<{kind}>" * count, prompt=prompt)
        parts = [*({"type": kind} for _ in range(count)), {"type": "text", "text": prompt}]
        writer = self.processor if self.processor.chat_template else self.processor.tokenizer
        if not writer.chat_template:
            raise Differs("it has no chat template, so the list must quote its turn")
        return str(
            writer.apply_chat_template(
                [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
            )
        )

    def caption(self, inputs: Mapping[str, Any], prompt: str) -> str:
        """Return what the whole model writes, greedily, without the penalties that the folder's
        generation_config.json may state."""
        import torch

        from stages.models.processors.processor_calls import text_ids

        greedy: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
        with torch.inference_mode():
            made = self.model.generate(**inputs, **greedy, max_new_tokens=TOKENS)[0].tolist()
        before = text_ids(dict(inputs))[0].tolist()
        starts = (0, 1)  # a decoder's own first token
        at = next((n + len(before) for n in starts if made[n : n + len(before)] == before), 0)
        text = str(self.processor.tokenizer.decode(made[at:], skip_special_tokens=True)).strip()
        # A class may write other special tokens around the prompt that it continues.
        again = not at and text.lower().startswith(prompt.lower())
        return text[len(prompt) :].strip() if again else text


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """An image processor and the tokenizer of a decoder: a text is the beginning of the answer."""

    image_processor: Any
    tokenizer: Any
    chat_template: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Parts":
        from transformers import AutoImageProcessor, AutoTokenizer

        return cls(
            image_processor=AutoImageProcessor.from_pretrained(folder),
            tokenizer=AutoTokenizer.from_pretrained(folder),
        )

    def __call__(self, *, images: Any, text: list[str], **_: Any) -> dict[str, Any]:
        made = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        pixels = self.image_processor(images=images, return_tensors="pt")
        texts = {f"decoder_{name}": value for name, value in made.items()}
        return {**pixels, **texts}


def pixel_difference(prepared: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest difference of the pixels that a vision half gets. Raises Differs if
    anything else differs, or a shape."""
    largest = 0.0
    for name, ours in prepared.items():
        theirs = expected.get(name)
        if theirs is None or tuple(ours.shape) != tuple(theirs.shape):
            shape = None if theirs is None else list(theirs.shape)
            raise Differs(f"{name} has shape {list(ours.shape)}, and {shape}")
        difference = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
        if difference and not name.startswith("pixel_values"):
            raise Differs(f"{name} differs by {difference:.1e}")
        largest = max(largest, difference)
    return largest


LABELS = ("red bar", "green field", "photo of a dog")
TEMPLATE = "a photo of {}"
"""What `label` writes around a label by default."""


def compare_vectors(model: Path, work: Path) -> Compared:
    """Compare the vector of a picture and the scores of labels. Raises Differs."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    from stages.models.processors.blank_clips import clip_of
    from stages.models.processors.images import prepare_images
    from stages.models.processors.loading import load_processor

    picture = write_media(work / "media") / "picture.png"
    where = [str(picture), "--model", str(model), "--precision", "fp32"]
    where += ["--store", str(work / "store")]
    run("embed", *where, "--out", str(work / "vectors"))
    run("label", *where, "--out", str(work / "labels"), "--labels", ",".join(LABELS))
    whole = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(model)
    shown = Image.open(picture).convert("RGB")
    inputs = processor(images=[shown], return_tensors="pt")
    prepared = prepare_images(
        load_processor(model, generates=False), clip_of("image", np.asarray(shown)[None])
    )
    texts = [TEMPLATE.format(label) for label in LABELS]
    filling = "max_length" if hasattr(whole, "logit_bias") else True
    written = processor(text=texts, padding=filling, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        vector = features(whole.get_image_features(**inputs))
        joint = whole(**inputs, **written)
    differences = (
        np.abs(np.load(work / "vectors" / "embeddings.npy") - vector.numpy()).max(),
        np.abs(np.array(scores_of(work / "labels")) - expected_scores(joint)).max(),
    )
    if not max(differences) <= VECTOR_DIFFERENCE:
        raise Differs("vectors and scores differ by {:.1e} and {:.1e}".format(*differences))
    return Compared(
        media=("picture",),
        pixel_difference=pixel_difference(prepared.inputs, dict(inputs)),
        vector_difference=float(max(differences)),
    )


def run(verb: str, *words: str) -> None:
    """Run a command. Raises Differs if it fails."""
    done = run_command(verb, *words)
    if done.returncode:
        raise Differs(f"penstock {verb} ends with {done.returncode}: {last_line(done)}")


def features(output: Any) -> Any:
    """Return the vectors [rows, width] that a class gives as such or in a record."""
    return output if hasattr(output, "numpy") else output.pooler_output


def expected_scores(joint: Any) -> Any:
    """Return the scores that `label` writes by what the whole model says: probabilities of a model
    that was trained with a bias, else cosines."""
    if type(joint).__name__.startswith("Siglip"):
        return joint.logits_per_image[0].sigmoid().numpy()
    pair = (joint.image_embeds, joint.text_embeds)
    image, texts = (vectors / vectors.norm(dim=-1, keepdim=True) for vectors in pair)
    return (image @ texts.T)[0].numpy()


def scores_of(out: Path) -> list[float]:
    """Return the scores of the first medium, in the order of LABELS."""
    line = json.loads((out / "labels.jsonl").read_text(encoding="utf-8").splitlines()[0])
    scores = {entry["label"]: float(entry["score"]) for entry in line["labels"]}
    return [scores[label] for label in LABELS]
