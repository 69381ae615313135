"""Python API for an index: adding vectors and searching it."""

from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Unpack

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.texts.tables import table_of
from flows.commands.search.asking import ask_hits
from flows.commands.search.both import search as search_both
from flows.commands.search.build import IndexWritten, fill_index
from flows.commands.search.query import Hit
from flows.core.console.display import Display
from flows.core.options.hit_questions import AskHitsOptions
from flows.core.options.vectors import INDEX, IndexConfig, SearchPlace, SearchQuery
from penstock.arguments import Progress, Sources, config_for, config_with, display_for, path_of
from penstock.cells import Shown, ShownCaption
from penstock.keywords import SearchOptions, VectorOptions

if TYPE_CHECKING:
    from pyarrow import Table


class Hits(list[Hit]):
    """The results of a search, best first."""

    def _shown(self) -> Shown:
        rows = []
        for hit in self:
            start, end = hit.time or (0.0, 0.0)
            place = hit.media_path, start, end, "", f"{hit.score:.3f}", hit.path
            rows.append(ShownCaption(*place, at=hit.at))
        return Shown(captions=tuple(rows), total=len(rows), noun="hit")

    def __repr__(self) -> str:
        return repr(self._shown())

    def _repr_html_(self) -> str:
        return self._shown()._repr_html_()

    def table(self) -> "Table":
        """Return the hits as a pyarrow table."""
        kinds = {
            "rank": "count",
            "score": "number",
            "media_path": "text",
            "path": "text",
            "time": "numbers",
            "at": "number",
            "box": "numbers",
            "key": "text",
            "copies": "count",
            "copy_paths": "texts",
            "caption": "text",
            "caption_time": "numbers",
            "p": "number",
            "mass": "number",
        }
        return table_of((hit.to_json() for hit in self), kinds)


def index(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[VectorOptions]
) -> IndexWritten:
    """Embed what is new of the sources and add it to an index, as `penstock index build`. Return
    what was added when it is done. Raises PenstockError."""
    config = config_for(sources, options, IndexConfig, VectorOptions.__annotations__)
    config.check_sources()
    return fill_index(config, display_for(progress))


def search(
    what: str | PathLike[str], index: str | PathLike[str] = INDEX, **options: Unpack[SearchOptions]
) -> Hits:
    """Return what an index holds that is like a text or an image file, as `penstock search`. Raises
    PenstockError."""
    if options.get("ask") == "":
        hint = "Give the output folder of captions of the same media, or leave it out"
        raise UsageError("ask is empty", hint=hint)
    build = partial(config_with, options=options, known=SearchOptions.__annotations__)
    query, place = build(SearchQuery, what=path_of("what", what)), build(SearchPlace)
    request = build(AskHitsOptions)
    folder = folder_named(path_of("index", index), "index")
    hits = search_both(folder, query, place, display := Display(quiet=True))
    return Hits(ask_hits(hits, query.what, request, place.store, display) if request.ask else hits)
