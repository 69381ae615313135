"""Writes the part of docs/models.md about checkpoints that are not read as they are published."""

from stages.models.hub.originals import NEAREST
from stages.models.hub.unsupported import UNSUPPORTED

HEAD = """
## Not read as published

Each of these checkpoints is refused in one line, with the reason and a form that works.

| checkpoint | why | what works |
|---|---|---|
"""
QUANTIZED = (
    (
        "quantized checkpoints: AWQ, GPTQ, FP8, compressed-tensors and others",
        "they are quantized by another method than that of bitsandbytes, and their halves cannot "
        "be loaded",
        "the original checkpoint with `--precision nf4` or `int8`, or the output of "
        "`penstock export --to nf4` from it",
    ),
    (
        "one whose config.json claims quantization over plain weights",
        "its weights are not quantized",
        "the same without `quantization_config` in its config.json",
    ),
)


def section() -> str:
    """Return the part of the page."""
    rows = [*QUANTIZED, *((form.name, form.reason, form.alternative) for form in UNSUPPORTED)]
    nearest = ", ".join(f"`{model}`" for model in dict.fromkeys(NEAREST.values()))
    why = "it is in the form of the original LLaVA code, and was never converted"
    rows.append(("LLaVA-Video", why, f"{nearest}, of the same makers"))
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
