"""The limits of trainers' text encoders: how much of a caption each of them reads.

`limits.toml` is the table. A row says how many tokens one call of a text encoder takes, and what
stands around the caption in it. What is beyond the limit, the model that is trained never sees.
"""

import tomllib
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SILENT, WARNED, PARTS, ERROR, NEVER = "silent", "warned", "parts", "error", "never"
"""What a trainer does with a text above the limit: it cuts it without a word, or logs what it cuts;
reads all of it in parts; ends with an error; has no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSource:
    """Where the tokenizer of a text encoder is published."""

    name: str
    repository: str
    folder: str
    """Folder in the repository; empty: its root."""
    marks: int
    """Number of tokens that it adds to a text, such as an end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """What a trainer puts around a caption before it is tokenized."""

    prefix: str = ""
    suffix: str = ""
    tokens: int = 0
    """Number of tokens of both, without the marks of the tokenizer; 0: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimit:
    """How much of a caption one text encoder reads."""

    trainer: str
    model: str
    option: int = 0
    """Tokens of the trainer's option that sets this limit; 0: it holds by default."""
    encoder: str
    tokenizer: TokenizerSource
    tokens: int
    """Most tokens of one call, with marks and template; 0: any number."""
    template: Template
    above: str
    """What happens above: SILENT, WARNED, PARTS, ERROR or NEVER."""
    place: str
    """Where it stands in the trainer's source: `REPOSITORY:FILE:LINE`."""
    source: str
    """The text that stands there."""

    @property
    def is_pooled(self) -> bool:
        """Return whether the encoder gives the model one vector only, beside another encoder."""
        return self.encoder.endswith("pooled")

    @property
    def left(self) -> int:
        """Return the number of tokens that are left for the caption."""
        return self.tokens - self.tokenizer.marks - self.template.tokens

    def is_exceeded(self, text: str) -> bool | None:
        """Return whether a text is too long, as far as that is certain without the tokenizer; None:
        it is not. A word is one token or more, and a token one byte or more. A tokenizer may
        normalize the text, and put a blank before it."""
        if len(text.split()) > self.left:
            return True
        around = self.template.prefix + self.template.suffix if not self.template.tokens else ""
        forms = (text, text.lower(), unicodedata.normalize("NFKC", text))
        most = max(len((around + form).encode("utf-8", "replace")) for form in forms) + 1
        return None if most > self.left else False


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("artifacts.texts").joinpath("limits.toml").read_text("utf-8"))


@cache
def text_limits() -> tuple[TextLimit, ...]:
    """Return the rows of the table, one for each model of a row."""
    table = _table()
    tokenizers = {
        name: TokenizerSource(name=name, repository=repository, folder=folder, marks=marks)
        for name, (repository, folder, marks) in table["tokenizers"].items()
    }
    templates = {
        name: Template(prefix=prefix, suffix=suffix, tokens=tokens)
        for name, (prefix, suffix, tokens) in table["templates"].items()
    }
    return tuple(
        TextLimit(
            trainer=trainer,
            model=model,
            option=int(option or 0),
            encoder=encoder,
            tokenizer=tokenizers[tokenizer],
            tokens=tokens,
            template=templates[template] if template else Template(),
            above=above,
            place=place,
            source=source,
        )
        for trainer, models, encoder, tokenizer, tokens, template, above, place, source in table[
            "limits"
        ]["rows"]
        for model, _, option in (name.strip().partition("@") for name in models.split(","))
    )


def commits() -> dict[str, str]:
    """Return repository → commit and date of the source that the table was read from."""
    return dict(_table()["commits"])


def limits_of(trainer: str, model: str) -> list[TextLimit]:
    """Return the limits of a model that hold by default; none if they are not known."""
    return [
        limit
        for limit in text_limits()
        if (limit.trainer, limit.model, limit.option) == (trainer, model, 0)
    ]
