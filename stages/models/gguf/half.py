"""Loads a language half whose text decoder runs in llama.cpp, and tests that llama.cpp computes
right.

Everything around the decoder stays transformers': the processor, the places of image features, the
positions, `generate`. In place of the decoder stands a module that passes its inputs to llama.cpp
and returns logits as its hidden states; the output head returns them unchanged.

The test computes a tiny model in llama.cpp and compares its logits with known ones. A library may
have the interface that is known and still compute otherwise: another version, or a build for a
processor that it does not suit. The test takes some hundredths of a second.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import gguf
import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.index.shard import StoredFile
from stages.models.gguf import ROWS, how_to_install
from stages.models.gguf.header import HEAD, HINT, TABLE, GgufHeader
from stages.models.gguf.llama_context import READER, Floats, GgufContext, Ints
from stages.models.gguf.mapping import TextMapping, mapping_of
from stages.models.gguf.masks import blocks_of
from stages.models.halves.absent import MissingModule
from stages.models.protocols import Half
from stages.models.published import FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WIDTH, HEADS, INNER, WORDS, TOKENS = 32, 2, 64, 8, 5
EXPECTED = (
    *(-2.9691925, 1.8555755, 1.5702135, -3.176896),
    *(0.4625926, 2.4359853, -1.401923, -1.8176219),
)
"""The logits after TOKENS tokens, as transformers computes them."""
TOLERANCE = 1e-4
"""Largest difference of a logit, in standard deviations. Builds for other processors round
otherwise, by some 1e-6."""


@cache
def check() -> None:
    """Raise EnvironmentFault if llama.cpp computes other logits than expected. Later calls do
    nothing."""
    with tempfile.TemporaryDirectory(prefix="penstock-gguf-") as folder:
        path = Path(folder, "tiny.gguf")
        write_tiny(path)
        context = GgufContext(path, threads=1)
        try:
            logits = _logits(context)
        finally:
            context.close()
    expected = np.array(EXPECTED, np.float32)
    worst = {way: np.abs(row - expected).max() / expected.std() for way, row in logits.items()}
    if wrong := [way for way, error in worst.items() if not error <= TOLERANCE]:
        raise EnvironmentFault(
            f"engine gguf: this llama.cpp computes wrong logits ({wrong[0]})",
            hint=f"Remove llama-cpp-python and compile it on this machine: {how_to_install()}",
        )


def _logits(context: GgufContext) -> dict[str, Floats]:
    """Return the logits after the last token, by the way in which it was read."""
    rows = numbers(TOKENS, WIDTH)[::-1] * 2
    places = np.arange(TOKENS, dtype=np.int32)[None]
    logits = {"a prompt": context.read(rows, places)}
    context.read(rows[:2], places[:, :2])
    logits["a prompt in two pieces"] = context.read(rows[2:], places[:, 2:], after=2)
    context.read(rows[:-1], places[:, :-1])
    state = context.state(READER)
    step, at = np.tile(rows[-1], (ROWS, 1)), np.full((1, ROWS), TOKENS - 1, np.int32)
    for way in ("a step", "a step in a used slot"):
        context.restore(1, state, TOKENS - 1)
        logits[way] = context.step(step, at, [1])[1]
    return logits


def numbers(*shape: int) -> Floats:
    """Return numbers that look random, and are the same everywhere."""
    places = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return ((places * 7919 + 104729 * len(shape)) % 1009 / 1009 - 0.5).astype(np.float32)


def write_tiny(path: Path) -> None:
    """Write a model of one layer."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(WORDS)
    head = WIDTH // HEADS
    shapes = {"blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= dict.fromkeys(("token_embd", "output"), (WORDS, WIDTH))
    shapes |= dict.fromkeys(("blk.0.attn_q", "blk.0.attn_output"), (WIDTH, WIDTH))
    shapes |= dict.fromkeys(("blk.0.attn_k", "blk.0.attn_v"), (head, WIDTH))
    shapes |= dict.fromkeys(("blk.0.ffn_gate", "blk.0.ffn_up"), (INNER, WIDTH))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numbers(WIDTH) + 1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers(*shape))
    for name, size in (("q", WIDTH), ("k", head), ("v", head)):
        writer.add_tensor(f"blk.0.attn_{name}.bias", numbers(size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TensorRows:
    """The rows of a tensor in a GGUF file. They are read as they are needed: a mapped file that
    another program overwrites would end the process."""

    def __init__(self, header: GgufHeader, name: str) -> None:
        """Raises UsageError for a file without that tensor."""
        tensor = header.tensor(name)
        self.count = math.prod(tensor.shape[:-1])
        self._start, self._size = header.data_start + tensor.offset, tensor.bytes // self.count
        self._kind = gguf.GGMLQuantizationType(tensor.type)
        self._file = StoredFile(header.path, header.path.stat().st_size, HINT)

    def numbers(self, rows: Sequence[int] = (0,)) -> Floats:
        """Return these rows as numbers. Raises EnvironmentFault if the file cannot be read, or was
        overwritten."""
        places = self._start + self._size * np.asarray(rows, np.int64)
        read = np.frombuffer(self._file.read_each(places, self._size), np.uint8)
        floats = gguf.dequantize(read.reshape(-1, self._size), self._kind)
        return np.ascontiguousarray(floats, np.float32)


class GgufEmbedding(nn.Module):
    """The embedding table of a GGUF file. Rows are read and dequantized as they are used."""

    def __init__(self, header: GgufHeader, scale: float) -> None:
        super().__init__()
        self._scale = np.float32(scale)
        self._table = TensorRows(header, TABLE)
        self.num_embeddings = self._table.count
        # Models read type and device from their parameters, and may have no others.
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)

    def rows(self, ids: Sequence[int]) -> Floats:
        """Return the embeddings of tokens, of shape [tokens, width]."""
        return self._table.numbers(ids) * self._scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = torch.from_numpy(self.rows(ids.reshape(-1).tolist()))
        return rows.reshape(*ids.shape, -1)


class GgufHead(nn.Module):
    """The output head: llama.cpp has computed the logits already."""

    def __init__(self, words: int) -> None:
        super().__init__()
        # Its first dimension says how many logits there are; it has no values.
        self.weight = nn.Parameter(torch.empty(words, 0), requires_grad=False)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class GgufCache:
    """What a sequence left in llama.cpp's cache, as bytes that can be continued many times."""

    layers: Sequence[Any] = ()
    is_compileable = False
    is_initialized = True

    def __init__(self, decoder: "GgufDecoder", length: int, seq: int, position: Any) -> None:
        """Describe a sequence of `length` tokens, which `seq` of llama.cpp's cache holds."""
        self.decoder, self._length, self.seq = decoder, length, seq
        self.position = position
        """Position of the next token, [..., 1, 1], or None if the decoder got none. PaliGemma
        counts from 1, which `generate` does not know."""
        self._state: bytes | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the place of the next token."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return how many tokens a mask covers, and the first of them."""
        return self._length + query_length, 0

    def state(self) -> bytes:
        """Return its bytes, which are copied out of the reader when they are first needed."""
        if self._state is None:
            assert self.decoder.resident() is self, "the reader has read another sequence"
            self._state = self.decoder.context.state(self.seq)
        return self._state

    def __deepcopy__(self, memo: Any) -> "GgufCache":
        """Return itself: its bytes never change."""
        self.state()
        return self


class GgufDecoder(MissingModule):
    """A text decoder that llama.cpp runs. `MissingModule` answers all other attributes."""

    def __init__(
        self, absent: MissingModule, path: str, mapping: TextMapping, context: GgufContext
    ) -> None:
        super().__init__(absent.skeleton, path)
        embedding = GgufEmbedding(context.header, mapping.embedding_scale)
        self._modules["embed_tokens"] = embedding
        self.__dict__.update(context=context, mapping=mapping, resident=lambda: None)

    def __getattr__(self, name: str) -> Any:
        if name == "embed_tokens":
            return self.__dict__["_modules"][name]
        if name in ("dtype", "device"):
            return getattr(self.embed_tokens.anchor, name)
        return super().__getattr__(name)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_pos_masks: torch.Tensor | None = None,
        deepstack_visual_embeds: Sequence[torch.Tensor] | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Read one prompt, or the next tokens of a GgufCache. Returns the logits of the last token
        as hidden state [1, 1, vocabulary]. Raises UsageError for a prompt that is not causal."""
        rows = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if len(rows) != 1:
            raise UsageError("llama.cpp reads prompts one by one", hint="Use --engine gguf")
        past = past_key_values if isinstance(past_key_values, GgufCache) else None
        after = past.get_seq_length() if past else 0
        window, causal = self.mapping.window, self.mapping.causal
        blocks = blocks_of(attention_mask, rows.shape[1], after, window, causal)
        order = np.arange(after, after + rows.shape[1], dtype=np.int32)
        placed = self.positions(position_ids, order)
        if (np.diff(placed[0]) < 0).any():
            raise UsageError(
                "this prompt has positions that fall, which are not mapped to llama.cpp",
                hint=f'Set "{FIELD}": true in its config.json',
            )
        wide = self._with_deepstack(rows[0], visual_pos_masks, deepstack_visual_embeds)
        before = self.resident()
        if before is not None and before is not past:
            before.state()
        # One token is computed as in a pool of slots: alone it would be rounded otherwise.
        seq = 0 if past is not None and len(wide) == 1 else READER
        if past is not None and (before is not past or past.seq != seq):
            self.context.restore(seq, past.state(), after)
        self.__dict__["resident"] = lambda: None  # what a failure leaves cannot be continued
        if seq == 0:
            self.context.reserve(after + 1)
            step = np.repeat(wide, ROWS, 0), np.repeat(placed, ROWS, 1)
            logits = self.context.step(*step, active=[0])[0]
        else:
            logits = self.context.read(wide, placed, after, blocks)
        then = None if position_ids is None else position_ids[..., -1:] + 1
        cache: Any = GgufCache(self, after + rows.shape[1], seq, then)
        self.__dict__["resident"] = ref(cache)
        hidden = torch.from_numpy(logits)[None, None]
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def embedded(self, ids: Sequence[int]) -> Floats:
        """Return the embeddings of tokens as llama.cpp takes them, of shape [tokens, width]."""
        return self._with_deepstack(torch.from_numpy(self.embed_tokens.rows(ids)))

    def positions(self, position_ids: torch.Tensor | None, order: Ints) -> Ints:
        """Return positions as llama.cpp takes them, [axes, tokens], from those of transformers,
        [..., tokens]. `order`: the place of each token in its sequence."""
        count = len(order)
        placed = order[None] if position_ids is None else position_ids.reshape(-1, count).numpy()
        placed = placed.astype(np.int32)
        if self.context.axes == 1:
            return placed[-1:]
        three = placed[-3:] if len(placed) >= 3 else np.repeat(placed[:1], 3, 0)
        if self.mapping.made.by_order:
            return np.concatenate([order[None], three])
        return np.concatenate([three, np.zeros((1, count), np.int32)])

    def _with_deepstack(
        self,
        rows: torch.Tensor,
        standing: torch.Tensor | None = None,
        deeper: Sequence[torch.Tensor] | None = None,
    ) -> Floats:
        """Return input rows [tokens, width], with the image features of deeper layers beside the
        embeddings."""
        size = rows.shape[1]
        wide = np.zeros((len(rows), self.context.width), np.float32)
        wide[:, :size] = rows.float().numpy() * np.float32(self.mapping.input_scale)
        if deeper is not None and standing is not None:
            places = standing.reshape(-1).numpy()
            for level, features in enumerate(deeper, 1):
                wide[places, level * size : (level + 1) * size] = features.float().numpy()
        return wide


def load_with_gguf(
    file: Path,
    config: "PreTrainedConfig",
    skeleton: "PreTrainedModel",
    load: Callable[[Sequence[str]], Half],
    *,
    on_gpu: bool = False,
) -> Half:
    """Return a language half whose decoder and output head run in llama.cpp. `load` loads the half
    without the modules at these paths. Raises PenstockError."""
    check()
    decoder, head = core_paths(skeleton)
    half = load([decoder, head])
    mapping = mapping_of(config, str(file))
    context = GgufContext(file, torch.get_num_threads(), on_gpu)
    absent = half.get_submodule(decoder)
    assert isinstance(absent, MissingModule)
    half.set_submodule(decoder, GgufDecoder(absent, decoder, mapping, context))
    half.set_submodule(head, GgufHead(context.words))
    return half


def core_paths(skeleton: "PreTrainedModel") -> tuple[str, str]:
    """Return the paths of the text decoder and of the output head."""
    decoder, head = skeleton.get_decoder(), skeleton.get_output_embeddings()
    paths = {id(module): path for path, module in skeleton.named_modules()}
    return paths[id(decoder)], paths[id(head)]


def core_names(skeleton: "PreTrainedModel", mapping: TextMapping) -> dict[str, str | None]:
    """Return the weights of the text decoder and of the output head: path in the model → name in a
    GGUF file; None: it has no place there."""
    architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = mapping.config.num_hidden_layers
    names = gguf.get_tensor_name_map(architectures[mapping.architecture], layers)
    decoder, head = core_paths(skeleton)
    gguf_names = {
        f"{path}.{own}": names.get_name(f"{inner}.{own}", try_suffixes=(".weight", ".bias"))
        for path, inner in ((decoder, "model"), (head, "lm_head"))
        for own, _ in skeleton.get_submodule(path).named_parameters()
    }
    if mapping.made.tied:  # the architecture has none, but a checkpoint may store one
        gguf_names[f"{head}.weight"] = HEAD
    return gguf_names
