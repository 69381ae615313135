"""Computes the labels of images and frames for requests. Runs no model."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.labels import Labelled, spans_of
from flows.job.prepare import Job
from flows.media.labels import LabelSet, labels_named
from flows.media.media_files import MediaFile
from flows.results.labels.rows import LabelContext, label_vectors
from flows.results.labels.rules import label_rules
from flows.serving.answers import warnings_of
from flows.serving.embedding import EmbeddedMedium
from flows.serving.refusals import HttpRefusal, refusal_of
from flows.serving.shown_names import shown_name
from flows.serving.text_embedding import TextEmbedder

MAX_LABEL_SETS = 64
"""Label sets from requests that stay in memory."""


class Labeller:
    """The labels of one server, and those that requests contain."""

    def __init__(self, job: Job, texts: TextEmbedder, labels: LabelSet | None) -> None:
        self._model = shown_name(job.model.name)
        self._texts = texts
        self._labels = labels
        self._known: OrderedDict[tuple[str, float | None, int], LabelContext] = OrderedDict()

    @property
    def names(self) -> list[str]:
        return self._labels.names if self._labels else []

    async def labelling(
        self, names: Sequence[str], threshold: float | None, top: int
    ) -> LabelContext:
        """Return the labeling settings for these names, or for the server's labels. Raises
        HttpRefusal."""
        try:
            labels = labels_named(names) if names else self._labels
        except UsageError as error:
            raise refusal_of(error) from error
        if labels is None:
            raise HttpRefusal(
                404,
                "this server has no labels",
                "Ask with ?labels=a,b, or start it with --labels F",
            )
        key = (labels.digest, threshold, top)
        found = self._known.get(key)
        if found is None:
            texts = await self._texts.vectors(labels.texts)
            try:
                rules = label_rules(labels, texts, threshold)
            except UsageError as error:
                raise refusal_of(error) from error
            found = LabelContext(labels=labels, texts=texts, rules=rules, top=top)
            self._known[key] = found
            if len(self._known) > MAX_LABEL_SETS:
                self._known.popitem(last=False)
        return found

    def answer(self, medium: EmbeddedMedium, labelling: LabelContext) -> dict[str, Any]:
        """Return the labels of an embedded medium as JSON."""
        index = medium.index
        file = MediaFile(path=Path("upload"), media_path="", source="", kind=index.kind)
        block = [(file, task) for task in medium.tasks]
        widths = [index.width] * len(block)
        found = list(label_vectors(self._model, labelling, block, medium.vectors, widths))
        rows: list[Labelled] = [row for each in found for row in each.rows]
        fields = {
            "kind": index.kind,
            "width": index.width,
            "height": index.height,
            "model": self._model,
            "precision": rows[0].precision["vision"],
            "key": rows[0].features,
            "cached": medium.cached,
            **warnings_of(index),
        }
        if index.kind == "image":
            return {**fields, "labels": list(rows[0].labels), "top": rows[0].top}
        frames = [{"time": row.time, "labels": list(row.labels), "top": row.top} for row in rows]
        spans = [
            {"start": span.start, "end": span.end, "labels": list(span.labels)}
            for span in spans_of([(row.time or 0.0, row.given) for row in rows], index.end)
        ]
        return {**fields, "frames": frames, "spans": spans}
