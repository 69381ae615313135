"""Which tasks, batches and waves the store leaves to do; a model of the hub is planned without its
weights, and each half's are fetched when it has work to do."""

import io
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record
from artifacts.records.store import FolderStore
from artifacts.schema import ChunkIndex, MediaIndex, MediaKind
from flows.core.console.display import READING, Display
from flows.core.ledger.ledger import Ledger, stages_with_work
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.tasks import Medium, Task, task_of
from flows.core.ledger.waves import cut_waves, lengths_of, waves_of
from flows.core.pipelines import CAPTION, EMBED, SUMMARY, parts_of, with_extras
from flows.execution.batches import batches_by_length, batches_by_shape
from flows.interfaces.cli.main import main
from stages.models import describe, load_half
from stages.models.hub import transfer
from stages.models.hub.fetch import fetch
from stages.models.hub.resolve import find_model
from stages.models.protocols import module_of
from tests.support.commands import completed
from tests.support.hub import COMMIT, Hub, client, serve, use_cache
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.refusals import one_line
from tests.support.sharded import repository, sharded

NAMESPACES = Variant(
    of={"frames": "f" * 64, "features": "e" * 64, "captions": "c" * 64},
    prompted=frozenset(["captions"]),
)


def medium(name: str, kind: MediaKind = "video", prompt: str = "Describe.") -> Medium:
    return Medium(digest=name, path=f"/{name}.mp4", kind=kind, prompt=prompt)


def index(frame_counts: list[int]) -> MediaIndex:
    chunks = tuple(
        ChunkIndex(
            index=i,
            start=30.0 * i,
            end=30.0 * (i + 1),
            times=tuple(30.0 * i + t for t in range(count)),
            height=48,
            width=64,
        )
        for i, count in enumerate(frame_counts)
    )
    return MediaIndex(kind="video", height=480, width=640, duration=60.0, chunks=chunks)


def ledger(tmp_path: Path, **found: list[int]) -> Ledger:
    made = Ledger(FolderStore(tmp_path), CAPTION, NAMESPACES)
    for name, counts in found.items():
        made.records.media.publish([Record(key=name, meta=index(counts).to_json())])
    return made


def test_only_chunks_with_neither_frames_features_nor_caption_are_cut(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8, 8, 8, 8])
    assert book.frames_to_cut(medium("unknown")) is None, "all of them"
    book.records.failures.publish([Record(key="failed", meta={"kind": "no-video"})])
    assert book.frames_to_cut(medium("failed")) == []
    assert book.failure(medium("failed")) == {"kind": "no-video"}
    tasks = book.tasks([medium("a")])
    book["frames"].publish([Record(key=tasks[0]["frames"])])
    book["features"].publish([Record(key=tasks[1]["features"])])
    book["captions"].publish([Record(key=tasks[2]["captions"])])
    assert book.frames_to_cut(medium("a")) == [3]
    book.forget_failures([medium("failed")])
    assert book.failure(medium("failed")) is None
    assert book.frames_to_cut(medium("failed")) is None, "all of them"


def test_a_new_prompt_changes_keys_of_features_that_see_it(tmp_path: Path) -> None:
    seeing = replace(NAMESPACES, prompted=frozenset(["features", "captions"]))
    book = Ledger(FolderStore(tmp_path), CAPTION, seeing)
    book.records.media.publish([Record(key="a", meta=index([8]).to_json())])
    (one,), (other,) = book.tasks([medium("a")]), book.tasks([medium("a", prompt="Who?")])
    assert one["frames"] == other["frames"]
    assert one["features"] != other["features"] and one["captions"] != other["captions"]
    book["features"].publish([Record(key=one["features"])])
    assert book.frames_to_cut(medium("a")) == []
    assert book.frames_to_cut(medium("a", prompt="Who?")) == [0]


def test_waves_stay_below_the_limit_and_hold_at_least_one() -> None:
    assert cut_waves([3, 3, 3, 10, 1], 7) == [2, 1, 1, 1]
    assert cut_waves([], 7) == []
    assert cut_waves([0, 0, 7, 0], 7) == [4]


