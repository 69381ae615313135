"""Computes digests of a job's files, and assigns prompts to them. Starts no process."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.captions import Failure
from artifacts.errors import ControlWord, Unanswered, UsageError
from artifacts.keys import ContentDigests, content_key
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.stamps import CHANGED, CHANGED_HINT, FileChanged
from artifacts.store import Store
from flows.checkpoint.models import Model
from flows.ledger.chunk_placeholders import PREVIOUS
from flows.ledger.tasks import Medium
from flows.media.far_digests import Progress, contents_of
from flows.media.media_files import MediaFile, source_failure
from flows.options.commands import RunOptions
from flows.options.text import OutputOptions, PromptOptions
from stages.decode.generation import SamplingParams
from stages.process.cgroup import cores


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFile:
    """One readable file of a job under one prompt."""

    file: MediaFile
    medium: Medium
    """Its content, with that prompt."""


def read_contents(
    files: Sequence[MediaFile],
    digests: ContentDigests,
    prompt_for: Callable[[str], str],
    store: Store,
    progress: Progress | None = None,
    *,
    fetch: bool = True,
) -> tuple[list[JobFile], list[Failure]]:
    """Compute the content digest of every file. An unreadable file becomes a failure and does not
    stop the job. Without `fetch`, a remote file without a known digest counts as unknown content.
    Raises EnvironmentFault if a bucket cannot be read."""
    readable: list[JobFile] = []
    failures: list[Failure] = []
    far = contents_of([file for file in files if file.far], store, progress, fetch=fetch)
    near = iter(digests.of_many([f.path for f in files if not f.far], workers=cores()))
    for file in files:
        content = far[file.path] if file.far else next(near)
        if not (isinstance(content, Exception) or file.far or os.access(file.path, os.R_OK)):
            content = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if isinstance(content, Exception):
            failures.append(_unreadable(file, content))
            continue
        medium = Medium(
            digest=content_key(content.digest, file.kind),
            path=str(file.path),
            kind=file.kind,
            prompt=file.prompt or prompt_for(file.kind),
            stamp=content.stamp,
        )
        readable.append(JobFile(file=file, medium=medium))
    return readable, failures


def _unreadable(file: MediaFile, error: OSError | Unanswered) -> Failure:
    if isinstance(error, Unanswered):
        return source_failure(
            file.source,
            file.media_path,
            UNREACHABLE,
            error.message.removeprefix(f"{file.place} "),
            error.hint,
        )
    kind, hint = "unreadable", "Check that you may read it and that its disk is there"
    if isinstance(error, FileChanged):
        kind, hint = CHANGED, CHANGED_HINT
    elif file.far and isinstance(error, FileNotFoundError):
        kind, hint = "missing", "Check the address; what was there may have moved"
    message = f"the file cannot be read ({error.strerror})"
    return source_failure(file.source, file.media_path, kind, message, hint)


def under_prompts(files: Sequence[JobFile], config: RunOptions) -> list[JobFile]:
    """Return the files once per named prompt, of the file or else of the command."""
    prompting = PromptOptions.of(config)
    found: list[JobFile] = []
    for each in files:
        file = each.file
        named = file.prompts or ({} if file.prompt is not None else prompting.prompts)
        found += [
            JobFile(
                file=replace(file, name=name, prompt=text),
                medium=replace(each.medium, prompt=prompting.in_length(text)),
            )
            for name, text in named.items()
        ] or [each]
    return found


def check_beside(files: Sequence[MediaFile], config: RunOptions) -> None:
    """Raise UsageError if `--beside` is used with remote media, or with media in folders that the
    user may not write to."""
    if not OutputOptions.of(config).beside:
        return
    reasons = {file.place: "it is not on this machine" for file in files if file.far}
    folders = {file.path.parent: file for file in reversed(files) if not file.far}
    for folder, file in folders.items():
        if not os.access(folder, os.W_OK):
            reasons[file.place] = "its folder is not writable"
    if reasons:
        place, why = next(iter(reasons.items()))
        raise UsageError(
            f"--beside: cannot write next to {place} ({why})",
            hint="Leave it out; texts are written into --out",
        )


def refuse_control_words(where: str, text: str, model: Model, *, answers: bool = False) -> None:
    """Raise ControlWord if a text holds the model's own image placeholder; if the model `answers`
    it, also for any other control token."""
    if found := _control_word(text, model, of_every_kind=answers):
        raise ControlWord(
            f"{where} holds {found}", hint="Leave it out; each image is placed before the prompt"
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


def check_placeholders(files: Sequence[JobFile], model: Model) -> None:
    """Check that no prompt contains the model's own image placeholder. Raises UsageError."""
    for prompt, file in {each.medium.prompt: each.file for each in reversed(files)}.items():
        refuse_control_words(f"the prompt of {file.path.name}", prompt, model)


def without_placeholders(
    files: Sequence[JobFile], requested: Sequence[JobFile], model: Model
) -> tuple[list[JobFile], list[Failure]]:
    """Return the files without those whose name, folder or tags put a control token of the
    model, such as its image placeholder, into the prompt; those become failures. `requested` holds
    the prompts as the user wrote them. Raises UsageError if the user wrote a placeholder."""
    check_placeholders(requested, model)
    kept: list[JobFile] = []
    failures: dict[Path, Failure] = {}
    for each, written in zip(files, requested, strict=True):
        template = written.medium.prompt
        found = _control_word(each.medium.prompt, model, of_every_kind=True, template=template)
        if found is None:
            kept.append(each)
            continue
        failures[each.file.path] = source_failure(
            each.file.source,
            each.file.media_path,
            "placeholder",
            f"its name, folder or tags put into the prompt {found}",
            "Rename it, or leave {name}, {folder} and {tags} out of the prompt",
        )
    return kept, [*failures.values()]


def check_fixed_texts(config: RunOptions, model: Model) -> None:
    """Check the texts that surround every prompt. Raises UsageError for a system prompt that the
    chat template cannot hold, the model's own image placeholder, and a control token at the
    beginning of captions, which the stored caption would lack."""
    params = SamplingParams.of(config)
    if params.system and not model.profile.takes_system:
        raise UsageError(
            f"--system: not supported by the chat template of {model.name}",
            hint="Put that text at the beginning of --prompt",
        )
    refuse_control_words("--system", params.system, model)
    refuse_control_words("--start-with", params.start_with, model, answers=True)
    refuse_control_words("--summary-prompt", PromptOptions.of(config).summary_prompt, model)


def check_previous(files: Sequence[JobFile], model: Model) -> None:
    """Check that prompts without `{previous}` are used for a model that encodes images together
    with the prompt, since all chunks are encoded first. Raises UsageError."""
    if model.profile.prompted and any(f.medium.uses_previous_caption for f in files):
        raise UsageError(
            f"{PREVIOUS}: not supported by {model.name} (it encodes images together with the "
            "prompt)",
            hint="Leave it out, or choose another model",
        )


def check_summary(config: RunOptions, model: Model) -> None:
    """Check that the model can summarize, which needs answers to text alone. Raises UsageError."""
    if PromptOptions.of(config).summary and model.profile.needs_pictures:
        raise UsageError(
            f"{model.name} cannot summarize: it needs an image to answer "
            f"({model.profile.needs_pictures})",
            hint="Leave out --summary, or choose a model that answers questions: docs/models.md",
        )
