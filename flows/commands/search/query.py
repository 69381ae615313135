"""Searches an index: embeds the query, and returns the matching rows.

A text goes through numpy in this process where that gives the vectors that the model's own code
gave for texts of the index. Else it goes through the text half alone, and an image through the
stages of `penstock embed`, with the vision half alone.

The module describes the model and settings of an index's vectors, and configures runs that compute
more of them. Configuring a run starts nothing. What starts processes is imported only when it is
needed, because a search takes little else.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import is_denied
from artifacts.errors import EnvironmentFault, MediaError, UsageError
from artifacts.index.manifest import Maker, Manifest
from artifacts.index.moments import Moment, moments, single
from artifacts.index.search import Query, Searcher, direction
from artifacts.index.shard import CONTENT, PixelBox
from artifacts.index.snapshot import Snapshot, open_snapshot
from artifacts.index.where import Condition, matching
from artifacts.index.writing import refuse_other, refuse_other_halves
from artifacts.packages import require_extra
from artifacts.records.keys import DIGESTS
from artifacts.records.store import open_store
from artifacts.records.vectors import Vectors, vectors_in
from artifacts.remote.addresses import is_address
from artifacts.tiles import OFF
from flows.core.checkpoint.models import digests_in, open_model
from flows.core.console.display import Display
from flows.core.console.lines import clock
from flows.core.job.prepare import Job, prepare_without_media
from flows.core.job.replan import replanned_once
from flows.core.machine.launch import DirectLauncher
from flows.core.media.media_file import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flows.core.options.commands import RunOptions
from flows.core.options.precision import PRECISIONS, TORCH
from flows.core.options.vectors import EmbedConfig, SearchPlace, SearchQuery, VectorConfig
from flows.core.pipelines import LABEL
from flows.execution.run import VectorOutputs, make_vectors, stopped_in_order
from flows.execution.run_observer import RunObserver
from flows.outputs.vectors import VectorsWritten, vector_tasks
from flows.outputs.write import failures_of
from stages.embed_texts.in_numpy import text_vectors
from stages.models.graphs.sessions import BACKENDS


def maker_of(job: Job, width: int) -> Maker:
    """Return the model and settings that determine the vectors of a job."""
    settings = job.model.best("vision")
    versions_of = [stage.output_version for stage in job.pipeline]
    return Maker(
        model=job.model.name,
        revision=job.config.revision,
        half=job.model.digests["vision"],
        recipe=digest_of([versions_of, settings.key_fields]),
        precision=settings.label,
        width=width,
        text_half=job.model.digests["language"],
    )


def read_texts(
    config: VectorConfig, texts: Sequence[str], display: Display, folder: Path, maker: Maker
) -> Vectors:
    """Return the vector of each text, computed by the text half alone or read from the store.
    Raises PenstockError, also if the text half is not that of `maker`, which made the index in
    `folder`."""

    def attempt() -> Vectors:
        observer = RunObserver(display)
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as out, stopped_in_order():
            launcher = DirectLauncher(observer.on_event)
            without_media = replace(config, sources=(), out=out, tiles=OFF)
            job = prepare_without_media(without_media, launcher, LABEL)
            refuse_other_halves(folder, maker, maker_of(job, maker.width))
            with observer.pipeline_for_job(job, launcher, "searching in", outputs={}) as runner:
                return runner.text_vectors([[text] for text in texts]).vectors

    return replanned_once(attempt, display.print_line)


def image_vector(
    config: VectorConfig, manifest: Manifest, folder: Path, name: str, display: Display
) -> NDArray[np.float32]:
    """Return the vector of an image, computed by the vision half alone or read from the store.
    Raises PenstockError."""
    vectors: list[Vectors] = []

    def check(job: Job) -> dict[str, str]:
        refuse_other(folder, manifest.maker, maker_of(job, manifest.maker.width))
        return {}

    def collect(job: Job) -> VectorsWritten:
        kept = job.ledger["embeddings"]
        vectors.extend(vectors_in(kept.read(t["embeddings"])) for _, t in vector_tasks(job))
        return VectorsWritten(out=job.out, files=1, failures=failures_of(job))

    with tempfile.TemporaryDirectory(prefix="penstock-search-") as out:
        request = replace(config, sources=(name,), out=out)
        written = make_vectors(request, display, VectorOutputs(check, collect))
    if not vectors:
        failure = written.failures[0]
        raise MediaError(f"{name}: {failure.message}", kind=failure.error, hint=failure.hint)
    vector: NDArray[np.float32] = vectors[0][0]
    return vector


C = TypeVar("C", bound=RunOptions)


def with_maker_of(config: C, maker: Maker) -> C:
    """Return a configuration with the model and settings of an index's vectors."""
    precision = maker.precision if maker.precision in PRECISIONS else "native"
    backend = maker.precision.partition("-")[0]  # as in onnx-int8
    return replace(
        config,
        model=maker.model,
        revision=maker.revision,
        precision=precision,
        vision_backend=backend if backend in BACKENDS else TORCH,
    )


