"""The jobs of the decode and score stages, and the decoding parameters of a user or a server
request.

The module imports no model library, because cache keys are made from these parameters.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

from artifacts.disk.json_records import read_record
from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.records.claims import Share
from stages.models.half_job import HalfJob

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
        float | None, Option("sampling temperature; 0 is greedy", WORDS, "T", least=0, most=100)
    ] = None
    """Sampling temperature: 0 is greedy, 1 leaves the model's probabilities unchanged."""
    top_p: Annotated[
        float | None, Option("nucleus sampling probability", WORDS, "P", least=1e-6, most=1)
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
        if self.schema and self.start_with:
            raise UsageError(
                "--schema and --start-with exclude each other: an answer begins with {",
                hint="Leave one of them out",
            )
        if any(not word.strip() for word in self.avoid):
            raise UsageError("--avoid is empty", hint="List words to avoid: --avoid image,photo")

    @property
    def is_sampled(self) -> bool:
        """Return whether tokens may be sampled. Settings of a checkpoint may ask for that."""
        if self.temperature == 0:
            return False
        is_any = any(getattr(self, name) is not None for name in SAMPLING_FIELDS)
        return is_any or self.sampling == CHECKPOINT

    @property
    def non_defaults(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, for a job, a cache key and a record.
        The seed counts only with sampling."""
        pairs = {f.name: (getattr(self, f.name), f.default) for f in fields(SamplingParams)}
        non_defaults = {name: value for name, (value, default) in pairs.items() if value != default}
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
        return not self.retry_loops


OWN, FALLBACK = "own", "fallback"
"""Engines that may answer an item: that of the job, and its fallback."""


class DecodeItem(NamedTuple):
    """A chunk to caption."""

    key: str
    """Key of the caption."""
    features: str
    """Key of the features."""
    prompt: str
    fallback_key: str = ""
    """Key of the fallback engine's caption, in the fallback namespace."""
    settings: str = ""
    """RequestSettings of a server request as text; empty: the job's settings apply."""
    to_context: bool = False
    """Whether the client sets no token limit: the answer may fill the context."""
    again: bool = False
    """Whether this is the retry of a caption that repeated itself."""
    heard: str = ""
    """Key of the features of its sound; empty: it is captioned by what is seen."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Return the keys of the features of further images, behind its own."""
        return RequestSettings.from_text(self.settings).pictures if self.settings else ()

    @property
    def media(self) -> str:
        """Return a name of all that the prompt is about."""
        return "".join((self.features, self.heard, *self.pictures))

    @property
    def measures(self) -> bool:
        """Return whether the record says how probable the first token is."""
        return bool(self.settings) and RequestSettings.from_text(self.settings).measures

    @property
    def keys(self) -> dict[str, str]:
        """Return the keys of its answers by these engines."""
        keys = {OWN: self.key, FALLBACK: self.fallback_key}
        return {engine: key for engine, key in keys.items() if key}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob:
    """Chunks to caption with the same settings."""

    half: HalfJob
    store: str
    features_namespace: str
    namespace: str
    """Cache namespace of the captions."""
    other_features: list[str] = field(default_factory=list)
    """Cache namespaces of features that requests of a pipe may name, too."""
    heard_namespace: str = ""
    """Cache namespace of the features of sound; empty: no item has sound."""
    batches: list[list[DecodeItem]]
    max_new_tokens: int
    prefill: int = 0
    """Tokens of a prompt that the language half prefills per chunk; 0: all."""
    kv: str = ""
    """Place of the KV cache: `offloaded`, `quantized`, or empty."""
    engine: str
    """Engine, or choice between engines, that generates the captions."""
    fallback_namespace: str = ""
    """Cache namespace of the fallback engine's captions; empty: the same namespace. Items hold the
    keys in their field `fallback_key`."""
    unheard_namespaces: dict[str, str] = field(default_factory=dict)
    """OWN or FALLBACK → cache namespace of the captions of clients' requests without sound."""
    fallback_batch: int = 0
    """Maximum batch size of the fallback engine, which needs other memory; 0: unchanged."""
    requests: str = ""
    """Pipe over which batches are sent (stages/process/requests.py); empty: caption `batches`."""
    for_clients: bool = False
    """Whether clients wait for what is sent. Then faults are reported and not stored."""
    share: Share = field(default_factory=Share)
    """What this process may claim until those on other devices work, too."""
    slots: int = 0
    """Sequences that are decoded at once; 0: the batch size."""
    rung_slots: int = 0
    """Slots that the plan allows, however few items are left; 0: unknown."""
    sequence_tokens: int = 0
    """Planned tokens of the longest sequence, prompt and caption; 0: unknown."""
    generation: SamplingParams = field(default_factory=SamplingParams)
    """Sampling parameters."""
    made_by: dict[str, str] = field(default_factory=dict)
    """What each record says of model and program: `weights`, `commit` and `penstock`."""
    previous_lengths: dict[str, int] = field(default_factory=dict)
    """Key of an item → tokens of its chunk's caption under the previous prompt, if known."""


STOP_VERSION = 2
"""Raised when a stop string cuts captions elsewhere, so that older ones are not reused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSettings:
    """The settings of one request."""

    max_new_tokens: int
    generation: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    """Stop strings; a caption ends before the first one."""
    top_logprobs: int = 0
    """Number of tokens whose log probability as the first one is stated."""
    labels: tuple[str, ...] = ()
    """Labels whose log probability as the first token is stated."""
    pictures: tuple[str, ...] = ()
    """Keys of the features of further images in the prompt."""

    @property
    def measures(self) -> bool:
        """Return whether the record says how probable the first token is."""
        return bool(self.top_logprobs or self.labels)

    @property
    def text(self) -> str:
        """Return the settings as canonical JSON, for an item and for a cache key."""
        fields = {
            "generation": self.generation.non_defaults,
            "max_new_tokens": self.max_new_tokens,
            "stop": sorted(set(self.stop)),
            **({"stop_version": STOP_VERSION} if self.stop else {}),
            **({"top_logprobs": self.top_logprobs} if self.top_logprobs else {}),
            **({"labels": self.labels} if self.labels else {}),
            **({"pictures": self.pictures} if self.pictures else {}),
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "RequestSettings":
        fields = json.loads(text)
        fields.pop("stop_version", None)
        return read_record(cls, fields)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first stop string that occurs in it."""
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    tails = range(min(longest, len(text)), 0, -1)
    return next((n for n in tails if any(string.startswith(text[-n:]) for string in stop)), 0)
