"""Digests a checkpoint's files for one plan, and finds files that change meanwhile."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.stamps import FileChanged, ModelFileStamp, link_stamp_of, model_stamp_of
from artifacts.errors import ModelChanged
from artifacts.records.keys import ContentDigests, name_in_hub_cache
from artifacts.records.model_files import HINT, ModelFiles, is_read, small_names
from artifacts.schema import Part
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile

TEXT_ONLY = ("generation_config", "chat_template", "readme", "license", ".gitattributes")
"""Files whose names start like this do not affect the vision half. Changing them keeps its features
valid."""


class ModelDigests:
    """The file digests of one plan. A file that changes while the plan is made raises
    ModelChanged."""

    def __init__(self, digests: ContentDigests) -> None:
        self._digests = digests
        self._stamps: dict[str, ModelFileStamp] = {}
        self._contents: dict[str, str] = {}
        self._links: dict[str, ModelFileStamp] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    @property
    def files(self) -> ModelFiles:
        return ModelFiles(
            stamps=self._stamps, digests=self._contents, links=self._links, names=self._names
        )

    def of(self, path: Path) -> str:
        """Return the digest of a file that affects the model's results. Raises OSError,
        ModelChanged."""
        with _report_change(path):
            content = self._digests.of_model(path)
        self._note(path, content.stamp, content.digest)
        return content.digest

    def known(self, path: Path) -> str:
        """Return the stored digest without reading the file, or an empty string. Raises
        ModelChanged."""
        content = self._digests.known_of_model(path)
        if content is None:
            return ""
        self._note(path, content.stamp, content.digest)
        return content.digest

    def of_small(self, path: Path) -> str:
        """Return the digest of a file next to the weights. Files that no loader reads may change.
        Raises OSError, ModelChanged."""
        if is_read(path.name):
            return self.of(path)
        with _report_change(path):
            return self._digests.of_model(path).digest

    def note(self, path: Path) -> None:
        """Note the stamp of a file that is about to be read. Raises OSError, ModelChanged."""
        self._note(path, model_stamp_of(path))

    def note_folder(self, checkpoint: Checkpoint) -> None:
        """Note the file names of a user's folder. The folder of a hub commit is not noted: files
        may be added at any time, but their contents are fixed. Raises OSError."""
        if checkpoint.commit is None:
            folder = str(checkpoint.folder)
            self._names[folder] = tuple(small_names(folder))

    def _note(self, path: Path, stamp: ModelFileStamp, digest: str = "") -> None:
        name = str(path)
        before = self._stamps.setdefault(name, stamp)
        relinked = stamp.is_relinked(before) and self._contents.get(name, digest) == digest
        if stamp != before and not relinked:
            raise _changed(path)
        self._stamps[name] = stamp
        if digest:
            self._contents[name] = digest
        if (link := link_stamp_of(path)) is not None:
            self._links[name] = link


@contextlib.contextmanager
def _report_change(path: Path) -> Iterator[None]:
    try:
        yield
    except FileChanged as error:
        raise _changed(path) from error


def _changed(path: Path) -> ModelChanged:
    return ModelChanged(f"{path} was changed or replaced while it was read", hint=HINT)


def digests_of_parts(
    profile: ModelProfile,
    small: Mapping[str, str],
    weights: Mapping[str, str],
    code: Sequence[str],
    today: str = "",
) -> dict[Part, str]:
    """Return part → digest of all that affects its results: the `small` files, its weights, its own
    `code`, and the date of its prompts if its templates ask for one."""
    text = () if profile.prompted else TEXT_ONLY
    seen = {n: d for n, d in small.items() if not n.lower().startswith(text)}
    if today:
        small = {**small, "today": today}
        seen = small if profile.prompted else seen
    return {
        part: digest_of(
            [seen if part == "vision" else small, {s: weights[s] for s in held.shards}, *code]
        )
        for part, held in profile.parts.items()
    }


def with_fetched(files: ModelFiles, weights: Mapping[Path, str]) -> ModelFiles:
    """Return the files with those of `weights` (path → digest) that were downloaded after the plan
    was made. Raises ModelChanged."""
    new = [path for path in weights if str(path) not in files.stamps and os.path.exists(path)]
    if not new:
        return files
    for path in new:
        blob = name_in_hub_cache(Path(os.path.realpath(path)))
        if blob and weights[path] not in ("", blob):
            raise ModelChanged(f"{path} is not the file that the plan was made with", hint=HINT)
    links = {str(path): link for path in new if (link := link_stamp_of(path)) is not None}
    stamps = {str(path): model_stamp_of(path) for path in new}
    digests = {str(path): weights[path] for path in new if weights[path]}
    return files.with_others(ModelFiles(stamps=stamps, digests=digests, links=links))
