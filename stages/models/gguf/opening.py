"""Decides what llama.cpp is given of a GGUF file.

1. Never its tokenizer: Penstock's own is used, and a damaged one could harm.
2. If needed a copy with another header. Published files of Qwen2-VL and Qwen2.5-VL state an
   architecture whose epsilon of norms this version of llama.cpp does not read, and sections of the
   rotary dimensions that leave none for the order of tokens. The tensors are the same.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from artifacts.files import HALF
from artifacts.store import fault_of
from stages.models.gguf.context import file_type
from stages.models.gguf.header import TABLE, GgufHeader, read_header
from stages.models.gguf.mapping import TextMapping
from stages.models.gguf.user_file import SECTIONS, Stored, compared, own_metadata
from stages.models.shards.writing import check_free

MORE_ROOM = "Free some space, or keep the store on a larger disk: --store"
BLOCK_BYTES = 16 << 20
"""Bytes that are copied at a time."""


def fitted(file: Path, config: Any, skeleton: Any, stored: Stored, copy: Path) -> Path:
    """Compare a user's file as `compared` does. Return the file that llama.cpp loads: that one, or
    a `copy` that is made if it is not there. Raises UsageError, EnvironmentFault."""
    header, mapping = compared(file, config, skeleton, stored)
    rows = header.tensor(TABLE).shape[0]
    sections = own_metadata(mapping, rows).get(SECTIONS)
    stated = header.values.get(f"{header.architecture}.{SECTIONS}")
    same = sections is None or list(sections) == list(stated or ())
    if header.architecture == mapping.architecture and same:
        return header.path
    half = copy.with_name(f"{HALF}{os.getpid()}-{copy.name}")
    try:
        if copy.exists():
            with suppress(OSError):  # it is another user's
                os.utime(copy)  # `penstock cache gc` deletes copies that were not used for long
            return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        check_free(copy.parent, header.path.stat().st_size, MORE_ROOM)
        _write(half, header, mapping, rows)
        half.replace(copy)
    except OSError as error:
        raise fault_of(error, copy.parent) from error
    finally:
        half.unlink(missing_ok=True)
    return copy


def _write(path: Path, header: GgufHeader, mapping: TextMapping, rows: int) -> None:
    writer = gguf.GGUFWriter(path, mapping.architecture)
    mapping.add_metadata(writer, rows)
    writer.add_tokenizer_model("none")
    if (stated := file_type(header)) is not None:
        writer.add_file_type(stated)
    writer.add_custom_alignment(header.alignment)
    for name, tensor in header.tensors.items():
        kind = gguf.GGMLQuantizationType(tensor.type)
        number = np.dtype(np.float32)
        writer.add_tensor_info(name, tensor.shape, number, tensor.bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as made, header.path.open("rb") as source:
        made.write(bytes(-made.tell() % header.alignment))
        source.seek(header.data_start)
        shutil.copyfileobj(source, made, BLOCK_BYTES)
        made.flush()
        os.fsync(made.fileno())
    read_header(path)
