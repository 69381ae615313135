"""Makes commands for what follows a run: asking again about some captions, and writing data
sets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import PenstockError, UsageError
from artifacts.json_shapes import read_jsonl
from artifacts.options import declared
from flows.options.commands import CaptionConfig
from flows.results.recorded_command import is_own_command
from flows.results.report.media import CAPTION, MEDIA_ENTRY, RUN_AGAIN, media_with_lines, path_of
from flows.results.run_read import load_record
from flows.studio.roots import Refused
from flows.studio.runs import Run

FOLDER = ".again"
"""Folder of the answers to a second question, in a run's folder."""
MOST = 500
"""Largest number of captions that are asked again at once."""
NOT_AGAIN = (
    *("sources", "out", "format", "beside", "existing", "recursive", "extensions", "limit"),
    *("sift", "summary", "summary_prompt", "trigger", "prefix", "suffix", "retry_failed"),
)
"""Options that a second question does not take from its run."""
CHANGED = (
    *("prompt", "temperature", "top_p", "seed", "adapter", "model", "length", "system"),
    *("max_new_tokens", "repetition_penalty"),
)
"""Options that a second question may change."""
ConfigOf = Callable[[Sequence[str]], CaptionConfig]
"""Parses the words of a `caption` command."""


def again_values(
    values: Mapping[str, Any], changes: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a run that asks again about these media. Raises Refused."""
    if unknown := [name for name in changes if name not in CHANGED]:
        raise Refused(f"{unknown[0][:40]!r} cannot be changed here", hint="Start another run")
    found = {name: value for name, value in values.items() if name not in NOT_AGAIN}
    if changes.get("prompt"):
        found.pop("prompts", None)
    return {**found, **changes, "sources": [*dict.fromkeys(paths)]}


def answers_of(run: Run, paths: Mapping[str, tuple[str, float]]) -> dict[str, str]:
    """Return key of a caption → what the model answered the second time. `paths` has the medium and
    the start of each caption that was asked about."""
    folder = Path(run.out)
    try:
        entries = read_jsonl(folder / "media.jsonl", MEDIA_ENTRY, RUN_AGAIN)
        lines = read_jsonl(folder / "captions.jsonl", CAPTION, RUN_AGAIN)
    except PenstockError:
        return {}
    texts = {
        (path_of(entry), round(row["start"], 2)): row.get("original") or row["caption"]
        for entry, rows in media_with_lines(entries, lines)
        for row in rows
    }
    asked = {key: texts.get((path, round(start, 2))) for key, (path, start) in paths.items()}
    return {key: text for key, text in asked.items() if text is not None}


def values_of_record(out: Path, config_of: ConfigOf) -> dict[str, Any]:
    """Return the values of the command that this user ran into a folder, from its record. Raises
    UsageError for one that somebody else ran."""
    command = load_record(out)["command"]
    if not command or command["words"][:1] != ["caption"] or not is_own_command(command):
        raise UsageError(
            f"{out} was not written by a command of this user on this machine",
            hint="Run `penstock caption` yourself",
        )
    config = config_of([word for word in command["words"] if word != "--trust-remote-code"])
    found = {}
    for each in declared(CaptionConfig):
        value = getattr(config, each.name)
        if each.is_required or value != _default(each.field):
            found[each.name] = [*value] if isinstance(value, tuple) else value
    folder = Path(command["folder"])
    found["sources"] = [str(folder / source) for source in found["sources"]]
    if isinstance(found.get("memory"), int):
        found["memory"] = str(found["memory"])
    return found


def _default(field: Any) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default
