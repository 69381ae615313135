"""What a server hands out of an index while its rows and the media change: nothing that was removed
from the index, and no other content than was indexed; and when it says that it can search."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from artifacts.index.manifest import read_manifest
from artifacts.index.shard import ROW
from artifacts.index.snapshot import open_snapshot
from flows.core.options.serving import ServeConfig
from flows.interfaces.cli.main import main
from flows.interfaces.serve.app import app_of
from flows.interfaces.serve.guard import Guard
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.searching import ServedIndex
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.temp_store import TempStore
from tests.support.builders.caption_lines import write_lines
from tests.support.builders.clip import save_clip
from tests.support.inside import stages_inside
from tests.support.media import write_video

COLOURS = {"red.png": (200, 20, 20), "green.png": (20, 200, 20), "blue.png": (20, 20, 200)}
CHANGED = "the file of this hit has changed since it was indexed"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three pictures and a video, their index, and the model that made it."""
    place = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:  # none of these tests is about processes
        stages_inside(patch)
        clip = save_clip(place / "clip")
        (place / "media").mkdir()
        for name, colour in COLOURS.items():
            Image.new("RGB", (90, 70), colour).save(place / "media" / name)
        write_video(place / "media" / "film.mp4", ticks=range(0, 90, 3))
        assert index(place, "build", str(place / "media"), "--model", str(clip)) == 0
        yield place


