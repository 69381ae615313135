"""What goes from a store that is too large; what a rebuild encodes, what it says of why, and what
it removes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.disk.locks import try_hold
from artifacts.errors import UsageError
from artifacts.index.words import FOLDER as WORDS
from artifacts.index.words import SUFFIX
from artifacts.records.claims import claims_at
from artifacts.records.packs import Record, RecordSet, sizes_in, verify
from artifacts.records.store import FolderStore, prepare_store
from artifacts.records.stores.local import half_written
from flows.commands.cache import cache_command
from flows.commands.cache.clean import clear, collect, holdings
from flows.commands.cache.rebuild import Missing, RebuildOptions, RebuildResult, rebuild
from flows.core.checkpoint.gguf import COPIES
from flows.core.console.display import Display
from flows.core.machine.leases import running_jobs
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from tests.support.holders import held_elsewhere
from tests.support.media import write_video, write_videos
from tests.support.pipeline import wait_gone
from tests.support.rebuilds import rebuilding
from tests.support.stand_ins import PROFILE, Stages, config_in

Said = pytest.CaptureFixture[str]
HELD, FREE = "aa" * 32, "bb" * 32


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, kind: str, namespace: str, key: str, used: float) -> Path:
    """A pack of one record that was last used so many seconds after 2001."""
    before = set(store.list(kind))
    RecordSet(store, kind, namespace).publish([Record(key=key, payload=key.encode() * 10_000)])
    (name,) = set(store.list(kind)) - before
    os.utime(store.local / name, (used + 1e9, used + 1e9))
    return store.local / name


@pytest.fixture
def holder(store: FolderStore) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the namespace HELD."""
    with held_elsewhere(store, HELD) as process:
        yield process


def test_the_least_recently_used_goes_first_and_what_is_small_goes_last(store: FolderStore) -> None:
    caption = put(store, "captions", FREE, "c", used=1)
    old, middle = (put(store, "features", FREE, key, used=at) for key, at in (("a", 2), ("b", 3)))
    frames = put(store, "frames", HELD, "f", used=4)
    sizes = {path: path.stat().st_size for path in (old, middle, frames, caption)}
    total = sum(sizes.values())
    for goes in (old, middle, frames, caption):
        made = collect(store, total - 1, dry_run=False)
        assert not goes.exists() and made.bytes == sizes.pop(goes)
        assert all(path.exists() for path in sizes)
        total -= made.bytes


def test_indexes_of_words_go_before_any_pack(store: FolderStore) -> None:
    features = put(store, "features", FREE, "a", used=1)
    index = store.local / WORDS / f"{'a' * 32}{SUFFIX}"
    half_built = index.with_suffix("").with_name(f"{'b' * 32}-x") / "b.sqlite"
    for path in (index, half_built):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(30_000))
    size = features.stat().st_size
    kept = collect(store, size + 30_000, dry_run=False)
    assert not kept.bytes and index.exists() and not half_built.exists()
    planned = collect(store, size, dry_run=True)
    assert planned.packs == {"word indexes": 1} and index.exists()
    assert collect(store, size, dry_run=False).bytes == 30_000
    assert features.exists() and not index.exists()


def test_clearing_a_store_deletes_its_indexes_of_words(store: FolderStore) -> None:
    prepare_store(store)
    index = store.local / WORDS / f"{'a' * 32}{SUFFIX}"
    index.parent.mkdir()
    index.write_bytes(b"words of captions")
    clear(store)
    assert not index.exists()


def test_reading_keeps_a_pack_from_going(store: FolderStore) -> None:
    read, unread = (put(store, "features", FREE, key, used=at) for key, at in (("a", 1), ("b", 2)))
    RecordSet(store, "features", FREE).read("a")
    collect(store, 15_000, dry_run=False)
    assert read.exists() and not unread.exists()


