"""Builds the prompt of a chunk: from options and list lines, by way of placeholders, to text.

1. `Prompts` takes the prompts of a file's list line, else the named prompts of the command, else
   its prompt or a description, and adds the sentence of `--length`.
2. `FilePlaceholders` inserts `{name}`, `{folder}` and `{tags}`, which are the same for all chunks.
3. `fill_placeholders` inserts `{seconds}`, `{frames}` and `{times}` of a chunk, and `{previous}`
   once the previous chunk is captioned.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from artifacts.disk.regular_files import link_out, read_bytes, user_text
from artifacts.errors import ControlWord, UsageError
from artifacts.records.store import Store
from artifacts.schema import ChunkIndex
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.media.generated_files import (
    FORM,
    MAX_BYTES,
    OF_LABELS,
    GeneratedFiles,
    about,
    text_paths,
)
from flows.core.media.media_file import MediaFile, source_failure, writable
from flows.core.options.commands import RunOptions
from flows.core.options.text import IMAGE_PROMPT, LENGTHS, SOUND_PROMPT, VIDEO_PROMPT
from stages.encode import shown_frames

NAME, FOLDER, TAGS = "{name}", "{folder}", "{tags}"
SECONDS, FRAMES, TIMES = "{seconds}", "{frames}", "{times}"
PREVIOUS = "{previous}"
"""Placeholder for the caption of the previous chunk."""
BRACE = "{\ufdd0}"
"""Stands for a brace that is text. No user writes it: the character means nothing in Unicode."""
OF_FILE = re.compile("|".join(map(re.escape, (NAME, FOLDER, TAGS))))
"""Placeholders that are replaced once per file; other braces stay."""
OF_CHUNK = re.compile("({})".format("|".join((SECONDS, FRAMES, TIMES, PREVIOUS))))
"""Placeholders that are replaced once per chunk."""
PLACEHOLDERS = re.compile(f"{OF_CHUNK.pattern}|{BRACE}")
OLD_LABELS = "it holds labels of what the file held before; run `penstock label` again"
NO_TAGS = f"no .{FORM} next to it that a user wrote or that holds labels"


def command_prompt(config: RunOptions, kind: str) -> str:
    """Return the command's prompt for a medium of this kind, without the sentence of `--length`."""
    prompt = config.groups.question.prompt
    default = IMAGE_PROMPT if kind == "image" else VIDEO_PROMPT
    return default if prompt is None else prompt


def prompt_for(model: Model, config: RunOptions, kind: str, own: str | None = None) -> str:
    """Return the prompt for a medium of this kind, in the requested length: its `own` of a list
    line or a name, else the command's. A model that continues its prompt gets none by default."""
    if own is None:
        if model.profile.continues_prompt and config.groups.question.prompt is None:
            return ""
        asks_for_sound = model.hears and kind == "video"
        asks_for_sound = asks_for_sound and config.groups.question.prompt is None
        own = SOUND_PROMPT if asks_for_sound else command_prompt(config, kind)
    length = config.groups.prompts.length
    return f"{own} {LENGTHS[length]}" if length else own


