"""Copies the features of a store into 8 bits, without the model that made them.

1. The settings of the namespace are noted.
2. Each pack of features as computed becomes a pack of the same records in the form, with the bytes
   that encoding with `--features-as` would have written. What exists is not made again, so a killed
   command continues. Then refusals of chunks are copied.
3. Only with `replace` do the originals go, pack by pack, after the copies were read and checked.

Records keep their keys, so decisions and answers, which name features by key, stay with their
chunks. Captions are made anew, because their namespaces follow from those of the features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UsageError
from artifacts.records.eight_bits import INT8_64, form_of, namespace_in
from artifacts.records.packs import Record, RecordSet, is_whole, stored_namespaces
from artifacts.records.store import Store
from artifacts.records.tensors import pack_again
from artifacts.wording import counted, first_of
from flows.core.console.lines import size
from flows.core.ledger.namespaces import notes
from flows.core.machine.leases import Lease, leased
from stages import answer, decode, encode, hear

FEATURES = (encode.STAGE.writes, hear.STAGE.writes)
TEXTS = (decode.STAGE.writes, answer.STAGE.writes)
"""Kinds of records that are made of features."""
SAME = ("model", "commit", "weights", "computing", "sampling", "sizes")
"""Settings that the notes of features share with those of the texts made of them."""


@dataclass(kw_only=True, slots=True)
class Packing:
    """The features of one kind and namespace, as computed and in 8 bits."""

    computed: RecordSet
    packed: RecordSet
    note: Mapping[str, Any]
    """Settings of the namespace; empty if they were not recorded."""

    def line(self) -> str:
        keys = self.computed.keys() & self.packed.keys()
        sizes = [
            size(sum(records.place(key).length for key in keys))
            for records in (self.computed, self.packed)
        ]
        of = f" of {self.note['model']} in {self.note['precision']}" if self.note else ""
        return f"features{of}: {' → '.join(sizes)} ({counted(len(keys), 'record')})"


def pack_store(store: Store, *, replace: bool, announce: Callable[[str], None]) -> int:
    """Copy the features of a store into 8 bits, and with `replace` delete the originals. Returns
    the number of records that were copied. Raises UsageError if a running job uses what would be
    deleted."""
    about = notes(store)
    sources = [
        (kind, namespace)
        for kind in FEATURES
        for namespace in sorted(stored_namespaces(store, kind))
        if not form_of(namespace)
    ]
    used = [n for _, namespace in sources for n in (namespace, namespace_in(INT8_64, namespace))]
    with leased(store, used, store.local) as lease:
        if replace:
            _refuse_in_use(lease, used)
        copied, packings = 0, list[Packing]()
        for kind, namespace in sources:
            note = about.meta(namespace) if namespace in about else {}
            packing = Packing(
                computed=RecordSet(store, kind, namespace),
                packed=RecordSet(store, kind, namespace_in(INT8_64, namespace)),
                note=note,
            )
            _note(store, namespace, note)  # before a kill may leave copies without a name
            copied += _copy(packing)
            if packing.computed.keys() & packing.packed.keys():
                _copy_refusals(store, namespace)
                packings.append(packing)
                announce(packing.line())
        if not packings:
            announce(f"no features as computed in {store.url}")
            return copied
        again = _texts_of(store, packings)
        announce(
            f"{'Deleting the originals' if replace else '--replace deletes the originals'}: "
            f"{again} will be decoded again, and runs without --features-as {INT8_64} will encode "
            "again"
        )
        for packing in packings if replace else ():
            _delete_originals(packing)
    return copied


def _refuse_in_use(lease: Lease, namespaces: list[str]) -> None:
    if jobs := [job.description for job in lease.others() if job.namespaces & {*namespaces}]:
        raise UsageError(
            f"the features are in use by {first_of(jobs)}",
            hint="Run it again when those jobs are done, or without --replace",
        )


def _copy(packing: Packing) -> int:
    """Copy what is missing, pack by pack, and return the number of copied records. Pixels of models
    that cannot be split are left alone."""
    copied = 0
    computed = packing.computed
    by_pack: dict[str, list[str]] = {}
    for key in sorted(computed.keys(), key=lambda key: computed.place(key).offset):
        by_pack.setdefault(computed.place(key).pack, []).append(key)
    for keys in by_pack.values():
        records = []
        for key in keys:
            if key not in packing.packed and (record := _packed(computed.read(key))):
                records.append(record)
        copied += len(packing.packed.publish(records))
    return copied


def _packed(record: Record) -> Record | None:
    """Return a record in 8 bits; None if nothing in it is stored so."""
    tree, payload = pack_again(record.meta["tree"], record.payload, INT8_64)
    if tree == record.meta["tree"]:
        return None
    return Record(key=record.key, meta={**record.meta, "tree": tree}, payload=payload)


def _note(store: Store, namespace: str, note: Mapping[str, Any]) -> None:
    """Note the settings of a namespace in 8 bits."""
    if note:
        target = namespace_in(INT8_64, namespace)
        precision = f"{note['precision']} as {INT8_64}"
        notes(store).publish([Record(key=target, meta={**note, "precision": precision})])


def _copy_refusals(store: Store, namespace: str) -> None:
    """Copy the refusals of the chunks of a namespace."""
    target = namespace_in(INT8_64, namespace)
    refused = RecordSet(store, "failures", namespace)
    RecordSet(store, "failures", target).publish([*map(refused.read, sorted(refused.keys()))])


def _texts_of(store: Store, packings: list[Packing]) -> str:
    """Return how many captions and answers were made of these features, as computed."""
    about, counts = notes(store), dict.fromkeys(TEXTS, 0)
    of = [[packing.note.get(name) for name in SAME] for packing in packings if packing.note]
    for kind in TEXTS:
        for namespace in stored_namespaces(store, kind):
            note = about.meta(namespace) if namespace in about else {"precision": ""}
            if [note.get(name) for name in SAME] in of and INT8_64 not in note["precision"]:
                counts[kind] += len(RecordSet(store, kind, namespace))
    captions, answers = (counted(n, kind[:-1]) for kind, n in counts.items())
    return f"{captions} and {answers}" if counts[TEXTS[1]] else captions


def _delete_originals(packing: Packing) -> None:
    """Delete the records whose copies are whole."""
    packed, store = packing.packed, packing.packed.store
    keys = packing.computed.keys() & packed.keys()
    whole = {pack for pack in packed.packs_of(keys) if is_whole(store, pack)}
    packing.computed.remove(key for key in keys if packed.place(key).pack in whole)
