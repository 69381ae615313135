"""Writes losses and memory of a training for TensorBoard, where that is asked for; trains
nothing."""

from typing import Any

from stages.tune.checkpoint import TrainingProgress


class Board:
    """The curves of one training; use as a context manager. One that goes on from a checkpoint
    draws over what came after that."""

    def __init__(self, folder: str, progress: TrainingProgress) -> None:
        """Write into a folder; an empty one means to write nothing."""
        self._writer: Any = None
        if folder:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder, purge_step=progress.step + 1)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, progress: TrainingProgress) -> None:
        """Draw the last step."""
        if self._writer is not None:
            self._writer.add_scalar("loss/trained", progress.losses[-1], progress.step)
            self._writer.add_scalar("memory/bytes", progress.memory[-1], progress.step)

    def add_held_out(self, progress: TrainingProgress) -> None:
        """Draw the loss of what is held out."""
        if self._writer is not None and progress.held_out:
            self._writer.add_scalar("loss/held out", progress.held_out[-1][1], progress.step)