class Prompts:
    """The prompts of the files of one run."""

    def __init__(self, config: RunOptions, model: Model, store: Store) -> None:
        self._config = config
        self._model = model
        self._placeholders = FilePlaceholders(store)
        self.notes = self._placeholders.notes
        self._checked: set[str] = set()
        """Prompts without an image placeholder of the model."""
        self.failures: dict[Path, Failure] = {}
        """Files that put a control token of the model into their prompt."""

    def of(self, file: MediaFile, digest: str) -> Iterator[tuple[MediaFile, str]]:
        """Yield the file once per prompt, with that prompt: the named prompts of its list line or
        else of the command, or the only one. Where its name, folder or tags put a control token of
        the model into it, it fails. Raises UsageError for a prompt that the model refuses."""
        if not self._config.takes_listed_prompts:
            file = replace(file, prompt=None, prompts={})
        by_command = {} if file.prompt is not None else self._config.groups.prompts.prompts
        named = (file.prompts or by_command).items()
        for entry in [replace(file, name=name, prompt=text) for name, text in named] or [file]:
            template = prompt_for(self._model, self._config, file.kind, entry.prompt)
            if template not in self._checked:
                refuse_control_words(f"the prompt of {file.path.name}", template, self._model)
                self._checked.add(template)
            prompt = self._placeholders.fill(template, file, digest)
            word = _control_word(prompt, self._model, of_every_kind=True, template=template)
            if word is None:
                self._check_previous(prompt)
                yield entry, prompt
                continue
            self.failures[file.path] = source_failure(
                file.source,
                file.media_path,
                "placeholder",
                f"its name, folder or tags put into the prompt {word}",
                "Rename it, or leave {name}, {folder} and {tags} out of the prompt",
            )

    def _check_previous(self, prompt: str) -> None:
        """Refuse `{previous}` for a model that encodes images together with the prompt, since all
        chunks are encoded first. Raises UsageError."""
        if self._model.profile.prompted and PREVIOUS in prompt:
            raise UsageError(
                f"{PREVIOUS}: not supported by {self._model.name} (it encodes images together "
                "with the prompt)",
                hint="Leave it out, or choose another model",
            )


class FilePlaceholders:
    """What stands in prompts for the name, the folder and the tags of a file. Tags are in a text
    next to it that a user wrote, or that holds labels."""

    def __init__(self, store: Store) -> None:
        self._generated = GeneratedFiles(store)
        self._without_tags: dict[Path, str] = {}

    def fill(self, prompt: str, file: MediaFile, digest: str) -> str:
        """Return a prompt with name, folder and tags of a file. Of the result, only placeholders of
        chunks that stood in the prompt are filled later, whatever these texts hold."""
        if not OF_FILE.search(prompt):
            return prompt
        values = {
            NAME: PurePosixPath(file.media_path).stem,
            FOLDER: writable(PurePosixPath(file.place).parent.name),
            TAGS: self._tags(file, digest) if TAGS in prompt else "",
        }
        pieces = OF_CHUNK.split(prompt)
        for at in range(0, len(pieces), 2):  # each other piece is a placeholder of chunks
            text = OF_FILE.sub(lambda word: values[word[0]], pieces[at])
            pieces[at] = PLACEHOLDERS.sub(lambda word: BRACE + word[0][1:], text)
        return "".join(pieces)

    def _tags(self, file: MediaFile, digest: str) -> str:
        """Return the tags of a file in one line, from the first of its texts that has some. Files
        without tags give an empty string, and are noted."""
        whys = []
        for path in text_paths(file.path):
            text, why = self._tags_in(path, file, digest)
            if text:
                return text
            whys += [f"{path.name}: {why}"] * bool(why)
        self._without_tags[file.path] = (*whys, NO_TAGS)[0]
        return ""

    def _tags_in(self, path: Path, file: MediaFile, digest: str) -> tuple[str, str]:
        """Return the tags in a text, and why there are none if that is no matter of course."""
        of = about(digest, path, file.place)
        try:
            why = link_out(path, path.parent)
            text = "" if why else user_text(read_bytes(path, MAX_BYTES), path)
        except OSError as error:
            text, why = "", "" if isinstance(error, FileNotFoundError) else str(error.strerror)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        # A generated caption is not fed back to a model.
        if self._generated.has(FORM, sha256, of):
            text = ""
        if text.strip() and self._generated.is_of_another(FORM, text, of):
            text, why = "", OLD_LABELS
        elif self._generated.has(OF_LABELS + FORM, sha256, of):
            labels = (label.strip() for line in text.split("\n") for label in line.split(","))
            text = ", ".join(dict.fromkeys(filter(None, labels)))
        return " ".join(text.split()), why

    def notes(self) -> list[str]:
        """Return a note on files without tags, if there are any."""
        if not self._without_tags:
            return []
        first, why = next(iter(self._without_tags.items()))
        return [
            f"{TAGS} is empty in the prompt of {counted(len(self._without_tags), 'file')}, such as "
            f"{writable(first.name)}: {writable(why)}"
        ]


