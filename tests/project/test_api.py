"""docs/api.md lists what is public as the program has it now, and the changelog names the list."""

import re

import pytest

from flows.outputs.record.run_record import RunRecord
from flows.outputs.record.stage_record import StageRecord
from flows.outputs.run_status import StageStatus
from scripts.pages.api import HEAD, PAGE, ROOT, digest, fields, joined, named

WRITTEN = PAGE.read_text(encoding="utf-8")
AGAIN = "run `python -m scripts.pages.api`, and add a line to CHANGELOG.md with what it prints"


def test_names_commands_and_routes_are_those_of_the_page() -> None:
    assert WRITTEN.startswith(joined((HEAD, *named()))), AGAIN


def row(section: str, place: str) -> set[str]:
    """Return the fields that the page has at a place."""
    rows = WRITTEN.partition(f"\n### {section}\n")[2].partition("\n### ")[0]
    (found,) = re.findall(rf"^\| {re.escape(place)} \| (.*) \|$", rows, re.MULTILINE)
    return {*re.findall(r"`(.*?)`", found)}


def test_a_new_record_and_the_status_of_a_stage_have_fields_of_the_page() -> None:
    assert {*RunRecord.__dataclass_fields__} <= row("run.json", "")
    assert {*StageRecord.__dataclass_fields__} == row("run.json", "`stages[]`")
    status = {*StageStatus.__dataclass_fields__, *StageRecord.__dataclass_fields__}
    assert status == row("penstock status --json", "`stages[]`")


@pytest.mark.slow
def test_fields_of_files_and_of_json_are_those_of_the_page() -> None:
    written = WRITTEN[len(joined((HEAD, *named()))) :]
    assert written == "\n" + joined(fields()), AGAIN


def test_the_changelog_names_the_list_of_the_page() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"public list `{digest(WRITTEN)}`" in changelog, AGAIN


def test_a_list_with_another_name_needs_another_line() -> None:
    changed = WRITTEN.replace("max_new_tokens: int", "max_new_tokens: int | None", 1)
    assert digest(changed) != digest(WRITTEN)
    assert digest("# Other words\n" + WRITTEN.partition("\n")[2]) == digest(WRITTEN)
