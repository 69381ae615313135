"""Opens the record sets of a run: what its stages make in every variant, why items have no caption,
and how the work was divided.
"""

from collections.abc import Sequence
from functools import partial

from artifacts.records.packs import RecordSet, RecordUnion, refresh_together
from artifacts.records.store import Store
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.tasks import Task
from flows.core.pipelines import Pipeline
from stages import sound
from stages.process.stage_spec import StageSpec
from stages.sound import SILENCES


class RunRecords:
    """The record sets of one run."""

    def __init__(self, store: Store, pipeline: Pipeline, variants: Sequence[Variant]) -> None:
        """Open the record sets of all `variants`. New records are made in the first one."""
        first, last = pipeline[0].writes, pipeline[-1].writes
        closed = partial(RecordSet, store, look=False)
        self.media = closed("media", variants[0][first])
        self.failures = closed("failures", variants[0][first])
        """Why a medium cannot be captioned, by its content digest."""
        namespaces = {
            s.writes: dict.fromkeys(v[s.writes] for v in variants if s.writes in v.of)
            for s in pipeline
        }
        self._first = first
        self._of_namespace = {
            kind: {namespace: closed(kind, namespace) for namespace in of_kind}
            for kind, of_kind in namespaces.items()
        }
        self._of_kind = {k: RecordUnion([*of.values()]) for k, of in self._of_namespace.items()}
        self.refused = {
            stage.name: RecordUnion([closed("failures", n) for n in namespaces[stage.writes]])
            for stage in pipeline
            if stage.can_reject_items
        }
        """Stage name → reasons why the model rejects an item, by the key of the item's record."""
        of_sound = variants[0].of.get(sound.STAGE.writes, "")
        self.silences = closed(SILENCES, of_sound) if of_sound else None
        """Keys of the sounds that are not there, as the sound stage found; None: this run reads no
        sound."""
        self.waves = closed("waves", variants[0][last])
        """Division of the work into waves and batches, as first computed."""
        self.refresh(self.waves)

    def __getitem__(self, kind: str) -> RecordUnion:
        """Return the records of a kind, in whichever variant they were made."""
        return self._of_kind[kind]

    def refresh(self, *more: RecordSet) -> None:
        """Read what the stages have published since the last call, and `more`."""
        unions = (*self._of_kind.values(), *self.refused.values())
        silences = [self.silences] if self.silences is not None else []
        refresh_together(self.media, self.failures, *silences, *unions, *more)

    def has_refused(self, task: Task, stage: StageSpec) -> bool:
        """Return whether the stage's model rejected the chunk."""
        return stage.can_reject_items and task[stage.writes] in self.refused[stage.name]

    def has_some_of(self, variant: Variant) -> bool:
        """Return whether a stage after the first one made a record in this variant."""
        later = ((kind, name) for kind, name in variant.of.items() if kind != self._first)
        return any(len(self._of_namespace[kind][name]) for kind, name in later)
