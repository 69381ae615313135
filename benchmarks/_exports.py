"""Rows of `benchmarks.quantization` for checkpoints that `penstock export` wrote.

Those in nf4 and int8 caption as any model does. Those for vLLM are rounded by themselves and by
calibration on other clips; a half in 16 bit then computes with their weights, as whoever unpacks
them does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artifacts.schema import Part
from benchmarks._precisions import Row, divergence, line, measure, said_by
from flows.console.display import Display
from flows.job.prepare import prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportRequest
from flows.options.model import DEMO_MODEL
from flows.running.export import export
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from penstock_demo.scoring import Truth, score_captions
from stages.decode.generate_kwargs import make_greedy
from stages.export.export_plan import plan_export
from stages.export.jobs import PACKED
from stages.export.logit_agreement import replace_weights
from stages.export.quant_formats import Packed
from stages.models.loading import ModelJob

SAMPLES, SEED = 256, 12
"""Clips that weights are calibrated on (a half of them, and judged by the other), and their
seed."""
ROWS: dict[str, tuple[str, bool, int]] = {
    "nf4, exported": ("nf4", False, 32),
    "int8, exported": ("int8", False, 32),
    "w4a16": ("w4a16", False, 32),
    "w4a16, calibrated": ("w4a16", True, 32),
    "w4a16 of 64, calibrated": ("w4a16", True, 64),
    "w8a16, calibrated": ("w8a16", True, 32),
}
"""Name → what it is exported to, whether by calibration, and columns that share a scale."""


def print_exports(
    clips: Path, truths: Sequence[Truth], first: Row, tokens: Sequence[torch.Tensor]
) -> None:
    """Print a line for each of them, and how far the calibrated one is beside nf4."""
    others = clips.parent / "others"
    write_clips(others, SAMPLES, SEED)
    (others / "truth.jsonl").unlink()
    found = {}
    for name, (kind, calibrated, group) in ROWS.items():
        folder = clips.parent / f"export-{name.replace(', ', '-')}"
        asked = ExportRequest(
            kind=kind,
            folder=folder,
            calibrated=calibrated,
            samples=SAMPLES,
            group=group,
            accept=True,
        )
        config = CaptionConfig(
            sources=(str(others),), model=DEMO_MODEL, store=str(clips.parent / "store")
        )
        made = export(config, asked, Display(quiet=True)).out
        if kind in PACKED:
            row = packed_row(name, made, PACKED[kind], group, clips, truths, tokens)
        else:
            row, _ = measure(name, clips, truths, tokens, model=str(made))
        found[name] = divergence(row, first)
        print(line(row, first, tokens), flush=True)
    ratio = found["w4a16, calibrated"] / found["nf4, exported"]
    print(f"divergence of w4a16, calibrated, to that of nf4: {ratio:.2f}")


def packed_row(
    name: str,
    made: Path,
    bits: int,
    group: int,
    clips: Path,
    truths: Sequence[Truth],
    tokens: Sequence[torch.Tensor],
) -> Row:
    """A row of the half in 16 bit with the weights of a packed checkpoint."""
    config = CaptionConfig(
        sources=(str(clips),), model=DEMO_MODEL, store=str(clips.parent / "store"), precision="bf16"
    )
    job = prepare(config, DirectLauncher(lambda *_: None))
    source = ModelJob(model=str(CHECKPOINT), dtype="bfloat16")
    half, processor = source.load("language"), source.processor()
    make_greedy(half, processor)
    parts: tuple[Part, ...] = ("language",)
    outline = plan_export(CHECKPOINT, parts, False, Packed(bits, group).takes)
    count = replace_weights(half, outline, made, bits, group)
    captions = captions_of(half, processor, job)
    weights = sum(path.stat().st_size for path in made.glob("*.safetensors"))
    return Row(
        name=name,
        vision="bf16",
        language=f"{bits} bits a number ({count} layers)",
        weight_bytes=weights,
        exact=score_captions(truths, captions).groups[0].tallies["exact"].percent,
        captions=captions,
        logits=[logits for _, logits in said_by(half, processor, job, tokens)],
    )


def captions_of(half: Any, processor: Any, job: Any) -> dict[str, str]:
    """File → caption that the half says by itself."""
    said = [spoken for spoken, _ in said_by(half, processor, job, None)]
    texts = processor.batch_decode(said, skip_special_tokens=True)
    names = [Path(task.medium.path).name for task in job.ledger.tasks(job.media)]
    return {name: text.strip() for name, text in zip(names, texts, strict=True)}
