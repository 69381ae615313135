"""The decode stage: feature records and prompts to captions, in one process for a whole wave; knows
neither frames nor the vision half.

Decoding is greedy, whatever the checkpoint's own settings say, so that the same features and prompt
give the same words. A batch is always computed whole, because rounding depends on its members.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from artifacts.captions import Ended
from artifacts.claims import turns_at
from artifacts.pack_object import QUARANTINE, DamagedRecord, put_aside, read_header
from artifacts.packs import Record, Shelf
from artifacts.shelves import Shelves
from artifacts.store import Store, open_store
from artifacts.tensors import RecordGone, unpack_tree
from stages.decode.job import DecodeJob
from stages.decode.reading import Reading
from stages.memory.shrinking import Shrinking
from stages.models.ahead import read_ahead, write_behind
from stages.models.halves.delivery import generate, new_tokens, prompt_in
from stages.models.halves.features import Features
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.processors.prepare import open_ended, rebuild
from stages.process.job import job_of
from stages.process.report import Report

SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff")
"""Settings of a checkpoint that greedy decoding does not read, and warns of."""


class Said(NamedTuple):
    """What the model said of one chunk; the fields are those of its record."""

    caption: str
    tokens: int
    ended: Ended


def run(told: dict[str, Any], report: Report) -> None:
    """Publish a caption for each member of `batches` that has none."""
    job = job_of(DecodeJob, told)
    store = open_store(job.store)
    features = Shelf(store, "features", job.features_scope)
    captions = Shelf(store, "captions", job.scope)
    batches = [batch for batch in job.batches if any(m["key"] not in captions for m in batch)]
    report.total(sum(member["key"] not in captions for batch in batches for member in batch))
    if not batches:
        return
    source = ModelJob.of(told)
    reading = Reading(job.prefill, job.kv, source.device)
    processor = source.processor()
    held = source.hold("language")
    report.note(ready=True, **facts(held.model))

    def read(batch: list[dict[str, Any]]) -> list[FeatureRecord]:
        try:
            return [read_features(features, member["features"]) for member in batch]
        except RecordGone as error:
            keys = {member["features"] for batch in batches for member in batch}
            set_packs_aside(store, features, keys)
            raise DamagedRecord(
                f"{error.message}; the features are set aside in {store.url}/{QUARANTINE}",
                hint="Run the same command again: it encodes them anew",
            ) from error

    def publish(made: list[list[Record]]) -> None:
        records = [record for batch in made for record in batch]
        tokens = {record.key: record.meta["tokens"] for record in records}
        for key in captions.publish(records):
            report.item(key, tokens=tokens[key])
        turns.done(tokens)

    def lacking(batch: list[dict[str, Any]]) -> list[str]:
        return [member["key"] for member in batch if member["key"] not in captions]

    def captioned(members: Sequence[tuple[dict[str, Any], FeatureRecord]]) -> list[Record]:
        made = held.use(
            functools.partial(
                decode_batch,
                processor=processor,
                rows=[row for _, row in members],
                prompts=[member["prompt"] for member, _ in members],
                max_new_tokens=job.max_new_tokens,
                reading=reading,
            )
        )
        return [
            Record(key=member["key"], meta=said._asdict())
            for (member, _), said in zip(members, made, strict=True)
        ]

    def shortest() -> object:
        spare = batches[-1][-1:]
        return captioned(list(zip(spare, read(spare), strict=True)))

    shrinking = Shrinking(report, shortest)
    with turns_at(store, captions) as turns, write_behind(publish) as later:
        for batch, rows in read_ahead(turns.mine(batches, lacking), read):
            members = list(zip(batch, rows, strict=True))
            for _, made in shrinking.through(members, lambda pair: str(pair[0]["key"]), captioned):
                later(made)
    report.note(prefill_way=reading.way)


def read_features(shelf: Shelf | Shelves, key: str) -> FeatureRecord:
    """What was stored of one chunk. Raises DamagedRecord when it is gone, RecordGone when this
    version of transformers cannot take it."""
    try:
        record = shelf.read(key)
    except KeyError as error:
        raise DamagedRecord(
            f"the features {key[:12]}… are no longer in the store",
            hint="Run the same command again: it encodes them anew",
        ) from error
    return FeatureRecord.from_tree(unpack_tree(record.meta["tree"], record.payload))


def set_packs_aside(store: Store, shelf: Shelf, keys: set[str]) -> None:
    """Move whole packs of features out of the way, so that what is in them is made again: all at
    once, because what is wrong with one of a scope is wrong with the others."""
    for name in list(store.list(shelf.folder)):
        # Another run may have set it aside, or another reader.
        with contextlib.suppress(FileNotFoundError, DamagedRecord):
            if any(key in keys for key, _ in read_header(store, name)):
                put_aside(store, name)


def make_greedy(half: Any, processor: Any) -> None:
    """Make the half decode greedily by default, end where its checkpoint or else its tokenizer
    says, and pad with a token that it knows."""
    settings = half.generation_config
    if settings.eos_token_id is None and half.config.get_text_config().eos_token_id is None:
        # Without one every batch would run to the last token allowed.
        settings.eos_token_id = processor.tokenizer.eos_token_id
    settings.do_sample, settings.num_beams = False, 1
    for name in SAMPLING_ONLY:
        setattr(settings, name, None)
    if settings.pad_token_id is None:
        settings.pad_token_id = processor.tokenizer.pad_token_id


def decode_batch(
    half: Any,
    processor: Any,
    rows: list[FeatureRecord],
    prompts: list[str],
    max_new_tokens: int,
    reading: Reading | None = None,
) -> list[Said]:
    """What is said of each row, in order."""
    make_greedy(half, processor)
    reading = reading or Reading()
    captions: dict[int, Said] = {}
    for indexes in _groups(rows):
        together = [rows[index] for index in indexes]
        asked = [prompts[index] for index in indexes]
        inputs = open_ended(half, rebuild(processor, together, asked))
        features = Features(merge_rows(together), together[0].needs, merge_blank(together))
        options = reading.options(half, processor, together[0])
        made = generate(half, inputs, features, max_new_tokens=max_new_tokens, **options)
        new = new_tokens(made, prompt_in(half, inputs)).cpu()
        texts = processor.batch_decode(new, skip_special_tokens=True)
        for index, text, (tokens, ended) in zip(indexes, texts, _lengths(half, new), strict=True):
            captions[index] = Said(text.strip(), tokens, ended)
    return [captions[index] for index in range(len(rows))]


def _groups(rows: list[FeatureRecord]) -> Iterator[list[int]]:
    """Indexes of the rows that can be decoded together: images and videos, say, cannot."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(row.joins_with(), []).append(index)
    yield from found.values()


def _lengths(half: Any, new: torch.Tensor) -> list[tuple[int, Ended]]:
    """Tokens of each row, up to the one that ends it and with it, and how it ended."""
    ends = half.generation_config.eos_token_id
    known = torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), dtype=new.dtype)
    lengths: list[tuple[int, Ended]] = []
    for row in new:
        stops = torch.isin(row, known).nonzero()
        lengths.append((int(stops[0]) + 1, "stop") if len(stops) else (len(row), "length"))
    return lengths