def test_recorded_waves_are_used_unless_bytes_are_free_and_the_room_another(tmp_path: Path) -> None:
    media = [medium(name) for name in "abcdef"]
    first, second = ledger(tmp_path), ledger(tmp_path)
    assert waves_of(first, media, [6], as_recorded=True, records=False) == [media]
    cut = waves_of(first, media, [2, 2, 2], as_recorded=True)
    assert [len(wave) for wave in cut] == [2, 2, 2]
    for book in (second, first, ledger(tmp_path)):  # the second was opened before, and is later
        assert waves_of(book, media, [6], as_recorded=True) == cut
        assert waves_of(book, media, [3, 3], as_recorded=False) == cut
        assert waves_of(book, media, [1] * 6, as_recorded=False) == cut
        assert waves_of(book, media, [6], as_recorded=False) == [media]


def shapes(batches: list[list[Task]]) -> list[list[int]]:
    return [[len(task.chunk.times) for task in batch] for batch in batches]


def test_encode_batches_hold_one_shape_and_few_frames(tmp_path: Path) -> None:
    tasks = ledger(tmp_path, a=[8, 8, 3], b=[8, 8, 3]).tasks([medium("a"), medium("b")])
    for some, size, frames, expected in (
        (tasks, 3, 64, [[8, 8, 8], [8], [3, 3]]),
        (tasks, 8, 16, [[8, 8], [8, 8], [3, 3]]),
        (tasks[:1], 8, 1, [[8]]),
    ):
        assert shapes(batches_by_shape(some, "features", size, frames)) == expected


def encoded(book: Ledger, tasks: list[Task], tokens: list[int]) -> None:
    """Features of so many tokens for each task, each in a pack of its own."""
    for task, count in zip(tasks, tokens, strict=True):
        book["features"].publish([Record(key=task["features"], meta={"tokens": count})])


def cut_for_decoding(book: Ledger, tasks: list[Task], batch_size: int) -> list[list[Task]]:
    return batches_by_length(tasks, "captions", lengths_of(book, tasks, CAPTION[-1]), batch_size)


def test_decode_batches_keep_kinds_apart_and_the_longest_first(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[2, 8], b=[2, 8])
    tasks = book.tasks([medium("a"), medium("b", kind="image")])
    batches = cut_for_decoding(book, tasks, batch_size=4)
    assert shapes(batches) == [[8, 2], [8, 2]]
    assert [{t.medium.kind for t in batch} for batch in batches] == [{"image"}, {"video"}]


def test_decode_batches_go_by_tokens_and_not_by_frames(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8, 2, 8, 2, 8])
    tasks = book.tasks([medium("a")])
    counts = [30, 900, 31, 901, 400]
    encoded(book, tasks, counts)
    batches = cut_for_decoding(book, tasks, batch_size=2)
    tokens = {task["captions"]: count for task, count in zip(tasks, counts, strict=True)}
    assert [[tokens[t["captions"]] for t in b] for b in batches] == [[901, 900], [400, 31], [30]]
    assert sorted(t["captions"] for batch in batches for t in batch) == sorted(tokens)


def test_a_long_prompt_counts_in_a_chunk_s_length(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8], b=[8])
    tasks = book.tasks([medium("a"), medium("b", prompt="Say all of it. " * 40)])
    encoded(book, tasks, [64, 60])
    assert [t.medium.digest for b in cut_for_decoding(book, tasks, 1) for t in b] == ["b", "a"]


def test_what_is_done_or_gone_changes_no_decode_batch(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8] * 6)
    tasks = book.tasks([medium("a")])
    encoded(book, tasks, [10, 60, 20, 50, 30, 40])
    first = cut_for_decoding(book, tasks, batch_size=2)
    book["captions"].publish([Record(key=tasks[1]["captions"])])
    book["features"].drop([tasks[1]["features"], tasks[2]["features"]])
    resumed = ledger(tmp_path)
    again = resumed.tasks([medium("a")])
    assert resumed["features"].keys() < {t["features"] for t in again}
    assert cut_for_decoding(resumed, again, batch_size=2) == first


