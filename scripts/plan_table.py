"""Prints the tables of docs/memory.md: what the plan cases take, by their dimensions, and what
fine-tuning them would take beside what others report. `--write` puts them into the page."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import cells, heads
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.architecture import Architecture, read_architecture
from flows.planning.architecture_profile import model_by_dimensions
from flows.planning.rungs import Rung
from flows.planning.training.estimate import train_estimate
from flows.planning.training.terms import Training
from stages.models.hub.checkpoint import Checkpoint
from tests.support.plan_cases import architecture_estimates, make_folder, plan_case

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory.md"
GIB = 1 << 30
TEXT_TOKENS = 64
EVA, LLAVA, CLIP = "eva-clip-8b", "llava-1.5-7b-hf", "clip-vit-large-patch14"
COG, QWEN = "cogvlm2-llama3-caption", "qwen2.5-vl-7b-instruct"


class Case(NamedTuple):
    """A model in a budget."""

    name: str
    budget: int
    """GiB of a GPU."""
    precision: str
    batch: int
    frames: int
    block: int = 0
    """Chunks past which the encoder's layers come one by one."""


CASES = (
    Case(EVA, 15, "bf16", 8, 1),
    Case(EVA, 3, "bf16", 8, 1, block=64),
    Case(LLAVA, 24, "native", 8, 1),
    Case(LLAVA, 16, "native", 4, 1),
    Case(LLAVA, 8, "int8", 1, 1),
    Case(LLAVA, 6, "nf4", 2, 1),
    Case(COG, 24, "native", 8, 24),
    Case(COG, 16, "nf4", 8, 24),
    Case(CLIP, 8, "native", 64, 1),
    Case(QWEN, 24, "native", 4, 1),
    Case(QWEN, 12, "nf4", 4, 1),
)
SWIFT = "ms-swift `examples/train/"


class Tuning(NamedTuple):
    """A model that is fine-tuned, and what is reported of it by whom."""

    model: str
    training: Training
    reported: str = ""
    source: str = ""


TEXT = "Qwen2.5-7B (text)"
ALL = "Qwen2.5-VL-7B"
FULL: dict[str, Any] = {"method": "full", "checkpointing": True}
LORA: dict[str, Any] = {**FULL, "method": "lora"}
QLORA: dict[str, Any] = {**FULL, "method": "qlora"}
TUNINGS = (
    Tuning(TEXT, Training(**FULL, optimizer="bf16"), "76 GiB", f"{SWIFT}full/train.sh`"),
    Tuning(ALL, Training(**FULL, optimizer="bf16")),
    Tuning(ALL, Training(**FULL)),
    Tuning(ALL, Training(method="full")),
    Tuning(ALL, Training(**FULL, zero=3, gpus=4)),
    Tuning(TEXT, Training(**LORA), "22 GB", f"{SWIFT}lora_sft.sh`"),
    Tuning(ALL, Training(**LORA), "22 GiB", f"{SWIFT}multimodal/caption.sh`"),
    Tuning(TEXT, Training(**QLORA), "10 GB", f"{SWIFT}qlora/bnb/train.sh`"),
    Tuning(ALL, Training(**QLORA)),
    Tuning(
        ALL, Training(**QLORA, length=512, frames=0), "6 GB", "LLaMA-Factory's table, of 7B models"
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into docs/memory.md")
    write = parser.parse_args().write
    for name, text in tables().items():
        if write:
            PAGE.write_text(put(PAGE.read_text(), name, text))
        else:
            print(f"{name}\n\n{text}\n")


def put(page: str, name: str, text: str) -> str:
    """The page with a table between its two marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}{text}\n{end}{rest.split(end)[1]}"


def tables() -> dict[str, str]:
    """Name → table."""
    with tempfile.TemporaryDirectory() as root:
        architectures = {}
        for name in (EVA, LLAVA, CLIP, COG, QWEN):
            case = replace(plan_case(name), processor=None)
            folder = make_folder(case, Path(root) / name)
            architectures[name] = read_architecture(Checkpoint(name=case.name, folder=folder))
        return {
            "cases": "\n".join(case_lines(architectures)),
            "fine-tuning": "\n".join(tuning_lines(architectures[QWEN])),
        }


def case_lines(architectures: dict[str, Architecture]) -> Iterator[str]:
    yield heads(
        "model | GiB | precision | batch x images | stage | weights | computing | KV cache | peak"
        " | without fused attention"
    )
    for case in CASES:
        fused, unfused = (estimates(architectures[case.name], case, fused=f) for f in (True, False))
        for at, (found, other) in enumerate(zip(fused, unfused, strict=True)):
            fits = "" if found.peak_bytes <= case.budget * GIB else " (does not fit)"
            told = (plan_case(case.name).name, str(case.budget), found.rung.precision)
            size = f"{case.batch} x {case.frames}{f', {case.block} streamed' if case.block else ''}"
            row = [
                *(told if at == 0 else ("", "", found.rung.precision)),
                size if at == 0 else "",
                found.rung.stage,
                *(gib(b) for b in (found.weight_bytes, found.activation_bytes, found.kv_bytes)),
                gib(found.peak_bytes) + fits,
                gib(other.peak_bytes),
            ]
            yield cells(row)


def estimates(architecture: Architecture, case: Case, *, fused: bool) -> list[Any]:
    config = CaptionConfig(sources=(), precision=case.precision)
    checkpoint = Checkpoint(name=case.name, folder=ROOT)
    model = model_by_dimensions(checkpoint, architecture, config, "cuda:0", fused=fused)
    halves = {
        s.name: model.best(s.part)
        for s in CAPTION
        if s.part and model.profile.parts[s.part].parameters
    }
    rungs = [
        Rung(
            stage=stage,
            batch=case.batch,
            precision=halves[stage].precision,
            offload=case.block > 0 and stage == "encode",
            block=case.block,
        )
        for stage in halves
    ]
    return architecture_estimates(
        model,
        rows=case.batch,
        frames=case.frames,
        tokens=TEXT_TOKENS,
        new_tokens=config.max_new_tokens,
        rungs=rungs,
    )


def tuning_lines(architecture: Architecture) -> Iterator[str]:
    yield heads(
        "model | how | weights | gradients | optimizer | activations | logits or layer"
        " | peak per GPU | reported | by"
    )
    for tuning in TUNINGS:
        found = train_estimate(
            alone(architecture) if tuning.model == TEXT else architecture, tuning.training
        )

        def part(*names: str, of: Any = found) -> str:
            return gib(sum(term.bytes for term in of.terms if term.part in names))

        row = [
            tuning.model,
            how(tuning.training),
            *(part(name) for name in ("weights", "gradients", "optimizer", "activations")),
            part("logits", "layer"),
            gib(found.peak_bytes),
            tuning.reported,
            tuning.source,
        ]
        yield cells(row)


def how(training: Training) -> str:
    words: list[str] = [training.method]
    if training.method == "full":
        words.append(f"AdamW {training.optimizer}")
    if training.zero:
        words.append(f"ZeRO {training.zero} on {training.gpus}")
    words.append(f"{training.length:,} tokens")
    words.append("recomputed" if training.checkpointing else "kept")
    return ", ".join(words)


def alone(architecture: Architecture) -> Architecture:
    """The language half as a model of its own."""
    transformers = tuple(each for each in architecture.transformers if each.kind == "text")
    return replace(architecture, transformers=transformers, parameters=architecture.text_parameters)


def gib(count: float) -> str:
    return f"{count / GIB:.2f}" if count else ""


if __name__ == "__main__":
    main()
