"""Decides what of an output folder is believed, by one rule for all commands.

A folder is the user's own if its marker was noted for this user, or in a store that the user named.
Any other is shown, and corrected in its own journal: no address is requested, no edit or round
counts, no command runs, and nothing is written to the store that it names, unless a person trusts
it in this session, by `--trust-folder` or at the terminal.
"""

import os
import shlex
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from artifacts.disk.json_records import read_jsonl_file
from artifacts.errors import UsageError
from artifacts.records.provenance import EDIT, ROUND, Proof, anybody, proof_by
from artifacts.remote.addresses import is_address
from artifacts.texts.edits import read_edits
from artifacts.wording import counted, first_of
from flows.core.console.lines import is_terminal, print_lines, printable
from flows.core.media.output_rows import FILE, MediaRow
from flows.core.options.formats import CAPTIONS, MEDIA
from flows.core.options.store import default_store
from flows.core.options.training import CommandRecord
from flows.outputs.marker import Marker, inputs_in, own_marker, read_marker
from flows.outputs.record.recorded_command import COMMAND, repeated
from flows.outputs.record.rounds import rounds_in
from flows.outputs.record.run_read import CAPTION_FOLDER, load_record

COMMANDS, ADDRESSES, CORRECTIONS, ROUNDS = ("commands", "addresses", "corrections", "rounds")
"""What a command may take from a folder: the command that it repeats, the addresses that it
requests, edits, and rounds of learning."""
SHOWN = (COMMANDS, ADDRESSES, CORRECTIONS)
OUTPUTS = "outputs"
"""What a run into the folder replaces."""
LONGEST_SHOWN = 2000
"""Largest number of characters of a command that is shown for confirmation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Belief:
    """What of an output folder is believed."""

    marker: Marker | None
    """What the folder says of its command; None: that is not believed, or it says nothing."""
    store: str
    """URL of the store that edits go into; empty: they stay in the folder. The store that a folder
    of another person names is never taken."""
    named: str
    """URL of the store that the user named, or the user's default."""
    is_trusted: bool
    """Whether a person trusts the folder, with what nobody noted."""

    @property
    def is_own(self) -> bool:
        """Return whether the folder is the user's own, or trusted."""
        return self.marker is not None or self.is_trusted

    def proof(self, purpose: str = EDIT) -> Proof:
        """Return a function that tells which of its edits or rounds are believed."""
        return anybody if self.is_trusted else proof_by(self.store or self.named, purpose)


def belief_in(out: Path, store: str = "", *, trust: bool = False) -> Belief:
    """Return what of a folder is believed. `store` is the URL of a store that the user named;
    empty: the default. With `trust`, all of it is. Raises UsageError."""
    named = store or default_store()
    marker = own_marker(out, named, (MEDIA, CAPTIONS))
    if marker is not None:
        return Belief(marker=marker, store=marker.store or named, named=named, is_trusted=trust)
    stated = _stated(os.path.realpath(out)) if trust else None
    return Belief(marker=stated, store=named if trust else "", named=named, is_trusted=trust)


@cache
def _stated(out: str) -> Marker | None:
    """Return what the marker of a folder says. It is read once: what a person has been shown, or
    trusted, is not what somebody puts there later."""
    return read_marker(Path(out))


def own_belief(out: Path, store: str = "", *, trust: bool = False) -> Belief:
    """Return the same of a folder that is the user's own or trusted. Raises UsageError for another
    one."""
    belief = belief_in(out, store, trust=trust)
    if not belief.is_own:
        raise UsageError(
            f"{out} was not written by a command of this user on this machine",
            hint="Run `penstock caption` yourself, name the store of its run with "
            "$PENSTOCK_STORE, or trust it with --trust-folder",
        )
    return belief


def command_in(out: Path, store: str = "", *, trust: bool = False) -> CommandRecord:
    """Return the caption command that wrote a folder.
    Raises UsageError if the folder has none, or is neither the user's own nor trusted."""
    load_record(out)  # says so if there was no run
    marker = own_belief(out, store, trust=trust).marker
    if marker and marker.command != COMMAND:
        other = f"{out} is the output folder of `penstock {marker.command}`"
        raise UsageError(other, hint=CAPTION_FOLDER)
    if marker is None or marker.words[:1] != (COMMAND,):
        raise UsageError(
            f"{out} has no command of a caption run",
            hint="Caption once more with the same options. None is kept of options with a secret "
            "or with a comma in a text of a list",
        )
    for path, digest in () if trust else inputs_in(out, marker.words, marker.folder).items():
        if digest not in marker.inputs:
            raise UsageError(
                f"{path} was changed since the captions in {out} were made with it",
                hint="If you changed it, run the same `penstock caption` again, or add "
                "--trust-folder",
            )
    return CommandRecord(words=marker.words, folder=marker.folder)


def is_trusted(
    out: Path, store: str = "", uses: Collection[str] = SHOWN, *, notes: bool = True
) -> bool:
    """Return whether a person trusts what a folder says and nothing proves. Asks at the terminal,
    once, and only if the folder says anything that the command would use (`uses`). Without a
    terminal, prints a line if `notes`. Raises PenstockError."""
    unproved = dict(_unproved(out, belief_in(out, store), uses)) if out.is_dir() else {}
    if not unproved:
        return False
    head = f"{printable(str(out))} has what no command of this user on this machine wrote."
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if not can_ask or len(unproved.get(COMMANDS, "")) > LONGEST_SHOWN:
        left_out = "; ".join(what[:LONGEST_SHOWN] for what in unproved.values())
        if notes:
            print_lines(f"note: {head} --trust-folder would {left_out}", to=sys.stderr)
        return False
    print_lines(f"{head} To trust it would", *(f"  {what}" for what in unproved.values()))
    try:
        return input("Trust it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _unproved(out: Path, belief: Belief, uses: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what a folder says that nothing proves: its kind, and what would come of it."""
    stated = None if belief.is_own else _stated(os.path.realpath(out))
    if CORRECTIONS in uses and (edits := read_edits(out, belief.proof()).unproved):
        yield CORRECTIONS, f"take {counted(edits, 'edit')} for yours"
    if ROUNDS in uses and (
        rounds := len(rounds_in(out)) - len(rounds_in(out, belief.proof(ROUND)))
    ):
        yield ROUNDS, f"go on with {counted(rounds, 'round')} of learning"
    if ADDRESSES in uses and not belief.is_own and (hosts := _hosts(out)):
        yield ADDRESSES, f"fetch media from {first_of(hosts)}"
    if OUTPUTS in uses and stated is not None:
        yield OUTPUTS, f"replace what `penstock {printable(stated.command)}` of another user wrote"
    if COMMANDS in uses and stated is not None and stated.words[:1] == (COMMAND,):
        change_folder = (
            "" if stated.folder == os.getcwd() else f"cd {shlex.quote(stated.folder)} && "
        )
        line = f"{change_folder}penstock {shlex.join(repeated(stated.words))}"
        yield COMMANDS, f"let Write and Learn run: {printable(line)}"


def _hosts(out: Path) -> list[str]:
    """Return the servers and buckets of the media in a folder, each once."""
    entries = read_jsonl_file(MediaRow, out / MEDIA, "Delete that line")
    # A page takes the decoded `url` for a path; an address may hide there.
    urls = (unquote(medium.url.removeprefix(FILE), errors="replace") for medium in entries)
    places = [medium.address or url for medium, url in zip(entries, urls, strict=True)]
    hosts = (place.partition("://")[2].partition("/")[0] for place in places if is_address(place))
    return list(dict.fromkeys(printable(host.rpartition("@")[2]) for host in hosts))
