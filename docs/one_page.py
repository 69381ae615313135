"""Captions videos with a model that does not fit beside itself: the idea of Penstock on one page.

    python docs/one_page.py MODEL FEATURES VIDEO...

It uses transformers and PyAV alone, and models of the class Qwen2.5-VL. It has no store, no plan
and no recovery: those are most of Penstock. What is the same:

1. Frames are read from the file, at fixed times (`frames_of`).
2. The vision half alone turns the frames of a video into features (`encode`). They go to disk, with
   the tokens of the prompt. Then the half is freed.
3. The language half alone turns features and prompt into words (`decode`). Another prompt needs no
   frames and no vision half, only other tokens.
"""

import gc
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

PROMPT = "Describe this video in detail."
FRAMES_PER_SECOND = 2
MOST_FRAMES = 16
MOST_TOKENS = 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Frames = NDArray[np.uint8]
"""Shape (frames, height, width, 3), in RGB."""


# 1. Frames


def frames_of(path: Path) -> tuple[Frames, list[float]]:
    """Return the frames that are shown at 0, 0.5, 1 ... seconds, and these times. A frame is shown
    from its own time until that of the next one."""
    wanted = [Fraction(k, FRAMES_PER_SECOND) for k in range(MOST_FRAMES)]
    frames: list[Frames] = []
    shown: Frames | None = None
    container: Any = av.open(str(path))
    with container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            time = frame.pts * stream.time_base
            while shown is not None and len(frames) < len(wanted) and wanted[len(frames)] < time:
                frames.append(shown)
            shown = frame.to_ndarray(format="rgb24")
            end = time + Fraction(1) / stream.average_rate
    while shown is not None and len(frames) < len(wanted) and wanted[len(frames)] < end:
        frames.append(shown)
    return np.stack(frames), [float(time) for time in wanted[: len(frames)]]


# 2. Features


def encode(folder: Path, features: Path, videos: list[Path]) -> None:
    """Write `NAME.pt` for each video that has none: its features, and the inputs of the decoder."""
    model = load(folder)
    del model.model.language_model, model.lm_head
    model.to(DEVICE)
    processor = AutoProcessor.from_pretrained(folder)
    for video in videos:
        file = features / f"{video.stem}.pt"
        if file.exists():
            continue
        frames, times = frames_of(video)
        inputs = processor(
            text=[prompt_text(processor)],
            videos=[frames],
            video_metadata=[metadata(frames, times)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        pixels = inputs.pop("pixel_values_videos").to(DEVICE)
        with torch.inference_mode():
            record = model.model.get_video_features(pixels, inputs["video_grid_thw"].to(DEVICE))
        half = file.with_suffix(".half")
        torch.save({"features": [f.cpu() for f in record.pooler_output], **inputs}, half)
        half.rename(file)  # a kill leaves no half of a file under its name


def prompt_text(processor: Any) -> str:
    """Return the user's turn as the checkpoint's own template writes it."""
    content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
    turns = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def metadata(frames: Frames, times: list[float]) -> dict[str, Any]:
    """Return what the processor writes as the times of frames."""
    return {
        "fps": float(FRAMES_PER_SECOND),
        "total_num_frames": len(frames),
        "duration": times[-1] + 1 / FRAMES_PER_SECOND,
        "frames_indices": list(range(len(frames))),
        "height": frames.shape[1],
        "width": frames.shape[2],
    }


# 3. Words


def decode(folder: Path, features: Path, videos: list[Path]) -> dict[str, str]:
    """Return name of a video → caption, by its file of features alone."""
    model = load(folder)
    del model.model.visual
    model.to(DEVICE)
    processor = AutoProcessor.from_pretrained(folder)
    captions = {}
    for video in videos:
        inputs = torch.load(features / f"{video.stem}.pt", weights_only=True)
        record: Any = [part.to(DEVICE) for part in inputs.pop("features")]
        inputs = {name: value.to(DEVICE) for name, value in inputs.items()}
        outputs = {"video": BaseModelOutputWithPooling(pooler_output=record)}
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, mm_encoder_outputs=outputs, max_new_tokens=MOST_TOKENS, do_sample=False
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        captions[video.name] = processor.decode(new, skip_special_tokens=True).strip()
    return captions


def load(folder: Path) -> Any:
    """Return the model on the host. Penstock reads only the tensors of one half."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def main(folder: Path, features: Path, *videos: Path) -> None:
    features.mkdir(parents=True, exist_ok=True)
    encode(folder, features, [*videos])
    gc.collect()
    torch.cuda.empty_cache()
    for name, caption in decode(folder, features, [*videos]).items():
        print(f"{name}: {caption}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
