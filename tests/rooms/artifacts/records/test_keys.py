"""Digests and stamps of media and of models: what changed is seen, and what was read is known."""

import hashlib
import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifacts.digests import digest_of, digests_by_number
from artifacts.disk import mounts, stamps
from artifacts.disk.stamps import FileChanged, link_stamp_of, model_stamp_of
from artifacts.errors import Interrupted, ModelChanged, StageDied
from artifacts.records import keys, model_files
from artifacts.records.keys import Content, ContentDigests, hash_file, item_key
from artifacts.records.model_files import ModelFiles, small_names
from flows.core.checkpoint.model_digests import ModelDigests, with_fetched
from stages.process.exit_diagnosis import ProcessExit, fault_of_stage
from stages.process.job import job_fields, parse_job


def test_a_digest_depends_on_the_value_alone() -> None:
    assert digest_of({"a": 1, "b": [2.5, "ü"]}) == digest_of({"b": [2.5, "ü"], "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert len(digest_of(None)) == 64


def test_an_item_key_changes_with_each_part() -> None:
    base = ("namespace", "media", 0, "prompt")
    changed = [(*base[:at], new, *base[at + 1 :]) for at, new in enumerate(("a", "a", 1, "a"))]
    assert len({item_key(*parts) for parts in (base, *changed)}) == 5  # type: ignore[arg-type]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose content was read, in order."""
    seen: list[Path] = []

    def counting(path: Path) -> str:
        seen.append(path)
        return hash_file(path)

    for module in (keys, model_files):
        monkeypatch.setattr(module, "hash_file", counting)
    return seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (file := tmp_path / "clip.mp4").write_bytes(b"content")
    return file


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "memory"


CONTENT = hashlib.sha256(b"content").hexdigest()


def test_a_file_is_read_once_until_it_changes(file: Path, memory: Path, reads: list[Path]) -> None:
    for _ in range(2):  # of two processes
        digests = ContentDigests(memory)
        assert digests.of(file) == CONTENT
    assert reads == [file]
    os.utime(file, ns=(1, 1))
    assert digests.of(file) == CONTENT
    file.write_bytes(b"other")
    assert digests.of(file) == hashlib.sha256(b"other").hexdigest()
    assert len(reads) == 3


@pytest.fixture
def mounted_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let the kernel name another kind of file system for the folder of the test."""

    def mount(kind: str) -> None:
        device = tmp_path.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        lines = ["24 1 0:9999 / / rw - ext4 /dev/a rw", f"36 24 {number} / /a\\040b rw shared:1 - "]
        (tmp_path / "mountinfo").write_text("\n".join(lines) + f"{kind} source rw\n")
        monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
        stamps._kind.cache_clear()

    yield mount
    stamps._kind.cache_clear()


@pytest.mark.parametrize(
    ("kind", "is_read_again"),
    [
        *((kind, False) for kind in ("fuse", "fuse.drivefs", "fuseblk", "cifs", "smb3")),
        *((kind, True) for kind in ("nfs4", "lustre", "ext4", "fusectl")),
    ],
)
def test_where_inodes_change_a_file_is_known_by_path_size_and_time(
    file: Path,
    memory: Path,
    reads: list[Path],
    mounted_as: Callable[[str], None],
    kind: str,
    is_read_again: bool,
) -> None:
    mounted_as(kind)
    other = Path(shutil.copy(file, file.with_name("other")))
    for path in (file, other):
        os.utime(path, ns=(7, 7))
    ContentDigests(memory).of(file)
    os.replace(other, file)
    ContentDigests(memory).of(file)
    assert (len(reads) == 2) is is_read_again
    os.utime(file, ns=(7, 8))
    ContentDigests(memory).of(file)
    assert len(reads) == 2 + is_read_again


def test_a_file_that_is_to_be_checked_is_read_again_and_noted_if_it_changed(
    file: Path, memory: Path, reads: list[Path]
) -> None:
    ContentDigests(memory).of(file)
    before, stamp = memory.read_bytes(), file.stat()
    assert ContentDigests(memory).of_many([file], 1, again=True)
    assert len(reads) == 2 and memory.read_bytes() == before
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert ContentDigests(memory).of(file) == CONTENT
    (found,) = ContentDigests(memory).of_many([file], 1, again=True)
    assert isinstance(found, Content)
    assert found.digest == hashlib.sha256(b"CONTENT").hexdigest() == ContentDigests(memory).of(file)


def test_a_memory_that_cannot_be_written_is_no_obstacle(file: Path, memory: Path) -> None:
    os.mkfifo(memory)
    for place in (file / "memory", memory):
        assert ContentDigests(place).of(file) == CONTENT


def test_a_missing_file_among_many_fails_alone(file: Path, memory: Path) -> None:
    found = ContentDigests(memory).of_many([file, file.with_name("b")], 2)
    assert [type(each) for each in found] == [Content, FileNotFoundError]


@pytest.fixture
def three(tmp_path: Path, memory: Path) -> dict[Path, str]:
    """Three files that the memory has, and what they hold."""
    files = [tmp_path / f"{n}.mp4" for n in range(3)]
    for n, file in enumerate(files):
        file.write_bytes(b"%d" % n)
    digests = ContentDigests(memory)
    return {file: digests.of(file) for file in files}


def test_a_flipped_bit_costs_one_reading_and_is_never_believed(
    three: dict[Path, str], memory: Path, reads: list[Path]
) -> None:
    whole = memory.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        memory.write_bytes(damaged)
        again = ContentDigests(memory)
        reads.clear()
        assert {file: again.of(file) for file in three} == three
        assert len(reads) <= 1, f"bit {bit}"


@pytest.mark.parametrize(
    "line",
    [
        *(b"\xff", b"[" * 200_000, b"[1, 2, 3]", b"null", b'["a", [1], "b", "00000000"]', b"\0"),
        *(b'["/torn', b"x" * (1 << 20), b"\r\r\r", b"\xef\xbb\xbf", "[1]".encode("utf-16")),
    ],
)
def test_a_line_that_is_none_of_ours_is_passed_over(
    three: dict[Path, str], memory: Path, line: bytes, reads: list[Path]
) -> None:
    memory.write_bytes(line + b"\n" + memory.read_bytes() + line)
    reads.clear()
    again = ContentDigests(memory)
    assert {file: again.of(file) for file in three} == three and not reads


@pytest.mark.parametrize("after", [[], ["é", {"b": 1, "a": None}]])
def test_digests_by_number_are_those_of_the_whole_list(after: list[object]) -> None:
    before, numbers = ["kind", 3, 0.5], [1, 7, 2048]
    found = dict(digests_by_number(before, numbers, after))
    assert found == {n: digest_of([*before, n, *after]) for n in numbers}


def test_what_is_written_meanwhile_has_no_digest(
    file: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path) -> str:
        digest = hash_file(path)
        file.write_bytes(b"newer")
        return digest

    with monkeypatch.context() as patch, pytest.raises(OSError, match="changed while it was read"):
        patch.setattr(keys, "hash_file", late)
        ContentDigests(memory).of(file)
    assert ContentDigests(memory).of(file) == hashlib.sha256(b"newer").hexdigest()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, memory: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "clip.mp4")
    with pytest.raises(OSError, match="not a file"):
        ContentDigests(memory).of(tmp_path / "clip.mp4")


WEIGHTS = r"model\.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (folder := tmp_path / "model").mkdir()
    for name in ("config.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (folder / name).write_text(f"{name} as it was")
    (tmp_path / "other").write_text("other bytes of it")
    time.sleep(0.02)  # a kernel's clock of files goes in steps of up to 10 ms
    return folder


def planned(folder: Path) -> ModelFiles:
    paths = [folder / name for name in (*small_names(folder), "model.safetensors")]
    return ModelFiles(
        stamps={str(path): model_stamp_of(path) for path in paths},
        digests={str(path): keys.hash_file(path) for path in paths if path.is_file()},
        links={str(p): link for p in paths if (link := link_stamp_of(p)) is not None},
        names={str(folder): tuple(small_names(folder))},
    )


def rename_in(path: Path) -> None:
    os.replace(path.parent.parent / "other", path)


def rename_away_and_back(path: Path) -> None:
    os.rename(path, path.with_name("kept"))
    os.rename(path.with_name("kept"), path)


def overwrite_with_its_time(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_to_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(
    "change",
    [rename_in, rename_away_and_back, overwrite_with_its_time, Path.unlink, cut_to_a_folder],
)
def test_a_change_is_seen_and_named(model: Path, name: str, change: Callable[[Path], None]) -> None:
    files = parse_job(ModelFiles, json.loads(json.dumps(job_fields(planned(model)))))
    files.check()
    change(model / name)
    with pytest.raises(ModelChanged, match=name) as caught:
        files.check()
    assert caught.value.exit_code == 5 and "\n" not in caught.value.message


def test_a_file_that_is_added_is_seen_if_a_loader_would_read_it(model: Path) -> None:
    files = planned(model)
    for name in ("notes.md", "model.onnx", ".penstock-half"):
        (model / name).write_text("x")
    (model / "README.md").write_text("changed")
    files.check()
    (model / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelChanged, match=r"added_tokens\.json was added"):
        files.check()


def test_a_link_that_led_elsewhere_for_a_while_is_seen(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    path = model / "model.safetensors"
    os.replace(path, blob)
    path.symlink_to(blob)
    time.sleep(0.02)
    files = planned(model)
    files.check()
    for target in (tmp_path / "other", blob):
        path.unlink()
        path.symlink_to(target)
    with pytest.raises(ModelChanged, match=WEIGHTS):
        files.check()


def test_whatever_a_block_raises_a_change_is_the_cause(model: Path) -> None:
    files = planned(model)
    with pytest.raises(ValueError, match="its own"), files.compared():
        raise ValueError("its own")
    with pytest.raises(ModelChanged), files.compared():
        rename_in(model / "model.safetensors")
        raise ValueError("of another file")
    with pytest.raises(ModelChanged), files.compared():
        raise AssertionError("it is not even begun")


def hard_link(path: Path) -> None:
    os.link(path, path.parent.parent / f"backup of {time.monotonic_ns()}", follow_symlinks=False)


def hard_link_and_remove(path: Path) -> None:
    hard_link(path)
    for backup in path.parent.parent.glob("backup of *"):
        backup.unlink()


def test_hard_links_change_no_model_and_cost_one_read(model: Path, reads: list[Path]) -> None:
    path, files = model / "model.safetensors", planned(model)
    reads.clear()
    hard_link(path)
    with files.compared():
        files.check()
        hard_link(path)
    files.check()
    assert [*map(str, reads)] == [str(path)] * 2, "once for each number of links"
    assert files.changed() is None


@pytest.mark.parametrize("change", [hard_link_and_remove, lambda path: path.chmod(0o600)])
def test_what_changes_only_metadata_changes_a_model_only_while_it_is_read(
    model: Path, change: Callable[[Path], None]
) -> None:
    path, files = model / "model.safetensors", planned(model)
    change(path)
    with files.compared():
        pass
    time.sleep(0.02)
    with pytest.raises(ModelChanged, match=WEIGHTS), files.compared():
        change(path)  # as if it had been overwritten and put back


def test_a_hard_link_hides_no_change(model: Path) -> None:
    path, files = model / "model.safetensors", planned(model)
    overwrite_with_its_time(path)
    hard_link(path)
    with pytest.raises(ModelChanged, match=WEIGHTS):
        files.check()
    with pytest.raises(ModelChanged, match=WEIGHTS), files.compared():
        pass


def test_hard_links_of_a_link_and_its_file_change_no_model(model: Path, tmp_path: Path) -> None:
    """A backup of the hub's cache."""
    path, blob = model / "model.safetensors", tmp_path / "blobs" / "blob"
    blob.parent.mkdir()
    os.replace(path, blob)
    path.symlink_to(blob)
    time.sleep(0.02)
    files = planned(model)
    for each in (path, blob):
        hard_link(each)
        files.check()
    assert len([*tmp_path.glob("backup of *")]) == 2


def test_a_model_that_is_linked_while_it_is_hashed_is_hashed_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = model / "model.safetensors", iter([hard_link])

    def hashed(path: Path) -> str:
        digest = hash_file(path)
        next(times, lambda _: None)(path)
        return digest

    monkeypatch.setattr(keys, "hash_file", hashed)
    found = ContentDigests(tmp_path / "memory").of_model(path)
    assert found.digest == hash_file(path) and found.stamp == model_stamp_of(path)
    times = iter([overwrite_with_its_time])
    assert ContentDigests(tmp_path / "another").of_model(path).digest == hash_file(path)
    times = iter([hard_link, hard_link])
    with pytest.raises(FileChanged):
        ContentDigests(tmp_path / "third").of_model(path)


def test_no_files_are_never_changed() -> None:
    assert ModelFiles().changed() is None
    assert not ModelFiles().are_mapped()


def remembered_line(*values: object) -> str:
    """A line of a memory as 7cc6e93b wrote it."""
    text = json.dumps([*values])[:-1]
    return f'\n{text}, "{zlib.crc32(text.encode()):08x}"]\n'


def test_a_memory_of_before_keeps_every_medium_and_a_model_is_read_once(
    model: Path, memory: Path, reads: list[Path]
) -> None:
    path = model / "model.safetensors"
    found = path.stat()
    stamp = [found.st_size, found.st_mtime_ns, found.st_ino]
    memory.write_text(remembered_line(os.path.realpath(path), stamp, "0" * 64))
    assert ContentDigests(memory).of(path) == "0" * 64, "as a medium it is not read again"
    assert ContentDigests(memory).known_of_model(path) is None and not reads
    for _ in range(2):
        digests = ContentDigests(memory)
        assert digests.of_model(path).digest == hash_file(path) and len(reads) == 1
    assert digests.of(path) == "0" * 64, "lines of media stay as they are"


def test_a_model_overwritten_with_its_time_is_read_again(model: Path, memory: Path) -> None:
    path = model / "model.safetensors"
    before = ContentDigests(memory).of_model(path).digest
    overwrite_with_its_time(path)
    digests = ContentDigests(memory)
    assert digests.known_of_model(path) is None
    assert digests.of_model(path).digest == hash_file(path) != before


def test_a_named_blob_is_never_read(model: Path, tmp_path: Path, reads: list[Path]) -> None:
    path, blob = model / "model.safetensors", tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)
    digests = ContentDigests(tmp_path / "memory")
    assert digests.of(path) == "ab" * 32
    for _ in range(2):
        found = digests.of_model(path)
        assert found.digest == "ab" * 32 and found.stamp == model_stamp_of(blob)
        os.utime(blob)
    assert not reads


def test_weights_fetched_after_the_plan_are_the_hub_s(model: Path, tmp_path: Path) -> None:
    path, blobs = model / "model.safetensors", tmp_path / "blobs"
    blobs.mkdir()
    for name in ("ab" * 32, "cd" * 32):
        (blobs / name).write_text(name)
    path.unlink()
    assert with_fetched(ModelFiles(), {path: "ab" * 32}) == ModelFiles(), "it is not here yet"
    path.symlink_to(blobs / ("ab" * 32))
    found = with_fetched(ModelFiles(), {path: "ab" * 32})
    assert list(found.stamps) == list(found.links) == [str(path)]
    path.unlink()
    path.symlink_to(blobs / ("cd" * 32))
    with pytest.raises(ModelChanged, match=WEIGHTS):
        found.check()
    with pytest.raises(ModelChanged, match=WEIGHTS):
        with_fetched(ModelFiles(), {path: "ab" * 32})


def test_a_file_that_changes_meanwhile_stops_the_plan(model: Path, tmp_path: Path) -> None:
    path, digests = model / "config.json", ModelDigests(ContentDigests(tmp_path / "memory"))
    digests.note(path)
    assert digests.known(path) == digests.known(tmp_path / "missing") == ""
    rename_in(path)
    with pytest.raises(ModelChanged, match=r"config\.json"):
        digests.of(path)


def test_a_stage_that_dies_of_another_model_is_told(model: Path, tmp_path: Path) -> None:
    ending = ProcessExit(code=-signal.SIGBUS, log=tmp_path / "log", files=planned(model))
    assert isinstance(fault_of_stage("decode", ending), StageDied)
    rename_in(model / "model.safetensors")
    assert isinstance(fault_of_stage("decode", ending), ModelChanged)
    stopped = ProcessExit(code=-signal.SIGTERM, log=tmp_path / "log", files=ending.files)
    assert isinstance(fault_of_stage("decode", stopped), Interrupted)
