"""What is wrong with the words of captions, whatever a tokenizer makes of them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.outputs.seen.sets import Fault, TrainedSample

MARKS = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|startoftext|>", "</s>",
    "<image>", "<video>", "[INST]", "[/INST]", "[IMG]", "<|vision_start|>", "<end_of_turn>",
)  # fmt: skip
"""Marks of chat templates, which a tokenizer takes for an end or a picture, and not for text."""
EACH_LINE = ("onetrainer", "simpletuner")
"""Trainers that take each line of a text as another caption, one of them at random."""
SPACED = "\u0e00"
"""First letter of the scripts that put no blanks between words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordRules:
    """What captions have to be."""

    trainer: str
    trigger: str = ""
    """The word that each begins with; empty: none."""
    forbidden: tuple[str, ...] = ()
    """Words that none may have."""


def note_words(samples: Sequence[TrainedSample], rules: WordRules) -> None:
    """Add the faults of the captions to their samples."""
    count = Counter(text.strip() for sample in samples for text in set(sample.captions))
    for sample in samples:
        if sample.settings is not None and sample.settings.num_repeats < 1:
            why = f"num_repeats is {sample.settings.num_repeats}: it is left out"
            sample.faults.append(Fault(rule="never trained", text=why))
        for text in sample.captions or ("",):
            sample.faults += _faults(text, sample, rules)
            sample.measures["duplicate"] = again = count[text.strip()]
            if again > 1 and text.strip():
                sample.faults.append(Fault(rule="duplicate", text=f"{again} have this caption"))


def _faults(text: str, sample: TrainedSample, rules: WordRules) -> Iterator[Fault]:
    if not text.strip():
        yield Fault(rule="empty", text="it has no caption")
        return
    if "\n" in text.strip():
        if sample.settings is not None and sample.settings.first_line:
            yield Fault(rule="lines", text="only the first line of the caption is read")
        elif rules.trainer in EACH_LINE:
            yield Fault(rule="lines", text="each line is taken as another caption, at random")
    yield from _of_trigger(text, sample, rules.trigger)
    for word in rules.forbidden:
        if _pattern(word).search(text):
            yield Fault(rule="forbidden", text=f"the caption has {word!r}")
    for mark in (mark for mark in MARKS if mark in text):
        yield Fault(rule="mark", text=f"{mark} is read as a mark of a chat, and not as text")


def _of_trigger(text: str, sample: TrainedSample, trigger: str) -> Iterator[Fault]:
    if not trigger:
        return
    text = sample.settings.read_as(text) if sample.settings is not None else text
    count, settings = len(_pattern(trigger).findall(text)), sample.settings
    if count != 1:
        how = f"stands {count} times" if count else "is missing"
        yield Fault(rule="trigger", text=f"the trigger {trigger!r} {how}")
    elif not text.lstrip().lower().startswith(trigger.lower()):
        yield Fault(rule="trigger", text=f"the trigger {trigger!r} is not at the beginning")
    parts = trigger.count(",") + 1
    fixed = settings.fixed_words if settings is not None else None
    if fixed is not None and fixed < parts:
        why = f"shuffle_caption moves the trigger: set keep_tokens = {parts}"
        yield Fault(rule="trigger", text=why)


def _pattern(word: str) -> re.Pattern[str]:
    """Return the pattern of a word: `man` is not in `woman`, but a word of a script without blanks
    stands anywhere."""
    first, last = (r"(?<!\w)" * _is_spaced(word[:1])), (r"(?!\w)" * _is_spaced(word[-1:]))
    return re.compile(first + re.escape(word) + last, re.IGNORECASE)


def _is_spaced(letter: str) -> bool:
    return letter.isalnum() and letter < SPACED
