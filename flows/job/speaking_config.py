"""Holds what a run is asked to say and how, the same for the command line and for Prefect; knows
nothing of media and of memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.regular import read_text
from stages.decode.generation import GREEDY, Generation
from stages.decode.structure import canonical

LENGTHS = {
    "short": "Answer in one short sentence.",
    "medium": "Answer in two or three sentences.",
    "long": "Answer in one long and detailed paragraph.",
}
"""The values of `--length`, each with what is put behind the prompt."""
SCHEMA_BYTES = 1 << 20
"""Largest size of the file of a schema."""
NAME = re.compile(r"[a-z0-9-]+")
"""The form of a prompt's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakingConfig:
    """What is asked of the language half. Fields have the names of the command line's options."""

    prompt: str | None = None
    """Question to the model; None asks for a description, of a video or of an image."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Name → question: several captions of each chunk, made of one look at it."""
    length: str = ""
    """Length that is asked for in words: `short`, `medium` or `long`; empty: none."""
    summary: bool = False
    """Make chapters and a summary of each video of its captions."""
    summary_prompt: str = ""
    """What is asked for the summary; empty: what happens, and when."""
    system: str = ""
    """Text of the system's turn before the question."""
    start_with: str = ""
    """Beginning of every caption, from which the model goes on."""
    avoid: tuple[str, ...] = ()
    """Words and phrases that are never said."""
    sampling: str = GREEDY
    """What chooses words: `greedy`, the likeliest always, or the settings of the `checkpoint`."""
    temperature: float | None = None
    """How much chance chooses words: 0 not at all, 1 as the model says."""
    top_p: float | None = None
    """Chance chooses among the likeliest words, of this share together."""
    top_k: int | None = None
    """Chance chooses among so many of the likeliest words; 0: all. None: 50."""
    seed: int = 0
    """Seed of chance; each chunk and prompt has its own, made of this one."""
    beams: int = 1
    """Captions that are followed at once, of which the likeliest is taken."""
    repetition_penalty: float | None = None
    """Makes what was said before less likely: 1 not at all, 1.1 a little."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the caption already holds, from -2 to 2; 0:
    nothing is. None: as `sampling` says."""
    no_repeat_ngram: int = 0
    """Runs of so many tokens are never said twice; 0: they may be."""
    retry_loops: bool = False
    """Say a caption that goes round in circles once more, where it may not."""
    strip_think: bool = False
    """Leave out of captions what stands between <think> and </think>."""
    trigger: str = ""
    """Word of a LoRA: it and a comma are put before every caption that is no JSON, and before the
    prefix."""
    schema: str = ""
    """File of a JSON Schema that every caption follows, or its text; empty: none. Read at once, so
    that it is the text from then on."""

    @property
    def generation(self) -> Generation:
        """Return how words are chosen. Raises UsageError for what makes no sense."""
        return Generation(**{f.name: getattr(self, f.name) for f in fields(Generation)})

    def check_speaking(self) -> None:
        """Raise UsageError for what makes no sense."""
        if self.schema:
            object.__setattr__(self, "schema", canonical(read_schema(self.schema)))
        _ = self.generation
        if self.trigger != self.trigger.strip() or not self.trigger.isprintable():
            raise UsageError(f"--trigger {self.trigger!r} is no word", hint="Give a word: ohwx")
        if self.prompt is not None and not self.prompt.strip():
            raise UsageError("--prompt is empty", hint="Leave it out to ask for a description")
        if self.prompts and self.prompt is not None:
            raise UsageError(
                "--prompt and --prompts exclude each other",
                hint=f'Give it a name, too: --prompts "description={self.prompt[:20]}…"',
            )
        if self.length and self.length not in LENGTHS:
            raise UsageError(
                f"--length {self.length} is not known", hint=f"Choose from {', '.join(LENGTHS)}"
            )
        check_prompts(self.prompts)
        if self.summary_prompt and not self.summary:
            raise UsageError(
                "--summary-prompt is given, and no summary is asked for", hint="Add --summary"
            )

    def in_length(self, prompt: str) -> str:
        """Return a prompt with the length that is asked for in words."""
        return f"{prompt} {LENGTHS[self.length]}" if self.length else prompt


def read_schema(given: str) -> str:
    """Return the text of a schema of which the file is given, or the text itself. Raises
    UsageError."""
    if given.lstrip().startswith("{"):
        return given
    try:
        return read_text(Path(given).expanduser(), SCHEMA_BYTES, "utf-8-sig")
    except (OSError, RuntimeError, ValueError) as error:  # of a user, or a name, that cannot be
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"--schema {given} cannot be read: {reason}", hint="Give a file of a JSON Schema"
        ) from error


def check_prompts(prompts: Mapping[str, str]) -> None:
    """Raise UsageError for a name that is none, or a prompt without words."""
    for name, text in prompts.items():
        if not NAME.fullmatch(name):
            raise UsageError(
                f"the prompt's name {name!r} is none", hint="Use a-z, 0-9 and -: short, tags-2"
            )
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"the prompt {name} is empty", hint=f'Give it words: {name}="What …?"')
