"""Makes commands for what follows a run: asking again about some captions, writing data sets,
exporting and tuning its model. They repeat the command that its record has, if this user ran it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError
from artifacts.options import OptionGroup, declared
from flows.options.model import SIZES, StoreOptions
from flows.options.text import OutputOptions
from flows.results.report.media import media_with_captions, path_of
from flows.results.run_record import moved_with, repeated, with_values
from flows.results.trust import command_in
from flows.studio.roots import Refused
from flows.studio.runs import QueuedRun
from flows.studio.values import ALLOWED, CONFIGS, OPTIONS, REPEATED, words_of

FOLDER = ".again"
"""Folder of the answers to a second question, in a run's folder."""
MOST = 500
"""Largest number of captions that get a second question at once."""
NOT_AGAIN = (
    *("sources", "out", "format", "beside", "existing", "media", "recursive", "extensions"),
    *("limit", "sift", "summary", "summary_prompt", "trigger", "prefix", "suffix", "retry_failed"),
    "check_media",
)
"""Options that a second question does not take from its run."""
CHANGED = (
    *("prompt", "temperature", "top_p", "seed", "adapter", "model", "length", "system"),
    *("max_new_tokens", "repetition_penalty"),
)
"""Options that a second question may change."""
ConfigOf = Callable[[Sequence[str]], OptionGroup]
"""Parses the words of a `caption` command."""


class RecordedCommand:
    """The command of the last run into a folder, which this user ran, or trusts."""

    def __init__(
        self, out: Path, config_of: ConfigOf, store: str = "", *, trust: bool = False
    ) -> None:
        """Read it. `store` and `trust` are as in `belief_in`. Raises UsageError,
        EnvironmentFault."""
        self._out, command = out, command_in(out, store, trust=trust)
        self._recorded, self.folder = repeated(command["words"]), Path(command["folder"])
        self.trusted = ["--trust-folder"] if trust else []
        """Words of a command into the folder, if a person trusts it in this session."""
        self._config_of = config_of

    @cached_property
    def words(self) -> list[str]:
        """Words that repeat the command. An adapter in the folder is found where that is now."""
        config = self._config_of(self._recorded)
        named = getattr(config, "adapter", None)
        before, adapter = self.folder / str(getattr(config, "out", "")), self.folder / str(named)
        here = moved_with(adapter, before, self._out)
        if not named or here == adapter:
            return self._recorded
        return with_values(self._recorded, {"--adapter": str(here)})

    @cached_property
    def _config(self) -> Any:
        return self._config_of(self.words)

    def writing(self, formats: Sequence[str], out: Path) -> list[str]:
        """Return the words that write these formats, too, into a folder. That of the record may
        have been moved since. Raises UsageError for a format that there is not."""
        more: dict[str, str] = {}
        if formats:
            more["--format"] = ",".join(
                dict.fromkeys((*OutputOptions.of(self._config).format, *formats))
            )
        words = with_values(self.words, {**more, "--out": str(out)})
        self._config_of(words)
        return [*words[:1], *(self.trusted if out == self._out else ()), *words[1:]]

    def following(self, command: str, values: Mapping[str, Any]) -> list[str]:
        """Return the words that export or tune this run's model, with these values. Raises
        UsageError."""
        config = self._config
        options = {each.name for each in declared(CONFIGS[command])}
        values = {"model": config.model, **values}
        for name in ("revision", "adapter", "memory"):
            value = getattr(config, name)
            if name in options and value != _default(OPTIONS[name].field):
                values[name] = str(value) if name in SIZES else value
        return words_of(values, [f"--store={StoreOptions.of(config).store_url}"], command)

    def again(self, changes: Mapping[str, Any], paths: Sequence[str], out: Path) -> list[str]:
        """Return the words that ask again about these media, with changed options. Raises Refused
        for another change."""
        if unknown := [name for name in changes if name not in (*CHANGED, "sources")]:
            raise Refused(f"{unknown[0][:40]!r} cannot be changed here", hint="Start another run")
        values = {}
        for name in (ALLOWED | REPEATED) & OPTIONS.keys() - {*NOT_AGAIN}:
            value = getattr(self._config, name)
            if value != _default(OPTIONS[name].field):
                values[name] = str(value) if name in SIZES else value
        if changes.get("prompt"):
            values.pop("prompts", None)
        values |= {**changes, "sources": (*dict.fromkeys(paths),), "out": str(out)}
        return words_of(values, [f"--store={StoreOptions.of(self._config).store_url}"])


def answers_of(run: QueuedRun, paths: Mapping[str, tuple[str, float, str]]) -> dict[str, str]:
    """Return key of a caption → what the model answered the second time, to the prompt of that name
    or to a new one. `paths` has medium, start and name of the prompt of each of these captions."""
    folder = Path(run.out)
    try:
        media = media_with_captions(folder)
    except PenstockError:
        return {}
    texts = {
        (path_of(entry), round(row["start"], 2), row.get("name", "")): row.get("original")
        or row["caption"]
        for entry, rows in media
        for row in rows
    }
    found = {
        key: texts.get((path, round(start, 2), name), texts.get((path, round(start, 2), "")))
        for key, (path, start, name) in paths.items()
    }
    return {key: text for key, text in found.items() if text is not None}


def _default(field: Any) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default
