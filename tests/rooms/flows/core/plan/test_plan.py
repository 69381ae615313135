"""A stage is started on the first rung that fits, and where an earlier run held; what cannot fit is
refused, with what would; and `penstock plan` says so."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import penstock_demo
from artifacts.errors import UsageError
from artifacts.option_texts import parse_size
from artifacts.records.store import FolderStore
from flows.core.console.display import Display
from flows.core.console.lines import rounded_up, written
from flows.core.options.vectors import EmbedConfig
from flows.core.plan import ladder
from flows.core.plan.changes import cannot_fit, changes
from flows.core.plan.choose import Capacity, StagePlan, fits, refused, stage_plans
from flows.core.plan.costs.decode import decode_rungs
from flows.core.plan.costs.encode import encode_rungs
from flows.core.plan.ladder import Remembered, Rung, index_of, sizes
from flows.core.plan.plan import plan_of
from flows.core.plan.view import _rung_cost, plan_lines
from flows.core.plan.what_fits import BUDGETS_GIB, fitting_line, what_fits
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from tests.support.by_hand import GIB, budget, images, question
from tests.support.described import described
from tests.support.media import write_audio, write_video
from tests.support.stand_ins import config_in
from tests.support.tight import Tight

HALVING = {
    "frames": [Rung(stage="frames", batch=2)],
    "encode": [Rung(stage="encode", batch=b, precision="fp16") for b in (8, 4, 2, 1)],
    "decode": [Rung(stage="decode", batch=b, precision="fp16") for b in (8, 4, 2, 1)],
}


def decode(gib: float, **more: object) -> StagePlan:
    return stage_plans(question(**more), HALVING, budget(gib))["decode"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("gib", "batch"), [(24, 8), (16, 4), (14.5, 2), (13.9, 1)])
def test_the_first_rung_that_fits_is_taken(gib: float, batch: int) -> None:
    found = decode(gib)
    assert (found.chosen.rung.batch, found.fits, found.refused) == (batch, True, False)
    assert found.requested.rung.batch == 8
    assert found.chosen.peak_bytes <= budget(gib).bytes


def test_recorded_passes_are_counted_where_they_fit_and_take_no_rung() -> None:
    peaks = {}
    for gib in (24, 1.9):
        found = stage_plans(question(), HALVING, budget(gib))["encode"]
        assert (found.chosen.rung.batch, found.fits) == (8, True)
        counted = [term.bytes for term in found.chosen.terms if "recorded passes" in term.why]
        plain = question().estimate(found.chosen.rung).peak_bytes
        assert found.chosen.peak_bytes == plain + sum(counted)
        peaks[gib] = len(counted), sum(counted) > found.chosen.bytes_of("activation")
    assert peaks == {24: (1, True), 1.9: (0, False)}
    on_cpu = stage_plans(replace(question(), device="cpu"), HALVING, budget(24))["encode"].chosen
    assert not any("recorded" in term.why for term in on_cpu.terms)


def test_what_almost_fits_is_tried_and_what_cannot_fit_is_refused_with_what_would() -> None:
    almost = decode(13.4)
    assert (almost.chosen.rung.batch, almost.fits, almost.refused) == (1, False, False)
    assert cannot_fit(question(), [almost], budget(13.4)) is None
    found = decode(8)
    assert found.refused
    error = cannot_fit(question(), [found], budget(8))
    assert error is not None and error.exit_code == 3
    for text in ("the decode stage of llava needs at least 13.", "8.00 GiB of cuda:0 are allowed"):
        assert text in error.message
    for text in (
        *("--precision auto (decode takes 7.", "with batch 1, int8)", "--memory 13.25GiB"),
        "--language-precision int8 (decode takes 7.",
    ):
        assert text in error.hint


def test_memory_that_others_hold_is_named_and_not_offered() -> None:
    shared = replace(budget(8), given=False, others={"process 7 (python)": 15 << 30})
    error = cannot_fit(question(), [decode(8)], shared)
    assert error is not None
    assert error.message.endswith("are allowed: process 7 (python) has 15.00 GiB")
    assert error.hint.startswith("End what uses its memory. Give --precision auto")
    assert "--memory" not in error.hint


@pytest.mark.parametrize(("gib", "fitting"), [(20, True), (18.5, False)])
def test_two_halves_fit_together_if_the_sum_of_their_peaks_does(gib: float, fitting: bool) -> None:
    rungs = [HALVING[stage][0] for stage in ("encode", "decode")]
    peaks = {rung.stage: question().estimate(rung).peak_bytes for rung in rungs}
    assert all(fits(question().estimate(rung), budget(gib)) for rung in rungs)
    assert (sum(peaks.values()) <= budget(gib).bytes) == fitting
    shares = Capacity(request=question(), budget=budget(gib)).fit_together(rungs)
    assert bool(shares) == fitting, dict(shares)
    if fitting:
        assert all(shares[stage] >= peak for stage, peak in peaks.items())
        assert sum(shares.values()) <= budget(gib).bytes


@pytest.mark.slow
def test_each_change_that_is_named_fits() -> None:
    for gib in (3.5, 5, 8, 11):
        for change in changes(question(), decode(gib), budget(gib)):
            room = budget(gib)
            if change.option.startswith("--memory"):
                room = replace(room, bytes=parse_size(change.option.split()[1], "--memory"))
            assert fits(change.estimate, room)


def test_a_command_without_a_precision_for_each_half_is_named_its_own() -> None:
    request = replace(question(), config=EmbedConfig(sources=("clips",), model="llava"))
    named = [each.option for each in changes(request, decode(8), budget(8))]
    assert "--precision auto" in named
    assert not any(each.startswith(("--vision", "--language")) for each in named)
    assert request.config.precision_field("audio") is None


def test_fewer_frames_are_named_when_they_are_enough() -> None:
    clip = replace(images(tokens=40_000), kind="video", frames=64, text_tokens=100)
    request = question(clip)
    found = stage_plans(request, HALVING, budget(16))["decode"]
    assert found.refused
    (frames,) = (c for c in changes(request, found, budget(16)) if "frames" in c.option)
    count = int(frames.option.split()[1])
    assert 1 <= count < 64
    rung = found.chosen.rung
    twice = replace(request, workloads=(clip.with_frames(2 * count),)).estimate(rung)
    assert fits(frames.estimate, budget(16)) and not fits(twice, budget(16))


def test_one_chunk_that_is_too_large_does_not_keep_the_others_waiting() -> None:
    giant = images(tokens=60_000)
    found = stage_plans(replace(question(giant), smallest=images()), HALVING, budget(16))["decode"]
    assert (found.chosen.rung.batch, found.fits, found.refused) == (4, False, False)
    assert found.chosen.workload == giant
    alone = stage_plans(question(giant), HALVING, budget(16))["decode"]
    assert (alone.chosen.rung.batch, alone.refused) == (1, True)


def test_cutting_frames_is_never_refused() -> None:
    wide = replace(images(), kind="video", shown=(8000, 8000), stored=(8000, 8000))
    found = stage_plans(question(wide, device="cpu"), HALVING, budget(0.5, device="cpu"))["frames"]
    assert not found.fits and not found.refused


@pytest.mark.parametrize("precision", ["int8", "nf4", "auto"])
def test_no_precision_is_named_that_is_tried_anyway(precision: str) -> None:
    request = question(precision=precision)
    unfit = stage_plans(request, request.rungs, budget(24))["decode"]
    less = replace(budget(24), bytes=unfit.chosen.peak_bytes - 1)
    named = [change.option for change in changes(request, unfit, less)]
    tried = {rung.precision for rung in request.rungs["decode"]}
    assert not {f"--language-precision {each}" for each in tried} & set(named)


def test_a_host_that_is_too_small_is_no_fit() -> None:
    request, rung = question(), Rung(stage="decode", batch=1, precision="fp16", offload=True)
    found = request.estimate(rung)
    assert fits(found, budget(8, host=64)) and not fits(found, budget(8, host=8))


def test_nothing_is_refused_for_an_estimate_by_dimensions_that_its_weights_fit() -> None:
    request = question(images(tokens=60_000))
    profile = request.model.profile
    parts = {**profile.parts, "language": replace(profile.language, batch_costs=())}
    bare = replace(profile, parts=parts)
    request = replace(request, model=replace(request.model, profile=bare))
    found = stage_plans(request, HALVING, budget(16))["decode"]
    assert (found.fits, found.refused) == (False, False)


@pytest.mark.parametrize("needed", [1, 700_000, 38_700_000, 39 << 20, 450 << 20, 13 << 30, 1 << 40])
def test_a_limit_that_is_named_is_little_more_than_is_needed(needed: int) -> None:
    limit = parse_size(written(rounded_up(needed)), "--memory")
    assert needed <= limit <= max(needed * 9 / 8, 1 << 20) and limit - needed <= 1 << 28
    named = [written(rounded_up(needed)) for needed in (38_700_000, 450 << 20, 1 << 30, 13 << 30)]
    assert named == ["40MiB", "480MiB", "1GiB", "13GiB"]


def test_sizes_are_read_as_people_write_them_and_nothing_else_is() -> None:
    sizes = {"200GB": 200 * 10**9, "1.5TiB": 3 << 39, "800 mb": 8 * 10**8, "4194304": 1 << 22}
    sizes |= {"512M": 1 << 29, "8g": 8 << 30, "1T": 1 << 40, "0": 0, "8B": 8}
    assert {text: parse_size(text, "--max") for text in sizes} == sizes
    for text in ("", "GB", "-1GB", "1e3GB", "5 apples", "1.GB", "9" * 400):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(text, "--max")


def test_a_limit_that_is_named_for_a_cpu_leaves_room_for_libraries() -> None:
    small, own = question(), replace(budget(8), device="cpu")
    least = [min(small.estimate(r).peak_bytes for r in rungs) for rungs in small.rungs.values()]
    (named,) = (c for c in changes(small, decode(8), own) if c.option.startswith("--memory"))
    assert parse_size(named.option.split()[1], "--memory") >= max(least) + (64 << 20)


ABOUT = {"encode": ["card", "half"], "decode": ["card", "half"]}
FOUR = Rung(stage="decode", batch=4, precision="bf16")
ONE = Rung(stage="decode", batch=1, precision="int8")


def of(folder: Path, budget: float, *more: str) -> Remembered:
    about = {stage: [*of, *more] for stage, of in ABOUT.items()}
    return Remembered(FolderStore(folder), about, int(budget * GIB))


@pytest.mark.parametrize(
    ("budget", "found"), [(8, [FOUR]), (3, [FOUR]), (8.3, [FOUR]), (8.5, []), (80, [])]
)
def test_too_much_stays_so_for_no_more(tmp_path: Path, budget: float, found: list[Rung]) -> None:
    of(tmp_path, 8).keep(FOUR)
    assert of(tmp_path, budget).rungs("decode") == found
    assert of(tmp_path, budget).rungs("encode") == []


def test_what_is_learned_with_less_memory_is_of_that_alone(tmp_path: Path) -> None:
    of(tmp_path, 8).keep(FOUR)
    of(tmp_path, 2).keep(ONE)
    assert of(tmp_path, 8).rungs("decode") == [FOUR]
    assert set(of(tmp_path, 2).rungs("decode")) == {FOUR, ONE}
    of(tmp_path, 8).keep(ONE)
    assert of(tmp_path, 8).rungs("decode") == [ONE]


def test_after_a_while_or_for_another_half_or_card_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of(tmp_path, 8).keep(FOUR)
    assert of(tmp_path, 8, "another").rungs("decode") == []
    monkeypatch.setattr(ladder, "KEPT_SECONDS", -1.0)
    assert of(tmp_path, 8).rungs("decode") == []


@pytest.mark.parametrize(
    ("batch", "found"), [(8, FOUR), (4, FOUR), (2, Rung(stage="decode", batch=2, precision="bf16"))]
)
def test_a_rung_is_found_again_in_a_ladder_of_other_batches(batch: int, found: Rung) -> None:
    ladder = decode_rungs(batch, [("bf16", "")], kv_offload=False, offload=False)
    assert ladder[index_of(ladder, FOUR)] == found
    assert index_of(ladder, ONE) == 0


def test_sizes_divide_each_other_so_that_pieces_are_cut_at_the_same_places() -> None:
    assert [sizes(most) for most in (1, 6, 12)] == [[1], [6, 4, 2, 1], [12, 8, 4, 2, 1]]


def test_rungs_that_change_words_or_take_many_times_as_long_come_with_leave_alone() -> None:
    request = decode_rungs(8, [("bf16", "")], kv_offload=True, offload=False)
    plain = ("bf16", False, False)
    assert {(r.precision, r.kv == "quantized", r.offload) for r in request} == {plain}
    variants = [("bf16", ""), ("bf16", "quantized"), ("int8", ""), ("nf4", "")]
    free = decode_rungs(8, variants, kv_offload=True, offload=True)
    assert free[: len(request)] == request
    kinds = list(dict.fromkeys((r.precision, r.kv == "quantized", r.offload) for r in free))
    packed = [(kind, False, False) for kind in ("int8", "nf4")]
    assert kinds == [plain, ("bf16", True, False), *packed, ("bf16", False, True)]
    assert len(set(free)) == len(free)
    pixels = encode_rungs(2, ["bf16"], streamed=False, weights=False)
    assert [rung.batch for rung in pixels] == [2, 1]
    assert all(Rung(**asdict(rung)) == rung for rung in [*free, *pixels])


def test_a_tower_is_streamed_before_its_weights_are_changed() -> None:
    found = encode_rungs(32, ["bf16", "int8"], streamed=True)
    assert [r.precision for r in found] == sorted(r.precision for r in found)
    streamed = [(r.batch, r.block, r.prefill) for r in found if r.block]
    assert all(r.offload and r.precision == "bf16" for r in found if r.block)
    # Smaller blocks first, which change no bytes; never smaller than a batch.
    assert streamed[:4] == [(32, 256, 0), (32, 64, 0), (32, 32, 0), (16, 32, 0)]
    assert streamed[-4:] == [(1, 4, 0), (1, 1, 0), (1, 1, 1024), (1, 1, 256)]
    assert found[-1].precision == "int8" and len(set(found)) == len(found)
    assert all(Rung(**asdict(rung)) == rung for rung in found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return described(tmp_path_factory.mktemp("plan") / "store")


def message_of(capsys: pytest.CaptureFixture[str], store: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of a plan for the demo."""
    return main(["plan", "--model", "demo", "--store", str(store), *words]), capsys.readouterr().out


