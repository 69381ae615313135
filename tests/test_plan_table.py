"""The tables of docs/memory.md are those that the command prints."""

from pathlib import Path

from scripts.plan_table import PAGE, put, tables


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    page = Path(PAGE).read_text()
    for name, table in tables().items():
        assert put(page, name, table) == page, "run: python scripts/plan_table.py --write"
        assert len(table.splitlines()) > 10
