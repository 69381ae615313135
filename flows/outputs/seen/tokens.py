"""Counts captions by the trainer's own tokenizer, and finds the words that it never sees.

1. A tokenizer is taken from the folder that is given, from a trainer's cache in it, or from the
   cache of the hub. Nothing is downloaded.
2. The caption is tokenized with what the trainer puts around it. The tokens that do not fit are
   lost, and the words that they stand for.
3. Without the tokenizer, only what is certain is a fault: more words than tokens are too many.
"""

import html
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from artifacts.disk.paths import user_cache
from artifacts.errors import EnvironmentFault
from artifacts.packages import is_installed
from artifacts.texts.trainer_limits import ERROR, TextLimit, TokenizerSource
from artifacts.wording import counted
from flows.core.machine.launch import DirectLauncher, StageCall, run_with_restarts
from flows.outputs.seen.sets import Fault, TrainedSample
from stages.models.half_job import TokenizerJob

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
FILES = (TOKENIZER, "vocab.json", "spiece.model", "tokenizer.model")
"""Names of files; the folder of a tokenizer has one of these, or several."""
QUOTED = 40
"""Most words that are quoted."""
REWRITTEN, CLIP = "umt5", "clip"
"""Tokenizers of Wan and of CLIP."""
MENDER = "ftfy"
"""Package by which it mends texts."""
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
"""What that package makes of quotes that are not straight."""


def note_tokens(
    samples: Sequence[TrainedSample], limits: Sequence[TextLimit], tokenizers: Path | None
) -> Iterator[str]:
    """Add the faults of captions that are too long to their samples, and yield notes. A word is
    lost if no text encoder reads it: what only some of them do not read is a note. Raises
    EnvironmentFault."""
    texts = {text for sample in samples for text in read_texts(sample)}
    main = main_limit(limits)
    for limit in limits:
        if not limit.tokens:
            yield f"{limit.encoder} reads captions of any length ({limit.above})"
            continue
        folder, readings = tokenizer_folder(limit.tokenizer, tokenizers), dict[str, ReadCaption]()
        if folder is None:
            faults, unsure = _certain(texts, limit)
            if unsure:
                count = counted(unsure, "caption")
                yield f"{count} may be too long: {missing_note(limit.tokenizer)}"
        else:
            tokenizer = load_tokenizer(folder)
            foreign = sum(not text.isascii() for text in texts)
            if foreign and is_mended(limit) and not is_installed(MENDER):
                yield (
                    f"{counted(foreign, 'caption')} with accents or other scripts may count "
                    f"otherwise: the trainer mends them by {MENDER}, which is not installed"
                )
            readings = {text: reading(tokenizer, limit, text) for text in texts}
            faults = {text: fault for text, (_, fault) in readings.items() if fault is not None}
        if limit is not main:
            if faults:
                yield f"{limit.encoder} reads the beginning of {counted(len(faults), 'caption')}"
            continue
        for sample in samples:
            sample.faults += [faults[text] for text in read_texts(sample) if text in faults]
            if counts := [readings[t].tokens for t in read_texts(sample) if t in readings]:
                sample.measures["tokens"] = max(counts)


def read_texts(sample: TrainedSample) -> list[str]:
    """Return the captions of a sample as its trainer has them before it tokenizes them."""
    settings = sample.settings
    texts = [text if settings is None else settings.read_as(text) for text in sample.captions]
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


def main_limit(limits: Sequence[TextLimit]) -> TextLimit | None:
    """Return the limit of the encoder that reads most; None if none is known."""
    return max(limits, key=_reach, default=None)


def _reach(limit: TextLimit) -> tuple[bool, float]:
    """Return how much of a caption an encoder gives to the model, for comparison."""
    return not limit.is_pooled, limit.tokens or float("inf")


def _certain(texts: set[str], limit: TextLimit) -> tuple[dict[str, Fault], int]:
    """Return the faults of texts that are too long for certain, and how many may be."""
    exceeded = {text: limit.is_exceeded(text) for text in texts}
    why = f"more words than the {limit.left} tokens that {limit.encoder} reads"
    faults = {text: Fault(rule="tokens", text=why) for text, over in exceeded.items() if over}
    return faults, sum(over is None for over in exceeded.values())


def missing_note(source: TokenizerSource) -> str:
    """Return that a tokenizer is not on this machine, and how to get it."""
    files = ("tokenizer*", "*.model", "vocab*", "merges*", "special_tokens*")
    below = f"{source.folder}/" if source.folder else ""
    names = " ".join(f"'{below}{name}'" for name in files)
    return (
        f"the tokenizer of {source.repository} is not on this machine. Get it, a few MB: "
        f"hf download {source.repository} --include {names}"
    )


