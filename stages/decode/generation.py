"""Holds how the words of a caption are chosen, as a person asks for it and as a job is told. It
imports no model library, because keys are made of it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from artifacts.errors import UsageError

GREEDY, CHECKPOINT = "greedy", "checkpoint"
SAMPLINGS = (GREEDY, CHECKPOINT)
"""The values of `sampling`: the likeliest word always, or as the checkpoint's own settings say."""
OF_CHANCE = ("temperature", "top_p", "top_k")
"""Settings that let chance choose; to give one is to ask for that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How words are chosen; by default the likeliest one, always."""

    sampling: str = GREEDY
    temperature: float | None = None
    """How much chance there is: 0 is none, 1 what the model says. None: as `sampling` says."""
    top_p: float | None = None
    """Share of the likeliest words that are chosen among."""
    top_k: int | None = None
    """Number of the likeliest words that are chosen among; 0: all."""
    seed: int = 0
    """Seed of chance; what it comes to for a caption hangs on its chunk and its prompt, too."""
    beams: int = 1
    """Captions that are followed at once, of which the likeliest is taken."""
    repetition_penalty: float | None = None
    """Divisor of the likelihood of words that were said before; 1: none."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the caption already holds; 0: nothing is. None:
    as `sampling` says."""
    no_repeat_ngram: int = 0
    """Length of runs of tokens that are never said twice; 0: all may be."""
    avoid: tuple[str, ...] = ()
    """Words and phrases that are never said."""
    system: str = ""
    """Text of the system's turn before the question."""
    start_with: str = ""
    """Beginning of every caption, from which the model goes on."""
    retry_loops: bool = False
    """Whether a caption that goes round in circles is said once more, where it may not."""
    schema: str = ""
    """Canonical text of the JSON Schema that every caption follows; empty: none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "avoid", tuple(self.avoid))
        self._check_numbers()
        if self.sampling not in SAMPLINGS:
            raise _odd("sampling", self.sampling, f"Choose from {', '.join(SAMPLINGS)}")
        if self.beams > 1 and self.by_chance:
            raise UsageError(
                "--beams and chance (--temperature, --top-p, --top-k, --sampling) exclude each "
                "other",
                hint="Leave one of them out",
            )
        if self.schema and self.beams > 1:
            raise _excluded("--beams", "one answer is followed at once")
        if self.schema and self.start_with:
            raise _excluded("--start-with", "an answer begins with {")
        if any(not word.strip() for word in self.avoid):
            raise _odd("avoid", "empty", "Give words that must not be said: --avoid image,photo")

    def _check_numbers(self) -> None:
        limits = {
            "temperature": (self.temperature, 0.0, 100.0),
            "top_p": (self.top_p, 1e-6, 1.0),
            "top_k": (self.top_k, 0, 1 << 31),
            "seed": (self.seed, 0, (1 << 63) - 1),
            "beams": (self.beams, 1, 64),
            "repetition_penalty": (self.repetition_penalty, 0.01, 100.0),
            "presence_penalty": (self.presence_penalty, -2.0, 2.0),
            "no_repeat_ngram": (self.no_repeat_ngram, 0, 1024),
        }
        for name, (value, least, most) in limits.items():
            if value is not None and not least <= value <= most:
                raise _odd(name, value, f"Give a number from {least:g} to {most:g}")

    @property
    def by_chance(self) -> bool:
        """Return whether chance has a part in it. Of a checkpoint's settings it may have."""
        if self.temperature == 0:
            return False
        given = any(getattr(self, name) is not None for name in OF_CHANCE)
        return given or self.sampling == CHECKPOINT

    @property
    def told(self) -> dict[str, Any]:
        """Return what is not as by default, for a job, a key and a record; a seed counts only where
        there is chance."""
        found = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        told = {name: value for name, (value, default) in found.items() if value != default}
        if not self.by_chance:
            told.pop("seed", None)
        if not self.presence_penalty:
            told.pop("presence_penalty", None)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in told.items()}

    @property
    def words(self) -> list[Any]:
        """Return what belongs into the key of a caption: nothing where all is as by default."""
        told = self.told
        return [sorted(told.items())] if told else []

    @property
    def limit_only_cuts(self) -> bool:
        """Return whether a caption that ended by itself is the same under every larger limit."""
        return self.beams == 1 and not self.retry_loops and not self.schema

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Generation":
        return cls(**told)


def _excluded(option: str, why: str) -> UsageError:
    return UsageError(
        f"--schema and {option} exclude each other: {why}", hint="Leave one of them out"
    )


def _odd(name: str, value: object, hint: str) -> UsageError:
    return UsageError(f"--{name.replace('_', '-')} is {value}", hint=hint)
