"""The user's decoding parameters. Imports no model library: cache keys are made from them."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup

GREEDY, CHECKPOINT = "greedy", "checkpoint"
SAMPLINGS = (GREEDY, CHECKPOINT)
"""Values of `sampling`: greedy decoding, or the checkpoint's own settings."""
TEXT = "text"
"""Heading of the text options."""
SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
"""Settings that turn sampling on."""


AVOIDED_BY = "bytes"
"""How phrases to avoid are found; part of the key of captions that avoid some."""
WORDS = "decoding, greedy by default"
"""Heading of the sampling options."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams(OptionGroup):
    """Decoding parameters; greedy by default."""

    sampling: Annotated[
        str, Option(f"{'|'.join(SAMPLINGS)} decoding [%(default)s]", WORDS, "S", values=SAMPLINGS)
    ] = GREEDY
    """Token selection: `greedy`, or the sampling settings of the `checkpoint`."""
    temperature: Annotated[
        float | None,
        Option("sampling temperature; 0 is greedy", WORDS, "T", least=0, most=100),
    ] = None
    """Sampling temperature: 0 is greedy, 1 leaves the model's probabilities unchanged."""
    top_p: Annotated[
        float | None,
        Option("nucleus sampling probability", WORDS, "P", least=1e-6, most=1),
    ] = None
    """Nucleus sampling: sample from the likeliest tokens with this probability together."""
    top_k: Annotated[
        int | None,
        Option(
            "sample from the K likeliest tokens; 0: all [50]", WORDS, "K", least=0, most=1 << 31
        ),
    ] = None
    """Sample from this many of the likeliest tokens; 0: all. None: 50."""
    seed: Annotated[int, Option("random seed [0]", WORDS, "N", least=0, most=(1 << 63) - 1)] = 0
    """Random seed; each chunk and prompt has its own, derived from this one."""
    beams: Annotated[int, Option("beam search width", WORDS, "N", least=1, most=64)] = 1
    """Beam search width; the likeliest caption is taken."""
    repetition_penalty: Annotated[
        float | None,
        Option("penalty for repeated tokens, > 1 [off]", WORDS, "X", least=0.01, most=100),
    ] = None
    """Penalty for tokens that occurred before: 1 for none, 1.1 for a weak one."""
    presence_penalty: Annotated[
        float | None,
        Option(
            "subtract F from the logits of generated tokens, -2 to 2 [0]",
            WORDS,
            "F",
            least=-2,
            most=2,
        ),
    ] = None
    """Subtracted from the logit of every token that the caption already contains, from -2 to 2; 0:
    nothing. None: as `sampling` sets it."""
    no_repeat_ngram: Annotated[
        int, Option("never repeat N tokens in a row", WORDS, "N", least=0, most=1024)
    ] = 0
    """Length of token sequences that must not repeat; 0: they may."""
    avoid: Annotated[
        tuple[str, ...], Option("words that never occur in captions", TEXT, "W,W")
    ] = ()
    """Words and phrases that are never generated."""
    system: Annotated[str, Option("system message", TEXT, "TEXT")] = ""
    """System prompt."""
    start_with: Annotated[str, Option("text that every caption starts with", TEXT, "TEXT")] = ""
    """Forced beginning of every caption."""
    retry_loops: Annotated[bool, Option("regenerate captions that repeat themselves", TEXT)] = False
    """Regenerate captions that repeat themselves, without repetition."""
    schema: Annotated[
        str, Option("JSON Schema that every caption follows", TEXT, "F", path=True, or_text=True)
    ] = ""
    """JSON Schema that every caption follows, as a file or as text; empty: none. A file is read at
    once, so the field then holds the text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "avoid", tuple(self.avoid))
        super().__post_init__()
        if self.beams > 1 and self.is_sampled:
            raise UsageError(
                "--beams and sampling (--temperature, --top-p, --top-k, --sampling) exclude each "
                "other",
                hint="Leave one of them out",
            )
        if self.schema and self.beams > 1:
            raise _excluded("--beams", "a schema needs a single candidate")
        if self.schema and self.start_with:
            raise _excluded("--start-with", "an answer begins with {")
        if any(not word.strip() for word in self.avoid):
            raise UsageError("--avoid is empty", hint="List words to avoid: --avoid image,photo")

    @property
    def is_sampled(self) -> bool:
        """Return whether tokens may be sampled. Settings of a checkpoint may ask for that."""
        if self.temperature == 0:
            return False
        given = any(getattr(self, name) is not None for name in SAMPLING_FIELDS)
        return given or self.sampling == CHECKPOINT

    @property
    def non_defaults(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, for a job, a cache key and a record.
        The seed counts only with sampling."""
        found = {f.name: (getattr(self, f.name), f.default) for f in fields(SamplingParams)}
        non_defaults = {name: value for name, (value, default) in found.items() if value != default}
        if not self.is_sampled:
            non_defaults.pop("seed", None)
        if not self.presence_penalty:
            non_defaults.pop("presence_penalty", None)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in non_defaults.items()}

    @property
    def key_fields(self) -> list[Any]:
        """Return what enters the cache key of a caption: nothing if all settings are defaults."""
        non_defaults = self.non_defaults
        if self.avoid:
            non_defaults["avoided_by"] = AVOIDED_BY
        return [sorted(non_defaults.items())] if non_defaults else []

    @property
    def is_prefix_stable(self) -> bool:
        """Return whether a caption that ended by itself is the same under every larger limit."""
        return self.beams == 1 and not self.retry_loops and not self.schema


def _excluded(option: str, why: str) -> UsageError:
    return UsageError(
        f"--schema and {option} exclude each other: {why}", hint="Leave one of them out"
    )
