import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts import keys
from artifacts.keys import Content, ContentDigests, digest_of, item_key


def test_a_digest_depends_on_the_value_alone() -> None:
    assert digest_of({"a": 1, "b": [2.5, "ü"]}) == digest_of({"b": [2.5, "ü"], "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert len(digest_of(None)) == 64


def test_an_item_key_changes_with_each_part() -> None:
    base = item_key("namespace", "media", 0, "prompt")
    others = [
        item_key("other", "media", 0, "prompt"),
        item_key("namespace", "other", 0, "prompt"),
        item_key("namespace", "media", 1, "prompt"),
        item_key("namespace", "media", 0, "other"),
    ]
    assert len({base, *others}) == 5


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose content was read, in order."""
    seen: list[Path] = []
    hash_file = keys.hash_file

    def counting(path: Path) -> str:
        seen.append(path)
        return hash_file(path)

    monkeypatch.setattr(keys, "hash_file", counting)
    return seen


def test_a_file_is_read_once_across_processes(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"content")
    first = ContentDigests(tmp_path / "memory").of(file)
    assert first == hashlib.sha256(b"content").hexdigest()
    assert ContentDigests(tmp_path / "memory").of(file) == first
    assert reads == [file]


def test_a_touched_or_replaced_file_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"content")
    digests = ContentDigests(tmp_path / "memory")
    first = digests.of(file)
    os.utime(file, ns=(1, 1))
    assert digests.of(file) == first
    file.write_bytes(b"other")
    assert digests.of(file) != first
    assert len(reads) == 3


def test_a_memory_torn_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"content")
    memory = tmp_path / "memory"
    digest = ContentDigests(memory).of(file)
    memory.write_text(memory.read_text() + '["/torn')
    assert ContentDigests(memory).of(file) == digest


def test_a_memory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "clip.mp4").write_bytes(b"content")
    digests = ContentDigests(tmp_path / "file" / "memory")
    assert digests.of(tmp_path / "clip.mp4") == hashlib.sha256(b"content").hexdigest()


def test_a_missing_file_among_many_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    found = ContentDigests(tmp_path / "memory").of_many([tmp_path / "a", tmp_path / "b"], 2)
    assert isinstance(found[0], Content)
    assert isinstance(found[1], FileNotFoundError)


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, dict[Path, str]]:
    """A memory of three files, and what they hold."""
    files = [tmp_path / f"{n}.mp4" for n in range(3)]
    for n, file in enumerate(files):
        file.write_bytes(b"%d" % n)
    digests = ContentDigests(tmp_path / "memory")
    return tmp_path / "memory", {file: digests.of(file) for file in files}


def test_a_flipped_bit_costs_one_reading_and_is_never_believed(
    three: tuple[Path, dict[Path, str]], reads: list[Path]
) -> None:
    memory, digests = three
    whole = memory.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        memory.write_bytes(damaged)
        again = ContentDigests(memory)
        reads.clear()
        assert {file: again.of(file) for file in digests} == digests
        assert len(reads) <= 1, f"bit {bit}"


@pytest.mark.parametrize(
    "line", [b"\xff", b"[" * 200_000, b"[1, 2, 3]", b"null", b'["a", [1], "b", "00000000"]', b"\0"]
)
def test_a_line_that_is_none_of_ours_is_passed_over(
    three: tuple[Path, dict[Path, str]], line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, digests = three
    memory.write_bytes(line + b"\n" + memory.read_bytes() + line)
    monkeypatch.setattr(keys, "hash_file", lambda path: pytest.fail(f"{path} is read again"))
    again = ContentDigests(memory)
    assert [again.of(file) for file in digests] == list(digests.values())


def test_a_memory_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"content")
    os.mkfifo(tmp_path / "memory")
    assert ContentDigests(tmp_path / "memory").of(tmp_path / "clip.mp4")


def test_a_file_that_is_written_while_it_is_read_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"old")
    hash_file = keys.hash_file

    def late(path: Path) -> str:
        digest = hash_file(path)
        file.write_bytes(b"newer")
        return digest

    monkeypatch.setattr(keys, "hash_file", late)
    with pytest.raises(OSError, match="changed while it was read"):
        ContentDigests(tmp_path / "memory").of(file)
    monkeypatch.undo()
    assert ContentDigests(tmp_path / "memory").of(file) == hashlib.sha256(b"newer").hexdigest()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "clip.mp4")
    with pytest.raises(OSError, match="not a file"):
        ContentDigests(tmp_path / "memory").of(tmp_path / "clip.mp4")
