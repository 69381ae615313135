"""The lines and tables, read by what their users read them with."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts import tables
from artifacts.captions import Caption, write_jsonl
from artifacts.errors import EnvironmentFault
from artifacts.tables import COLUMNS, write_csv, write_parquet
from tests.support.rows import hard_rows


@pytest.fixture
def rows(tmp_path: Path) -> list[Caption]:
    made = hard_rows()
    write_jsonl(tmp_path / "captions.jsonl", made)
    write_csv(tmp_path / "captions.csv", made)
    write_parquet(tmp_path / "captions.parquet", made)
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "captions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def plain(value: Any) -> Any:
    """numpy's arrays and numbers as the lists and numbers that JSON has."""
    return value.tolist() if hasattr(value, "tolist") else value


def test_pandas_reads_from_csv_what_the_lines_say(rows: list[Caption], tmp_path: Path) -> None:
    import pandas

    found = pandas.read_csv(
        tmp_path / "captions.csv",
        keep_default_na=False,
        converters={name: json.loads for name in ("precision", "frames", "warnings")},
    )
    assert found.to_dict("records") == lines(tmp_path)
    types = [str(found[name].dtype) for name in ("start", "end", "tokens")]
    assert types == ["float64", "float64", "int64"]


def test_the_standard_library_reads_the_same_texts(rows: list[Caption], tmp_path: Path) -> None:
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["caption"] for row in found] == [row.caption for row in rows]
    names = "media_path source start end caption model prompt precision frames features tokens"
    assert [*found[0]] == [*lines(tmp_path)[0]] == [*names.split(), "ended", "warnings"]


def test_pandas_reads_from_parquet_what_the_lines_say(rows: list[Caption], tmp_path: Path) -> None:
    import pandas

    found = pandas.read_parquet(tmp_path / "captions.parquet").to_dict("records")
    assert [{k: plain(v) for k, v in row.items()} for row in found] == lines(tmp_path)


def test_parquet_has_the_same_types_whatever_is_in_it(rows: list[Caption], tmp_path: Path) -> None:
    from pyarrow import parquet

    empty = tmp_path / "empty.parquet"
    write_parquet(empty, [])
    full = parquet.read_table(tmp_path / "captions.parquet")
    assert full.to_pylist() == lines(tmp_path)
    schema = parquet.read_table(empty).schema
    assert schema == full.schema
    assert {field.name: str(field.type) for field in schema} == {
        **dict.fromkeys(COLUMNS, "string"),
        **dict.fromkeys(("start", "end"), "double"),
        "precision": "struct<vision: string, language: string>",
        "frames": "list<element: double>",
        "tokens": "int64",
        "warnings": "list<element: string>",
    }


def test_a_large_table_is_written_group_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    made = hard_rows()
    write_parquet(tmp_path / "captions.parquet", iter(made))
    file = parquet.ParquetFile(tmp_path / "captions.parquet")
    assert file.num_row_groups == -(-len(made) // 4)
    assert file.read().column("caption").to_pylist() == [row.caption for row in made]


def test_what_utf8_cannot_hold_is_written_alike(tmp_path: Path) -> None:
    from pyarrow import parquet

    odd = [replace(hard_rows()[0], prompt="a\udce9b")]
    write_jsonl(tmp_path / "captions.jsonl", odd)
    write_csv(tmp_path / "captions.csv", odd)
    write_parquet(tmp_path / "captions.parquet", odd)
    (line,) = lines(tmp_path)
    assert parquet.read_table(tmp_path / "captions.parquet").to_pylist() == [line]
    assert line["prompt"] == "a?b" and ",a?b," in (tmp_path / "captions.csv").read_text()


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_jsonl])
def test_a_failing_writer_leaves_the_old_table(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "captions"
    write(path, hard_rows())
    before = path.read_bytes()
    bad = replace(hard_rows()[0], warnings=(object(),))  # type: ignore[arg-type]
    with pytest.raises(Exception if write is write_parquet else TypeError, match="object"):
        write(path, [*hard_rows(), bad])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["captions"]


def test_an_output_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(EnvironmentFault, match="out"):
        write_jsonl(tmp_path / "out" / "captions.jsonl", [])
