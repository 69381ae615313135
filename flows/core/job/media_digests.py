"""Computes digests of a job's files. Starts no process."""

import errno
import os
from collections.abc import Sequence

from artifacts.disk.stamps import CHANGED, CHANGED_HINT, FileChanged
from artifacts.errors import Unanswered, UsageError
from artifacts.records.keys import ContentDigests, content_key
from artifacts.records.store import Store
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.core.job.job_file import JobFile
from flows.core.ledger.tasks import Medium
from flows.core.media.media_file import MediaFile, source_failure
from flows.core.media.remote_digests import Progress, contents_of
from flows.core.options.commands import RunOptions
from stages.process.host_memory import cores


def read_contents(
    files: Sequence[MediaFile],
    digests: ContentDigests,
    store: Store,
    progress: Progress | None = None,
    *,
    fetch: bool = True,
    again: bool = False,
) -> tuple[list[JobFile], list[Failure]]:
    """Compute the content digest of every file, without a prompt. An unreadable file becomes a
    failure and does not stop the job. Without `fetch`, a remote file without a known digest counts
    as unknown content. With `again`, files of this machine are read even if they seem unchanged.
    Raises EnvironmentFault if a bucket cannot be read."""
    readable: list[JobFile] = []
    failures: list[Failure] = []
    remote = contents_of([file for file in files if file.remote], store, progress, fetch=fetch)
    paths = [file.path for file in files if not file.remote]
    near = iter(digests.of_many(paths, workers=cores(), again=again))
    for file in files:
        content = remote[file.path] if file.remote else next(near)
        if not (isinstance(content, Exception) or file.remote or os.access(file.path, os.R_OK)):
            content = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if isinstance(content, Exception):
            failures.append(_unreadable(file, content))
            continue
        medium = Medium(
            digest=content_key(content.digest, file.kind),
            path=str(file.path),
            kind=file.kind,
            prompt="",
            stamp=content.stamp,
        )
        readable.append(JobFile(file=file, medium=medium))
    return readable, failures


def inode_note(files: Sequence[JobFile]) -> list[str]:
    """Return a note on media that are recognized without their inodes, if there are such."""
    stamps = (job_file.medium.stamp for job_file in files)
    count = sum(stamp is not None and not stamp.inode for stamp in stamps)
    note = (
        f"{counted(count, 'file')} on FUSE or CIFS, where inodes change: what has the same path, "
        "size and time counts as unchanged; --check-media reads all again"
    )
    return [note] if count else []


def unfetched_note(files: Sequence[JobFile]) -> list[str]:
    """Return a note on remote files whose content is unknown, if there are such."""
    count = sum(
        job_file.file.remote is not None
        and job_file.medium.digest == content_key(job_file.file.remote.key, job_file.file.kind)
        for job_file in files
    )
    return [f"{counted(count, 'file')} not downloaded, so estimated"] if count else []


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
    elif file.remote and isinstance(error, FileNotFoundError):
        kind, hint = "missing", "Check the address; what was there may have moved"
    message = f"the file cannot be read ({error.strerror})"
    return source_failure(file.source, file.media_path, kind, message, hint)


def check_beside(files: Sequence[MediaFile], config: RunOptions) -> None:
    """Raise UsageError if `--beside` is used with remote media, or with media in folders that the
    user may not write to."""
    if not config.groups.outputs.beside:
        return
    reasons = {file.place: "it is not on this machine" for file in files if file.remote}
    folders = {file.path.parent: file for file in reversed(files) if not file.remote}
    for folder, file in folders.items():
        if not os.access(folder, os.W_OK):
            reasons[file.place] = "its folder is not writable"
    if reasons:
        place, why = next(iter(reasons.items()))
        raise UsageError(
            f"--beside: cannot write next to {place} ({why})",
            hint="Leave it out; texts are written into --out",
        )
