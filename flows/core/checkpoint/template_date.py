"""Chooses the date for chat templates that ask for today's."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store

DATE_CALL = b"strftime_now"
"""What a chat template calls to get the date."""
HOLDERS = ("chat_template", "tokenizer_config.", "processor_config.")
"""How the names of files begin that may hold templates."""


def template_date(store: Store, folder: Path, small: Mapping[str, str], requested: str) -> str:
    """Return the date, as YYYY-MM-DD, for the templates among the `small` files of a checkpoint
    (name → digest); empty if none asks for one. It is the `requested` one, or that of their first
    use with this store: all later runs, on any day and machine, write the same prompts. Raises
    OSError, EnvironmentFault."""
    names = [name for name in small if name.lower().startswith(HOLDERS)]
    asking = sorted(small[n] for n in names if DATE_CALL in (folder / n).read_bytes())
    if requested or not asking:
        return requested if asking else ""
    dates, key = RecordSet(store, "cards", digest_of(["template dates", 1])), digest_of(asking)
    dates.publish([Record(key=key, meta={"date": date.today().isoformat()})])
    return str(dates.meta(key)["date"])