SUBJECTS = (
    "Café, opened in 1987",
    "cat on a sofa",
    "red car",
    "bridge over a river",
    "crowd in a street",
    "plate of food",
    "mountain in the snow",
    "child with a ball",
    "page of a book",
    "aeroplane in the sky",
    "beach at sunset",
    "man who speaks",
    "kitchen",
    "flower",
    "map",
    "drawing of a house",
)
TEMPLATES = ("a photo of a {}", "{}", "a video of a {} at night", "there is a {} far away")
REFERENCE_TEXTS = tuple(form.format(thing) for thing, form in product(SUBJECTS, TEMPLATES))
"""Stand-ins for the texts that users will search for. They measure how well text queries find
rows. The first ones hold what tokenizers treat differently: capitals, accents, marks, digits."""
CHECKED = 2
"""Number of them that are computed beside each query in numpy."""
ALIKE = 0.999
"""Minimum cosine of a text's vector in numpy and in the model's own code, which may be in 16
bit."""
MAX_COPY_PATHS = 4
"""Number of other files with equal content that a hit names; all are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One line of `search.jsonl`."""

    rank: int
    score: float
    """Cosine of the query and the row."""
    media_path: str
    path: str
    """Absolute path of the file."""
    time: tuple[float, float] | None
    """Start and end of a moment in seconds, equal for a single frame; None for an image."""
    at: float | None
    """Time of the nearest frame in seconds; None for an image."""
    box: PixelBox | None
    key: str
    copies: int
    """Number of other rows with equal content."""
    copy_paths: tuple[str, ...]
    """The first few of their files."""
    digest: str = ""
    """`content_key` of the file; not part of the line."""
    p: float | None = None
    """Probability that the question of `--ask` gives it; None: it was not put."""
    mass: float | None = None
    """Share of the probability that the labels of the answer have together."""
    caption: str = ""
    """What a run says at this time; empty: no run was given, or it says nothing."""
    caption_time: tuple[float, float] | None = None
    """Start and end of it in seconds; None for an image, or without a caption."""

    def to_json(self) -> dict[str, Json]:
        own = {n: getattr(self, n) for n in self.__slots__ if n not in ("digest", "p", "mass")}
        return own if self.p is None else {**own, "p": self.p, "mass": self.mass}


def search_index(
    folder: Path, request: SearchQuery, place: SearchPlace, display: Display
) -> list[Hit]:
    """Return the hits, nearest first. Raises PenstockError."""
    require_extra("search", "a search")
    condition = Condition(request.where) if request.where else None
    snapshot = open_snapshot(folder)  # finds damage before a model is loaded
    manifest = snapshot.manifest
    if not manifest.live_rows:
        raise UsageError(
            f"the index {folder} is empty",
            hint=f"Add to it: penstock index add SOURCES --index {folder}",
        )
    config = config_for(place, manifest)
    texts = (request.what, *request.without)
    try:
        vectors, are_images = _vectors(config, snapshot, texts, display)
    except EnvironmentFault as error:
        if not is_denied(error.__cause__):
            raise
        # The store may only be read: its digests save reading the model, the rest is made again.
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as store:
            with suppress(OSError):
                shutil.copy(open_store(config.store_url).local / DIGESTS, store)
            config = replace(config, store=store)
            vectors, are_images = _vectors(config, snapshot, texts, display)
    query = Query(
        vector=vectors[0],
        sort="pictures" if are_images[0] else "texts",
        without=tuple(vectors[1:]),
        kept=None if condition is None else matching(snapshot, condition),
    )
    ranked = run_query(Searcher(snapshot), query, request)
    return [to_hit(snapshot, rank, moment) for rank, moment in enumerate(ranked, 1)]


def run_query(searcher: Searcher, query: Query, request: SearchQuery) -> list[Moment]:
    """Return the matches of a query, nearest first."""
    if request.moments:
        return moments(searcher, query, request.top)
    return single(searcher, searcher.find(query, request.top))


