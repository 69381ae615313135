"""A FUSE disk that treats file names as other systems do, or lacks what Google Drive lacks.

It keeps its files in another folder.
"""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20
"""In which a disk is mounted."""
PR_SET_PDEATHSIG = 1
DEVICES = ("aux", "con", "nul")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a disk does with names."""

    fold: str = ""
    """What it ignores: case, forms, or both with a space between."""
    refused: str = ""
    """Letters that it refuses."""
    ends: str = ""
    """Letters that it removes at the end of a name."""
    devices: bool = False
    longest: int = 255
    """Bytes of a name."""
    plain: bool = False
    """Whether it has neither links nor permissions."""
    lists_lower: bool = False
    """Whether it lists names in lower case."""
    lockless: bool = False
    """Whether it refuses locks."""
    renumbers: bool = False
    """Whether each mount gives other inodes."""

    def key(self, name: str) -> str:
        name = name.rstrip(self.ends) if self.ends else name
        name = name.lower() if "case" in self.fold else name
        return normalize("NFC", name) if "forms" in self.fold else name

    def refuse_plain(self) -> None:
        if self.plain:
            raise OSError(errno.EPERM, "no links and no permissions here")

    def check(self, name: str) -> None:
        if len(os.fsencode(name)) > self.longest:
            raise OSError(errno.ENAMETOOLONG, name)
        is_device = self.devices and name.partition(".")[0].lower() in DEVICES
        if is_device or {*name} & {*self.refused}:
            raise OSError(errno.EINVAL, name)


CASELESS = Kind(fold="case", lists_lower=True)
MAC = Kind(fold="case forms")
WINDOWS = Kind(fold="case", refused='<>:"\\|?*\x01', ends=". ", devices=True)
FAT = Kind(fold="case", refused='<>:"\\|?*\x01', ends=". ", plain=True)
ENCRYPTED = Kind(longest=143)
UNFORMED = Kind(fold="forms")
DRIVE = Kind(plain=True, lockless=True, renumbers=True)
READS = "reads.log"
"""File of what is read: a line of bytes and path for each request."""


@contextmanager
def odd_disk(folder: Path, kind: Kind) -> Iterator[Path]:
    """Mount such a disk, or skip the test where nothing can be mounted. What it held in the same
    folder before is there again."""
    try:
        import mfusepy  # noqa: F401

        os.close(os.open("/dev/fuse", os.O_RDWR))
    except (ImportError, OSError) as error:
        pytest.skip(f"needs mfusepy, libfuse3 and /dev/fuse ({error})")
    place, behind = folder / "disk", folder / "behind"
    place.mkdir(parents=True, exist_ok=True)
    behind.mkdir(exist_ok=True)
    (folder / READS).write_text("")
    command = [sys.executable, "-m", __name__, str(behind), str(place), json.dumps(asdict(kind))]
    log = folder / "disk.log"
    with log.open("w") as file:
        disk = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS
        while not os.path.ismount(place):
            if disk.poll() is not None and "not permitted" in log.read_text():
                pytest.skip("nothing can be mounted here")
            assert disk.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield place
    finally:
        if os.path.ismount(place):
            subprocess.run(unmounting(place), check=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            disk.wait(SECONDS)
        disk.kill()
        disk.wait()


def bytes_read(folder: Path) -> Counter[str]:
    """Return the bytes that were read of each file since the disk was mounted."""
    found: Counter[str] = Counter()
    for line in (folder / READS).read_text().splitlines():
        size, _, path = line.partition(" ")
        found[path] += int(size)
    return found


def unmounting(place: Path) -> Sequence[str]:
    """Return the command that takes a disk away."""
    return ("umount", "-l", str(place)) if os.geteuid() == 0 else ("fusermount3", "-uz", str(place))


def _main(behind: str, place: str, kind: Kind) -> None:
    import mfusepy

    salt = secrets.randbits(40) if kind.renumbers else 0
    reads = os.open(Path(behind).with_name(READS), os.O_WRONLY | os.O_APPEND)

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def _real(self, path: str, *, new: bool = False) -> str:
            """Return the file behind a path; for a `new` one, whether or not it is there."""
            parts = [each for each in path.split("/") if each]
            at = behind
            for number, part in enumerate(parts, 1):
                name = part.rstrip(kind.ends) if kind.ends else part
                there = [each for each in os.listdir(at) if kind.key(each) == kind.key(part)]
                if not there and new and number == len(parts):
                    kind.check(part)
                at = f"{at}/{there[0] if there else name}"
            return at

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(self._real(path))
            names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size")
            times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
            known = {name: getattr(found, name) for name in names}
            return {**known, **times, "st_ino": found.st_ino ^ salt}

        def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
            real = self._real(path)
            found = {n: os.lstat(f"{real}/{n}") for n in (".", "..", *os.listdir(real))}
            return [
                (
                    n.lower() if kind.lists_lower else n,
                    {"st_mode": s.st_mode, "st_ino": s.st_ino ^ salt},
                    0,
                )
                for n, s in found.items()
            ]

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(self._real(path, new=True), os.O_CREAT | os.O_RDWR, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(self._real(path), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            found = os.pread(fh, size, offset)
            os.write(reads, f"{len(found)} {path}\n".encode())
            return found

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(self._real(path), length)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._real(path, new=True), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(self._real(path))
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(self._real(path))
            return 0

        def rename(self, old: str, new: str) -> int:
            real, target = self._real(old), self._real(new, new=True)
            if target == real:  # in another case
                target = os.path.join(os.path.dirname(real), os.path.basename(new))
            os.rename(real, target)
            return 0

        def link(self, target: str, source: str) -> int:
            kind.refuse_plain()
            os.link(self._real(source), self._real(target, new=True))
            return 0

        def symlink(self, target: str, source: str) -> int:
            kind.refuse_plain()
            os.symlink(source, self._real(target, new=True))
            return 0

        def readlink(self, path: str) -> str:
            return os.readlink(self._real(path))

        def chmod(self, path: str, mode: int) -> int:
            kind.refuse_plain()
            os.chmod(self._real(path), mode)
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            now = time.time_ns()
            os.utime(self._real(path), ns=times or (now, now), follow_symlinks=False)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(behind)
            names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_files", "f_ffree")
            return {name: getattr(found, name) for name in names}

    def refused(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    if kind.lockless:
        Disk.lock = Disk.flock = refused
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # it unmounts then
    fresh = {"entry_timeout": 0, "attr_timeout": 0, "negative_timeout": 0}
    mfusepy.FUSE(Disk(), place, foreground=True, nothreads=True, use_ino=True, **fresh)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Kind(**json.loads(sys.argv[3])))
