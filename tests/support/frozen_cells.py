"""The matrix of commands whose keys are frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One command over the clips, with the model that it runs."""

    command: str = "caption"
    model: str = "demo"
    """Name of a recorded profile."""
    options: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    """Options of the same command, run before in the same folder."""
    refuse: Mapping[str, int] = field(default_factory=dict)
    """Stage → the number of its processes that run out of memory."""
    graphs: bool = False
    """Whether graphs of the vision half lie beside the checkpoint."""
    published: bool = False
    """Whether the config.json of a copy of the demo says that it is run as published."""
    stop: str = ""
    """Stage whose process is interrupted before it does anything; empty: none."""


def _caption(*options: str, **more: Any) -> Cell:
    return Cell(options=options, **more)


SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
CHUNKS = ("--chunk", "2")
PROMPTS = ("--prompts", "short=Say it short.", "--prompts", "long=Say it long.")
ADAPTER = ("--adapter", "{data}/adapter")
LABELS = ("--labels", "red,blue")
SINGLE: dict[str, tuple[str, ...]] = {
    "prompt": ("--prompt", "What is this?"),
    "length": ("--length", "short"),
    "summary": ("--summary",),
    "summary prompt": ("--summary", "--summary-prompt", "What happens?"),
    "system": ("--system", "Be brief."),
    "start": ("--start-with", "A "),
    "avoid": ("--avoid", "image,photo"),
    "sampling": ("--sampling", "checkpoint"),
    "temperature": ("--temperature", "0.5", "--seed", "3"),
    "no chance": ("--temperature", "0", "--seed", "3"),
    "top p": ("--top-p", "0.9"),
    "top k": ("--top-k", "7"),
    "beams": ("--beams", "3"),
    "repetition": ("--repetition-penalty", "1.1"),
    "presence": ("--presence-penalty", "0.5"),
    "n-gram": ("--no-repeat-ngram", "3"),
    "loops": ("--retry-loops",),
    "think": ("--strip-think",),
    "trigger": ("--trigger", "ohwx"),
    "schema": ("--schema", SCHEMA),
    "prefix": ("--prefix", "p ", "--suffix", " s"),
    "limit": ("--max-new-tokens", "40"),
    "prompts": PROMPTS,
    "chain": ("--prompt", "Before: {previous}. And now?"),
    "batch": ("--batch-size", "2"),
    "kept frames": ("--keep-frames",),
    "trusted": ("--trust-remote-code",),
    "formats": ("--format", "txt,vtt,csv"),
    "adapter": ADAPTER,
    "fp32": ("--precision", "fp32"),
    "bf16": ("--precision", "bf16"),
    "fp16": ("--precision", "fp16"),
    "int8": ("--precision", "int8"),
    "nf4": ("--precision", "nf4"),
    "automatic": ("--precision", "auto"),
    "nf4 seeing": ("--vision-precision", "nf4", "--language-precision", "int8"),
    "max pixels": ("--max-pixels", "4096"),
    "max video pixels": ("--max-video-pixels", "65536"),
    "inflight": ("--engine", "inflight"),
    "transformers": ("--engine", "transformers"),
}
"""Name → options that are added to chunks of two seconds."""
SAMPLINGS: dict[str, tuple[str, ...]] = {
    "shots": ("--shots",),
    "whole": ("--whole",),
    "fps": ("--fps", "4"),
    "frames": ("--frames", "3"),
    "max frames": ("--max-frames", "3", "--chunk", "2.5"),
    "as its card": ("--sampling-as-card",),
}
PAIRS: dict[str, Cell] = {
    "chunks": _caption(*CHUNKS),
    "joint": _caption(*CHUNKS, model="joint"),
    "joint fp16": _caption(*CHUNKS, "--precision", "fp16", *PROMPTS, model="joint"),
    "prompted": _caption(*CHUNKS, model="prompted"),
    "prompted by several": _caption(*CHUNKS, *PROMPTS, model="prompted"),
    "splice": _caption(*CHUNKS, "--prompt", "What is this?", model="splice"),
    "one frame": _caption(*CHUNKS, model="one_frame"),
    "several inflight": _caption(*CHUNKS, *PROMPTS, "--engine", "inflight"),
    "several of a schema": _caption(*CHUNKS, *PROMPTS, "--schema", SCHEMA, "--summary"),
    "adapter nf4": _caption(*CHUNKS, *ADAPTER, "--language-precision", "nf4"),
    "published": _caption(*CHUNKS, published=True),
    "adapter summary": _caption(*CHUNKS, *ADAPTER, "--summary"),
    "beams auto": _caption(*CHUNKS, "--beams", "2", "--precision", "auto"),
    "auto inflight": _caption(*CHUNKS, "--precision", "auto", "--engine", "inflight"),
    "auto stock of several": _caption(*CHUNKS, "--precision", "auto", *PROMPTS),
    "graphs": _caption(*CHUNKS, "--vision-backend", "onnx", graphs=True),
    "graphs nf4": _caption(
        *CHUNKS, "--vision-backend", "onnx", "--language-precision", "nf4", graphs=True
    ),
    "graphs by themselves": _caption(*CHUNKS, "--vision-backend", "auto", graphs=True),
    "decode falls": _caption(*CHUNKS, "--precision", "auto", refuse={"decode": 1}),
    "decode falls twice": _caption(*CHUNKS, "--precision", "auto", refuse={"decode": 2}),
    "decode falls far": _caption(*CHUNKS, "--precision", "auto", refuse={"decode": 9}),
    "encode falls": _caption(*CHUNKS, "--precision", "auto", refuse={"encode": 1}),
    "graphs fall": _caption(*CHUNKS, "--vision-backend", "onnx", graphs=True, refuse={"encode": 1}),
    "another limit": _caption(
        *CHUNKS, "--max-new-tokens", "60", before=((*CHUNKS, "--max-new-tokens", "40"),)
    ),
    "another engine": _caption(*CHUNKS, before=((*CHUNKS, "--engine", "transformers"),)),
    "another prompt": _caption(*CHUNKS, "--prompt", "Why?", before=(CHUNKS,)),
}
VECTORS: dict[str, Cell] = {
    "embed": Cell(command="embed", model="dual"),
    "embed fps": Cell(command="embed", model="dual", options=("--fps", "2")),
    "embed tiles": Cell(command="embed", model="dual", options=("--tiles", "2")),
    "embed auto tiles": Cell(command="embed", model="dual", options=("--tiles", "auto")),
    "embed int8": Cell(command="embed", model="dual", options=("--precision", "int8")),
    "embed auto": Cell(command="embed", model="dual", options=("--precision", "auto")),
    "embed batch": Cell(command="embed", model="dual", options=("--batch-size", "3")),
    "embed graphs": Cell(
        command="embed", model="dual", options=("--vision-backend", "onnx"), graphs=True
    ),
    "label": Cell(command="label", model="dual", options=LABELS),
    "label nf4": Cell(command="label", model="dual", options=(*LABELS, "--precision", "nf4")),
    "label tiles": Cell(command="label", model="dual", options=(*LABELS, "--tiles", "2")),
    "label top": Cell(
        command="label", model="dual", options=(*LABELS, "--top", "1", "--threshold", "0.3")
    ),
    "index": Cell(command="index build", model="dual"),
    "index fp16": Cell(command="index build", model="dual", options=("--precision", "fp16")),
    "index fps": Cell(command="index build", model="dual", options=("--fps", "2")),
    "index graphs": Cell(
        command="index build", model="dual", options=("--vision-backend", "onnx"), graphs=True
    ),
}
REBUILDS: dict[str, Cell] = {
    "rebuild": Cell(command="cache rebuild", options=CHUNKS),
    "rebuild named": Cell(command="cache rebuild", options=(*CHUNKS, "--name", "n", "--prune")),
    "rebuild prompted": Cell(
        command="cache rebuild", model="prompted", options=(*CHUNKS, "--prompt", "Why?")
    ),
    "rebuild int8": Cell(command="cache rebuild", options=(*CHUNKS, "--vision-precision", "int8")),
    "rebuild published": Cell(command="cache rebuild", options=CHUNKS, published=True),
    "rebuild graphs": Cell(
        command="cache rebuild", options=(*CHUNKS, "--vision-backend", "onnx"), graphs=True
    ),
    "rebuild dual": Cell(command="cache rebuild", model="dual"),
}
CELLS: dict[str, Cell] = {
    "caption": _caption(),
    **{f"caption {name}": _caption(*CHUNKS, *words) for name, words in SINGLE.items()},
    **{f"caption {name}": _caption(*words) for name, words in SAMPLINGS.items()},
    **{f"caption {name}": cell for name, cell in PAIRS.items()},
    **VECTORS,
    **REBUILDS,
}
TUNE = ("{root}/data.jsonl", "--model", "demo")
EXPORT = ("--calibrate", "{clips}")
JOBS: dict[str, Cell] = {
    "caption bounded": Cell(
        options=("--fps", "4", "--max-new-tokens", "40"), model="bounded"
    ),
    "rebuild bounded": Cell(command="cache rebuild", options=("--fps", "4"), model="bounded"),
    "caption falls with prompts": _caption(
        *CHUNKS, *PROMPTS, "--precision", "auto", refuse={"decode": 1}
    ),
    "tune": Cell(command="tune", options=TUNE, stop="tune"),
    "tune further": Cell(
        command="tune",
        options=(
            *TUNE, "--lora-rank", "4", "--steps", "7", "--batch-size", "2", "--lr", "1e-3",
            "--seed", "3", "--validate", "0.5", "--max-new-tokens", "40",
        ),
        stop="tune",
    ),
    "tune nf4": Cell(
        command="tune",
        options=(*TUNE, "--precision", "nf4", "--recompute", "--optimizer", "adamw8bit"),
        stop="tune",
    ),
    "tune scored": Cell(command="tune", options=(*TUNE, "--validate-only"), stop="tune"),
    "export nf4": Cell(command="export demo --to nf4", options=EXPORT, stop="export"),
    "export int8 of both": Cell(
        command="export demo --to int8",
        options=(*EXPORT, "--half", "both"),
        stop="export",
    ),
    "export few": Cell(
        command="export demo --to nf4", options=(*EXPORT, "--samples", "2"), stop="export"
    ),
    "export packed": Cell(
        command="export demo --to w4a16", options=(*EXPORT, "--group", "32"), stop="calibrate"
    ),
    "export an adapter": Cell(
        command="export demo --to nf4", options=(*EXPORT, *ADAPTER), stop="merge"
    ),
    "export vectors": Cell(
        command="export demo --to int8", model="dual", options=(*EXPORT, "--half", "vision"),
        stop="export",
    ),
}  # fmt: skip
"""Frames bounded by a context; trainings and exports, up to the stage that is interrupted."""
SLOW = {
    *(f"caption {name}" for name in (
        "prompt", "summary prompt", "start", "no chance", "top p", "top k", "repetition",
        "presence", "n-gram", "think", "prefix", "batch", "kept frames", "trusted", "formats",
        "fp32", "bf16", "nf4 seeing", "int8", "whole", "fps", "frames", "joint fp16",
        "adapter nf4", "beams auto", "auto inflight",
        "auto stock of several", "graphs nf4", "decode falls", "another engine", "encode falls",
        "length", "max video pixels", "splice", "one frame", "graphs by themselves",
    )),
    *("caption falls with prompts", "tune nf4", "tune scored",
      "export few", "export int8 of both", "export an adapter"),
    *(f"caption {name}" for name in (
        "several inflight", "decode falls far", "graphs fall", "fp16", "loops",
        "trigger", "sampling", "another prompt", "prompted by several", "beams", "max pixels",
    )),
    *("embed int8", "embed auto", "index graphs", "rebuild published", "tune further",
      "export vectors", "rebuild bounded", "label tiles"),
    *("embed fps", "embed auto tiles", "embed batch", "label nf4", "label top", "index fp16",
      "index fps", "rebuild named", "rebuild int8", "rebuild graphs"),
}  # fmt: skip
"""Cells whose decisions others make, too."""
