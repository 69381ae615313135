"""Converts nested values with tensors into JSON plus tensors, and back.

The tensors are one run of bytes, or are stored by name. A tree consists of None, booleans, numbers,
strings, lists, tuples, dicts with string keys, tensors, and transformers output records (mappings
that are dataclasses). An output record stores its class name and is restored as that class. Reading
builds only these types, so a file cannot run code of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.eight_bits import (
    FORMS,
    is_packed,
    pack_vectors,
    packed_bytes,
    scales_shape,
    unpack_vectors,
)

if TYPE_CHECKING:
    import torch

Tree: TypeAlias = "torch.Tensor | str | int | float | Sequence[Tree] | Mapping[str, Tree] | None"
"""What is stored; an output record is a mapping, too."""
R = TypeVar("R")
ALIGNMENT = 64
"""Alignment of tensors in bytes, so that they can be used in place."""
RECORD_HOMES = ("transformers.",)
"""Packages whose output records may be restored from a file."""

Node = TypedDict(
    "Node",
    {
        "is": str,
        "v": Any,
        "class": str,
        "name": str,
        "dtype": str,
        "shape": list[int],
        "at": int,
        "scales": int,
    },
    total=False,
)
"""JSON description of a part of a tree; which fields it has follows from `is`."""
Keep = Callable[["torch.Tensor", str], Node]
"""Stores the tensor at a path in a tree, and returns its JSON description."""
Take = Callable[[Mapping[str, Any]], "torch.Tensor"]
"""Returns the tensor of such a description."""
_PLAIN = (type(None), bool, int, float, str)


class RecordGone(EnvironmentFault):
    """A tree contains an output record whose class, or one of whose fields, is missing in the
    installed version of its package."""


def pack_tree(tree: Tree, form: str = "") -> tuple[Node, bytes]:
    """Return a JSON description, and the bytes of the tensors in C order, little-endian. With a
    `form` of `eight_bits.FORMS`, the features are stored in it."""
    parts: list[bytes] = []
    meta = _pack(tree, lambda tensor, path: _pack_tensor(tensor, parts, form, path))
    return meta, b"".join(parts)


def pack_again(
    meta: Mapping[str, Any], buffer: bytes | bytearray | memoryview, form: str
) -> tuple[Node, bytes]:
    """Return what `pack_tree` returns with `form` for a tree that it described without one. No
    output record is built."""
    parts, whole = list[bytes](), memoryview(buffer).cast("B")

    def again(node: Mapping[str, Any], path: str) -> Any:
        kind, below = node["is"], node.get("v")
        if kind == "tensor":
            return _pack_tensor(_unpack_tensor(node, whole), parts, form, path)
        if not isinstance(below, list):
            return node
        if kind in ("list", "tuple"):
            return {**node, "v": [again(part, _below(path, at)) for at, part in enumerate(below)]}
        return {**node, "v": [[name, again(part, _below(path, name))] for name, part in below]}

    return again(meta, ""), b"".join(parts)


def restored_bytes(meta: Mapping[str, Any], length: int) -> int:
    """Return the bytes of the tensors of a tree when features are restored, of so many stored
    ones."""
    if meta["is"] in FORMS:
        *outer, width = map(int, meta["shape"])
        restored = width * (4 if meta["dtype"] == "float32" else 2)
        return length + math.prod(outer) * (restored - packed_bytes(width))
    below = meta.get("v")
    for part in below if isinstance(below, list) else ():
        length = restored_bytes(part if isinstance(part, dict) else part[1], length)
    return length


def unpack_tree(meta: Mapping[str, Any], buffer: bytes | bytearray | memoryview) -> Any:
    """Restore the tree. Its tensors share `buffer` if it is writable or aligned; do not change them
    in place. Raises RecordGone."""
    whole = memoryview(buffer).cast("B")
    return _unpack(meta, lambda place: _unpack_tensor(place, whole))


def name_tensors(tree: Tree) -> tuple[Node, dict[str, "torch.Tensor"]]:
    """Return a JSON description, and the tensors by name. A name is the tensor's path, such as
    `features.image.pooler_output.0`."""
    named: dict[str, torch.Tensor] = {}

    def keep(tensor: "torch.Tensor", path: str) -> Node:
        name = path if path and path not in named else f"{path}~{len(named)}"
        named[name] = tensor
        return {"is": "tensor", "name": name}

    return _pack(tree, keep), named


def place_tensors(meta: Mapping[str, Any], named: Mapping[str, "torch.Tensor"]) -> Any:
    """Restore the tree from the result of `name_tensors`. Raises RecordGone."""
    return _unpack(meta, lambda place: named[place["name"]])


def make_record(cls: type[R], fields: Mapping[str, Any]) -> R:
    """Return an output record with these fields. The others are None, even if its class has no
    default."""
    required = {
        name: None
        for name, field in getattr(cls, "__dataclass_fields__", {}).items()
        if field.default is MISSING and field.default_factory is MISSING
    }
    return cls(**{**required, **fields})


def _pack(value: Any, keep: Keep, path: str = "") -> Node:
    if isinstance(value, float) and not math.isfinite(value):
        return {"is": "float", "v": repr(value)}
    if isinstance(value, _PLAIN):
        return {"is": "plain", "v": value}
    if isinstance(value, list | tuple):
        parts = [_pack(part, keep, _below(path, index)) for index, part in enumerate(value)]
        return {"is": "tuple" if isinstance(value, tuple) else "list", "v": parts}
    if isinstance(value, Mapping):
        return _pack_mapping(value, keep, path)
    if type(value).__module__ == "numpy":
        import torch

        value = torch.as_tensor(value) if value.ndim else value.item()
        return _pack(value, keep, path)
    if hasattr(value, "untyped_storage"):
        return keep(value, path)
    raise UsageError(
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be stored",
        hint="Only tensors, numbers, strings, lists, tuples, dicts and output records can be",
    )


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _pack_mapping(value: Mapping[str, Any], keep: Keep, path: str) -> Node:
    if not all(isinstance(name, str) for name in value):
        raise UsageError("a dict whose keys are not strings cannot be stored")
    fields = [[name, _pack(part, keep, _below(path, name))] for name, part in value.items()]
    if not hasattr(type(value), "__dataclass_fields__"):
        return {"is": "dict", "v": fields}
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    _record_class(name)
    return {"is": "record", "class": name, "v": fields}


def _pack_tensor(
    tensor: "torch.Tensor", parts: list[bytes], form: str = "", path: str = ""
) -> Node:
    node: Node = {
        "is": "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    if form and is_packed(tensor, path):
        codes, scales = pack_vectors(tensor.detach().cpu())
        return {**node, "is": form, "at": _append(codes, parts), "scales": _append(scales, parts)}
    return {**node, "at": _append(tensor, parts)}


def _append(tensor: "torch.Tensor", parts: list[bytes]) -> int:
    """Append the bytes of a tensor, and return where they begin."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    at = sum(map(len, parts))
    if gap := -at % ALIGNMENT:
        parts.append(bytes(gap))
        at += gap
    parts.append(data)
    return at


