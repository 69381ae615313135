"""Options for prompts, the decode engine, and the text that is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.regular import read_text
from flows.options.formats import FORMATS, KEEP, REPLACE, RULES, check_existing, check_formats
from flows.options.headings import FILES, MODEL, TEXT
from stages.decode.engines import AUTO, ENGINE_CHOICES, choice_for
from stages.decode.generation import SamplingParams

LENGTHS = {
    "short": "Answer in one short sentence.",
    "medium": "Answer in two or three sentences.",
    "long": "Answer in one long and detailed paragraph.",
}
"""The values of `--length`, each with what is put behind the prompt."""
VIDEO_PROMPT = "Describe this video in detail."
IMAGE_PROMPT = "Describe this image in detail."
SCHEMA_BYTES = 1 << 20
"""Largest size of the file of a schema."""
FOLDER_OPTION = Option(
    "for captions [%(default)s]",
    MODEL,
    "DIR",
    not_empty="Give a folder, or leave it out: penstock-out",
)
NAME = re.compile(r"[a-z0-9-]+")
"""The form of a prompt's name."""


def parse_prompts(given: Sequence[str]) -> dict[str, str]:
    """Return the prompts of `--prompts NAME=TEXT` by name, in order. Raises UsageError."""
    found: dict[str, str] = {}
    for option in given:
        name, equals, text = option.partition("=")
        if not equals:
            raise UsageError(
                f"--prompts {option} has no name", hint='Write NAME=TEXT: short="What is it?"'
            )
        if name in found:
            raise UsageError(f"--prompts {name} is given twice", hint="Give each its own name")
        found[name] = text
    return found


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(OptionGroup):
    """A single prompt. Features that depend on a prompt are made from it."""

    prompt: Annotated[
        str | None,
        Option('["Describe this video in detail."]', MODEL, "TEXT", text=r"\S", excludes="prompt"),
    ] = None
    """Question to the model; None asks for a description, of a video or of an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise UsageError("--prompt is empty", hint="Leave it out to ask for a description")

    def prompt_for(self, kind: str) -> str:
        """Return the prompt for a medium of this kind."""
        default = IMAGE_PROMPT if kind == "image" else VIDEO_PROMPT
        return PromptOptions.of(self).in_length(default if self.prompt is None else self.prompt)


@dataclass(frozen=True, kw_only=True)
class PromptOptions(QuestionOptions):
    """One or several prompts, and a summary."""

    prompts: Annotated[
        dict[str, str],
        Option(
            "several captions; repeat it", TEXT, "NAME=TEXT", parse=parse_prompts, repeated=True
        ),
    ] = field(default_factory=dict)
    """Name → question: several captions of each chunk, made of one look at it."""
    length: Annotated[
        str,
        Option(f"asks for it in words: {'|'.join(LENGTHS)}", TEXT, "L", values=("", *LENGTHS)),
    ] = ""
    """Length that is asked for in words: `short`, `medium` or `long`; empty: none."""
    summary: Annotated[bool, Option("chapters and a summary of each video", TEXT)] = False
    """Make chapters and a summary of each video of its captions."""
    summary_prompt: Annotated[str, Option("what is asked for it", TEXT, "TEXT")] = ""
    """Prompt of the summary; empty: it asks what happens, and when."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts and self.prompt is not None:
            raise UsageError(
                "--prompt and --prompts exclude each other",
                hint=f'Give it a name, too: --prompts "description={self.prompt[:20]}…"',
            )
        check_prompts(self.prompts)
        if self.summary_prompt and not self.summary:
            raise UsageError(
                "--summary-prompt is given, and no summary is asked for", hint="Add --summary"
            )

    def in_length(self, prompt: str) -> str:
        """Return a prompt with the length that is asked for in words."""
        return f"{prompt} {LENGTHS[self.length]}" if self.length else prompt


@dataclass(frozen=True, kw_only=True)
class EngineOptions(OptionGroup):
    """The decode engine, and the maximum caption length."""

    engine: Annotated[
        str, Option(f"{'|'.join(ENGINE_CHOICES)} [%(default)s]", TEXT, "E", values=ENGINE_CHOICES)
    ] = AUTO
    """What makes the captions: `inflight`, `transformers`, or `auto`, the first where a trial shows
    that it says the same; or `inflight-compiled`."""
    max_new_tokens: Annotated[int, Option("longest caption [256]", TEXT, "N", above=0)] = 256
    """Longest caption in tokens."""

    @property
    def speakers(self) -> str:
        """Return the choice of engines for these prompts and this beam search. Raises UsageError
        where the engine that is asked for cannot do it."""
        prompts = len(PromptOptions.of(self).prompts)
        return choice_for(self.engine, beams=SamplingParams.of(self).beams, prompts=prompts)


@dataclass(frozen=True, kw_only=True)
class TextOptions(OptionGroup):
    """Text changes applied before a caption is written. No stored record depends on them."""

    strip_think: Annotated[bool, Option("leave out what is in <think> … </think>", TEXT)] = False
    """Leave out of captions what stands between <think> and </think>."""
    trigger: Annotated[str, Option("put `WORD, ` before every caption", TEXT, "WORD")] = ""
    """Word of a LoRA: it and a comma are put before every caption that is no JSON, and before the
    prefix."""
    prefix: Annotated[str, Option("put before every caption", TEXT, "T")] = ""
    """Put before every caption."""
    suffix: Annotated[str, Option("put after every caption", TEXT, "T")] = ""
    """Put after every caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger != self.trigger.strip() or not self.trigger.isprintable():
            raise UsageError(f"--trigger {self.trigger!r} is no word", hint="Give a word: ohwx")


@dataclass(frozen=True, kw_only=True)
class FolderOptions(OptionGroup):
    """The output folder of a run."""

    out: Annotated[str, FOLDER_OPTION] = "penstock-out"
    """Folder of the captions."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionGroup):
    """The files that are written, and the treatment of files that users wrote or edited."""

    format: Annotated[
        tuple[str, ...],
        Option(f"beside jsonl: {', '.join(FORMATS[1:])}", FILES, "F,F", values=FORMATS),
    ] = ()
    """Formats beside jsonl."""
    beside: Annotated[bool, Option("put txt, vtt and srt next to the media files", FILES)] = False
    """Put txt, vtt and srt next to the media file instead of into `out`."""
    overwrite: Annotated[bool, Option("--existing replace", FILES)] = False
    """The same as `existing` with `replace`."""
    existing: Annotated[
        str | None,
        Option(
            f"{'|'.join(RULES)}: what people wrote or edited; the last two of txt alone [keep]",
            FILES,
            "RULE",
            values=RULES,
        ),
    ] = None
    """What becomes of a file that people wrote or edited: `keep`, `replace`, and of a txt also
    `append` or `prepend`, which put the caption after or before their words. None: `keep`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_formats(self.format, beside=self.beside)
        check_existing(self.existing, self.overwrite, self.format)

    @property
    def rule(self) -> str:
        """Return what becomes of files that people wrote or edited."""
        return REPLACE if self.overwrite else self.existing or KEEP

    @property
    def replaces(self) -> bool:
        """Return whether files that people wrote or edited are replaced."""
        return self.rule == REPLACE


def read_schema(given: str) -> str:
    """Return the text of a JSON Schema: the content of the file, or the given text itself. Raises
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
