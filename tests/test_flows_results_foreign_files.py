"""A command that adds to a folder replaces no file there that no run wrote."""

import shutil
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from flows.options.commands import CaptionConfig
from flows.options.vectors import LabelConfig
from flows.pipelines import EMBED, LABEL, Pipeline
from flows.results.foreign_files import (
    refuse_replacing,
    refuse_replacing_found,
    refuse_replacing_page,
)
from flows.results.run_record import RunRecord
from flows.search.page import page_of

BEFORE = Path(__file__).parent / "data" / "before" / "first"
FORMATS = ("jsonl", "txt", "csv", "parquet", "webdataset", "musubi")
NAMES: list[tuple[Pipeline | None, str]] = [
    *((None, name) for name in ("run.json", "captions.jsonl", "media.jsonl", "failures.jsonl")),
    *((None, name) for name in ("summaries.jsonl", "captions.csv", "captions.parquet")),
    *((None, name) for name in ("webdataset/index.json", "webdataset/000007.tar")),
    (None, "clips/index.json"),
    *((LABEL, name) for name in ("run.json", "labels.jsonl", "label_report.json", "media.jsonl")),
    *((LABEL, name) for name in ("label_spans.jsonl", "labels.csv", "labels.parquet")),
    (LABEL, "labels.coco.json"),
    *((EMBED, name) for name in ("embeddings.npy", "embeddings.parquet", "failures.jsonl")),
]


def refused(folder: Path, pipeline: Pipeline | None = None) -> None:
    if pipeline is None:
        captions = CaptionConfig(sources=("x",), format=FORMATS, summary=True)
        return refuse_replacing(folder, captions)
    forms = ("jsonl", "csv", "parquet", "coco")
    labels = LabelConfig(sources=("x",), model="m", labels="a", format=forms)
    return refuse_replacing(folder, labels, pipeline)


def record(folder: Path, **outputs: str) -> None:
    made = RunRecord(folder)
    made.value["outputs"] = {name: str(folder / file) for name, file in outputs.items()}
    made.write(force=True)


@pytest.mark.parametrize(("pipeline", "name"), NAMES)
def test_a_file_that_no_run_wrote_is_refused_also_beside_those_that_runs_wrote(
    tmp_path: Path, pipeline: Pipeline | None, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": 1}\n')
    for _ in range(2):
        with pytest.raises(UsageError, match="exists, and penstock did not write it"):
            refused(tmp_path, pipeline)
        if name != "run.json":
            record(tmp_path, captions="captions.jsonl")
    assert (tmp_path / name).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("name", ["captions.jsonl", "labels.csv", "embeddings.npy", "mine.json"])
def test_what_this_run_does_not_write_may_lie_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(tmp_path, LABEL if name == "captions.jsonl" else None)


def test_outputs_of_an_earlier_version_are_known_without_their_record(tmp_path: Path) -> None:
    for path in BEFORE.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    refused(tmp_path)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "\0\0"])
def test_a_record_that_no_program_can_read_is_written_anew(tmp_path: Path, content: str) -> None:
    shutil.copyfile(BEFORE / "captions.jsonl", tmp_path / "captions.jsonl")
    (tmp_path / "run.json").write_text(content)
    refused(tmp_path)
    if content:
        (tmp_path / "captions.jsonl").unlink()
        with pytest.raises(UsageError, match=r"run\.json exists"):
            refused(tmp_path)


def test_vectors_are_a_run_s_where_its_record_or_its_table_is_beside_them(tmp_path: Path) -> None:
    (tmp_path / "embeddings.npy").write_bytes(b"\x93NUMPY")
    record(tmp_path, captions="captions.jsonl")
    with pytest.raises(UsageError, match=r"embeddings\.npy"):
        refused(tmp_path, EMBED)
    record(tmp_path, embeddings="embeddings.npy")
    refused(tmp_path, EMBED)


@pytest.mark.parametrize("content", ["Caption,File\na,b\n", "media_path\n", "\xff\n", '"' * 9000])
def test_a_table_with_other_columns_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"captions\.csv"):
        refused(tmp_path)


def test_a_folder_in_the_place_of_an_output_is_named_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").mkdir()
    with pytest.raises(EnvironmentFault, match="it is a folder"):
        refused(tmp_path)


@pytest.mark.parametrize("to", ["a file", "nowhere", "itself"])
def test_a_link_of_a_person_s_is_not_replaced(tmp_path: Path, to: str) -> None:
    if to == "a file":
        (tmp_path / "other").write_text("mine")
    elif to == "itself":
        (tmp_path / "other").symlink_to(tmp_path / "other")
    (tmp_path / "captions.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match=r"captions\.jsonl"):
        refused(tmp_path)


def test_a_report_takes_the_place_of_a_report_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    refuse_replacing_page(page)
    page.touch()
    refuse_replacing_page(page)
    page.write_text("<!doctype html>\n<title>Penstock report</title>\n")
    refuse_replacing_page(page)
    page.write_text("<!doctype html>\n<title>My page</title>\n")
    with pytest.raises(UsageError, match="--to"):
        refuse_replacing_page(page)


def test_a_search_s_page_takes_the_place_of_such_a_page_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    refuse_replacing_found(page, None)
    page.touch()
    refuse_replacing_found(page, None)
    page.write_text(page_of("a cat", "photos", []))
    refuse_replacing_found(page, None)
    page.write_text("<!doctype html>\n<title>My page</title>\n")
    with pytest.raises(UsageError, match="--html"):
        refuse_replacing_found(page, None)


@pytest.mark.parametrize("line", ["", '{"rank": 1, "score": 0.5, "media_path": "a", "path": "a"}'])
def test_copies_go_into_a_folder_that_is_empty_or_a_search_s(tmp_path: Path, line: str) -> None:
    refuse_replacing_found(None, tmp_path / "new")
    refuse_replacing_found(None, tmp_path)
    (tmp_path / "001-cat.png").touch()
    (tmp_path / "search.jsonl").write_text(line)
    refuse_replacing_found(None, tmp_path)


@pytest.mark.parametrize("name", ["001-cat.png", "search.jsonl"])
def test_copies_replace_no_file_of_somebody_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=name):
        refuse_replacing_found(None, tmp_path)