def _unpack(meta: Mapping[str, Any], take: Take) -> Any:
    kind, value = meta["is"], meta.get("v")
    if kind == "tensor" or kind in FORMS:
        return take(meta)
    if kind == "plain":
        return value
    if kind == "float":
        return float(str(value))
    assert isinstance(value, list)
    if kind in ("list", "tuple"):
        parts = [_unpack(part, take) for part in value]
        return tuple(parts) if kind == "tuple" else parts
    fields = {name: _unpack(part, take) for name, part in value}
    if kind == "dict":
        return fields
    try:
        return make_record(_record_class(meta["class"]), fields)
    except TypeError as error:
        raise _gone(meta["class"]) from error


def _unpack_tensor(meta: Mapping[str, Any], buffer: memoryview) -> "torch.Tensor":
    import torch

    dtype, shape = getattr(torch, meta["dtype"], None), meta["shape"]
    if not isinstance(dtype, torch.dtype):
        raise _gone(f"dtype {meta['dtype']}", "torch")
    if meta["is"] in FORMS:
        codes = _tensor_at(buffer, meta["at"], shape, torch.int8)
        scales = _tensor_at(buffer, meta["scales"], scales_shape(shape), torch.bfloat16)
        return unpack_vectors(codes, scales, dtype)
    return _tensor_at(buffer, meta["at"], shape, dtype)


def _tensor_at(
    buffer: memoryview, at: int, shape: Sequence[int], dtype: "torch.dtype"
) -> "torch.Tensor":
    import warnings

    import torch

    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    data = buffer[at : at + count * dtype.itemsize]
    with warnings.catch_warnings():
        # Stores return read-only buffers; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype, count=count).reshape(shape)


def _record_class(name: str) -> type[Any]:
    """Return the class of an output record. Raises UsageError for anything else, RecordGone if the
    class does not exist any more."""
    from importlib import import_module

    module, _, qualname = name.partition(":")
    record_class: Any = None
    if module.startswith(RECORD_HOMES):
        try:
            record_class = getattr(import_module(module), qualname)
        except (ImportError, AttributeError) as error:
            raise _gone(name) from error
    if not (isinstance(record_class, type) and issubclass(record_class, Mapping | dict)):
        raise UsageError(
            f"{name} is not an output record of transformers, so it cannot be stored or read",
            hint="Use a model that is part of transformers",
        )
    return record_class


def _gone(name: str, package: str = "transformers") -> RecordGone:
    return RecordGone(
        f"{name} of a stored record does not match the installed {package}",
        hint=f"Compute the record again, or install the version of {package} that made it",
    )
