"""Records the decode step of a slot pool as a CUDA graph, and replays it: the same kernels, so the
same bits, without Python between them.

A step of a 3B model starts 1,700 kernels. On an H200 the host takes 30 ms for that and the card 6.

How it works:

1. The first step of a pool is computed as it is: libraries load then, and choose kernels.
2. The second step is computed as it is, then recorded from the same recurrent states, and replayed.
   The recording is kept if the replayed logits have the same bits. Keys and values need no copy:
   they are written again to the same columns.
3. From then on steps are replayed. All that changes between steps is in tensors that keep their
   address: in a step, `pool.py` and `cache_layers.py` write into tensors and bind none anew.
4. A recording contains addresses, and the numbers that Python read. If one of them changes, because
   the pool got wider or the half was loaded again, it is dropped, and the next step is a first one.
5. After an error, or a difference, no step of the process is recorded or replayed any more.
   `notes.recorded_reason` of the stage has the reason. That memory runs out is such a reason, too:
   the pool keeps its slots.
"""

import time
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import torch

from stages.decode.engines.inflight.cache_layers import STATES
from stages.decode.engines.inflight.pool import Pool, SlotPool
from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.memory.cuda_graphs import SWITCH, is_switched_off, reason_of, recording, same_bits
from stages.memory.oom_retry import catch_oom, release_memory
from stages.models.half_job import HalfJob