def config_for(place: SearchPlace, manifest: Manifest) -> VectorConfig:
    """Return the configuration that computes vectors as those of the index were computed."""
    config = EmbedConfig(
        sources=(),
        model=manifest.maker.model,
        store=place.store,
        memory=place.memory,
        trust_remote_code=place.trust_remote_code,
    )
    config = with_maker_of(config, manifest.maker)
    return replace(config, model=place.model, revision=None) if place.model else config


def _vectors(
    config: VectorConfig, snapshot: Snapshot, texts: Sequence[str], display: Display
) -> tuple[list[NDArray[np.float32]], list[bool]]:
    """Return the vector of each query text or image, and whether it is an image."""
    folder, manifest = snapshot.folder, snapshot.manifest
    are_images = [is_image_query(text) for text in texts]
    queries = [text for text, is_image in zip(texts, are_images, strict=True) if not is_image]
    vectors = _in_numpy(config, snapshot, queries) if queries else None
    if queries and vectors is None:
        vectors = read_texts(config, queries, display, folder, manifest.maker)
    left = iter(() if vectors is None else vectors)
    return [
        image_vector(config, manifest, folder, text, display) if is_image else next(left)
        for text, is_image in zip(texts, are_images, strict=True)
    ], are_images


def _in_numpy(
    config: VectorConfig, snapshot: Snapshot, texts: Sequence[str]
) -> NDArray[np.float32] | None:
    """Return the vectors of texts, shape (texts, width), computed in this process; None if they
    need the model's own code. Raises PenstockError, also if the model is not that of the index."""
    known, maker = snapshot.texts, snapshot.manifest.maker
    store = open_store(config.store_url)
    if known is None or not (store.local / DIGESTS).is_file():
        return None
    model = open_model(
        config,
        LABEL,
        store=store,
        digests=digests_in(store),
        launcher=DirectLauncher(lambda *_: None),
        device="cpu",
    )
    half, text_half = model.digests["vision"], model.digests["language"]
    given = replace(maker, model=config.model, half=half, text_half=text_half)
    refuse_other_halves(snapshot.folder, maker, given)
    checked = range(min(CHECKED, len(known)))
    made = text_vectors(model.folder, [*texts, *(REFERENCE_TEXTS[at] for at in checked)])
    if made is None or made.shape[1] != maker.width:
        return None
    cosines = [made[len(texts) + at] @ direction(known[at]) for at in checked]
    return made[: len(texts)] if min(cosines) >= ALIKE else None


def is_image_query(text: str) -> bool:
    """Return whether a query names an image file instead of being a text. A word is a text, also if
    a folder or file here has that name. Raises UsageError for a video, and for a missing image."""
    path = Path(os.path.expanduser(text))
    suffix = path.suffix.lower()
    if not suffix and os.sep not in text:
        return False
    if os.path.isfile(path):
        if suffix in VIDEO_SUFFIXES:
            raise UsageError(
                f"{text} is a video; a query is one image or text",
                hint="Give an image of what you look for",
            )
        return True
    if suffix in IMAGE_SUFFIXES or os.path.isdir(path):
        raise UsageError(
            f"{text}: no such image", hint="Check the name, or search for a text instead"
        )
    return False


def to_hit(snapshot: Snapshot, rank: int, moment: Moment) -> Hit:
    """Return the hit of a match. Of the files of its content, the first that exists is named."""
    position = moment.position
    (content,) = snapshot.identities_at(CONTENT, np.array([position]))
    same = snapshot.positions_of(CONTENT, int(content))
    others = same[same != position]
    rows = [moment.row, *snapshot.read(others[:MAX_COPY_PATHS])]
    row, *copies = sorted(rows, key=lambda r: not (is_address(r.path) or os.path.lexists(r.path)))
    span = None if moment.start is None or moment.end is None else (moment.start, moment.end)
    return Hit(
        rank=rank,
        score=round(min(1.0, max(-1.0, moment.score)), 6),  # vectors of 16 bit may exceed it
        media_path=row.media_path,
        path=row.path,
        time=span,
        at=row.time,
        box=row.box,
        key=row.key,
        copies=len(others),
        copy_paths=tuple(copy.path for copy in copies),
        digest=row.digest,
    )


def when(hit: Hit) -> str:
    """Return the time of a hit in a video, for display; empty for an image."""
    if hit.time is None:
        return ""
    start, end = hit.time
    return f" at {clock(start)}" if start == end else f" {clock(start)}\u2013{clock(end)}"
