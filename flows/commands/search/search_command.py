"""Implements `penstock search`, and prints the hits."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from filecmp import cmp
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from artifacts.disk.files import whole_file, write_text
from artifacts.disk.names import file_name, numbered
from artifacts.disk.paths import folder_named
from artifacts.disk.regular_files import open_regular
from artifacts.errors import MediaError, Unanswered, UsageError
from artifacts.remote.media_cache import open_local
from artifacts.texts.captions import Cue, vtt_lines
from artifacts.texts.questions import LEAST_MASS
from artifacts.wording import counted
from flows.commands.shared.arguments import config_from
from flows.commands.shared.options import add_index_option, add_options
from flows.core.console.display import Display
from flows.core.console.lines import json_line, print_lines
from flows.core.options.formats import MODEL, QUESTIONS
from flows.core.options.hit_questions import AskHitsOptions
from flows.core.options.vectors import SearchPlace, SearchQuery

if TYPE_CHECKING:
    from flows.commands.search.query import Hit

SHOWN_CAPTION = 120
"""Most characters of a caption in a line."""


def search_command(given: argparse.Namespace) -> int:
    """Run the search, and return its exit code: 1 if a file to be copied is gone. Raises
    PenstockError."""
    folder = folder_named(given.index, "index")
    page = folder_named(given.html, "html") if given.html is not None else None
    track = folder_named(given.vtt, "vtt") if given.vtt is not None else None
    copies = folder_named(given.copy, "copy") if given.copy is not None else None
    with closing(Display(quiet=True, fleeting=True)) as display:
        display.doing("searching")
        if page or copies or track:
            from flows.outputs.folder.foreign_files import refuse_replacing_found

            refuse_replacing_found(page, copies, track)
        # A second thread of numpy waits longer for its share of one text than it computes.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from flows.commands.search.both import search

        query, place = config_from(given, SearchQuery), config_from(given, SearchPlace)
        request = config_from(given, AskHitsOptions)
        hits = search(folder, query, place, display)
        if request.ask:
            from flows.commands.search.asking import ask_hits

            hits = ask_hits(hits, query.what, request, place.store, display)
    if request.ask:
        print_lines(*_notes(hits), to=sys.stderr)
    if track:
        write_text(track, _track(query.what, hits))
        print_lines(f"wrote {track}", to=sys.stderr)
    if page:
        from flows.commands.search.page import page_of

        write_text(page, [page_of(given.what, str(folder), hits)])
        print_lines(f"wrote {page}", to=sys.stderr)
    code = _copied(copies, hits) if copies else 0
    if given.json:
        print("".join(lines_of(hits)), end="")
    else:
        print_lines(*(map(_line, hits) if hits else ["no hits"]))
    return code


def lines_of(hits: Sequence["Hit"]) -> list[str]:
    return [json_line(hit.to_json()) + "\n" for hit in hits]


def _line(hit: "Hit") -> str:
    from flows.commands.search.query import when

    copies = f"  and {hit.copies} more: {', '.join(hit.copy_paths)}" if hit.copies else ""
    p = "" if hit.p is None else f"p {hit.p:.3f} mass {hit.mass:.2g}  "
    caption = f"  {shorten(hit.caption, SHOWN_CAPTION)}" if hit.caption else ""
    return f"{hit.rank:4d}  {p}{hit.score:.4f}  {hit.path}{when(hit)}{copies}{caption}"


def _notes(hits: Sequence["Hit"]) -> Iterator[str]:
    """Yield what is to be known of the answers about hits."""
    masses = [hit.mass for hit in hits if hit.mass is not None]
    if unasked := len(hits) - len(masses):
        why = "their features are not stored, or the model failed on them"
        yield f"no answer: {counted(unasked, 'hit')} ({why})"
    if masses and max(masses) < LEAST_MASS:
        yield (
            "note: the model hardly wants to answer with these labels (mass "
            f"{max(masses):.2g} of 1 at most), so p means little. Give --questions in words that "
            "it answers"
        )


def _track(query: str, hits: Sequence["Hit"]) -> Iterator[str]:
    """Return the moments of hits as WebVTT, in the order of time. Raises UsageError for moments of
    several videos, since cues name none."""
    moments = [(hit, hit.time) for hit in hits if hit.time is not None]
    if len(paths := {hit.path for hit, _ in moments}) > 1:
        raise UsageError(
            f"--vtt: the moments are in {len(paths)} videos, and a WebVTT track is of one",
            hint="Choose one: --where \"path like '%/NAME.mp4'\"",
        )
    if hits and not moments:
        raise UsageError("--vtt: no hit is a moment of a video", hint="Leave out --vtt")
    cues = [
        Cue(*time, query if hit.p is None else f"{query} ({hit.p:.0%})") for hit, time in moments
    ]
    return vtt_lines(sorted(cues)) if cues else iter(["WEBVTT\n"])


def _copied(folder: Path, hits: Sequence["Hit"]) -> int:
    """Copy each found file once, named by its first rank. Return the exit code."""
    seen: set[str] = set()
    code = 0
    write_text(folder / "search.jsonl", lines_of(hits))  # first: it lists the originals
    for hit in (hit for hit in hits if hit.path not in seen):
        seen.add(hit.path)
        try:
            with open_local(hit.path) as path:
                _copy(path, folder, f"{hit.rank:03d}-{Path(hit.path).name}")
        except (OSError, MediaError, Unanswered) as error:
            code, why = 1, getattr(error, "strerror", error)
            print_lines(f"failed: {hit.path}: cannot be copied ({why})", to=sys.stderr)
    return code


def _copy(source: Path, folder: Path, name: str) -> None:
    """Copy a file to `name`, or to the next free name if another file, such as a copy that was
    edited, has it."""
    for candidate in numbered(*os.path.splitext(name)):
        target = folder / file_name(candidate, folder)
        if not os.path.lexists(target):
            break
        if target.is_file() and cmp(source, target, shallow=False):
            return
    with open_regular(source) as reader, whole_file(target) as writer:
        shutil.copyfileobj(reader, writer)


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints what an index holds that is like a text or an image, or which captions of a run "
        "have its words. For many searches, the fast way is a running `penstock serve --index "
        "DIR`: it answers each in milliseconds."
    )
    add_index_option(parser)
    add_options(parser, SearchQuery)
    add_options(parser, AskHitsOptions, QUESTIONS)
    add = parser.add_argument_group("outputs").add_argument
    add("--json", action="store_true", help="print hits as JSON lines")
    add("--html", metavar="FILE", help="write one HTML page of thumbnails")
    add("--vtt", metavar="FILE", help="write the moments of one video as WebVTT")
    add("--copy", metavar="DIR", help="copy found files and search.jsonl into DIR")
    add_options(parser, SearchPlace, MODEL)
