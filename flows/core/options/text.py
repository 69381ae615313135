"""Options for prompts, the decode engine, and the written text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.option_texts import named_texts
from artifacts.options import Option, OptionGroup
from flows.core.options.formats import FILES, GIVE_CONDITION, MEMORY, MODEL, TEXT
from flows.core.options.model import DateOptions
from stages.decode.engines import AUTO, ENGINE_CHOICES

LENGTHS = {
    "short": "Answer in one short sentence.",
    "medium": "Answer in two or three sentences.",
    "long": "Answer in one long and detailed paragraph.",
}
"""Value of `--length` → sentence appended to the prompt."""
VIDEO_PROMPT = "Describe this video in detail."
SOUND_PROMPT = (
    "Describe this video in detail: what is seen, what people say, word for word, and which sounds "
    "and music can be heard."
)
"""Default prompt for videos whose sound the model gets."""
IMAGE_PROMPT = "Describe this image in detail."
SCHEMA_BYTES = 1 << 20
"""Largest size of a schema file in bytes."""
TRUST_FOLDER_HELP = "believe what another person wrote into an output folder"
FOLDER_OPTION = Option(
    "output folder [%(default)s]",
    MODEL,
    "DIR",
    not_empty="Give a folder, or leave it out: penstock-out",
    path=True,
)
NAME = re.compile(r"[a-z0-9-]+")
"""The form of a prompt name."""


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(DateOptions):
    """A single prompt. Some models' features depend on it."""

    prompt: Annotated[
        str | None,
        Option(
            'prompt ["Describe this video in detail."]',
            MODEL,
            "TEXT",
            text=r"\S",
            excludes="prompt",
        ),
    ] = None
    """The prompt. None asks for a description of the video or image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise UsageError("--prompt is empty", hint="Leave it out for a description")


@dataclass(frozen=True, kw_only=True)
class PromptOptions(QuestionOptions):
    """One or several prompts, and a summary."""

    prompts: Annotated[
        dict[str, str],
        Option(
            "several captions per chunk; repeatable",
            TEXT,
            "NAME=TEXT",
            parse=partial(named_texts, "--prompts", 'short="What is it?"'),
            repeated=True,
        ),
    ] = field(default_factory=dict)
    """Name → prompt: several captions of each chunk, from one encoding."""
    length: Annotated[
        str,
        Option(f"requested caption length: {'|'.join(LENGTHS)}", TEXT, "L", values=("", *LENGTHS)),
    ] = ""
    """Caption length requested in the prompt: `short`, `medium` or `long`; empty: none."""
    summary: Annotated[bool, Option("write chapters and a summary of each video", TEXT)] = False
    """Write chapters and a summary of each video from its captions."""
    summary_prompt: Annotated[str, Option("prompt of the summary", TEXT, "TEXT")] = ""
    """Prompt of the summary; empty: asks what happens, and when."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts and self.prompt is not None:
            raise UsageError(
                "--prompt and --prompts exclude each other",
                hint=f'Use only --prompts, with a name: "description={self.prompt[:20]}…"',
            )
        check_prompts(self.prompts)
        if self.summary_prompt and not self.summary:
            raise UsageError("--summary-prompt needs --summary", hint="Add --summary")


@dataclass(frozen=True, kw_only=True)
class EngineOptions(OptionGroup):
    """The decode engine, and the maximum caption length."""

    engine: Annotated[
        str,
        Option(
            f"decode engine: {'|'.join(ENGINE_CHOICES)} [%(default)s]",
            TEXT,
            "E",
            values=ENGINE_CHOICES,
        ),
    ] = AUTO
    """Decode engine: `inflight`, `transformers`, or `auto`, which is inflight if a check shows the
    same output, else transformers."""
    slots: Annotated[
        int,
        Option("captions decoded at once [on a GPU up to 64, else a batch]", MEMORY, "N", least=0),
    ] = 0
    """Maximum number of captions that are decoded at once in slots. 0: on a GPU as many as fit, up
    to 64; on a CPU the batch size. Captions in slots do not depend on it."""
    max_new_tokens: Annotated[
        int, Option("maximum tokens per caption [256]", TEXT, "N", above=0)
    ] = 256
    """Maximum tokens per caption."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(OptionGroup):
    """Changes to a caption before it is written. They affect no stored record."""

    strip_think: Annotated[bool, Option("remove <think> … </think> from captions", TEXT)] = False
    """Remove the text between <think> and </think> from captions."""
    trigger: Annotated[str, Option("prepend `WORD, ` to every caption", TEXT, "WORD")] = ""
    """Trigger word of a LoRA. It and a comma are prepended to every caption that is not JSON,
    before the prefix."""
    prefix: Annotated[str, Option("prepend to every caption", TEXT, "T")] = ""
    """Prepended to every caption."""
    suffix: Annotated[str, Option("append to every caption", TEXT, "T")] = ""
    """Appended to every caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger != self.trigger.strip() or not self.trigger.isprintable():
            raise UsageError(f"invalid --trigger {self.trigger!r}", hint="Give a word: ohwx")


@dataclass(frozen=True, kw_only=True)
class FolderOptions(OptionGroup):
    """The output folder of a run."""

    out: Annotated[str, FOLDER_OPTION] = "penstock-out"
    """Output folder."""


@dataclass(frozen=True, kw_only=True)
class TrustOptions(OptionGroup):
    """Whether what another person wrote into an output folder counts."""

    trust_folder: Annotated[bool, Option(TRUST_FOLDER_HELP, FILES)] = False
    """Believe what an output folder says that nothing proves to be of this user: edits, rounds of
    learning, addresses, and the command that made it."""


@dataclass(frozen=True, kw_only=True)
class OwnerOptions(OptionGroup):
    """Whether a run may take an output folder from its owner."""

    replace: Annotated[
        bool, Option("take over another command's folder; drop rows of other media", FILES)
    ] = False
    """Take over the output folder of another command, and drop rows of media that are away, or that
    exist and are not among the sources."""


@dataclass(frozen=True, kw_only=True)
class SiftFirstOptions(OptionGroup):
    """A first step that leaves out media."""

    sift: Annotated[
        str | None,
        Option(
            'caption only media whose marks meet this: "blurred = 0"',
            FILES,
            "EXPR",
            not_empty=GIVE_CONDITION,
        ),
    ] = None
    """Condition on the marks of `penstock sift` that media must meet to be captioned; None: all
    are."""


def read_schema(given: str) -> str:
    """Return the text of a JSON Schema: the content of a file, or the given text itself. Raises
    UsageError."""
    if given.lstrip().startswith("{"):
        return given
    return text_named(given, "schema", SCHEMA_BYTES, "Give a JSON Schema file")


def check_prompts(prompts: Mapping[str, str]) -> None:
    """Raise UsageError for an invalid name, or an empty prompt."""
    for name, text in prompts.items():
        if not NAME.fullmatch(name):
            raise UsageError(
                f"invalid prompt name {name!r}", hint="Use a-z, 0-9 and -: short, tags-2"
            )
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"prompt {name} is empty", hint=f'Give it a text: {name}="What …?"')