def test_a_store_below_the_size_loses_nothing_but_rubbish(store: FolderStore) -> None:
    kept = put(store, "features", FREE, "a", used=1)
    bad = put(store, "features", FREE, "b", used=2)
    bad.write_bytes(b"garbage")
    assert [fine for _, fine in verify(store)].count(False) == 1
    stale = store.local / "tmp" / "half"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    made = collect(store, 1 << 30, dry_run=False)
    assert dict(made.packs) == {"rubbish": 2}
    assert kept.exists() and not stale.exists()
    assert not any(path.is_file() for path in (store.local / "quarantine").rglob("*"))


def test_what_a_job_writes_now_costs_no_record_and_is_named(
    store: FolderStore, capsys: Said
) -> None:
    prepare_store(store)
    kept = [put(store, kind, FREE, "a", used=1) for kind in ("captions", "features")]
    command = ["cache", "gc", "--max", "30kB", "--store", store.url]
    with half_written(store.local) as (half, file):
        file.write(bytes(7_600_000))
        file.flush()
        assert main(command) == 0
        collected = capsys.readouterr().out
        assert half.exists() and all(path.exists() for path in kept)
        assert main(["cache", "ls", "--store", store.url]) == 0
        listed = capsys.readouterr().out
    for shown in (collected, listed):
        assert "7.6 MB more, half-written by a running job" in shown
    (total,) = re.findall(r"(.+) of at most 30.0 kB", collected)
    assert f"{total} in {store.url}" in listed, "both count the same"
    sizes = sizes_in(store, dict(store.stats()))
    assert {*sizes} == {path.relative_to(store.local).as_posix() for path in kept}


def test_a_dry_run_says_the_same_and_deletes_nothing(store: FolderStore) -> None:
    for at in range(4):
        put(store, "features", FREE, f"{at}", used=at)
    before = list(store.list())
    message = collect(store, 25_000, dry_run=True)
    assert list(store.list()) == before
    done = collect(store, 25_000, dry_run=False)
    assert (message.packs, message.bytes) == (done.packs, done.bytes)
    assert done.packs["features"] == 2


def test_what_another_process_needs_stays_until_that_process_is_dead(
    store: FolderStore, holder: "subprocess.Popen[str]", capsys: Said
) -> None:
    prepare_store(store)
    held = put(store, "features", HELD, "a", used=1)
    free = put(store, "features", FREE, "b", used=2)
    (job,) = running_jobs(store)
    assert job.namespaces == {HELD} and str(holder.pid) in job.description
    command = ["cache", "gc", "--max", "0", "--store", store.url]
    assert main(command) == 1
    assert held.exists() and not free.exists()
    shown = capsys.readouterr().out
    assert f"process {holder.pid}" in shown and "Run it again" in shown
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    wait_gone([holder.pid])
    noted = put(store, "namespaces", FREE, "c", used=3)
    assert main(command) == 1, "the store stays above the size"
    assert not held.exists() and noted.exists()
    assert "keeps 10.2 kB of settings" in capsys.readouterr().out
    assert not list((store.local / "jobs").iterdir())