def tokenizer_folder(source: TokenizerSource, tokenizers: Path | None) -> Path | None:
    """Return the folder of a tokenizer on this machine; None: it is not here."""
    from huggingface_hub import try_to_load_from_cache

    names = (source.name, source.repository.replace("/", "_"))
    roots = () if tokenizers is None else (tokenizers / name for name in names)
    for root in roots:
        for folder in (root, root / source.folder):
            if any((folder / file).is_file() for file in FILES):
                return folder
    for file in FILES:
        name = f"{source.folder}/{file}" if source.folder else file
        path = try_to_load_from_cache(source.repository, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


@cache
def load_tokenizer(folder: Path) -> "Tokenizer":
    """Return the tokenizer in a folder. One that is not a `tokenizer.json` is written as such by a
    process of its own, which takes seconds. Raises EnvironmentFault."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    with tempfile.TemporaryDirectory() as scratch:
        if not path.is_file():
            path = Path(scratch, TOKENIZER)
            job = TokenizerJob(folder=str(folder), file=str(path))
            log = user_cache() / "logs" / "tokenizer.log"
            call = StageCall(name="tokenizer", job=job, device="cpu", log=log)
            run_with_restarts(DirectLauncher(lambda *_: None), call)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no class of its own
            raise EnvironmentFault(
                f"{path} cannot be read: {str(error)[:200]}",
                hint="Delete it and get it again, or name another folder with --tokenizers",
            ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def lost(tokenizer: "Tokenizer", limit: TextLimit, caption: str) -> Fault | None:
    """Return what of a caption a text encoder does not read; None: it reads all."""
    return reading(tokenizer, limit, caption).fault


class ReadCaption(NamedTuple):
    """How a text encoder reads a caption."""

    tokens: int
    """Number of its tokens, without those that are put around it."""
    fault: Fault | None
    """What it does not read; None: it reads all."""


@lru_cache(maxsize=1 << 16)
def reading(tokenizer: "Tokenizer", limit: TextLimit, caption: str) -> ReadCaption:
    """Return how a text encoder reads a caption. A review asks again after each edit."""
    text = mended(caption, limit) if is_mended(limit) else caption
    prefix, suffix = limit.template.prefix, limit.template.suffix
    affixed = prefix + text + suffix
    spans = tokenizer.encode(affixed, add_special_tokens=False).offsets
    fitting = limit.tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
    tokens = (limit.template.tokens and len(spans) - limit.template.tokens) or len(spans)
    if len(spans) <= fitting:
        return ReadCaption(tokens, None)
    begin, end = spans[fitting][0], len(prefix) + len(text)
    words = affixed[max(begin, len(prefix)) : end].strip()
    counts = f"{tokens:,} tokens, and {limit.encoder} reads {limit.left:,}"
    if limit.above == ERROR:
        why = f"{counts}: the trainer ends with an error"
        return ReadCaption(tokens, Fault(rule="tokens", text=why, words=words))
    if not (words or suffix):  # blanks at the end
        return ReadCaption(tokens, None)
    what = f"never seen: {quoted(words)}" if words else "the end of the chat's marks is cut"
    return ReadCaption(tokens, Fault(rule="tokens", text=f"{counts}; {what}", words=words))


def quoted(text: str) -> str:
    """Return a text in quotes, the first words of a long one."""
    words = text.split()
    if len(words) <= QUOTED:
        return f"“{text}”"
    return f"“{' '.join(words[:QUOTED])} …” and {len(words) - QUOTED:,} more words"


def is_mended(limit: TextLimit) -> bool:
    """Return whether a trainer's tokenizer mends the text first: Wan's class, and CLIP's of the
    transformers with which kohya's trainer runs."""
    is_clip = limit.tokenizer.name == CLIP and limit.trainer == "kohya"
    return limit.tokenizer.name == REWRITTEN or is_clip


def mended(text: str, limit: TextLimit) -> str:
    """Return a text as such a tokenizer has it before it counts."""
    has_mender = is_installed(MENDER)
    text = import_module(MENDER).fix_text(text) if has_mender else text.translate(QUOTES)
    if limit.tokenizer.name == REWRITTEN or not (has_mender or "<" in text):
        text = html.unescape(html.unescape(text))
    return " ".join(text.split())