class StepRecorder:
    """Whether the steps of one process are recorded, and what came of it."""

    def __init__(self) -> None:
        self.reason = ""
        """Why steps are not recorded, or not any more; empty while they are."""
        self.computed, self.replayed, self.recordings = 0, 0, 0
        self.seconds = 0.0
        """Seconds that recording took, the comparisons included."""
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()

    def stop(self, reason: str) -> None:
        """Record and replay no more steps of the process."""
        self.reason = self.reason or reason

    def stats(self) -> dict[str, Any]:
        steps = self.computed + self.replayed
        counts = {"replayed": self.replayed, "steps": steps, "recordings": self.recordings}
        recorded = {"recorded": {**counts, "seconds": round(self.seconds, 3)}} if steps else {}
        return recorded | ({"recorded_reason": self.reason} if self.reason else {})

    def capture(self, compute: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """Return a graph of a computation, and the tensor that a replay writes to."""
        # One pool of memory for all: what a step makes is read before the next is replayed.
        memory = next((other.pool() for other in self._graphs), None)
        with recording(memory) as graph:
            computed = compute()
        self._graphs.add(graph)
        return graph, computed


def recorder_for(half: HalfJob) -> StepRecorder | None:
    """Return the recorder for the steps of a half; None where there are no CUDA graphs of them."""
    if not half.device.startswith("cuda") or half.gguf:
        return None
    recorder = StepRecorder()
    if half.offload:
        recorder.stop("layers are copied to the device in each step")
    if is_switched_off():
        recorder.stop(f"{SWITCH} is 0")
    return recorder


class RecordedPool(SlotPool):
    """A slot pool whose steps are replayed. The logits of a step are valid until the next one."""

    def __init__(
        self, template: PrefilledSequence, shape: PoolShape, recorder: StepRecorder
    ) -> None:
        """Allocate a pool as `SlotPool` does."""
        self._recorder = recorder
        self._graph: Any = None
        self._begun: list[Any] | None = None
        """What a recording contains, as it was after a first step; None before that."""
        super().__init__(template, shape)

    def put(self, slot: int, sequence: PrefilledSequence, token: torch.Tensor) -> None:
        super().put(slot, sequence, token)
        if self._begun is not None and self._begun != self._contained():
            self._drop()

    def resize(self, columns: int) -> None:
        self._drop()
        super().resize(columns)

    def step(self) -> torch.Tensor:
        if (logits := self._replay()) is not None:
            return logits
        if self._begun is not None and not self._recorder.reason:
            return self._record()
        logits = self._compute()
        self._begun = self._contained()
        return logits

    def _replay(self) -> torch.Tensor | None:
        """Replay the recorded step and return its logits; None if there is none any more."""
        if self._graph is None:
            return None
        graph, logits = self._graph
        try:
            graph.replay()
        except Exception as error:  # a launch that fails has computed nothing
            self._stop(reason_of(error))
            return None
        self._recorder.replayed += 1
        return logits  # type: ignore[no-any-return]

    def _compute(self) -> torch.Tensor:
        self._recorder.computed += 1
        return super().step()

    def _record(self) -> torch.Tensor:
        """Compute a step and record it. Return its logits."""
        began = time.perf_counter()
        copies, message = catch_oom(self._copied_states)
        if message is not None:
            self._stop(message)
            return self._compute()
        logits = self._compute()
        if self._begun != self._contained():
            self._stop("a step binds tensors of its cache anew")
            return logits
        self._restore(copies[0])
        if reason := self._try_to_record(logits):
            self._stop(reason)
            self._restore(copies[0])
            return super().step()
        self._recorder.recordings += 1
        self._recorder.seconds += time.perf_counter() - began
        return self._graph[1]  # type: ignore[no-any-return]

    def _try_to_record(self, expected: torch.Tensor) -> str:
        """Record a step and replay it. Return why the recording cannot be used, or nothing."""
        try:
            graph, logits = self._recorder.capture(self._own_logits)
            graph.replay()
            # Rows without a sequence may have NaN, which differs from itself.
            if not same_bits(logits, expected):
                return "a replayed step gives other logits"
            if self._begun != self._contained():
                return "a step that is recorded binds tensors of its cache anew"
        except Exception as error:  # a model may wait for the device, and a driver fails in any way
            return reason_of(error)
        self._graph = graph, logits
        return ""

    def _own_logits(self) -> torch.Tensor:
        """Compute a step, with logits that are no view of another tensor of the model."""
        logits = super().step()
        return logits.clone() if self.model.dtype == torch.float32 else logits

    def _stop(self, reason: str) -> None:
        """Record no more. Raises the device's error if it computes nothing any more."""
        self._drop()
        self._recorder.stop(reason)
        torch.cuda.synchronize()
        release_memory()

    def _drop(self) -> None:
        self._graph = self._begun = None

    def _copied_states(self) -> list[tuple[MutableMapping[int, Any], int, Any, Any]]:
        """Return the recurrent states, which a step advances, with copies of them."""
        every = (getattr(layer, n, {}) for layer in self._slot_cache.cache.layers for n in STATES)
        return [
            (states, index, state, state.clone())
            for states in every
            for index, state in states.items()
            if torch.is_tensor(state)
        ]

    def _restore(self, copies: list[tuple[MutableMapping[int, Any], int, Any, Any]]) -> None:
        with torch.inference_mode():
            for states, index, state, copied in copies:
                states[index] = state.copy_(copied)

    def _contained(self) -> list[int | float | str]:
        """Return what a recording of a step contains: the addresses of all tensors besides weights,
        the numbers that Python reads, and which module has the weights."""
        cross = self._cross_attention
        owners: list[Any] = [self, self._slot_cache, *self._slot_cache.cache.layers]
        owners += [] if cross is None else [cross, *cross.cache.layers]
        values = (value for owner in owners for value in vars(owner).values())
        contents: list[int | float | str] = [id(self.model)]
        for value in values:
            for one in value.values() if isinstance(value, dict) else (value,):
                if torch.is_tensor(one):
                    contents.append(one.data_ptr())
                elif isinstance(one, int | float | str):
                    contents.append(one)
        return contents


def make_pool(
    template: PrefilledSequence, shape: PoolShape, recorder: StepRecorder | None = None
) -> Pool:
    """Return a pool for sequences like `template`, in torch or in llama.cpp. `recorder` records its
    steps; None: they are computed one by one. Raises UnsupportedCacheError and out-of-memory
    errors."""
    if getattr(template.cache, "decoder", None) is not None:
        from stages.decode.engines.inflight.gguf_pool import GgufPool

        return GgufPool(template, shape)
    if recorder is None or recorder.reason:
        return SlotPool(template, shape)
    return RecordedPool(template, shape, recorder)
