"""Decides whether the adapter of a round of learning is better, and describes how the round ended.

Some examples are held out of training. The new adapter is compared with the old one on them.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.outputs.record.rounds import (
    ADAPTER,
    Round,
    exact,
    loss_of,
    round_folder,
    summary_json,
    verdict,
)

SAMPLES, LOWER = 20, 19
"""Bootstrap samples of the media of held-out corrections, and in how many of them the loss must be
lower."""


def times_lower(round_: Round, seed: int) -> int:
    """Return in how many bootstrap samples of the media of held-out corrections the new adapter's
    mean loss per token is lower."""
    corrected = [example for example in round_.held_out if example.corrected]
    names = [example.identity for example in corrected or round_.held_out]
    media = [*dict.fromkeys(names)]
    before, after = map(round_.corrections, (round_.before, round_.after))
    draw, lower = random.Random(f"{seed} bootstrap"), 0
    places = {name: [at for at, of in enumerate(names) if of == name] for name in media}
    for _ in range(SAMPLES):
        drawn = [at for name in draw.choices(media, k=len(media)) for at in places[name]]
        losses = [loss_of([scores[at] for at in drawn]) for scores in (before, after)]
        lower += losses[1] < losses[0]
    return lower


def is_better(round_: Round) -> bool:
    """Return whether the new adapter is better on the held-out corrections, and not worse on all
    held-out captions, neither in loss nor in exact ones."""
    before, after = round_.before, round_.after
    not_worse = loss_of(after) <= loss_of(before) and exact(after) >= exact(before)
    return not_worse and round_.lower >= LOWER


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """The result of a round."""

    out: Path
    """The folder of the run that was corrected."""
    round: Round
    """What was trained on and compared, as the folder records it."""
    is_new: bool = True
    """Whether there was anything to learn; otherwise the round is the last one."""
    failures: list[Failure] = field(default_factory=list)
    """Files that could not be captioned again."""
    warnings: list[str] = field(default_factory=list)
    """Notes on the written files, as `penstock caption` prints them."""

    @property
    def exit_code(self) -> int:
        """Return 0 if all is done, 1 if some items failed."""
        return 1 if self.failures else 0

    @property
    def adapter(self) -> Path:
        return round_folder(self.out, self.round.round) / ADAPTER

    @property
    def made(self) -> int:
        return 1

    def to_json(self) -> dict[str, Json]:
        (summary,) = summary_json([self.round])
        where = {"out": str(self.out), "adapter": str(self.adapter)}
        return {**where, "new": self.is_new, **summary, "warnings": self.warnings}

    def row(self) -> dict[str, Json]:
        loss = loss_of(self.round.corrections(self.round.after))
        shown = {name: getattr(self.round, name) for name in ("round", "accepted", "changed")}
        return {**shown, "loss": loss, "adapter": str(self.adapter)}

    def line(self) -> str:
        number = self.round.round
        if not self.is_new:
            return f"nothing new to learn since round {number}: correct or accept more captions"
        scores = (self.round.before, self.round.after)
        before, after = map(self.round.corrections, scores)
        every = [*map(exact, scores)]
        held, media = len(self.round.held_out), counted(self.round.media_held, "file")
        weak = f"weak test on {media}, " if self.round.is_weak else ""
        line = (
            f"round {number}: learned from {counted(len(self.round.examples), 'caption')}; on "
            f"{counted(len(after), 'held-out correction')} the loss per token went from "
            f"{loss_of(before):.4f} to {loss_of(after):.4f}, lower in {self.round.lower} of "
            f"{SAMPLES} samples, and exact captions from {exact(before)} to {exact(after)}; of all "
            f"{held} held out, from {every[0]} to {every[1]}; {weak}{verdict(self.round)}"
        )
        advice = "; no held-out caption is exact: look at some captions before you use the adapter"
        inexact = "" if any(every) else advice
        if not self.round.accepted:
            return f"{line}{inexact}"
        changed = counted(self.round.captions, "caption")
        kept_note = (
            f"all decisions kept in {self.out}, {self.round.carried} of them under new words"
        )
        return f"{line}, {self.round.changed} of {changed} changed, {kept_note}{inexact}"

    __repr__ = line
