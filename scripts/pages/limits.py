"""Writes docs/limits.md, what each trainer reads of a caption: `python -m scripts.pages.limits`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from artifacts.texts.trainer_limits import NEVER, PARTS, TextLimit, commits, text_limits
from scripts.pages.tables import DOCS
from scripts.prove.readers.limits import RUN
from tests.support.builders.common import cells, heads

PAGE = DOCS / "limits.md"
HEAD = """# What trainers read of a caption

A text encoder reads so many tokens, and most trainers cut the rest without a word. `penstock check`
counts by this table ([check.md](check.md)). `python -m scripts.pages.limits` writes this page from
`artifacts/texts/limits.toml`.

*Left* is what is left for the caption, without the marks of the tokenizer and what the trainer puts
around it. Of a model with several encoders, words are lost that none of them reads; a pooled one
gives the model one vector beside another encoder. Above the limit: *silent* cuts without a word,
*warned* cuts and logs it, *error* ends the trainer, *parts* reads all, in parts.

"""
TAIL = """
## How this is known

Each row was read in the trainer's source, at the line that is named. `make readers SOURCES=DIR
TOKENIZERS=DIR` fails where the text of a row no longer stands at its line. It runs functions of the
trainers beside ours: which tokens of 60 captions they give to the text encoder (*run* in the
tables; of the others the source was *read*), and in which bucket they put 603 sizes of pictures.
DIR holds a checkout of each repository; the commits were:

"""
COLUMNS = ("model", "text encoder", "tokenizer", "left", "above", "source", "known by")


def rows(limits: Iterable[TextLimit]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each limit."""
    for limit in limits:
        option = f" with {limit.option} tokens" if limit.option else ""
        unknown = "at most " if limit.template.prefix and not limit.template.tokens else ""
        left = "all" if limit.above in (NEVER, PARTS) else f"{unknown}{limit.left:,}"
        is_run = (limit.trainer, limit.model, limit.encoder) in RUN
        yield (
            f"{limit.model}{option}",
            limit.encoder,
            limit.tokenizer.repository,
            left,
            limit.above,
            f"`{limit.place}`",
            "run" if is_run else "read",
        )


def page() -> str:
    """Return the page."""
    text = HEAD
    for trainer in dict.fromkeys(limit.trainer for limit in text_limits()):
        of_trainer = [limit for limit in text_limits() if limit.trainer == trainer]
        lines = [heads(" | ".join(COLUMNS)), *(cells(row) for row in rows(of_trainer))]
        text += f"## {trainer}\n\n" + "\n".join(lines) + "\n\n"
    named = (f"- {name} {commit}" for name, commit in commits().items())
    return text.rstrip() + "\n" + TAIL + "\n".join(named) + "\n"


if __name__ == "__main__":
    Path(PAGE).write_text(page(), encoding="utf-8")
