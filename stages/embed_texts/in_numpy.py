"""Text vectors of CLIP and SigLIP in numpy, without torch, whose import takes most of a search.

The layers of both families are the same. CLIP attends to earlier tokens only, and its vector stands
at the end token. SigLIP pads a text to a fixed length, attends to all tokens, and its vector stands
at the last one. The weights of one layer at a time are in memory, in 32 bit.

A checkpoint may differ from its family in its tokenizer or in a layer, so callers compare vectors
of known texts with those that the model's own code made.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.models.hub.headers import TensorPlace, read_places

Numbers = NDArray[np.float32]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "num_attention_heads": 8,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "siglip": {
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 64,
    },
}
"""Family → fields of its text configuration that a file may leave out (transformers)."""
OLD_END = 2
"""End token of early CLIP configurations. It is wrong: the largest token is the end token."""
KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Number format in safetensors → format in which it is read."""


def text_vectors(folder: Path, texts: Sequence[str]) -> Numbers | None:
    """Return one unit vector per text, shape (texts, width). Texts that are too
    long are truncated. None if the checkpoint in `folder` is of another family or form."""
    try:
        return _Half(folder).vectors(texts)
    except Exception:  # tokenizers raises nothing narrower; the model's own code names the fault
        return None


class _Half:
    """The text half of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = _json(folder / "config.json")
        self._is_clip = config["model_type"] == "clip"
        self._config = {**DEFAULTS[config["model_type"]], **config["text_config"]}
        self._act = ACTIVATIONS[self._config["hidden_act"]]
        self._weights = _Weights(folder)
        words = _json(folder / "tokenizer_config.json")
        pad = words["pad_token"]
        name = pad if isinstance(pad, str) else pad["content"]
        positions: int = self._config["max_position_embeddings"]
        self._most = min(positions, words.get("model_max_length") or positions)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(self._most)
        self._tokenizer.no_padding()
        self._pad: int = self._tokenizer.get_vocab()[name]

    def vectors(self, texts: Sequence[str]) -> Numbers:
        tokens = [self._tokenizer.encode(text).ids for text in texts]
        if not self._is_clip:
            tokens = [[*ids, *[self._pad] * (self._most - len(ids))] for ids in tokens]
        stops = list(accumulate(map(len, tokens)))
        texts_at = [slice(stop - len(ids), stop) for ids, stop in zip(tokens, stops, strict=True)]
        name = "text_model.embeddings.token_embedding.weight"
        rows = {token: self._weights.read(name, token) for token in set(chain(*tokens))}
        states = np.stack([rows[token] for token in chain(*tokens)])
        places = self._weights.read("text_model.embeddings.position_embedding.weight")
        states += np.concatenate([places[: len(ids)] for ids in tokens])
        layer = "text_model.encoder.layers.0"
        while f"{layer}.layer_norm1.weight" in self._weights:
            states = self._layer(states, layer, texts_at)
            start, _, number = layer.rpartition(".")
            layer = f"{start}.{int(number) + 1}"
        states = self._norm(states, "text_model.final_layer_norm")
        ends = [at.start + self._end(ids) for at, ids in zip(texts_at, tokens, strict=True)]
        head = "text_projection" if self._is_clip else "text_model.head"
        vectors = self._linear(states[ends], head)
        unit: Numbers = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _end(self, ids: Sequence[int]) -> int:
        """Return the position of the token at which a text's vector stands."""
        if not self._is_clip:
            return len(ids) - 1
        end = self._config["eos_token_id"]
        return int(np.argmax(ids if end == OLD_END else np.array(ids) == end))

    def _layer(self, states: Numbers, name: str, texts_at: Sequence[slice]) -> Numbers:
        """Return the states, shape (tokens of all texts, width), after one layer."""
        normed = self._norm(states, f"{name}.layer_norm1")
        query, key, value = (self._linear(normed, f"{name}.self_attn.{p}_proj") for p in "qkv")
        seen = np.concatenate([self._attend(query[at], key[at], value[at]) for at in texts_at])
        states = states + self._linear(seen, f"{name}.self_attn.out_proj")
        normed = self._norm(states, f"{name}.layer_norm2")
        inner = self._act(self._linear(normed, f"{name}.mlp.fc1"))
        return states + self._linear(inner, f"{name}.mlp.fc2")

    def _attend(self, *parts: Numbers) -> Numbers:
        """Return what the tokens of one text attend to; all shapes are (tokens, width)."""
        tokens, width = parts[0].shape
        heads: int = self._config["num_attention_heads"]
        split = (part.reshape(tokens, heads, width // heads).swapaxes(0, 1) for part in parts)
        query, key, value = split
        scores = query @ key.swapaxes(1, 2) / np.float32(math.sqrt(width // heads))
        if self._is_clip:
            scores += np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = scores / scores.sum(axis=-1, keepdims=True) @ value
        joined: Numbers = seen.swapaxes(0, 1).reshape(tokens, width)
        return joined

    def _linear(self, states: Numbers, name: str) -> Numbers:
        product: Numbers = states @ self._weights.read(f"{name}.weight").T
        bias = f"{name}.bias"
        return product + self._weights.read(bias) if bias in self._weights else product

    def _norm(self, states: Numbers, name: str) -> Numbers:
        above = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((above**2).mean(axis=-1, keepdims=True) + self._config["layer_norm_eps"])
        weight, bias = (self._weights.read(f"{name}.{part}") for part in ("weight", "bias"))
        scaled: Numbers = above / spread * weight + bias
        return scaled


class _Weights:
    """The tensors in the safetensors files of a folder, each read when it is needed. Not mapped:
    whoever overwrites a mapped file ends the process."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, TensorPlace]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, place in read_places(path).items():
                self._places.setdefault(name, (path, place))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, row: int | None = None) -> Numbers:
        """Return a tensor, or one row of it, in 32 bit."""
        path, (dtype, shape, start, _) = self._places[name]
        kind = np.dtype(KINDS[dtype])
        if row is not None:
            rows, shape = shape[0], shape[1:]
            start += range(rows)[row] * math.prod(shape) * kind.itemsize
        numbers = np.fromfile(path, kind, math.prod(shape), offset=start).reshape(shape)
        if dtype == "BF16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32, copy=False)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _quick_gelu(x: Numbers) -> Numbers:
    activated: Numbers = x / (1 + np.exp(-1.702 * x))
    return activated


def _gelu(x: Numbers) -> Numbers:
    erf = np.array([math.erf(number) for number in (x / math.sqrt(2)).flat], np.float32)
    bent: Numbers = erf.reshape(x.shape)
    return x * (bent + np.float32(1)) * np.float32(0.5)


def _gelu_tanh(x: Numbers) -> Numbers:
    bent: Numbers = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return x * (bent + np.float32(1)) * np.float32(0.5)


ACTIVATIONS: Mapping[str, Callable[[Numbers], Numbers]] = {
    "quick_gelu": _quick_gelu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
}
