"""Finds in the store how sure a model is of given texts about chunks."""

from collections.abc import Mapping
from typing import Any

from artifacts.keys import digest_of
from artifacts.record_union import RecordUnion, record_sets_of
from artifacts.store import Store
from flows.checkpoint.models import Model
from flows.checkpoint.precision import PartSettings
from flows.ledger.namespaces import one_shot_namespace
from stages.decode import SCORE
from stages.decode.generation import SamplingParams
from stages.decode.score_job import ScoreItem


class TextScores:
    """The scores that one model's language half gave to texts, in any of its precisions."""

    def __init__(self, store: Store, model: Model, params: SamplingParams) -> None:
        """`params` hold the system prompt and the forced beginning of the texts."""
        self.params = SamplingParams(system=params.system, start_with=params.start_with)
        self._model = model
        settings = model.settings["language"]
        namespaces = dict.fromkeys((SCORE.writes, self.namespace(each)) for each in settings)
        self._records = RecordUnion(record_sets_of(store, *namespaces))

    def namespace(self, settings: PartSettings) -> str:
        """Return the cache namespace of scores in these settings."""
        return one_shot_namespace(SCORE, self._model, settings)

    def item(
        self, features: str, prompt: str, text: str, *, ended: bool = True, corrected: bool = False
    ) -> ScoreItem:
        """Return a text to score. `features` is the key of its chunk's features, `ended` says
        whether the text is complete, and `corrected` whether a user wrote it."""
        profile = self._model.profile
        behind = corrected and profile.opens_reasoning
        more = [profile.answer_blank] if profile.answer_blank else []
        more += ["behind reasoning"] if behind else []
        key = digest_of([features, prompt, text, ended, *self.params.key_fields, *more])
        return ScoreItem(key, features, prompt, text, ended, behind)

    def find(self, item: ScoreItem) -> Mapping[str, Any] | None:
        """Return the scores of a text in the best precision; None if there are none."""
        return self._records.meta(item.key) if item.key in self._records else None

    def refresh(self) -> None:
        """Read what was published since."""
        self._records.refresh()
