"""What a disk, a crash or a stranger makes of a file: other bytes, or no file at all."""

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def grow(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data)) : 0] = draw.randbytes(draw.randrange(1, 100))


def insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.randrange(1, 100))


def blank(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    length = min(len(data) - at, draw.randrange(1, 200))
    if any(data[at : at + length]):
        data[at : at + length] = bytes(length)
    else:
        insert(data, draw)


def swap(data: bytearray, draw: random.Random) -> None:
    half = len(data) // 2
    data[:] = data[half:] + data[:half]


def scramble(data: bytearray, draw: random.Random) -> None:
    data[:] = draw.randbytes(len(data))


def length(data: bytearray, draw: random.Random) -> None:
    data[8:16] = draw.randrange(1 << 64).to_bytes(8, "little")


CHANGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    change.__name__: change for change in (flip, cut, grow, insert, blank, swap, scramble, length)
}


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def as_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_nothing(path: Path) -> None:
    path.unlink()


def as_hole(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, 1 << 36)


ODD = [as_fifo, as_folder, as_link_to_nothing, as_link_to_itself, as_device, as_nothing, as_hole]
