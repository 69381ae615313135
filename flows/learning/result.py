"""Describes how a round of learning ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.captions import Failure
from artifacts.plurals import counted
from flows.learning.judging import SAMPLES
from flows.results.rounds import (
    ADAPTER,
    Round,
    corrections_of,
    exact,
    is_weak,
    loss_of,
    media_held,
    round_folder,
    summary_json,
    verdict,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """The result of a round."""

    out: Path
    round: Round
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
        """Return the folder of the round's adapter."""
        return round_folder(self.out, self.round["round"]) / ADAPTER

    @property
    def made(self) -> int:
        """Return the number of adapters."""
        return 1

    def to_json(self) -> dict[str, Any]:
        (found,) = summary_json([self.round])
        where = {"out": str(self.out), "adapter": str(self.adapter)}
        return {**where, "new": self.is_new, **found, "warnings": self.warnings}

    def row(self) -> dict[str, Any]:
        """Return the outcome as a row of a table."""
        loss = loss_of(corrections_of(self.round, "after"))
        shown = {name: self.round[name] for name in ("round", "accepted", "changed")}
        return {**shown, "loss": loss, "adapter": str(self.adapter)}

    def line(self) -> str:
        """Return the outcome in one line."""
        number = self.round["round"]
        if not self.is_new:
            return f"nothing new to learn since round {number}: correct or accept more captions"
        before, after = (corrections_of(self.round, name) for name in ("before", "after"))
        every = [exact(self.round[name]) for name in ("before", "after")]
        held, media = len(self.round["held_out"]), counted(media_held(self.round), "file")
        weak = f"weak test on {media}, " if is_weak(self.round) else ""
        line = (
            f"round {number}: learned from {counted(len(self.round['examples']), 'caption')}; on "
            f"{counted(len(after), 'held-out correction')} the loss per token went from "
            f"{loss_of(before):.4f} to {loss_of(after):.4f}, lower in {self.round['lower']} of "
            f"{SAMPLES} samples, and exact captions from {exact(before)} to {exact(after)}; of all "
            f"{held} held out, from {every[0]} to {every[1]}; {weak}{verdict(self.round)}"
        )
        inexact = (
            ""
            if any(every)
            else (
                "; no held-out caption is exact: look at some captions before you use the adapter"
            )
        )
        if not self.round["accepted"]:
            return f"{line}{inexact}"
        changed = counted(self.round["captions"], "caption")
        kept = f"all decisions kept in {self.out}, {self.round['carried']} of them under new words"
        return f"{line}, {self.round['changed']} of {changed} changed, {kept}{inexact}"
