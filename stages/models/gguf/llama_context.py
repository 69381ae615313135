"""A GGUF model in llama.cpp, and the KV cache of its sequences.

1. The weights are read into memory that the process owns, so that a memory limit counts them.
2. The cache has one part per sequence: `ROWS` for decode steps, and one for reading prompts. A
   prompt moves from there to its row as bytes, so what is read once can be continued many times.
3. A prompt is read in pieces, and one that begins as the one before from the first piece that
   differs. Pieces do not depend on what was read before, so neither does what is computed.
4. A step computes one token of each row, idle rows too.

The tokens of a prompt that see later ones are found by the attention masks of transformers.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.gguf import COLUMN_MULTIPLE, EXACT, PIECE_TOKENS, ROWS
from stages.models.gguf.header import (
    GgufHeader,
    last_words,
    library,
    read_header,
    without_tokenizer,
)
from stages.models.gguf.masks import Blocks, pieces_of

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
READER = ROWS
"""Sequence in which prompts are read."""
F32, F16 = 0, 1
"""GGML types of the KV cache."""


def file_type(header: GgufHeader) -> gguf.LlamaFileType | None:
    """Return what a file states of its tensors' types; None if that is nothing known."""
    try:
        return gguf.LlamaFileType(header.values.get("general.file_type", -1))
    except ValueError:
        return None


def kind_of(header: GgufHeader) -> str:
    """Return the kind of a file, such as `gguf-q4_k_m`."""
    stated = file_type(header)
    name = stated.name.partition("_")[2] if stated is not None else ""
    if not name:  # not stated, or guessed
        largest = max(header.tensors.values(), key=lambda tensor: tensor.bytes)
        name = gguf.GGMLQuantizationType(largest.type).name
    return f"gguf-{name.lower()}"


class _Read(NamedTuple):
    """A prompt in the reader, and how it was read."""

    rows: Floats
    positions: Ints
    pieces: Sequence[tuple[int, int, bool]]

    def shared(self, other: "_Read") -> tuple[int, int]:
        """Return the number of first pieces that are equal in both, and that of their tokens. The
        other's last is not counted, because its logits are needed."""
        count = length = 0
        for mine, its in zip(self.pieces, other.pieces[:-1], strict=False):
            at, to, _ = mine
            same = mine == its and np.array_equal(self.rows[at:to], other.rows[at:to])
            if not (same and np.array_equal(self.positions[:, at:to], other.positions[:, at:to])):
                break
            count, length = count + 1, to
        return count, length


