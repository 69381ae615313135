"""Converts nested values with tensors into JSON plus tensors, and back.

The tensors are one run of bytes, or are stored by name. A tree consists of None, booleans, numbers,
strings, lists, tuples, dicts with string keys, tensors, and transformers output records (mappings
that are dataclasses). An output record stores its class name and is restored as that class. Reading
builds only these types, so a file cannot run code of its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, TypedDict

from artifacts.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64
"""Alignment of tensors in bytes, so that they can be used in place."""
RECORD_HOMES = ("transformers.",)
"""Packages whose output records may be restored from a file."""

Node = TypedDict(
    "Node",
    {"is": str, "v": Any, "class": str, "name": str, "dtype": str, "shape": list[int], "at": int},
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


def pack_tree(tree: Any) -> tuple[Node, bytes]:
    """Return a JSON description, and the bytes of the tensors in C order, little-endian."""
    parts: list[bytes] = []
    meta = _pack(tree, lambda tensor, _: _pack_tensor(tensor, parts))
    return meta, b"".join(parts)


def unpack_tree(meta: Mapping[str, Any], buffer: bytes | bytearray | memoryview) -> Any:
    """Restore the tree. Its tensors share `buffer` if it is writable or aligned; do not change them
    in place. Raises RecordGone."""
    whole = memoryview(buffer).cast("B")
    return _unpack(meta, lambda place: _unpack_tensor(place, whole))


def float_tensors(
    meta: Mapping[str, Any], buffer: bytes | bytearray | memoryview
) -> Iterator["torch.Tensor"]:
    """Yield the tensors of floating-point numbers in a tree, of any dtype of torch, as
    `unpack_tree` restores them. No output record is built. Raises RecordGone."""
    if meta["is"] == "tensor":
        tensor = _unpack_tensor(meta, memoryview(buffer).cast("B"))
        if tensor.is_floating_point():
            yield tensor
    elif meta["is"] not in ("plain", "float"):
        for part in meta["v"]:
            yield from float_tensors(part if meta["is"] in ("list", "tuple") else part[1], buffer)


def name_tensors(tree: Any) -> tuple[Node, dict[str, "torch.Tensor"]]:
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


def make_record(cls: type[Any], fields: Mapping[str, Any]) -> Any:
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


def _pack_tensor(tensor: "torch.Tensor", parts: list[bytes]) -> Node:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    at = sum(map(len, parts))
    if gap := -at % ALIGNMENT:
        parts.append(bytes(gap))
        at += gap
    parts.append(data)
    return {
        "is": "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "at": at,
    }


def _unpack(meta: Mapping[str, Any], take: Take) -> Any:
    kind, value = meta["is"], meta.get("v")
    if kind == "tensor":
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
    import warnings

    import torch

    dtype = getattr(torch, meta["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise _gone(f"dtype {meta['dtype']}", "torch")
    count = math.prod(meta["shape"])
    if count == 0:
        return torch.empty(meta["shape"], dtype=dtype)
    data = buffer[meta["at"] : meta["at"] + count * dtype.itemsize]
    with warnings.catch_warnings():
        # Stores return read-only buffers; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype, count=count).reshape(meta["shape"])


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