def test_a_model_alone_can_be_planned_and_once_described_starts_no_process(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.core.machine.launch.DirectLauncher.start", None)
    code, printed = message_of(capsys, store)
    assert code == 0
    assert printed.startswith("fits: ")
    assert "no SOURCES given: video chunks of up to 16 frames" in printed
    rows = {line.split()[0] for line in printed.splitlines() if line.startswith("  ")}
    assert {"frames", "encode", "decode", "allowed"} <= rows


@pytest.mark.slow
def test_the_plan_for_programs_holds_all(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = str(penstock_demo.CLIPS)
    code, printed = message_of(capsys, store, clips, "--json", "--memory", "2GiB")
    found: dict[str, Any] = json.loads(printed)
    assert code == 0 and found["fits"] and found["refusal"] is None
    memory = found["memory"]
    assert (memory["budget_bytes"], memory["budget_given"]) == (2 * GIB, True)
    assert [stage["stage"] for stage in memory["stages"]] == ["frames", "encode", "decode"]
    for stage in memory["stages"]:
        terms = memory["arithmetic"][stage["stage"]]
        device = sum(term["bytes"] for term in terms if term["part"] != "host")
        assert stage["peak_bytes"] == device > 0
    assert set(found["what_fits"]["native"]) == {f"{gib}GiB" for gib in BUDGETS_GIB}
    assert found["files"] > 0 and found["waves"] == 1
    assert not found["weights_read"]


def test_media_that_cannot_be_used_are_named_and_left_out_of_the_plan(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`write_video` writes the index of an MP4 behind its frames, so half of the file lacks it."""
    whole = write_video(tmp_path / "whole.mp4", ticks=range(30))
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.png").write_text("no image\n" * 9)
    sound = str(write_audio(tmp_path / "sound.m4a"))
    code, printed = message_of(capsys, store, str(whole), str(tmp_path), sound, "--json")
    found = json.loads(printed)
    assert (code, found["files"], found["unreadable"], found["chunks"]) == (0, 4, 3, 1)
    assert found["seconds_of_media"] == pytest.approx(1, abs=0.1)
    code, printed = message_of(capsys, store, str(tmp_path), sound)
    assert "media       1 file, 1.0 s, about 1 chunk" in printed
    names = "2 files cannot be opened: half.mp4, text.png; 1 file without video: sound.m4a"
    assert f"left out    {names}" in printed
    assert main(["plan", "--model", "demo", "--store", str(store), sound]) == 2
    reason = "nothing to caption: sound.m4a: the file holds no video (audio). Leave it out"
    assert reason in capsys.readouterr().err


def test_what_cannot_fit_names_what_would(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = message_of(capsys, store, "--memory", "4MB")
    assert code == 3
    verdict, instead, *_ = printed.splitlines()
    assert verdict.startswith("does not fit: the ")
    assert instead.split()[:3] == ["instead", "Give", "--memory"]


@pytest.mark.parametrize(
    ("stage", "recompute", "cost"),
    [
        ("frames", False, "fewer files at once"),
        ("tune", False, "smaller batches"),
        ("tune", True, "a second forward pass"),
    ],
)
def test_what_a_smaller_rung_costs_is_of_its_stage(stage: str, recompute: bool, cost: str) -> None:
    chosen = Rung(stage=stage, batch=1, recompute=recompute)
    assert cost in _rung_cost(Rung(stage=stage, batch=8), chosen)


def test_a_table_by_hand_of_a_model_of_7_billion() -> None:
    """A row takes (700 + 128) x 524,288 bytes of cache, 0.404 GiB, and hardly more; beside it are a
    context of 0.5 and 0.115 of workspace, and weights of 12.55 in 16 bit, 6.53 in int8 and 3.60 in
    nf4: so 8 GiB take 2 rows in int8 (7.95), and 6 take 4 in nf4 (5.83)."""
    table = what_fits(question(images(tokens=700)), "cuda:0")
    assert {name: [cell.text() for cell in cells] for name, cells in table.items()} == {
        "native": ["-", "-", "-", "-", "8/4", "8"],
        "int8": ["-", "-", "8/2", "8", "8", "8"],
        "nf4": ["-", "8/4", "8", "8", "8", "8"],
        "nf4, vision too": ["-", "8/4", "8", "8", "8", "8"],
        "auto": ["8/4*o", "8/4+", "8/2+", "8+", "8/4", "8"],
    }
    least = {"native": 16, "int8": 8, "nf4": 6, "nf4, vision too": 6, "auto": 4}
    assert fitting_line(table) == "; ".join(f"{n} fits from {gib} GiB" for n, gib in least.items())
    assert fitting_line({"auto": table["auto"]}) == "yes, all fit, from 4 GiB"
    assert fitting_line({"native": table["native"][:4]}) == "not even in 24 GiB: native"


def test_a_plan_starts_where_an_earlier_run_did(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    config = config_in(tmp_path, tmp_path, batch_size=2, memory=4 << 30)
    tight = Tight("raise", {"decode": lambda _: 1})
    assert plan_of(config, tight).stage_plans["decode"].chosen.rung.batch == 2
    assert caption(config, Display(quiet=True), tight.launcher).captions == 2
    plan = plan_of(config, tight)
    found = plan.stage_plans["decode"]
    assert (found.remembered, found.chosen.rung.batch) == (True, 1)
    (why,) = (line for line in plan_lines(plan) if "earlier run" in line)
    assert why.strip().startswith("decode: batch 2, fp32 did not fit in an earlier run")


def test_a_context_that_was_measured_is_planned_with() -> None:
    request = replace(question(), context_bytes=300 << 20)
    found = request.estimate(Rung(stage="encode", batch=1, precision="fp16"))
    assert found.bytes_of("context") == 300 << 20
    assert [term.bytes for term in found.terms if term.part == "context"] == [300 << 20]
    room = replace(budget(24), bytes=found.bytes_of("weight") + (299 << 20))
    assert refused(found, room), "the driver leaves too little"
    assert not refused(found, replace(room, bytes=found.peak_bytes))
    assert not refused(question().estimate(Rung(stage="encode", batch=1, precision="fp16")), room)