class GgufContext:
    """The model of a GGUF file, with a cache for sequences."""

    def __init__(self, path: Path, threads: int, on_gpu: bool = False) -> None:
        """Open a file; `on_gpu`: compute on a GPU if llama.cpp was built for one. Raises
        EnvironmentFault if llama.cpp cannot be used, UsageError if it does not take the file."""
        self._api = api = library()
        self._threads = threads
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = -1 if on_gpu and api.llama_supports_gpu_offload() else 0
        parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
        self.header = read_header(path)
        overrides = without_tokenizer(api, self.header)
        parameters.kv_overrides = overrides
        last_words()
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise UsageError(
                f"{path}: llama.cpp cannot load it: {last_words()}",
                hint="Convert it again, or give a file that this version of llama.cpp loads",
            )
        self._exact = kind_of(self.header) == EXACT
        self._context: Any = None
        self.columns = 0
        """Tokens that each sequence has room for."""
        self.piece = PIECE_TOKENS
        """Tokens that can be computed at once."""
        self.width = int(api.llama_model_n_embd_inp(self._model))
        """Numbers of an input row, those of image features for deeper layers included."""
        self.words = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        kind = api.llama_model_rope_type(self._model)
        self.axes = 4 if kind in (api.LLAMA_ROPE_TYPE_MROPE, api.LLAMA_ROPE_TYPE_IMROPE) else 1
        """Positions of each token."""
        self.lengths = [0] * (ROWS + 1)
        """Tokens of each sequence."""
        self._before: _Read | None = None
        """The whole prompt that the reader holds; None: it holds none."""

    def reserve(self, tokens: int, piece: int = 0) -> None:
        """Make room for sequences of so many tokens, and for computing `piece` tokens at once.
        Raises MemoryError, after which the running sequences are lost."""
        if tokens <= self.columns and piece <= self.piece:
            return
        self.piece = max(self.piece, piece)
        columns = -(-max(tokens, self.columns) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        states = {seq: self.state(seq) for seq, length in enumerate(self.lengths) if length}
        lengths = list(self.lengths)
        self.close_context()
        self._context = self._make(columns)
        self.columns = columns
        for seq, state in states.items():
            self.restore(seq, state, lengths[seq])

    def _make(self, columns: int) -> Any:
        """Return a new cache. It is in 32 bit, and flash attention off, for a file in 32 bit, so
        that llama.cpp computes what transformers does; else both are as in its own programs."""
        api = self._api
        parameters = api.llama_context_default_params()
        parameters.n_seq_max = ROWS + 1
        parameters.n_ctx = columns * (ROWS + 1)
        parameters.n_batch = parameters.n_ubatch = self.piece
        parameters.n_outputs_max = ROWS + 1
        parameters.n_threads = parameters.n_threads_batch = self._threads
        flash = "DISABLED" if self._exact else "ENABLED"
        parameters.flash_attn_type = getattr(api, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        parameters.type_k = parameters.type_v = F32 if self._exact else F16
        parameters.kv_unified = False
        parameters.swa_full = True
        parameters.no_perf = True
        last_words()
        context = api.llama_init_from_model(self._model, parameters)
        if not context:
            raise MemoryError(f"no room for {columns:,} tokens a sequence: {last_words()}")
        return context

    def read(self, rows: Floats, positions: Ints, after: int = 0, blocks: Blocks = ()) -> Floats:
        """Read a prompt, or its continuation `after` so many tokens, and return the logits of its
        last token. `rows`: [tokens, width]; `positions`: [axes, tokens]. Tokens of a block see each
        other."""
        largest = max((to - at for at, to in blocks), default=0)
        self.reserve(after + len(rows) + 1, largest)
        new = _Read(rows, positions, tuple(pieces_of(len(rows), blocks)))
        shared = 0 if after else self._keep_shared(new)
        # Before anything is computed: what a failure leaves is not reused, but emptied.
        self._before, self.lengths[READER] = None, after + len(rows)
        for at, to, causal in new.pieces[shared:]:
            needs_logits = np.zeros(to - at, np.int8)
            needs_logits[-1] = to == len(rows)
            self._api.llama_set_causal_attn(self._context, causal)
            try:
                self._decode(rows[at:to], positions[:, at:to], [READER] * (to - at), needs_logits)
            finally:
                self._api.llama_set_causal_attn(self._context, True)
        self._before = None if after else new
        return self._logits(-1)

    def _keep_shared(self, new: "_Read") -> int:
        """Empty the reader but for first pieces of another prompt, and return their number."""
        before = self._before
        count, length = before.shared(new) if before else (0, 0)
        if before and length and length < self.lengths[READER]:
            times, memory = before.positions[0], self._api.llama_get_memory(self._context)
            # llama.cpp removes by time. Other layers than those of attention keep no earlier state.
            falls = times[:length].max() >= times[length:].min()
            if falls or not self._api.llama_memory_seq_rm(memory, READER, int(times[length]), -1):
                length = 0
        if not length:
            self.clear(READER)
            return 0
        self.lengths[READER] = length
        return count

    def step(self, rows: Floats, positions: Ints, active: Iterable[int]) -> Floats:
        """Compute one token of each row, and return the logits [ROWS, vocabulary]. `rows`: [ROWS,
        width]; `positions`: [axes, ROWS]. Rows that are not `active` are idle: their cache is
        emptied."""
        running = set(active)
        for seq in range(ROWS):
            if seq not in running:
                self.clear(seq)
        for seq in range(ROWS):
            self.lengths[seq] += 1
        self._decode(rows, positions, range(ROWS), np.ones(ROWS, np.int8))
        return np.stack([self._logits(row) for row in range(ROWS)])

    def _decode(
        self, rows: Floats, positions: Ints, seqs: Iterable[int], needs_logits: Any
    ) -> None:
        count = len(rows)
        batch = self._api.llama_batch()
        embd = np.ascontiguousarray(rows, np.float32)
        position = np.ascontiguousarray(positions.reshape(-1), np.int32)
        ones, ids = np.ones(count, np.int32), np.fromiter(seqs, np.int32, count)
        pointer = ctypes.POINTER(ctypes.c_int32)
        batch.n_tokens = count
        batch.embd = embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = position.ctypes.data_as(pointer)
        batch.n_seq_id = ones.ctypes.data_as(pointer)
        pointers = (ctypes.cast(ids.ctypes.data + 4 * at, pointer) for at in range(count))
        batch.seq_id = (pointer * count)(*pointers)
        batch.logits = needs_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        last_words()
        if code := self._api.llama_decode(self._context, batch):
            raise MemoryError(f"llama.cpp could not decode ({code}): {last_words()}")

    def _logits(self, row: int) -> Floats:
        logits = self._api.llama_get_logits_ith(self._context, row)
        if not logits:
            raise EnvironmentFault(
                f"llama.cpp returned no logits: {last_words()}", hint="Please report this model"
            )
        return np.ctypeslib.as_array(logits, (self.words,)).copy()

    def state(self, seq: int) -> bytes:
        """Return what the cache holds of a sequence."""
        size = self._api.llama_state_seq_get_size(self._context, seq)
        buffer = (ctypes.c_uint8 * size)()
        written = self._api.llama_state_seq_get_data(self._context, buffer, size, seq)
        return bytes(memoryview(buffer)[:written])

    def restore(self, seq: int, state: bytes, tokens: int) -> None:
        """Put the bytes of a sequence of so many tokens into the cache. Raises MemoryError."""
        self.reserve(tokens + 1)
        self.clear(seq)
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not self._api.llama_state_seq_set_data(self._context, buffer, len(state), seq):
            raise MemoryError(f"llama.cpp could not restore a sequence: {last_words()}")
        self.lengths[seq] = tokens

    def clear(self, seq: int) -> None:
        if self._context and self.lengths[seq]:
            memory = self._api.llama_get_memory(self._context)
            self._api.llama_memory_seq_rm(memory, seq, -1, -1)
        self.lengths[seq] = 0

    def close_context(self) -> None:
        """Free the cache and all sequences."""
        if self._context:
            self._api.llama_free(self._context)
        self._context, self.columns, self._before = None, 0, None
        self.lengths = [0] * (ROWS + 1)

    def close(self) -> None:
        self.close_context()
        if self._model:
            self._api.llama_model_free(self._model)
        self._model = None
