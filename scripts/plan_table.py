"""Prints the table of docs/memory.md: what fine-tuning Qwen2.5-VL-7B would take beside what others
report. `--write` puts it into the page."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._common import cells, heads
from benchmarks._plan_cases import make_folder, plan_case
from flows.planning.architecture import Architecture, read_architecture
from flows.planning.training_estimate import train_estimate
from flows.planning.training_terms import Training
from stages.models.hub.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory.md"
GIB = 1 << 30
BEGIN, END = "<!-- fine-tuning -->\n", "<!-- end of fine-tuning -->"
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
    parser.add_argument("--write", action="store_true", help="put it into docs/memory.md")
    if parser.parse_args().write:
        PAGE.write_text(put(PAGE.read_text(), table()))
    else:
        print(table())


def put(page: str, text: str) -> str:
    """The page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{text}\n{END}{rest.split(END)[1]}"


def table() -> str:
    with tempfile.TemporaryDirectory() as root:
        case = replace(plan_case("qwen2.5-vl-7b-instruct"), processor=None)
        folder = make_folder(case, Path(root))
        architecture = read_architecture(Checkpoint(name=case.name, folder=folder))
        return "\n".join(tuning_lines(architecture))


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
