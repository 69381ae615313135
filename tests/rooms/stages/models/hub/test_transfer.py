"""Weights arrive whole over a bad line: from where it broke, checked, once for all who ask."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.records.keys import ContentDigests, hash_file
from stages.models.hub import transfer
from stages.models.hub.checkpoint import WeightFile
from stages.models.hub.fetch import fetch
from stages.models.hub.resolve import fetch_rest, find_model
from tests.support.hub import STALLED, Hub, Repository, client, serve, use_cache
from tests.support.pipeline import ROOT

MODEL = "owner/name"
FILE = "model.safetensors"
BODY = os.urandom(6_000_000)
REPOSITORY = Repository(files={"config.json": b"{}", FILE: BODY, "README.md": b"#"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0, 0.0))
    with serve({MODEL: REPOSITORY}) as served, client(monkeypatch) as connect:
        connect(served.url)
        yield served


def fetched(**options: Any) -> Path:
    """The one file of weights, brought here."""
    found = find_model(MODEL)
    fetch(found, **options)
    assert found.missing() == []
    return found.folder / FILE


def left(cache: Path) -> list[Path]:
    """What transfers left of files that are not whole."""
    return list(cache.rglob("*.incomplete"))


def size_of(files: list[Path]) -> int:
    """Bytes of those that have not got their name meanwhile."""
    return sum(path.stat().st_size for path in files if path.exists())


def test_a_large_tokenizer_is_checked_as_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**REPOSITORY.files, "tokenizer.json": b'{"a": 2}'}
    with serve({MODEL: Repository(files=files, large=("tokenizer.json",))}) as hub:
        hub.trouble.damages = 1
        with client(monkeypatch) as connect:
            connect(hub.url)
            found = find_model(MODEL)
        assert (found.folder / "tokenizer.json").read_bytes() == b'{"a": 2}'
        assert hub.downloads() == ["README.md", "config.json", *["tokenizer.json"] * 2]
    assert find_model(MODEL) == found  # the hub is gone by now


def test_a_broken_line_is_taken_up_where_it_broke(hub: Hub, cache: Path) -> None:
    hub.trouble.breaks += [2_000_000, 1_500_000]
    text, message = list[str](), list[tuple[int, int]]()
    path = fetched(announce=text.append, progress=lambda here, total: message.append((here, total)))
    assert path.read_bytes() == BODY
    assert hub.starts[-3:] == [(FILE, 0), (FILE, 2_000_000), (FILE, 3_500_000)]
    assert hub.weights_sent() == len(BODY)
    assert text[-2:] == [
        f"{FILE} interrupted at 2.0 of 6.0 MB; resuming in 0 s",
        f"{FILE} interrupted at 3.5 of 6.0 MB; resuming in 0 s",
    ]
    assert message[-1] == (len(BODY), len(BODY)) and message == sorted(message)
    assert left(cache) == []


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole(hub: Hub) -> None:
    hub.trouble.whole_only = True
    hub.trouble.breaks.append(2_000_000)
    assert fetched().read_bytes() == BODY
    assert hub.weights_sent() == 2_000_000 + len(BODY)


def test_a_server_that_is_busy_is_asked_again(hub: Hub) -> None:
    hub.trouble.statuses += [503, 429, 500]
    assert fetched().read_bytes() == BODY
    assert hub.weights_sent() == len(BODY)


def test_a_damaged_file_is_fetched_anew(hub: Hub) -> None:
    hub.trouble.damages = 1
    texts: list[str] = []
    assert fetched(announce=texts.append).read_bytes() == BODY
    assert texts[-1] == f"{FILE} arrived damaged; downloading it again"
    assert hub.weights_sent() == 2 * len(BODY)


def test_a_file_that_is_damaged_again_is_named(hub: Hub, cache: Path) -> None:
    hub.trouble.damages = 2
    with pytest.raises(EnvironmentFault, match=f"{FILE} arrived twice with another checksum"):
        fetched()
    assert left(cache) == [] and len(find_model(MODEL).missing()) == 1


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (503, EnvironmentFault, "answers with status 503.*resumes the download"),
        (404, EnvironmentFault, "answers with status 404"),
        (403, UsageError, "denies access to owner/name.*hf auth login"),
    ],
)
def test_a_line_that_stays_broken_keeps_what_came(
    status: int, kind: type[PenstockError], says: str, hub: Hub, cache: Path
) -> None:
    found = find_model(MODEL)
    hub.trouble.breaks.append(4_000_000)
    hub.trouble.statuses += [200, *[status] * 20]
    with pytest.raises(kind, match=says):
        fetch(found)
    assert [path.stat().st_size for path in left(cache)] == [4_000_000]
    hub.trouble.statuses.clear()
    texts: list[str] = []
    fetch(found, announce=texts.append)
    assert (found.folder / FILE).read_bytes() == BODY
    assert hub.weights_sent() == len(BODY)
    assert "6.0 MB, 4.0 MB of them already downloaded" in texts[0]


def test_partial_files_of_the_hub_s_clients_and_ours_are_left_to_each_other(
    hub: Hub, cache: Path
) -> None:
    found = find_model(MODEL)
    blobs, digest = found.folder.parents[1] / "blobs", found.weights[0].digest
    theirs = blobs / f"{digest}.incomplete"  # as older clients name it
    theirs.write_bytes(b"another's")
    hub.trouble.breaks.append(4_000_000)
    hub.trouble.statuses += [200, *[503] * 20]
    with pytest.raises(EnvironmentFault):
        fetch(found)
    assert hub.starts[-1] == (FILE, 0) and theirs.read_bytes() == b"another's"
    hub.trouble.statuses.clear()
    (ours,) = (path for path in left(cache) if path != theirs)
    hub.forget()
    huggingface_hub.hf_hub_download(MODEL, FILE)
    assert hub.starts == [(FILE, 0)], "the client resumes nothing"
    assert ours.stat().st_size == 4_000_000 and theirs.read_bytes() == b"another's"


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on(hub: Hub, cache: Path) -> None:
    hub.trouble.stall.set()
    code = f"from stages.models.hub.resolve import resolve_model; resolve_model({MODEL!r})"
    environment = {name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    while size_of(left(cache)) < len(BODY) - STALLED:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    hub.trouble.stall.clear()
    assert fetched().read_bytes() == BODY
    assert hub.starts[-1][0] == FILE and hub.starts[-1][1] > len(BODY) // 2
    assert hub.weights_sent() <= 1.1 * len(BODY)


@pytest.mark.slow
def test_two_at_a_time_fetch_a_file_once(hub: Hub) -> None:
    hub.trouble.seconds_a_block = 0.005
    found, text = find_model(MODEL), list[str]()
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(fetch, found, announce=text.append) for _ in range(2)]:
            each.result()
    assert (found.folder / FILE).read_bytes() == BODY
    assert hub.weights_sent() == len(BODY)
    assert f"{FILE} is being downloaded by another process: waiting for it" in text


def test_a_failure_of_one_file_stops_the_others(hub: Hub, cache: Path) -> None:
    found = find_model(MODEL)
    absent = WeightFile(name="gone.safetensors", size=9, digest="0" * 64)
    slow = replace(found, weights=(*found.weights, absent))
    hub.trouble.seconds_a_block = 0.1
    with pytest.raises(EnvironmentFault, match="status 404"):
        fetch(slow)
    assert hub.weights_sent() < len(BODY) // 2


def test_the_sum_that_the_hub_states_is_that_of_the_file(hub: Hub, tmp_path: Path) -> None:
    found = find_model(MODEL)
    stated = found.digest(FILE)
    assert hub.weights_sent() == 0 and found.missing()
    path = fetched()
    assert stated == hash_file(path) == ContentDigests(tmp_path / "digests").of(path)
    assert find_model(MODEL).digest(FILE) == stated


def test_what_is_missing_offline_is_named_with_its_size(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    found = find_model(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model(MODEL) == found
    with pytest.raises(EnvironmentFault, match=r"model.safetensors of owner/name, 6.0 MB, are not"):
        fetch(found)


def test_the_rest_of_a_snapshot_can_be_fetched_by_its_folder(hub: Hub, tmp_path: Path) -> None:
    folder = find_model(MODEL).folder
    assert fetch_rest(folder)
    assert (folder / FILE).read_bytes() == BODY
    assert not fetch_rest(folder)
    assert not fetch_rest(tmp_path)


def test_weights_that_lie_in_git_come_with_the_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Repository(files={"config.json": b"{}", FILE: b"tiny"}, in_git=(FILE,))
    with serve({MODEL: small}) as hub, client(monkeypatch) as connect:
        connect(hub.url)
        found = find_model(MODEL)
    assert (found.folder / FILE).read_bytes() == b"tiny"
    assert found.missing() == [] and found.digest(FILE) == ""
    assert find_model(MODEL) == found  # the hub is gone by now
