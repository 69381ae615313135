"""Corrects captions without a server."""

import secrets
from collections.abc import Mapping
from os import PathLike

from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.texts.edits import ACCEPTED, REJECTED, WORDS
from penstock.arguments import odd
from penstock.arguments import path_of as path_given

Place = tuple[str, float] | tuple[str, float, str]
"""Name of a medium, second in which the chunk starts, and of several prompts the name of one: as
`media_path`, `start` and `name` in captions.jsonl."""
TAKEN = 'Give a dict such as {("clip.mp4", 0.0): "A text."}; None as the text rejects a caption'


def correct(out: str | PathLike[str], texts: Mapping[Place, str | None], *, store: str = "") -> int:
    """Correct captions of a run's folder as `penstock review` does, and return how many changed. A
    caption of a file counts for its exact copies.

    `texts` has the text of each caption by its place; the model's own text accepts it, and None
    rejects it. The same call of `penstock.caption` then writes the files with the corrections, and
    `penstock.learn` learns from them. `store`: the store of the run, by which the folder is known
    as one's own in another session. Nothing is changed if a place has no caption. Raises
    PenstockError.
    """
    from flows.commands.review.captions import ReviewedCaptions
    from flows.commands.review.folder_captions import EditRefused

    if not isinstance(texts, Mapping):
        raise odd("texts", texts, TAKEN)
    for place, text in texts.items():
        if not isinstance(text, str | None):
            raise odd(f"the text of {place}", text, TAKEN)
    captions = ReviewedCaptions(folder_named(path_given("out", out), "out"), store)
    changes, places = list[Json](), dict[str, Place]()
    try:
        rows = [row for medium in captions.folder.media for row in medium["captions"]]
        keys = {(row["media_path"], row["start"], row["name"]): row["key"] for row in rows}
        for place, text in texts.items():
            is_short = isinstance(place, tuple) and len(place) == 2
            key = keys.get((*place, "") if is_short else place)
            if key is None:
                raise UsageError(
                    f"{out} has no caption of {place}",
                    hint="Give media_path and start as in captions.jsonl, and the name of the "
                    "prompt if there are several",
                )
            if (other := places.setdefault(key, place)) != place:
                if texts[other] != text:
                    raise UsageError(
                        f"{place} is a copy of {other}, and has another text",
                        hint="Give one of them: a text counts for all copies",
                    )
                continue
            is_own = text == captions.folder.rows[key][WORDS]
            if text is not None and not text.strip() and not is_own:
                raise odd(f"the text of {place}", text, TAKEN)
            review = REJECTED if text is None else ACCEPTED if is_own else ""
            changes.append({"of": key, "caption": text, "review": review})
        if not changes:
            return 0
        request = {"id": secrets.token_hex(8), "does": "correct", "changes": changes}
        return len(captions.apply(request)["edits"])
    except EditRefused as error:
        of = f"the text of {places[error.key]}: " if error.key in places else ""
        raise UsageError(f"{of}{error}", hint="Nothing was changed") from error
    finally:
        captions.close()
