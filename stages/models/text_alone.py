"""Finds out whether a language half can be asked about a text without a picture, by running it dry.
Reads no weights, and names no family."""

from typing import Any

from stages.memory.live_bytes import LiveBytes
from stages.memory.meta_device import on_meta_device, without_data
from stages.models.halves.classes import one_line
from stages.models.halves.delivery import generate
from stages.models.halves.features import Features
from stages.models.processors.text_turn import text_inputs
from stages.models.watching import NEW_TOKENS
from stages.process.exit_diagnosis import out_of_memory

TRIED = "What happens, and when? [00:00-00:30] A ball rolls to the left."


def why_no_text(skeleton: Any, processor: Any) -> str:
    """Return why nothing is said of a text alone by the model over `skeleton`, which is prepared
    for such runs; empty where something is."""
    try:
        inputs = text_inputs(processor, skeleton, TRIED)
        with on_meta_device(LiveBytes([*skeleton.parameters(), *skeleton.buffers()])):
            generate(skeleton, without_data(inputs), Features({}), max_new_tokens=NEW_TOKENS)
    except Exception as error:  # a family may refuse in any way what it was not made for
        if out_of_memory(error):
            raise
        return one_line(error)
    return ""
