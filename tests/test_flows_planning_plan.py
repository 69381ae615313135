"""`penstock plan` says first whether a run fits, then where its memory goes; and what would fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import penstock_demo
from flows.cli.main import main
from flows.console.display import Display
from flows.planning.plan import Plan, plan_of
from flows.planning.plan_view import explain_lines, plan_lines
from flows.planning.rungs import Rung
from flows.planning.what_fits import BUDGETS_GIB, what_fits
from flows.running.run import caption
from tests.support.by_hand import GIB, budget, images, question
from tests.support.described import described
from tests.support.stand_ins import config_in
from tests.support.tight import Tight


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return described(tmp_path_factory.mktemp("plan") / "store")


def told(capsys: pytest.CaptureFixture[str], store: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of a plan for the demo."""
    code = main(["plan", "--model", "demo", "--store", str(store), *words])
    return code, capsys.readouterr().out


def test_a_model_alone_can_be_planned_and_once_described_starts_no_process(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.machine.launch.DirectLauncher.start", None)
    code, said = told(capsys, store)
    assert code == 0
    assert said.startswith("fits: ")
    assert "no SOURCES given: video chunks of up to 16 frames" in said
    rows = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    assert {"frames", "encode", "decode", "allowed"} <= rows


def test_a_few_mib_are_not_told_as_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, store, "--memory", "1MiB")[1]
    (row,) = [line.split() for line in said.splitlines() if line.startswith("  allowed")]
    assert row == ["allowed", "1.0", "MiB"]


def test_the_plan_for_programs_holds_all(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = str(penstock_demo.CLIPS)
    code, said = told(capsys, store, clips, "--json", "--memory", "2GiB")
    found: dict[str, Any] = json.loads(said)
    assert code == 0 and found["fits"] and found["refusal"] is None
    memory = found["memory"]
    assert (memory["budget_bytes"], memory["budget_given"]) == (2 * GIB, True)
    assert [stage["stage"] for stage in memory["stages"]] == ["frames", "encode", "decode"]
    for stage in memory["stages"]:
        terms = memory["arithmetic"][stage["stage"]]
        device = sum(term["bytes"] for term in terms if term["part"] != "host")
        assert stage["peak_bytes"] == device > 0
    assert set(found["what_fits"]["native"]) == {f"{gib}GiB" for gib in BUDGETS_GIB}
    assert {"gguf-q8_0", "gguf-q4_k_m", "gguf-q4_0"} < set(found["what_fits"])
    assert found["files"] > 0 and found["waves"] == 1
    assert not found["weights_read"]


def test_what_cannot_fit_names_what_would(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = told(capsys, store, "--memory", "4MB")
    assert code == 3
    verdict, instead, *_ = said.splitlines()
    assert verdict.startswith("does not fit: the ")
    assert instead.split()[:3] == ["instead", "Give", "--memory"]


def test_details_are_told_when_asked_for(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, short = told(capsys, store)
    _, long = told(capsys, store, "--what-fits", "--explain")
    assert "what fits" not in short and "numbers x 2 bytes" not in short
    assert "batch size by GiB of a GPU" in long
    assert "numbers x " in long


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


def by_hand(gib: float) -> Plan:
    from flows.planning.changes import cannot_fit
    from flows.planning.choose import choices

    asked = question()
    found = choices(asked, asked.rungs, budget(gib))
    refused = [choice for choice in found.values() if choice.refused]
    return Plan(
        request=asked,
        budget=budget(gib),
        choices=found,
        refusal=cannot_fit(asked, refused, budget(gib)) if refused else None,
        job=None,
        expected=(),
    )


def test_a_smaller_batch_is_told_with_what_it_costs() -> None:
    said = plan_lines(by_hand(16))
    assert said[0].endswith("decode with batch 4, fp16")
    (why,) = (line for line in said if "would take" in line)
    assert why.strip().startswith("decode: batch 8, fp16 would take 17.74")
    assert "smaller batches take somewhat longer" in why
    (largest,) = (line for line in said if line.startswith("largest "))
    assert largest.endswith("(planned for 14.16 GiB; docs/cards.md)")


def test_a_plan_starts_where_an_earlier_run_did(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    config = config_in(tmp_path, tmp_path, batch_size=2, memory=4 << 30)
    tight = Tight("raise", {"decode": lambda _: 1})
    assert plan_of(config, tight).choices["decode"].chosen.rung.batch == 2
    assert caption(config, Display(quiet=True), tight.launcher).captions == 2
    plan = plan_of(config, tight)
    found = plan.choices["decode"]
    assert (found.remembered, found.chosen.rung.batch) == (True, 1)
    (why,) = (line for line in plan_lines(plan) if "earlier run" in line)
    assert why.strip().startswith("decode: batch 2, fp32 did not fit in an earlier run")


def test_a_context_that_was_measured_is_planned_with() -> None:
    asked = replace(question(), context_bytes=300 << 20)
    found = asked.estimate(Rung(stage="encode", batch=1, precision="fp16"))
    assert found.context_bytes == 300 << 20
    assert [term.bytes for term in found.terms if term.part == "context"] == [300 << 20]


def test_the_arithmetic_adds_up_line_by_line() -> None:
    lines = list(explain_lines(by_hand(24)))
    decode = lines[lines.index("decode, batch 8, fp16") :]
    assert "weight       12.55 GiB  6,739 M numbers x 2 bytes (fp16)" in " ".join(decode)
    assert any("8 rows x (1,000 + 128 tokens) x 524,288 bytes" in line for line in decode)