def test_files_of_one_content_are_one_item_and_another_prompt_a_caption(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8])
    for prompt, captions in (("Describe.", [[8]]), ("Who?", [[8, 8]])):
        one, other = tasks = book.tasks([medium("a"), medium("a", prompt=prompt)])
        assert (one["frames"], one["features"]) == (other["frames"], other["features"])
        assert shapes(batches_by_shape(tasks, "features", 8, 64)) == [[8]]
        assert shapes(cut_for_decoding(book, tasks, 8)) == captions


def test_only_rounding_may_differ_between_the_variants_that_answer(tmp_path: Path) -> None:
    own = replace(NAMESPACES, engine="inflight", limit=128, precision={"vision": "bf16"})
    plain = replace(own, engine="transformers")
    others = [replace(own, in_batches=False), replace(plain, in_batches=False), plain]
    changes: list[dict[str, Any]] = [
        *({"precision": {"vision": "nf4"}}, {"limit": 64}, {"tiles": "auto", "in_batches": False}),
        *({"frames_per_video": 8}, {"sends_video": True}, {"prompted": frozenset()}),
    ]
    different = [replace(own, **change) for change in changes]
    made = Ledger(FolderStore(tmp_path), CAPTION, own, *different, *others)
    assert made.variants.answering(made.variant) == [own, others[2], *others[:2]]


def test_the_crops_of_a_wide_image_lie_beside_one_another(tmp_path: Path) -> None:
    own = replace(NAMESPACES, tiles="auto", fit_image=FrameFit(long_edges=((1.0, 100),)))
    chunk = ChunkIndex(index=0, start=0.0, end=0.0, times=(0.0,), height=400, width=800)
    whole, *crops = task_of(medium("a", "image"), chunk, own).boxes
    assert (whole.right - whole.left, whole.bottom - whole.top) == (800, 400)
    assert crops and max(box.right for box in crops) == 800
    assert max(box.bottom for box in crops) == 400


def test_only_pipelines_of_captions_get_summaries() -> None:
    assert with_extras((EMBED, CAPTION), summary=True) == (EMBED, SUMMARY)
    assert with_extras((EMBED, CAPTION), summary=False) == (EMBED, CAPTION)


MODEL = "owner/name"
CLIP = ROOT / "penstock_demo" / "samples" / "clip-01.mp4"


def run(hub: Hub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`penstock` as a user runs it, with that hub and a home of its own."""
    environment = {name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), **more}
    environment |= {"NO_PROXY": "127.0.0.1,localhost", "PENSTOCK_STORE": str(home / "store")}
    return completed([*PENSTOCK, *arguments, "--model", MODEL], env=environment, timeout=200)


def halves(folder: Path) -> dict[str, set[str]]:
    """Half -> the files that hold it, read off the names of the tensors."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, set[str]] = {"vision": set(), "language": set()}
    for name, file in index.items():
        found["language" if ("language_model" in name or "lm_head" in name) else "vision"].add(file)
    return found


def size(files: set[str]) -> int:
    return sum((sharded() / name).stat().st_size for name in files)


def expected_of(book: Ledger, media: list[Medium]) -> list[str]:
    return [*parts_of(stages_with_work(book, media))]


def test_a_half_is_wanted_when_the_store_lacks_what_it_makes(tmp_path: Path) -> None:
    one = medium("a")
    assert expected_of(ledger(tmp_path / "new"), [one]) == ["vision", "language"]
    book = ledger(tmp_path, a=[8, 8])
    first, second = book.tasks([one])
    assert expected_of(book, [one]) == ["vision", "language"]
    book["captions"].publish([Record(key=first["captions"])])
    book["features"].publish([Record(key=second["features"])])
    assert expected_of(book, [one]) == ["language"]
    book["captions"].publish([Record(key=second["captions"])])
    assert expected_of(book, [one]) == []


def test_what_the_model_refuses_or_nothing_can_read_wants_no_half(tmp_path: Path) -> None:
    book = ledger(tmp_path, a=[8])
    book.records.refused["encode"].publish([Record(key=book.tasks([medium("a")])[0]["features"])])
    book.records.failures.publish([Record(key="b", meta={"kind": "no-video"})])
    assert expected_of(book, [medium("a"), medium("b")]) == []


@pytest.mark.slow
def test_a_vision_half_costs_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path / "hub", monkeypatch)
    held = halves(sharded())
    with serve({MODEL: repository(sharded())}) as hub, client(monkeypatch) as connect:
        connect(hub.url)
        monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
        hub.trouble.statuses += [503, 429]
        profile = describe(MODEL)
        assert set(profile.vision.shards) == held["vision"]
        found = find_model(MODEL)
        fetch(found, profile.vision.shards)
        assert hub.weights_sent() <= 1.05 * size(held["vision"])
        assert {file.name for file in found.missing()} == held["language"] - held["vision"]
        hub.forget()
        here = module_of(load_half(found.folder, "vision")).state_dict()
        assert hub.asked == []
        load_half(found.folder, "language")  # its weights are not all here yet
        assert hub.weights_sent() == size(held["language"] - held["vision"])
    whole = module_of(load_half(sharded(), "vision")).state_dict()
    assert here.keys() == whole.keys()
    assert all(torch.equal(here[name], whole[name]) for name in whole)