def index(place: Path, action: str, *more: str) -> int:
    option = "--out" if action == "build" else "--index"
    store = ["--store", str(place / "store"), "--quiet"] if action in ("build", "add") else []
    return main(["index", action, *more, option, str(place / "index"), *store])


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the index, to be changed; afterwards the media are as they were."""
    shutil.copytree(built / "index", tmp_path / "index")
    shutil.copytree(built / "media", tmp_path / "kept")
    for name in ("media", "store"):
        (tmp_path / name).symlink_to(built / name)
    yield tmp_path
    for path in (built / "media").iterdir():
        path.unlink()
    shutil.copytree(tmp_path / "kept", built / "media", dirs_exist_ok=True)


@dataclass
class Texts:
    """Gives each text the same drawn vector, and reads 40 letters of it."""

    width: int

    async def vectors(self, texts: Any) -> Any:
        drawn = np.random.default_rng(0).standard_normal((1, self.width)).astype(np.float32)
        cut = tuple(text for group in texts for text in group if len(text) > 40)
        return SimpleNamespace(vectors=drawn, cut=cut)


def serving(place: Path, captions: Path | None = None) -> TestClient:
    """Return a client of a server of the index, and of the captions of a run."""
    maker = read_manifest(place / "index").maker
    parts: dict[str, Any] = {"texts": Texts(maker.width), "scheduler": SimpleNamespace(held_by="")}
    service = Service(
        config=ServeConfig(caption_model="demo", store=str(place / "store")),
        metrics=Metrics(),
        temp_store=TempStore(place),
        budget_bytes=0,
        index=ServedIndex(place / "index", maker, captions, str(place / "store")),
        **parts,
    )
    app: Any = Guard(app_of(service, {}), service, {})
    return TestClient(app, base_url="http://127.0.0.1:8000")


def ids(client: TestClient) -> dict[str, str]:
    """Return the id of a hit of each file."""
    hits = client.get("/v1/search?q=colour&top=100").json()["hits"]
    return {hit["media_path"]: hit["id"] for hit in hits}


def shown(client: TestClient, hit: str) -> dict[str, Any]:
    return {kind: client.get(f"/v1/{kind}/{hit}") for kind in ("media", "thumbnail")}


def assert_refused(client: TestClient, hit: str, why: str) -> None:
    found = {kind: (a.status_code, a.text[:200]) for kind, a in shown(client, hit).items()}
    assert all(status == 404 and why in text for status, text in found.values()), found


@pytest.mark.slow
def test_a_removed_row_is_shown_neither_by_an_old_nor_by_a_new_server(place: Path) -> None:
    running = serving(place)
    old = ids(running)
    assert {a.status_code for a in shown(running, old["red.png"]).values()} == {200}
    assert index(place, "remove", "red.png") == 0
    assert_refused(running, old["red.png"], "no such hit")
    assert_refused(serving(place), old["red.png"], "no such hit")
    kept = running.get(f"/v1/media/{old['green.png']}")
    assert kept.content == (place / "kept" / "green.png").read_bytes()


@pytest.mark.slow
def test_a_file_whose_name_is_no_utf8_is_shown(place: Path) -> None:
    odd = place / "media" / "caf\udce8.png"
    Image.new("RGB", (90, 70), (90, 20, 90)).save(odd)
    assert index(place, "add", str(odd)) == 0
    client = serving(place)
    (hit,) = [client.get(f"/v1/media/{hit}") for name, hit in ids(client).items() if "caf" in name]
    assert (hit.status_code, hit.content) == (200, odd.read_bytes()), hit.text


def test_no_id_of_an_index_shows_a_removed_row(place: Path) -> None:
    assert index(place, "remove", "red.png") == 0
    red, client = (place / "kept" / "red.png").read_bytes(), serving(place)
    snapshot = open_snapshot(place / "index")
    every = snapshot.identities_at(ROW, np.arange(snapshot.rows)).tolist()
    assert [each for each in every if client.get(f"/v1/media/{each:016x}").content == red] == []


def test_an_id_names_the_same_file_after_a_restart_or_none(place: Path) -> None:
    old = ids(serving(place))
    assert index(place, "remove", "blue.png") == 0 and index(place, "compact") == 0
    client = serving(place)
    assert_refused(client, old.pop("blue.png"), "no such hit")
    for name, hit in old.items():
        answer = client.get(f"/v1/media/{hit}")
        assert answer.content == (place / "kept" / name).read_bytes(), f"{hit} is not {name}"


def test_an_id_has_one_spelling(place: Path) -> None:
    client = serving(place)
    hits = client.get("/v1/search?q=colour&top=100").json()["hits"]
    for hit in (hit["id"] for hit in hits):
        arabic = hit.translate({ord(str(n)): chr(0x660 + n) for n in range(10)})
        for other in {hit.upper(), f"0{hit}", f"{hit}0", f" {hit}", f"+{hit}", arabic} - {hit}:
            answer = client.get(f"/v1/media/{quote(other)}")
            assert answer.status_code == 404, f"{other!r} is taken for {hit}"
    old = {f"0-{zeros}{at}" for at in range(9) for zeros in ("", "0")}
    assert {client.get(f"/v1/media/{each}").status_code for each in old} == {404}


def test_an_id_means_the_same_row_after_the_index_was_compacted(place: Path) -> None:
    client = serving(place)
    old = ids(client)
    assert index(place, "remove", "blue.png") == 0
    assert index(place, "compact") == 0
    assert_refused(client, old["blue.png"], "no such hit")
    for name in ("red.png", "green.png", "film.mp4"):
        answer = client.get(f"/v1/media/{old[name]}")
        assert answer.content == (place / "kept" / name).read_bytes(), name


def replaced(path: Path) -> None:
    new = path.with_name("new")
    Image.new("RGB", (90, 70), (1, 2, 3)).save(new, "JPEG")
    os.replace(new, path)


def linked(path: Path) -> None:
    (secret := path.parent / "secret.txt").write_text("a secret")
    path.unlink()
    path.symlink_to(secret)


def rewritten(path: Path) -> None:
    """Other bytes of the same number in the same file, whose time is set back."""
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def test_an_index_without_rows_is_not_ready(place: Path) -> None:
    client = serving(place)
    assert client.get("/readyz").status_code == 200
    assert index(place, "remove", *map(str, sorted((place / "media").resolve().iterdir()))) == 0
    answers = [client.get("/readyz"), client.get("/v1/search?q=red")]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[1].json()["error"] == "the index has no rows"


@pytest.mark.in_turn
@pytest.mark.parametrize("change", [replaced, linked, rewritten])
@pytest.mark.parametrize("name", ["film.mp4", "red.png"])
def test_a_file_that_changed_is_not_shown(place: Path, name: str, change: Any) -> None:
    client = serving(place)
    hit, path = ids(client)[name], (place / "media" / name).resolve()
    assert {a.status_code for a in shown(client, hit).values()} == {200}
    change(path)
    assert_refused(client, hit, CHANGED)
    path.unlink()
    shutil.copy2(place / "kept" / name, path)
    answer = client.get(f"/v1/media/{hit}", headers={"range": "bytes=1-4"})
    assert (answer.status_code, answer.content) == (206, (place / "kept" / name).read_bytes()[1:5])


@pytest.mark.parametrize("kind", ["gone", "a FIFO"])
def test_a_file_that_is_gone_is_not_shown(place: Path, kind: str) -> None:
    client = serving(place)
    hit, path = ids(client)["red.png"], place / "media" / "red.png"
    path.unlink()
    if kind == "a FIFO":
        os.mkfifo(path)
    assert_refused(client, hit, "the file of this hit")


@pytest.mark.slow
def test_a_file_swapped_all_the_time_is_never_shown_with_another_content(place: Path) -> None:
    client = serving(place)
    hit, path = ids(client)["red.png"], (place / "media" / "red.png").resolve()
    good, done = (place / "kept" / "red.png").read_bytes(), threading.Event()
    other = place / "other.png"
    Image.new("RGB", (90, 70), (9, 9, 9)).save(other)

    def swap() -> None:
        while not done.is_set():
            for target in (other, place / "kept" / "red.png"):
                (place / "next").symlink_to(target)
                os.replace(place / "next", path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        answers = [client.get(f"/v1/media/{hit}") for _ in range(150)]
    finally:
        done.set()
        thread.join()
    assert {a.content == good for a in answers if a.status_code == 200} == {True}
    assert {a.status_code for a in answers} <= {200, 404}


def test_ranges_of_large_files_read_no_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serving(place)
    hit = ids(client)["film.mp4"]
    requests = {"range": "bytes=0-3"}
    assert client.get(f"/v1/media/{hit}", headers=requests).status_code == 206
    monkeypatch.setattr("artifacts.records.keys.hash_file", pytest.fail)
    assert client.get(f"/v1/media/{hit}", headers=requests).status_code == 206


def test_what_is_no_range_of_bytes_is_ignored(place: Path) -> None:
    client = serving(place)
    hit = ids(client)["film.mp4"]
    whole = client.get(f"/v1/media/{hit}").content
    for given in ("bytes=x", "bytes=9-1", "bytes=", "bytes", "items=0-3", ""):
        answer = client.get(f"/v1/media/{hit}", headers={"range": given})
        assert (answer.status_code, answer.content == whole) == (200, True), given
    behind = client.get(f"/v1/media/{hit}", headers={"range": f"bytes={len(whole)}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{len(whole)}")


def test_words_that_the_model_does_not_read_are_named(place: Path) -> None:
    client, long = serving(place), "a colour " * 5
    assert "warnings" not in client.get("/v1/search?q=colour").json()
    for params in ({"q": long}, {"q": "colour", "not": long}):
        (warning,) = client.get("/v1/search", params=params).json()["warnings"]
        assert "longer than the model reads" in warning and "a colour" in warning


def test_an_empty_condition_is_refused(place: Path) -> None:
    client = serving(place)
    for where in ("", "%20"):
        answer = client.get(f"/v1/search?q=colour&where={where}")
        assert answer.status_code == 422, f"where={where!r} found {answer.text[:200]}"
        assert "where" in answer.json()["error"]
    answer = client.get("/v1/search?q=colour&where=colour%20=%201")
    assert answer.status_code == 422 and "where" in answer.text and "--where" not in answer.text
    assert client.get("/v1/search?q=colour&where=media_path%20like%20'%25'").status_code == 200


def readiness(client: TestClient) -> tuple[int, str]:
    answer = client.get("/readyz")
    return answer.status_code, answer.json()["why"]


def damaged(folder: Path, sort: str, how: str) -> Path:
    """Change a file of an index in place, its size or its bytes."""
    (path,) = folder.glob(f"{sort}-*")
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
        return path
    time.sleep(0.01)  # the clock of a file system is coarse
    with open(path, "r+b") as file:
        file.write(b"\xff" * (path.stat().st_size - 4096 if sort == "rows" else 4096))
    return path


@pytest.mark.parametrize("sort", ["embeddings", "rows", "identities"])
def test_a_server_whose_index_was_cut_is_not_ready_until_whole(place: Path, sort: str) -> None:
    shutil.copytree(place / "index", place / "whole")
    client = serving(place)
    assert ids(client) and readiness(client) == (200, "")
    path = damaged(place / "index", sort, "cut")
    for _ in range(2):
        status, why = readiness(client)
        assert (status, path.name in why) == (503, True), (status, why)
        assert str(place) not in why, "it needs no token"
        assert client.get("/v1/search?q=colour").status_code == 503
    with open(path, "r+b") as file:
        file.write((place / "whole" / path.name).read_bytes())
    assert readiness(client) == (200, "")


def test_a_server_is_not_ready_while_its_searches_fail(place: Path) -> None:
    shutil.copytree(place / "index", place / "whole")
    client = serving(place)
    damaged(place / "index", "embeddings", "overwritten")  # no number is finite
    assert client.get("/v1/search?q=colour").status_code == 503
    status, why = readiness(client)
    assert (status, "embeddings-" in why) == (503, True), (status, why)
    shutil.rmtree(place / "index")
    assert readiness(client)[0] == 503
    (place / "whole").rename(place / "index")
    assert readiness(client) == (200, "") and ids(client)


@pytest.fixture
def run(place: Path) -> Path:
    """A run over the media of the index, and over a file that is not in it."""
    media = (place / "media").resolve()
    files = {"red.png": "a poppy", "film.mp4": "a curtain opens", "other.png": "a poppy, too"}
    rows = [{"media_path": name, "source": "media"} for name in files]
    kinds = ("image", "video", "image")
    lines = [
        {**row, "kind": kind, "url": (media / row["media_path"]).as_uri(), "captions": 1}
        for row, kind in zip(rows, kinds, strict=True)
    ]
    write_lines(place / "run" / "media.jsonl", lines)
    write_lines(
        place / "run" / "captions.jsonl",
        (
            {**row, "start": 0.0, "end": 3.0 * (row["media_path"] == "film.mp4"), "caption": text}
            for row, text in zip(rows, files.values(), strict=True)
        ),
    )
    return place / "run"


def captions(client: TestClient, query: str) -> list[tuple[str, str]]:
    hits = client.get(f"/v1/search?{query}").json()["hits"]
    return [(hit["media_path"], hit["caption"]) for hit in hits]


def test_words_of_captions_are_searched(place: Path, run: Path) -> None:
    client = serving(place, run)
    assert captions(client, "q=curtain&in=captions") == [("film.mp4", "a curtain opens")]
    poppies = [("red.png", "a poppy"), ("other.png", "a poppy, too")]
    assert captions(client, "q=poppy&in=captions") == poppies
    assert captions(client, "q=poppy&not=too&in=captions") == poppies[:1]
    where = quote("media_path = 'other.png'")
    assert captions(client, f"q=poppy&in=captions&where={where}") == poppies[1:]
    (hit,) = client.get("/v1/search?q=curtain&in=captions").json()["hits"]
    assert (hit["kind"], hit["time"], hit["caption_time"]) == ("video", [0.0, 3.0], [0.0, 3.0])
    assert client.get(f"/v1/thumbnail/{hit['id']}").status_code == 200
    hits = client.get("/v1/search?q=poppy&in=captions").json()["hits"]
    assert hits[0]["id"] == ids(client)["red.png"] and hits[1]["id"] is None


def test_words_and_vectors_are_searched_together_by_default(place: Path, run: Path) -> None:
    client = serving(place, run)
    both = captions(client, "q=poppy")
    assert dict(both) == dict(captions(client, "q=poppy&in=both"))
    assert {"red.png", "other.png", "green.png", "film.mp4"} <= dict(both).keys()
    assert captions(client, "q=poppy&top=1") == [("red.png", "a poppy")]
    assert "other.png" not in dict(captions(client, "q=poppy&in=vectors"))
    assert dict(captions(client, "q=poppy&in=vectors"))["film.mp4"] == "a curtain opens"
    write_lines(run / "captions.jsonl", [])
    assert "other.png" not in dict(captions(client, "q=poppy"))


def test_searches_in_captions_that_are_not_there_are_refused(place: Path, run: Path) -> None:
    answer = serving(place).get("/v1/search?q=poppy&in=captions")
    assert (answer.status_code, answer.json()["error"]) == (404, "this server has no captions")
    for query, error in (("q=!!!&in=captions", "has no words"), ("q=a&in=texts", "in")):
        answer = serving(place, run).get(f"/v1/search?{query}")
        assert (answer.status_code, error in answer.json()["error"]) == (422, True)
    assert serving(place, run).get("/v1/search?q=!!!").status_code == 200


def test_a_server_whose_run_is_away_is_not_ready_until_it_is_back(place: Path, run: Path) -> None:
    client, before = serving(place, run), {"q": "poppy", "in": "captions"}
    assert client.get("/v1/search", params=before).json()["hits"]
    run.rename(place / "away")
    answer = client.get("/v1/search", params=before)
    assert answer.status_code == 503 and "run are gone" in answer.json()["error"]
    assert readiness(client)[0] == 503
    (place / "away").rename(run)
    assert readiness(client)[0] == 200
    assert client.get("/v1/search", params=before).json()["hits"]