def fill_placeholders(
    prompt: str, chunk: ChunkIndex, frames_per_video: int = 0, previous: str | None = None
) -> str:
    """Return the prompt for a chunk of a video, or for an image, which is one frame without length.
    A model with a fixed `frames_per_video` sees that many frames (0: any number). `previous`:
    caption of the previous chunk; None: not known yet, and its placeholder stays."""
    if not PLACEHOLDERS.search(prompt):
        return prompt
    # The first frame of a chunk may have been on screen before the chunk begins.
    times: Sequence[float] = [max(0.0, time - chunk.start) for time in chunk.times]
    seconds = chunk.end - chunk.start
    if seconds and frames_per_video not in (0, len(times)):
        times = shown_frames(times, seconds, frames_per_video)[1]
    return _fill(prompt, seconds, times, previous)


def added_bytes(prompt: str, frames: int) -> int:
    """Return an estimate of how many bytes longer a prompt becomes for a chunk of so many
    frames."""
    return max(0, len(example(prompt, frames).encode()) - len(prompt.encode()))


def example(prompt: str, frames: int) -> str:
    """Return the prompt for a chunk with one frame per second."""
    return _fill(prompt, float(frames), [float(second) for second in range(frames)])


def _fill(prompt: str, seconds: float, times: Sequence[float], previous: str | None = None) -> str:
    """Return the prompt with numbers in the format that LLaVA-Video was trained on."""
    values = {
        SECONDS: f"{seconds:.2f}",
        FRAMES: str(len(times)),
        TIMES: ",".join(f"{time:.2f}s" for time in times),
        PREVIOUS: PREVIOUS if previous is None else previous,
        BRACE: "{",
    }
    return PLACEHOLDERS.sub(lambda word: values[word[0]], prompt)


def refuse_control_words(where: str, text: str, model: Model, *, answers: bool = False) -> None:
    """Raise ControlWord if a text holds the model's own image placeholder; if the model `answers`
    it, also for any other control token."""
    if word := _control_word(text, model, of_every_kind=answers):
        raise ControlWord(
            f"{where} holds {word}", hint="Leave it out; each image is placed before the prompt"
        )


def _control_word(
    text: str, model: Model, *, of_every_kind: bool, template: str = ""
) -> str | None:
    """Return the first image placeholder of the model in a text, or `of_every_kind` any control
    token, and what it is. What stands in the `template` of the text, too, does not count."""
    kinds = {"an image placeholder of {}": model.profile.placeholders}
    if of_every_kind:
        kinds["a control token of {}, which no caption keeps"] = model.profile.control_tokens
    return next(
        (
            f"{word}, {kind.format(model.name)}"
            for kind, words in kinds.items()
            for word in words
            if text.count(word) > template.count(word)
        ),
        None,
    )


def check_fixed_texts(config: RunOptions, model: Model) -> None:
    """Check the texts that surround every prompt. Raises UsageError for a system prompt that the
    chat template cannot hold, the model's own image placeholder, and a control token at the
    beginning of captions, which the stored caption would lack."""
    params = config.groups.generation
    if params.system and not model.profile.takes_system:
        raise UsageError(
            f"--system: not supported by the chat template of {model.name}",
            hint="Put that text at the beginning of --prompt",
        )
    refuse_control_words("--system", params.system, model)
    refuse_control_words("--start-with", params.start_with, model, answers=True)
    refuse_control_words("--summary-prompt", config.groups.prompts.summary_prompt, model)


def check_summary(config: RunOptions, model: Model) -> None:
    """Check that the model can summarize, which needs answers to text alone. Raises UsageError."""
    if config.groups.prompts.summary and model.profile.needs_pictures:
        raise UsageError(
            f"{model.name} cannot summarize: it needs an image to answer "
            f"({model.profile.needs_pictures})",
            hint="Leave out --summary, or choose a model that answers questions: docs/models.md",
        )