def test_fine_tuning_of_a_model_of_the_hub_is_told_from_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_cache(tmp_path / "hub", monkeypatch)
    with serve({MODEL: repository(sharded())}) as hub, client(monkeypatch) as connect:
        connect(hub.url)
        assert main(["plan", "--model", MODEL, "--train", "lora", "--json"]) == 0
        assert hub.weights_sent() <= 5 * 100_001
    printed = json.loads(capsys.readouterr().out)
    profile = describe(sharded())
    assert printed["frozen_parameters"] == profile.vision.parameters + profile.language.parameters


def test_a_download_moves_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.TerminalLine.download_seconds", 0.0)
    for terminal in (True, False):
        to = io.StringIO()
        monkeypatch.setattr(to, "isatty", lambda shown=terminal: shown)
        display = Display(to=to)
        for here in range(11):
            display.fetched(here * 1_000_000, 10_000_000)
        last = to.getvalue().rsplit("\x1b[2K", 1)[-1]
        assert last.startswith("downloaded 10.0 MB in ") and last.endswith("\n")
        assert ("MB  " in to.getvalue()) == terminal


@pytest.mark.slow
def test_a_run_fetches_each_half_when_it_has_work(tmp_path: Path) -> None:
    held, out = halves(sharded()), str(tmp_path / "out")
    assert held["vision"] - held["language"] and held["language"] - held["vision"]
    request = (str(CLIP), "--revision", "v1", "--max-new-tokens", "4")
    caption = ("caption", *request, "--out", out)
    with serve({MODEL: repository(sharded(), tags=("v1",))}) as hub:
        planned = run(hub, tmp_path, "plan", *request, "--json")
        assert planned.returncode == 0, planned.stderr
        assert json.loads(planned.stdout)["fetch_bytes"] == size(held["vision"] | held["language"])
        assert hub.weights_sent() <= 5 * 100_001, "a plan reads headers alone"
        assert not Path(out).exists() and not (ROOT / "penstock-out").exists()
        hub.forget()

        first = run(hub, tmp_path, *caption)
        assert first.returncode == 0, first.stderr
        assert hub.weights_sent() == size(held["vision"] | held["language"])
        cache = tmp_path / "hf" / "hub"
        whole = size(held["vision"] | held["language"]) / 1e6
        announced = f"downloading {MODEL}, {whole:.1f} MB, into {cache} (once)"
        assert next(line for line in first.stderr.splitlines() if line != READING) == announced
        assert {line["model"] for line in read_lines(Path(out, "captions.jsonl"))} == {MODEL}
        assert json.loads(Path(out, "run.json").read_text())["plan"]["commit"] == COMMIT
        hub.forget()

        dropped = held["vision"] - held["language"]
        snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
        for name in dropped:
            (snapshot / name).resolve().unlink()
            (snapshot / name).unlink()
        again = run(hub, tmp_path, *caption, "--prompt", "Why?")
        assert again.returncode == 0, again.stderr
        assert hub.asked == []
        elsewhere = ("--fps", "3", "--out", str(tmp_path / "offline"))
        offline = run(hub, tmp_path, *caption, *elsewhere, HF_HUB_OFFLINE="1")
    assert offline.returncode == 5
    assert "HF_HUB_OFFLINE is set" in one_line(offline.stderr)
    assert next(iter(sorted(dropped))) in offline.stderr and "MB" in offline.stderr
