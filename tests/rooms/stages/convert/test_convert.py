"""Pickled weights become safetensors of the same numbers and names, and no pickle runs code."""

import errno
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from stages.convert.run import open_pickle
from stages.models.hub.checkpoint import INDEX
from stages.models.shards import NOTE
from tests.support import evaclip
from tests.support.pickled import (
    CONFIG,
    Sentinel,
    as_parts,
    bytes_of,
    compressed,
    converted,
    drawn,
    scripted,
    tensors_of,
    torn,
    write_along,
    write_folder,
    written,
)

ROOT = Path(__file__).resolve().parents[4]
SHARED = Path(os.environ.get("PENSTOCK_TEST_NATIVES", ROOT.parent / "shared" / "natives"))
ODD = {
    "half": torch.arange(7).half(),
    "part": torch.arange(100.0).reshape(10, 10)[2:5],
    "number": torch.tensor(3),
    "none": torch.empty(0, 4),
    "short": torch.ones(3, 5, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
}
"""Tensors of many types. One is a part of its storage."""


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def test_a_folder_becomes_one_that_holds_the_same(tmp_path: Path) -> None:
    tied = torch.randn(20, 8)
    weights = {**drawn(), **ODD, "embed.weight": tied, "head.weight": tied}
    source = write_folder(tmp_path / "source", weights)
    assert written(converted(source, tmp_path / "made")) == ["model.safetensors"]
    assert same(tensors_of(tmp_path / "made"), weights)
    made = bytes_of(tmp_path / "made")
    assert made.keys() == {"config.json", "tokenizer.json", "model.safetensors", NOTE}
    assert json.loads(made["config.json"]) == CONFIG


def test_positions_are_found_where_torch_states_none_for_the_meta_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch below 2.11, which does not know that device when it reads a storage."""
    source = write_folder(tmp_path / "source", ODD)
    monkeypatch.setattr(torch.serialization, "_is_meta_location", lambda _: False, raising=False)
    read = torch.load(source / "pytorch_model.bin", map_location="meta", weights_only=True)
    unstated = read["half"].untyped_storage()
    assert getattr(unstated, "_checkpoint_offset", None) is None
    converted(source, tmp_path / "made")
    assert same(tensors_of(tmp_path / "made"), ODD)


def test_licence_and_templates_go_along(tmp_path: Path) -> None:
    source, made = write_folder(tmp_path / "source", drawn()), tmp_path / "made"
    along = write_along(source)
    converted(source, made)
    assert {name for name in along if (made / name).is_file()} == along.keys()
    assert {name: (made / name).read_text() for name in along} == along


def test_files_of_a_bounded_size_are_what_transformers_reads(tmp_path: Path) -> None:
    weights = drawn()
    names = list(weights)
    parts = [{n: weights[n] for n in some} for some in (names[:2], names[2:])]
    source = write_folder(tmp_path / "source", *parts)
    message = converted(source, tmp_path / "made", shard_bytes=2 * weights[names[0]].nbytes)
    assert written(message) == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert same(tensors_of(tmp_path / "made"), weights)
    index = json.loads((tmp_path / "made" / INDEX).read_text())
    assert index["weight_map"][names[5]] == "model-00003-of-00003.safetensors"
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())


def test_floating_numbers_are_written_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**drawn(), **ODD})
    converted(source, tmp_path / "made", "fp16")
    found = tensors_of(tmp_path / "made")
    assert {n for n, t in found.items() if t.dtype != torch.float16} == {"number", "mask"}
    assert all(torch.equal(found[n], t.to(found[n].dtype)) for n, t in {**drawn(), **ODD}.items())
    record = json.loads((tmp_path / "made" / "config.json").read_text())
    assert (record["torch_dtype"], record["text_config"]["dtype"]) == ("float16", "float16")


def test_what_a_type_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    weights = {**drawn(), "wide": torch.tensor([1.0, -70000.0, float("inf")])}
    source = write_folder(tmp_path / "source", weights)
    with pytest.raises(UsageError, match="tensor wide holds 70000, which is infinite in float16"):
        converted(source, tmp_path / "made", "fp16")
    assert not (tmp_path / "made" / "config.json").exists()
    converted(source, tmp_path / "other", "bf16")
    assert tensors_of(tmp_path / "other")["wide"].isinf().tolist() == [False, False, True]


def test_what_training_put_around_the_weights_is_taken_off(tmp_path: Path) -> None:
    weights = drawn()
    source = write_folder(tmp_path / "source", {})
    state = {f"module.{name}": torch.nn.Parameter(tensor) for name, tensor in weights.items()}
    kept = {"epoch": 3, "optimizer": {"state": {}}, "state_dict": state}
    torch.save(kept, source / "pytorch_model.bin")
    converted(source, tmp_path / "made")
    assert same(tensors_of(tmp_path / "made"), weights)


def test_what_is_written_and_whole_is_not_written_again(tmp_path: Path) -> None:
    weights = drawn()
    source = write_folder(tmp_path / "source", weights)
    each = weights["layer.0.weight"].nbytes
    converted(source, tmp_path / "whole", shard_bytes=each)
    made = tmp_path / "made"
    names = written(converted(source, made, shard_bytes=each))
    for name in ("config.json", INDEX, names[2]):  # it was killed before
        (made / name).unlink()
    os.truncate(made / names[4], each // 2)
    (made / ".penstock-half").write_bytes(b"half of a file")
    assert written(converted(source, made, shard_bytes=each)) == [names[2], names[4]]
    assert bytes_of(made) == bytes_of(tmp_path / "whole")
    assert written(converted(source, made, shard_bytes=each)) == []


@pytest.mark.parametrize("form", ["archive", "bare"])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(form: str, tmp_path: Path) -> None:
    source, ran = write_folder(tmp_path / "source", {}), tmp_path / "ran"
    if form == "archive":
        torch.save({**drawn(), "x": Sentinel(ran)}, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Sentinel(ran)))
    with pytest.raises(UsageError, match=r"can run code|can only be read as a whole") as caught:
        converted(source, tmp_path / "made")
    assert "\n" not in str(caught.value) and caught.value.hint
    assert not ran.exists() and not (tmp_path / "made").exists()


def _replaced(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda source: (source / name).write_bytes(content)


def _saved(value: Any) -> Callable[[Path], Any]:
    return lambda source: torch.save(value, source / "pytorch_model.bin")


COMPLEX = r"pytorch_model\.bin: tensor a is of torch\.complex"
NUMBERS = torch.ones(2, dtype=torch.complex64)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INDEXED = b'{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'
LACKING = b'{"weight_map": {"a": "pytorch_model.bin"}}'
DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (torn, "is not a whole file of pickled weights"),
    (compressed, "is not a whole file of pickled weights"),
    (scripted, "is a TorchScript archive"),
    (_replaced("pytorch_model.bin", LFS), "is not a whole file of pickled weights"),
    (_replaced("pytorch_model.bin.index.json", INDEXED), r"00001-of-00001\.bin is missing"),
    (_replaced("pytorch_model.bin.index.json", LACKING), "has no tensor a"),
    (_replaced("pytorch_model.bin.index.json", b"[]"), "is not a whole index of weights"),
    (_replaced("model.safetensors", b""), "already holds safetensors"),
    (as_parts, "holds 1 of the 2 files of its weights"),
    (_saved({"a": torch.eye(3).to_sparse()}), "cannot be read as pickled weights|sparse"),
    (_saved({"a": NUMBERS}), f"{COMPLEX}64"),
    (_saved({"a": NUMBERS.to(torch.complex128).conj()}), f"{COMPLEX}128"),
    (_saved({"epoch": 3}), "has no named tensors"),
    (_saved({"a": torch.zeros(1).expand(1 << 42)}), "tensor a is a view of other numbers"),
    (_saved({"a": torch.eye(3)[:, 1:]}), "tensor a is a view of other numbers"),
    (_saved({"a": NUMBERS.conj().imag}), "tensor a is a view of other numbers"),
    (lambda source: (source / "pytorch_model.bin").unlink(), "training_args.bin"),
    (lambda source: (source / "config.json").unlink(), r"there is no config\.json next to it"),
    (lambda source: shutil.rmtree(source), "does not exist"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[says for _, says in DAMAGE])
def test_a_refusal_is_one_line(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", drawn())
    damage(source)
    with pytest.raises(PenstockError, match=says) as caught:
        converted(source, tmp_path / "made")
    assert "\n" not in str(caught.value) and caught.value.hint
    assert not list((tmp_path / "made").glob("*.safetensors"))


def test_an_archive_that_says_its_byte_order_at_length_is_refused_unread(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", drawn())
    path = source / "pytorch_model.bin"
    with zipfile.ZipFile(path) as before:
        members = [(entry.filename, before.read(entry)) for entry in before.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in members:
            long = name.endswith("/byteorder")
            after.writestr(name, bytes(60 << 20) if long else content)
    tracemalloc.start()
    try:
        with pytest.raises(EnvironmentFault, match="is not a whole file of pickled weights"):
            open_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", drawn())
    with pytest.raises(UsageError, match=r"already holds safetensors|other files"):
        converted(source, source)
    made = tmp_path / "made"
    made.mkdir()
    (made / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files \(mine\.txt\)"):
        converted(source, made)
    assert [path.name for path in made.iterdir()] == ["mine.txt"]
    (made / "mine.txt").unlink()
    converted(source, made)
    before = bytes_of(made)
    otherwise = "made from another source or with other settings"
    with pytest.raises(UsageError, match=otherwise):
        converted(source, made, "fp16")
    with pytest.raises(UsageError, match=otherwise):
        converted(write_folder(tmp_path / "source", drawn(7)), made)
    assert bytes_of(made) == before
    (made / NOTE).write_text("damaged")
    with pytest.raises(UsageError, match=otherwise):
        converted(source, made)
    with pytest.raises(UsageError, match="is not a folder"):
        converted(source, source / "config.json")


def test_a_full_disk_is_one_line_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = write_folder(tmp_path / "source", drawn()), tmp_path / "made"
    synced, calls = os.fsync, []

    def fills_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:  # the note and two files of weights went well
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(EnvironmentFault, match=r"the disk of .*made is full") as caught:
        converted(source, made, shard_bytes=8192)
    assert caught.value.hint.startswith("Correct that, and run the same command again")
    assert len(written(converted(source, made, shard_bytes=8192))) == 4


def test_a_disk_without_room_fails_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = write_folder(tmp_path / "source", drawn()), tmp_path / "made"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFault, match="are free"):
        converted(source, made)
    assert not list(made.glob("*.safetensors"))


def test_an_original_file_becomes_a_model_of_the_family(tmp_path: Path) -> None:
    weights = evaclip.original(evaclip.LAYOUTS["8B"])
    torch.save(weights, tmp_path / "original.pt")
    config, expected = evaclip.converted(weights)
    message = converted(tmp_path / "original.pt", tmp_path / "made")
    assert same(tensors_of(tmp_path / "made"), expected)
    record = json.loads((tmp_path / "made" / "config.json").read_text())
    assert record == {**config, "dtype": "float32"}
    assert any("assuming heads" in event["text"] for event in message if event["event"] == "Warned")


@pytest.mark.skipif(not (SHARED / "eva-8b").exists(), reason="the original file is not here")
def test_the_original_file_becomes_the_folder_of_the_hub(tmp_path: Path) -> None:
    converted(SHARED / "eva-8b-original.pt", tmp_path / "made")
    assert same(tensors_of(tmp_path / "made"), tensors_of(SHARED / "eva-8b"))