def test_ls_tells_all_namespaces(store: FolderStore, capsys: Said) -> None:
    prepare_store(store)
    put(store, "features", FREE, "a", used=1)
    (holding_,) = holdings(store)
    assert (holding_.kind, holding_.namespace, holding_.packs) == ("features", FREE, 1)
    put(store, "marks", FREE, "a", used=1)
    assert main(["cache", "ls", "--store", store.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines]
    assert first[:-1] == ["unknown", "kind", "features", "without", "kind", "marks"]
    assert main(["cache", "ls", "--store", store.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["scope"] == FREE


def test_verify_is_exit_1_once(store: FolderStore, capsys: Said) -> None:
    prepare_store(store)
    pack = put(store, "features", FREE, "a", used=1)
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    command = ["cache", "verify", "--store", store.url]
    assert main(command) == 1
    assert "damaged, quarantined: features/" in capsys.readouterr().out
    assert main(command) == 0


def test_claims_of_namespaces_that_no_job_holds_go_with_the_rubbish(
    store: FolderStore, holder: "subprocess.Popen[str]"
) -> None:
    for namespace in (HELD, FREE):
        with claims_at(store, RecordSet(store, "features", namespace)) as turns:
            turns.done([])
    collect(store, 1 << 30, dry_run=False)
    left = [path.name for path in (store.local / "claims").rglob("*") if path.is_file()]
    assert left == [HELD]


def test_copies_of_gguf_files_go_when_no_run_has_used_them_for_an_hour(store: FolderStore) -> None:
    folder = store.local / COPIES
    folder.mkdir(parents=True)
    used, unused, killed = (folder / name for name in ("a.gguf", "b.gguf", ".penstock-7-c.gguf"))
    for path in (used, unused, killed):
        path.write_bytes(b"GGUF")
        if path != used:
            os.utime(path, (1e9, 1e9))
    made = collect(store, 1 << 40, dry_run=False)
    assert (made.packs["rubbish"], made.bytes) == (2, 8)
    assert list(folder.iterdir()) == [used]


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Three videos of one chunk each and a model of two files."""
    return config_in(tmp_path, write_videos(tmp_path / "clips", 3), batch_size=2)


def answered(
    config: CaptionConfig | RebuildConfig, stages: Stages | None = None, **options: Any
) -> RebuildResult:
    """A rebuild with stages that answer at once."""
    launcher = (stages or Stages()).launcher
    return rebuild(rebuilding(config), RebuildOptions(**options), Display(quiet=True), launcher)


def features(config: CaptionConfig) -> int:
    """How many feature records are stored, over all namespaces."""
    store = FolderStore(Path(config.store))
    names = {name.split("/")[2] for name in store.list("features")}
    return sum(len(RecordSet(store, "features", namespace).keys()) for namespace in names)


def counts(result: RebuildResult) -> tuple[int, int, int, int]:
    found = result.difference
    return (found.unchanged, found.added, found.changed, found.removed)


def snapshot(store: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(store).rglob("*.pack")}


def test_a_rebuild_makes_what_a_caption_run_then_finds(config: CaptionConfig) -> None:
    stages = Stages()
    result = answered(config, stages)
    assert (counts(result), result.encoded) == ((0, 3, 0, 0), 3)
    assert stages.names() == ["frames", "encode"]
    assert list(FolderStore(Path(config.store)).list("frames")) == []
    after = Stages()
    assert caption(config, Display(quiet=True), after.launcher).captions == 3
    assert after.names() == ["decode"]
    shutil.rmtree(Path(config.store) / "features")
    assert answered(config).encoded == 3, "though there are captions"


def test_a_dry_run_changes_nothing_and_tells_time_once_it_is_known(config: CaptionConfig) -> None:
    message = answered(config, dry_run=True)
    assert (message.missing.chunks, message.missing.files, message.exit_code) == (3, 3, 0)
    assert "time: unknown" in message.plan_lines()[-1]
    fetched = replace(message, fetch_bytes=2 * 10**9).plan_lines()
    assert fetched == ["to download: 2.0 GB of weights", *message.plan_lines()]
    sound = replace(message, missing=Missing(sounds=3), fetch_bytes=2 * 10**9)
    assert sound.plan_lines() == [fetched[0], "sound to encode: that of 3 chunks"]
    assert sound.line().endswith("would encode 0 chunks and the sound of 3 chunks")
    assert features(config) == 0
    answered(config)
    write_video(Path(config.sources[0]) / "0.mp4", ticks=range(11))
    before = snapshot(config.store)
    stages = Stages()
    sampled = answered(replace(config, fps=1.0), stages, dry_run=True)
    assert sampled.missing.chunks == 3
    assert sampled.difference.why == ("sampling changed (fps 2.0 → 1.0)",)
    packed = answered(replace(config, features_as="int8-64"), stages, dry_run=True)
    (why,) = packed.difference.why
    assert why.startswith("--features-as changed (as computed → int8-64); penstock cache pack")
    message = answered(config, stages, dry_run=True)
    assert (counts(message), message.missing.chunks) == ((2, 0, 1, 0), 1)
    assert "time: about" in message.plan_lines()[-1]
    assert stages.names() == [] and snapshot(config.store) == before


def test_a_changed_prompt_and_another_job_are_told(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.stand_ins.PROFILE", replace(PROFILE, prompted=True))
    answered(config)
    request = replace(config, prompt="Who is there?")
    assert counts(answered(request, name="two")) == (0, 3, 0, 0), "another job"
    result = answered(request)
    assert (counts(result), result.encoded) == ((3, 0, 0, 0), 0)
    assert "prompt changed" in result.difference.why[0]
    assert answered(request).difference.why == ()


def test_features_of_files_that_went_are_deleted_first_by_gc(config: CaptionConfig) -> None:
    first = Path(config.sources[0]) / "0.mp4"
    answered(replace(config, sources=(str(first),)))
    answered(config)
    assert features(config) == 3
    old = time.time() - 86_400
    for path in Path(config.store, "features").rglob("*.pack"):
        os.utime(path, (old, old))
    first.unlink()
    result = answered(config)
    assert (counts(result), result.encoded, features(config)) == ((2, 0, 0, 1), 0, 3)
    store = FolderStore(Path(config.store))
    collect(store, collect(store, 1 << 40, dry_run=True).after - 1, dry_run=False)
    assert features(config) == 2
    assert answered(config).encoded == 0, "those of the files that are there stayed"


def test_two_rebuilds_of_one_job_are_refused(config: CaptionConfig) -> None:
    answered(config)
    (folder,) = (Path(config.store) / "logs").glob("rebuild-*")
    lock = try_hold(folder / ".lock")
    assert lock is not None
    with lock, pytest.raises(UsageError, match=r"already rebuilding, with its logs in .* --name"):
        answered(config)
    assert answered(config, name="another").encoded == 0


def test_files_that_failed_do_not_count_as_rebuilt(config: CaptionConfig) -> None:
    broken = Path(config.sources[0]) / "broken.mp4"
    broken.write_bytes(b"no video at all" * 9)
    result = answered(replace(config, sources=(*config.sources, "missing.mp4")))
    assert (result.files, len(result.failures), result.made) == (4, 2, 3)
    result = answered(replace(config, sources=(str(broken),)))
    assert (result.files, result.made, result.exit_code) == (1, 0, 1)


def test_a_rebuild_of_a_deployment_has_a_folder_of_its_own(config: CaptionConfig) -> None:
    request = RebuildConfig(sources=config.sources, model=config.model, store=config.store)
    result = answered(request)
    assert (result.files, result.encoded) == (3, features(config))


OTHER_FORMAT = [
    *("cache ls", "cache verify", "cache gc --max 1GB", "cache rebuild clips --model demo"),
    *("caption clips --model demo", "plan --model demo", "sift clips"),
]


@pytest.mark.parametrize("command", OTHER_FORMAT)
def test_every_command_refuses_a_store_of_another_format(
    command: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "clips" / "a.png")
    store.put_if_absent("format", [b"99\n"])
    put(store, "captions", FREE, "c", used=1)
    before = {name: stat.size for name, stat in store.stats()}
    assert main([*command.split(), "--store", store.url]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"penstock cache clear --store {store.url}" in error
    assert {name: stat.size for name, stat in store.stats()} == before


def test_a_store_is_cleared_only_after_a_yes(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    command = ["cache", "clear", "--store", store.url]
    pack = put(store, "captions", FREE, "c", used=1)
    monkeypatch.setattr(cache_command, "is_terminal", lambda _: False)
    assert main(command) == 2 and "--yes" in capsys.readouterr().err
    monkeypatch.setattr(cache_command, "is_terminal", lambda _: True)
    for answer, code in (("", 1), ("n", 1), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert pack.exists()
        assert main(command) == code
    assert not pack.exists() and "deleted 1 object" in capsys.readouterr().out
    assert main([*command, "--yes"]) == 0 and main(["cache", "ls", "--store", store.url]) == 0
