"""Tells what running jobs need of a store, whatever machine they run on; knows neither what they do
nor where a store keeps notes of them.

A note is a lease: its process renews it every few minutes, and a dead one's grows old by the clock
of where it lies. In a folder, a lock tells at once who lives.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.store import Store
from flows.machine.lease_files import living_in, noted_in
from flows.machine.lease_notes import LEASE_SECONDS, beating, note_of, read_note, system

if TYPE_CHECKING:  # it loads what asks a bucket
    from artifacts.stores.board import LeaseBoard


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that some process works on."""

    namespaces: frozenset[str]
    """All namespaces in the store that it reads or writes."""
    who: str
    """Its process, host and folder in words, for people."""


class Lease:
    """This process's own lease on a store."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def shares(self, namespace: str) -> bool:
        """Return whether another running job needs this namespace too."""
        return any(namespace in job.namespaces for job in self.others())

    def others(self) -> list[RunningJob]:
        return running_jobs(self._store, but=self._name)


@contextlib.contextmanager
def leased(store: Store, namespaces: Sequence[str], out: Path) -> Iterator[Lease]:
    """Claim what a job needs until the block ends, or the process does. Raises EnvironmentFault."""
    note = note_of(namespaces, out)
    noted = noted_in(store.local, note) if store.board is None else _noted_on(store.board, note)
    with noted as name:
        yield Lease(store, name)


def running_jobs(store: Store, but: str = "") -> list[RunningJob]:
    """Return the jobs that are worked on now, but for the one of this name; remove what a dead
    process left. Raises EnvironmentFault."""
    notes = living_in(store.local, but) if store.board is None else _living_on(store.board, but)
    return [
        RunningJob(
            namespaces=frozenset(note["scopes"]),
            who=f"process {note['pid']} on {note['host']}, into {note['out']}",
        )
        for note in notes
    ]


@contextlib.contextmanager
def _noted_on(board: "LeaseBoard", note: Mapping[str, Any]) -> Iterator[str]:
    name = board.hang(json.dumps(note).encode())
    try:
        with beating(partial(board.renew, name)):
            yield name
    finally:
        board.take_down(name)


def _living_on(board: "LeaseBoard", but: str) -> Iterator[Mapping[str, Any]]:
    for name, age in board.ages():
        if name == but:
            continue
        note = read_note(board.read(name))
        here = note["system"] and note["system"] == system()
        if age > LEASE_SECONDS or (here and not os.path.exists(f"/proc/{note['pid']}")):
            board.forget(name)
        elif note["scopes"]:
            yield note
