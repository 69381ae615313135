"""Starts the stages of a process of Ray, which makes one small run after another: what stages
import is shared, and one half may stay loaded."""

import os
import weakref
from collections.abc import Mapping
from dataclasses import replace

from flows.machine.launch import DirectLauncher, StageCall, StageHandle
from stages.models.half_job import HalfJob
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener


class SharedForks:
    """A launcher that forks all stages of this process from one server, which outlives runs.
    Another one is started if the process was given other GPUs."""

    _server = ForkServer()
    _visible: str | None = None
    """GPUs that the process had when the server was used last."""

    def __init__(self, listen: Listener) -> None:
        self._launcher = DirectLauncher(listen)

    def start(self, call: StageCall, forks: ForkServer | None = None) -> StageHandle:
        """Start a stage, by `forks` if they are given."""
        shared = None if call.fork_server is None else forks or self._forks()
        return self._launcher.start(replace(call, fork_server=shared))

    @classmethod
    def _forks(cls) -> ForkServer:
        before, cls._visible = cls._visible, os.environ.get("CUDA_VISIBLE_DEVICES")
        if before != cls._visible:
            cls._server.leave()
        return cls._server


class LoadedHalf:
    """Starts the stages of one run after another. Those of one name run in a process that keeps its
    half loaded, one per device, until another half is to be loaded there.

    A half is not kept that reads weights while it computes, nor one that llama.cpp runs, nor one
    that shares a GPU with another half.
    """

    def __init__(self, *stages: str) -> None:
        self._stages = stages
        self._loaded: dict[str, tuple[HalfJob, ForkServer]] = {}
        """Device → the half that was loaded there last, and its process."""
        weakref.finalize(self, _leave, self._loaded)
        self._launcher: SharedForks

    def __call__(self, listen: Listener) -> "LoadedHalf":
        """Return the launcher of the next run."""
        self._launcher = SharedForks(listen)
        return self

    def start(self, call: StageCall) -> StageHandle:
        half: HalfJob | None = getattr(call.job, "half", None)
        if half is None:
            return self._launcher.start(call)
        before, forks = self._loaded.get(call.device, (half, ForkServer(stays=True)))
        keeps = call.name in self._stages and not (half.offload or half.gguf or call.persistent)
        if before != half or not keeps:
            forks.leave()
        self._loaded[call.device] = half, forks
        return self._launcher.start(call, forks if keeps else None)


def _leave(loaded: Mapping[str, tuple[HalfJob, ForkServer]]) -> None:
    for _, forks in loaded.values():
        forks.leave()
