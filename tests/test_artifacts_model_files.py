"""Files of a model have stamps of their own, by which every change of one is seen."""

import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts import keys
from artifacts.errors import Interrupted, ModelChanged, StageDied
from artifacts.keys import ContentDigests
from artifacts.model_files import ModelFiles, small_names
from artifacts.stamps import link_stamp_of, model_stamp_of
from flows.job.model_files import ModelDigests, with_fetched
from stages.process.exit_diagnosis import Ending, fault_of_stage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (folder / name).write_text(f"{name} as it was")
    (tmp_path / "other").write_text("other bytes of it")
    time.sleep(0.02)  # a kernel's clock of files goes in steps of up to 10 ms
    return folder


def planned(folder: Path) -> ModelFiles:
    paths = [folder / name for name in (*small_names(folder), "model.safetensors")]
    return ModelFiles(
        stamps={str(path): model_stamp_of(path) for path in paths},
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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    "change",
    [rename_in, rename_away_and_back, overwrite_with_its_time, Path.unlink, cut_to_a_folder],
)
def test_a_change_of_any_file_is_seen_and_named(
    model: Path, name: str, change: Callable[[Path], None]
) -> None:
    files = ModelFiles.from_json(json.loads(json.dumps(planned(model).to_json())))
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
    with pytest.raises(ModelChanged, match=r"model\.safetensors"):
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


def test_no_files_are_never_changed() -> None:
    assert ModelFiles.from_json({}).changed() is None
    assert not ModelFiles().are_mapped()


def remembered_line(*values: object) -> str:
    """A line of a memory as 7cc6e93b wrote it."""
    text = json.dumps([*values])[:-1]
    return f'\n{text}, "{zlib.crc32(text.encode()):08x}"]\n'


def never(path: Path) -> str:
    raise AssertionError(f"{path} is read")


def test_a_memory_of_before_keeps_every_medium_and_a_model_is_read_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, path = tmp_path / "digests.jsonl", model / "model.safetensors"
    found = path.stat()
    stamp = [found.st_size, found.st_mtime_ns, found.st_ino]
    memory.write_text(remembered_line(os.path.realpath(path), stamp, "0" * 64))
    with monkeypatch.context() as patched:
        patched.setattr(keys, "hash_file", never)
        assert ContentDigests(memory).of(path) == "0" * 64, "as a medium it is not read again"
        assert ContentDigests(memory).known_of_model(path) is None
    digest = ContentDigests(memory).of_model(path).digest
    assert digest == keys.hash_file(path)
    monkeypatch.setattr(keys, "hash_file", never)
    again = ContentDigests(memory)
    assert again.of_model(path).digest == digest
    assert again.of(path) == "0" * 64, "lines of media stay as they are"


def test_a_model_overwritten_with_its_time_is_read_again(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    before = ContentDigests(tmp_path / "digests.jsonl").of_model(path).digest
    overwrite_with_its_time(path)
    digests = ContentDigests(tmp_path / "digests.jsonl")
    assert digests.known_of_model(path) is None
    assert digests.of_model(path).digest == keys.hash_file(path) != before


def test_a_blob_that_is_named_by_its_digest_is_never_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    shutil.copy(model / "model.safetensors", blob)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr(keys, "hash_file", never)
    digests = ContentDigests(tmp_path / "digests.jsonl")
    assert digests.of(model / "model.safetensors") == "ab" * 32
    for _ in range(2):
        found = digests.of_model(model / "model.safetensors")
        assert found.digest == "ab" * 32 and found.stamp == model_stamp_of(blob)
        os.utime(blob)


def test_weights_fetched_after_the_plan_are_those_that_the_hub_said(
    model: Path, tmp_path: Path
) -> None:
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
    with pytest.raises(ModelChanged, match=r"model\.safetensors"):
        found.check()
    with pytest.raises(ModelChanged, match=r"model\.safetensors"):
        with_fetched(ModelFiles(), {path: "ab" * 32})


def test_a_file_that_changes_while_a_plan_is_made_stops_the_plan(
    model: Path, tmp_path: Path
) -> None:
    path, digests = model / "config.json", ModelDigests(ContentDigests(tmp_path / "memory"))
    digests.note(path)
    assert digests.known(path) == digests.known(tmp_path / "missing") == ""
    rename_in(path)
    with pytest.raises(ModelChanged, match=r"config\.json"):
        digests.of(path)


def test_a_stage_that_dies_of_another_model_is_told_from_one_that_dies_of_itself(
    model: Path, tmp_path: Path
) -> None:
    ending = Ending(code=-signal.SIGBUS, log=tmp_path / "log", files=planned(model))
    assert isinstance(fault_of_stage("decode", ending), StageDied)
    rename_in(model / "model.safetensors")
    assert isinstance(fault_of_stage("decode", ending), ModelChanged)
    stopped = Ending(code=-signal.SIGTERM, log=tmp_path / "log", files=ending.files)
    assert isinstance(fault_of_stage("decode", stopped), Interrupted)
