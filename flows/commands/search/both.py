"""Searches vectors, words of captions, or both, whose ranks are fused.

A hit's score is then the sum of 1 / (60 + rank) over the two lists that it is in (reciprocal rank
fusion, Cormack et al. 2009). Cosines and BM25 have no common scale, but ranks have.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.index.manifest import has_manifest, read_manifest
from artifacts.index.where import INDEX, Condition, Table
from artifacts.index.words import query_of
from flows.commands.search.query import Hit, is_image_query, search_index
from flows.commands.search.run_texts import RunTexts, TextHit, is_run, overlap
from flows.core.console.display import Display
from flows.core.media.media_file import IMAGE_SUFFIXES
from flows.core.options import vectors
from flows.core.options.vectors import SearchPlace, SearchQuery

CONSTANT = 60
"""Added to each rank, so that the first ones do not outweigh all others."""
DEEPER = 3
"""So many times more hits of each list are fused than are returned."""
GIVE_CAPTIONS = "Give --captions OUT, the folder of a `penstock caption` run of the same media"


def search(folder: Path, request: SearchQuery, place: SearchPlace, display: Display) -> list[Hit]:
    """Return the hits in an index and in the captions of a run, or in one of them, best first.
    `folder` is that of an index or of a run. Raises PenstockError."""
    has_vectors = has_manifest(folder)
    run = run_at(place.captions)
    if run is not None and not has_vectors and folder != folder_named(vectors.INDEX, "index"):
        read_manifest(folder)  # says that the named folder has no index
    if run is None and not has_vectors and is_run(folder):
        run = folder
    if run is None:
        refuse_without_captions(request.within)
        return search_index(folder, request, place, display)
    within = request.within or ("both" if has_vectors else "captions")
    if within == "both" and is_image_query(request.what):
        within = "vectors"  # an image has no words
    if within == "captions":
        refuse_images((request.what, *request.without))
    wider = replace(request, top=DEEPER * request.top) if within == "both" else request
    hits = [] if within == "captions" else search_index(folder, wider, place, display)
    texts = RunTexts(run, place.store_url, display.doing)
    if within != "vectors":
        words = [t for t in request.without if within == "captions" or not is_image_query(t)]
        text_hits = find_texts(texts, replace(wider, without=tuple(words)), within)
        hits = fuse(hits, text_hits, request.top)
    return with_captions(hits, texts)


def run_at(captions: str) -> Path | None:
    """Return the folder of `--captions`; None: it is not given. Raises UsageError for another."""
    run = folder_named(captions, "captions") if captions else None
    if run is not None and not is_run(run):
        raise UsageError(f"there are no captions in {run}", hint=GIVE_CAPTIONS)
    return run


def refuse_without_captions(within: str) -> None:
    """Raise UsageError if captions are to be searched, and there are none."""
    if within in ("captions", "both"):
        raise UsageError(f"--in {within}: there are no captions", hint=GIVE_CAPTIONS)


def refuse_images(texts: Sequence[str]) -> None:
    """Raise UsageError for a name of an image among texts whose words are to be searched."""
    if image := next((t for t in texts if Path(t).suffix.lower() in IMAGE_SUFFIXES), ""):
        raise UsageError(
            f"{image}: an image is searched by its vector, and has no words",
            hint="Give --index DIR, an index of vectors, and no --in captions",
        )


def find_texts(
    texts: RunTexts, request: SearchQuery, within: str, table: Table = INDEX
) -> list[TextHit]:
    """Return the texts of a run that have the words of a query. `table` names the condition in
    messages. Raises PenstockError."""
    if not (query := query_of(request.what, request.without)):
        if within == "both":
            return []
        raise UsageError(f"{request.what!r} has no words", hint="Give words, or search in vectors")
    wordless = [text for text in request.without if not query_of(text)]
    if wordless and within == "captions":
        raise UsageError(f"--not {wordless[0]!r} has no words", hint="Give words, or leave it out")
    condition = Condition(request.where, table) if request.where else None
    return texts.find(query, request.top, condition)


def fuse(hits: Sequence[Hit], texts: Sequence[TextHit], top: int) -> list[Hit]:
    """Return the hits of vectors and of words as one list, best first. A text about the time of a
    hit is one with it."""
    of_path, of_content = (defaultdict[str, list[int]](list) for _ in range(2))
    for at, text in enumerate(texts):
        of_path[text.path].append(at)
        of_content[text.medium.content].append(at)
    fused, joined = list[Hit](), set[int]()
    for rank, hit in enumerate(hits, 1):
        about = of_path[hit.path] or (of_content[hit.digest] if hit.digest else [])
        same = [at for at in about if overlap(texts[at].time, hit.time)]
        score = 1 / (CONSTANT + rank) + sum(1 / (CONSTANT + at + 1) for at in same[:1])
        fused.append(_captioned(replace(hit, score=score), texts[same[0]] if same else None))
        joined.update(same)
    fused += [_hit(text, at + 1) for at, text in enumerate(texts) if at not in joined]
    ranked = sorted(fused, key=lambda hit: -hit.score)[:top]
    return [
        replace(hit, rank=rank, score=round(hit.score, 6)) for rank, hit in enumerate(ranked, 1)
    ]


def with_captions(hits: Sequence[Hit], texts: RunTexts) -> list[Hit]:
    """Return hits with the captions of their times. Raises EnvironmentFault."""
    return [
        hit if hit.caption else _captioned(hit, texts.of_moment(hit.path, hit.digest, hit.time))
        for hit in hits
    ]


def _captioned(hit: Hit, text: TextHit | None) -> Hit:
    return hit if text is None else replace(hit, caption=text.text, caption_time=text.time)


def _hit(text: TextHit, rank: int) -> Hit:
    return Hit(
        rank=rank,
        score=1 / (CONSTANT + rank),
        media_path=text.medium.media_path,
        path=text.path,
        time=text.time,
        at=None if text.time is None else sum(text.time) / 2,
        box=None,
        key=text.key,
        copies=0,
        copy_paths=(),
        digest=text.medium.content,
        caption=text.text,
        caption_time=text.time,
    )
