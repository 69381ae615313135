"""`--features-as int8-64` and `penstock cache pack` on the demo: half the bytes, the same captions,
the same bytes whatever disturbs a run, and decisions that stay with their chunks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import penstock
from artifacts.errors import UsageError
from artifacts.records.eight_bits import INT8_64, form_of
from artifacts.records.packs import RecordSet, read_header, stored_namespaces
from artifacts.records.store import FolderStore
from benchmarks import features_as
from flows.commands.cache.clean import holdings
from flows.commands.cache.pack import pack_store
from flows.core.ledger.namespaces import notes
from flows.interfaces.cli.main import main
from penstock.training import FeatureCollator, captions, processor_of
from penstock_demo.clips import write_clips
from tests.commands.test_ask import made
from tests.support.families import made_once
from tests.support.holders import held_elsewhere
from tests.support.pipeline import Place, kill_at, place_below

Said = pytest.CaptureFixture[str]
FORM = ("--features-as", INT8_64)
CLIPS = 4


def caption(place: Place, *more: str) -> None:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    assert main(["caption", str(place.clips), *where, "--json", *more]) == 0


def _computed(folder: Path) -> None:
    write_clips(folder / "clips", CLIPS, seed=11)
    caption(place_below(folder))


def _encoded(folder: Path) -> None:
    shutil.copytree(computed() / "clips", folder / "clips")
    caption(place_below(folder), *FORM)


computed, encoded = made_once(_computed), made_once(_encoded)


@pytest.fixture
def place(tmp_path: Path, capsys: Said) -> Place:
    """A run whose features are stored as computed."""
    for name in ("clips", "store"):
        shutil.copytree(computed() / name, tmp_path / name)
    caption(place := place_below(tmp_path))
    capsys.readouterr()
    return place


def features(store: Path, form: str) -> dict[str, tuple[str, int]]:
    """Key → description with checksum, and bytes of the payload, of the features in a form."""
    folder, found = FolderStore(store), dict[str, tuple[str, int]]()
    for namespace in stored_namespaces(folder, "features"):
        for name in folder.list(f"features/{namespace[:2]}/{namespace}"):
            if form_of(namespace) == form:
                for key, at in read_header(folder, name):
                    found[key] = (json.dumps(at.meta) + at.checksum, at.length)
    return found


def test_captions_are_equal_in_53_percent_of_the_bytes(place: Place, capsys: Said) -> None:
    before, rows = place.stored("captions"), place.captions()
    caption(place, *FORM)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made(events) == {"frames": CLIPS, "encode": CLIPS, "decode": CLIPS}
    plain, packed = (features(place.store, form) for form in ("", INT8_64))
    assert plain.keys() == packed.keys() == {row["features"] for row in rows}
    for key, (_, size) in packed.items():
        assert size <= 0.53 * plain[key][1]
    again = place.captions()
    assert [row["caption"] for row in again] == [row["caption"] for row in rows]
    assert [row["features"] for row in again] == [row["features"] for row in rows]
    assert {row["precision"]["vision"] for row in again} == {"bf16 as int8-64"}
    assert len(place.stored("captions")) == len(before) + CLIPS, "captions have keys of their own"
    record = json.loads((place.out / "run.json").read_text())
    assert record["plan"]["features_as"] == INT8_64
    for command in (["cache", "ls", "--store", place.store], ["status", place.out]):
        assert main([*map(str, command)]) == 0
        assert "bf16 as int8-64" in capsys.readouterr().out
    assert main(["report", str(place.out)]) == 0
    report = (place.out / "report.html").read_text(encoding="utf-8")
    assert "features stored as" in report
    capsys.readouterr()
    caption(place)
    assert made([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == {}


@pytest.mark.parametrize("key", range(3))
def test_a_chunk_has_the_same_bytes_alone_and_in_any_batch(key: int, tmp_path: Path) -> None:
    clip = sorted((computed() / "clips").glob("*.mp4"))[key]
    (tmp_path / "clips").mkdir()
    shutil.copy(clip, tmp_path / "clips")
    alone = place_below(tmp_path)
    caption(alone, *FORM, "--batch-size", "1")
    ((name, own),) = features(alone.store, INT8_64).items()
    assert features(place_below(encoded()).store, INT8_64)[name] == own


@pytest.mark.parametrize("victim", ["child", pytest.param("group", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(victim: str, tmp_path: Path) -> None:
    shutil.copytree(computed() / "clips", tmp_path / "clips")
    place = place_below(tmp_path)
    kill_at(place, "encode", 2, victim, *FORM, "--batch-size", "1")
    assert place.run(*FORM, "--batch-size", "1").returncode == 0
    whole = place_below(encoded())
    assert features(place.store, INT8_64) == features(whole.store, INT8_64)
    assert place.captions() == [{**row, "source": str(place.clips)} for row in whole.captions()]


def test_what_cache_pack_writes_is_what_encoding_writes(place: Place, capsys: Said) -> None:
    before = features(place.store, "")
    assert main(["cache", "pack", "--store", str(place.store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("features of demo in bf16: ") and f"{CLIPS} records" in lines[0]
    assert lines[1].startswith(f"--replace deletes the originals: {CLIPS} captions will be decoded")
    assert "runs without --features-as int8-64 will encode again" in lines[1]
    assert features(place.store, "") == before
    assert features(place.store, INT8_64) == features(place_below(encoded()).store, INT8_64)
    assert main(["cache", "verify", "--store", str(place.store)]) == 0
    capsys.readouterr()
    caption(place, *FORM)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made(events) == {"decode": CLIPS}
    assert main(["cache", "pack", "--store", str(place.store)]) == 0
    assert "0 records copied" in capsys.readouterr().out


def test_the_notes_of_packed_features_are_those_of_encoded_ones(place: Place) -> None:
    pack_store(FolderStore(place.store), replace=False, announce=lambda _: None)
    stores = [FolderStore(one.store) for one in (place, place_below(encoded()))]
    (namespace,) = (n for n in stored_namespaces(stores[0], "features") if form_of(n))
    packed, encoded_ = (notes(store).meta(namespace) for store in stores)
    assert packed == encoded_


def test_packing_that_is_cut_short_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, left = RecordSet.publish, [2]

    def cut(records: RecordSet, *given: Any) -> Any:
        if records.folder.endswith(INT8_64):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return publish(records, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecordSet, "publish", cut)
        pack_store(FolderStore(place.store), replace=True, announce=lambda _: None)
    held = holdings(FolderStore(place.store))
    assert all(holding.settings for holding in held if holding.kind == "features")
    assert len(features(place.store, "")) == CLIPS, "no original goes before all are copied"
    pack_store(FolderStore(place.store), replace=True, announce=lambda _: None)
    assert features(place.store, "") == {}
    assert features(place.store, INT8_64) == features(place_below(encoded()).store, INT8_64)


def test_decisions_stay_with_their_chunks_when_originals_are_replaced(
    place: Place, capsys: Said
) -> None:
    first, second, *_ = place.captions()
    texts = {(row["media_path"], row["start"]): row for row in (first, second)}
    penstock.correct(place.out, dict(zip(texts, ("A text of mine.", None), strict=True)))
    capsys.readouterr()
    said = list[str]()
    pack_store(FolderStore(place.store), replace=True, announce=said.append)
    assert said[1].startswith(f"Deleting the originals: {CLIPS} captions will be decoded again")
    assert features(place.store, "") == {}
    caption(place, *FORM)
    rows = {row["media_path"]: row for row in place.captions()}
    assert rows[first["media_path"]]["caption"] == "A text of mine."
    assert rows[second["media_path"]]["review"] == "rejected"


def test_an_original_whose_copy_is_damaged_stays(place: Place) -> None:
    store = FolderStore(place.store)
    pack_store(store, replace=False, announce=lambda _: None)
    (namespace,) = (n for n in stored_namespaces(store, "features") if form_of(n))
    name = min(store.list(f"features/{namespace[:2]}/{namespace}"))
    data = bytearray((place.store / name).read_bytes())
    data[-1] ^= 1
    (place.store / name).write_bytes(data)
    keys = {key for key, _ in read_header(store, name)}
    pack_store(store, replace=True, announce=lambda _: None)
    assert features(place.store, "").keys() == keys


def test_originals_that_a_job_uses_are_not_replaced(place: Place) -> None:
    store = FolderStore(place.store)
    (namespace,) = stored_namespaces(store, "features")
    with (
        held_elsewhere(store, namespace),
        pytest.raises(UsageError, match="the features are in use by process"),
    ):
        pack_store(store, replace=True, announce=lambda _: None)
    assert len(features(place.store, "")) == CLIPS


def test_trainings_read_packed_features_alone(place: Place, capsys: Said) -> None:
    pack_store(FolderStore(place.store), replace=True, announce=lambda _: None)
    rows, collate = captions(place.out), FeatureCollator(place.out, processor_of(place.out))
    batch = collate(rows)
    assert len(batch["input_ids"]) == CLIPS
    caption(place, *FORM)
    capsys.readouterr()
    data, adapter = place.out / "captions.jsonl", place.out.with_name("adapter")
    words = ["--store", str(place.store), "--model", "demo", "--steps", "1", "--json"]
    assert main(["tune", str(data), "--out", str(adapter), *words]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "encode" not in made(events), "the form is that of the run of the captions"


def test_a_plan_counts_disk_and_memory_and_says_what_the_form_would_save(
    place: Place, capsys: Said
) -> None:
    def planned(*more: str) -> dict[str, Any]:
        where = ["--store", str(place.store.with_name("empty")), "--model", "demo"]
        assert main(["plan", str(place.clips), *where, "--json", *more]) == 0
        figures: dict[str, Any] = json.loads(capsys.readouterr().out)
        return figures

    plain, packed = planned(), planned(*FORM)
    stored = {
        form: features(p.store, form)
        for p, form in ((place, ""), (place_below(encoded()), INT8_64))
    }
    for form, figures in (("", plain), (INT8_64, packed)):
        assert figures["feature_bytes"] >= 0.9 * sum(size for _, size in stored[form].values())
    assert packed["feature_bytes"] == pytest.approx(plain["feature_bytes"] * 198 / 384, rel=0.01)
    assert plain["packed_feature_bytes"] == pytest.approx(packed["feature_bytes"], abs=CLIPS)
    assert packed["packed_feature_bytes"] == 0
    stages = [figures["memory"]["stages"] for figures in (plain, packed)]
    assert stages[0] and stages[0] == stages[1], "features in memory are as computed"
    assert main(["plan", str(place.clips), "--model", "demo"]) == 0
    assert "--features-as int8-64 would keep" in capsys.readouterr().out


def test_questions_are_answered_from_packed_features(place: Place, capsys: Said) -> None:
    pack_store(FolderStore(place.store), replace=True, announce=lambda _: None)
    where = ["--out", str(place.out.with_name("answers")), "--store", str(place.store)]
    words = ["--model", "demo", "--question", "star=Is there a star?", "--json"]
    capsys.readouterr()
    assert main(["ask", str(place.clips), *where, *words, *FORM]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert made(events) == {"answer": CLIPS}


@pytest.mark.slow
def test_200_captions_are_equal_and_logits_move_no_more_than_one_and_a_half_times(
    tmp_path: Path,
) -> None:
    figures = features_as.measure(tmp_path, 200)
    assert figures.equal == figures.clips == 200
    assert figures.packed_bytes <= 0.53 * figures.bytes
    assert figures.moved_packed <= 1.5 * figures.moved
