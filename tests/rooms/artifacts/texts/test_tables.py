"""Lines, tables and subtitles, read by what their users read them with."""

import contextlib
import gc
import html
import json
import random
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from artifacts.disk.files import write_text
from artifacts.errors import EnvironmentFault
from artifacts.index.shard import IndexRow
from artifacts.index.writing import writing
from artifacts.texts import tables
from artifacts.texts.captions import (
    CONFIDENCE,
    WRITERS,
    Caption,
    cue_time,
    srt_lines,
    text_lines,
    vtt_lines,
    write_jsonl,
)
from artifacts.texts.tables import KINDS, write_csv, write_parquet
from tests.support.browser import CHROMIUM
from tests.support.commands import completed
from tests.support.indexes import MAKER, drawn
from tests.support.media import write_video
from tests.support.rows import HARD, caption, hard_rows
from tests.support.web import web_server


def write_all(folder: Path, rows: list[Caption]) -> None:
    write_jsonl(folder / "captions.jsonl", rows)
    write_csv(folder / "captions.csv", rows)
    write_parquet(folder / "captions.parquet", rows)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "captions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_pandas_reads_from_csv_what_the_lines_say(tmp_path: Path) -> None:
    import pandas

    write_all(tmp_path, hard_rows())
    converters = {name: json.loads for name in ("precision", "frames", "warnings")}
    found = pandas.read_csv(tmp_path / "captions.csv", keep_default_na=False, converters=converters)
    names = "media_path source start end caption model prompt precision frames features tokens"
    assert [*found] == [*names.split(), "ended", *CONFIDENCE, "warnings"]
    assert [*lines(tmp_path)[0]] == [*found]
    assert found.to_dict("records") == lines(tmp_path)
    types = [str(found[name].dtype) for name in ("start", "end", "tokens")]
    assert types == ["float64", "float64", "int64"]


def test_parquet_has_the_same_types_whatever_is_in_it(tmp_path: Path) -> None:
    write_all(tmp_path, hard_rows())
    write_parquet(tmp_path / "empty.parquet", [])
    full = pq.read_table(tmp_path / "captions.parquet")
    assert full.to_pylist() == lines(tmp_path)
    schema = pq.read_table(tmp_path / "empty.parquet").schema
    assert schema == full.schema
    assert {field.name: str(field.type) for field in schema} == {
        **dict.fromkeys(KINDS, "string"),
        **dict.fromkeys(("start", "end"), "double"),
        "precision": "struct<vision: string, language: string>",
        "frames": "list<element: double>",
        **dict.fromkeys(("tokens", "margin_at"), "int64"),
        **dict.fromkeys(("logprob", "margin"), "double"),
        "warnings": "list<element: string>",
    }


def test_large_tables_are_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    made = hard_rows()
    write_parquet(tmp_path / "captions.parquet", iter(made))
    file = pq.ParquetFile(tmp_path / "captions.parquet")
    assert file.num_row_groups == -(-len(made) // 4)
    assert file.read().column("caption").to_pylist() == [row.caption for row in made]


def test_what_utf8_cannot_hold_is_written_alike(tmp_path: Path) -> None:
    write_all(tmp_path, [replace(hard_rows()[0], prompt="a\udce9b")])
    (line,) = lines(tmp_path)
    assert pq.read_table(tmp_path / "captions.parquet").to_pylist() == [line]
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


ONE_LINE = [" ".join(text.split()) for text in HARD]


def test_text_is_one_line_a_chunk() -> None:
    lines = list(text_lines([caption("two\nlines  here"), caption(""), caption("b")]))
    assert lines == ["two lines here\n", "\n", "b\n"]


def test_vtt_escapes_markup_and_stamps_times() -> None:
    assert "".join(vtt_lines([caption("a <b> & c", 0.0, 30.0), caption("d", 3630.0, 3645.5)])) == (
        "WEBVTT\n"
        "\n00:00:00.000 --> 00:00:30.000\na &lt;b&gt; &amp; c\n"
        "\n01:00:30.000 --> 01:00:45.500\nd\n"
    )


def test_srt_numbers_its_cues_and_writes_times_with_a_comma() -> None:
    rows = [caption("a <b> & c\nd"), caption(""), caption("x --> y", 363630.0, 363645.5)]
    assert "".join(srt_lines(rows)) == (
        "1\n00:00:00,000 --> 00:00:30,000\na <b> & c d\n"
        "\n2\n101:00:30,000 --> 101:00:45,500\nx → y\n"
    )


def test_times_round_to_the_next_second() -> None:
    assert cue_time(59_999) == "00:00:59.999"
    assert "--> 00:01:00.000" in "".join(vtt_lines([caption("a", 0.0, 59.9996)]))


def test_no_cue_is_of_no_length() -> None:
    for start in (0.0, 0.0005, 12.3456789, 0.5000000001e-3, 1000.0005):
        for end in (start, start + 0.0002, start + 0.0009999999):
            (line,) = re.findall(".*-->.*", "".join(vtt_lines([caption("a", start, end)])))
            assert line[:12] < line[-12:], (start, end)


def write(folder: Path, form: str, rows: list[Caption]) -> Path:
    (path := folder / f"track.{form}").write_text("".join(WRITERS[form](rows)), encoding="utf-8")
    return path


def test_a_vtt_parser_reads_every_cue(tmp_path: Path) -> None:
    import webvtt

    rows = hard_rows()
    path = write(tmp_path, "vtt", [*rows, caption("a photo", 0.0, 0.0)])
    *cues, image = webvtt.read(str(path)).captions
    texts = [(row, text) for row, text in zip(rows, ONE_LINE, strict=True) if text]
    escapes = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    # This parser hands out the text of a cue as it is written.
    written = ["".join(escapes.get(c, c) for c in text) for _, text in texts]
    assert [cue.raw_text for cue in cues] == written
    assert [cue.start_in_seconds for cue in cues] == [int(row.start) for row, _ in texts]
    assert (image.start, image.end, image.text) == ("00:00:00.000", "00:00:00.001", "a photo")


def test_an_srt_parser_reads_every_cue(tmp_path: Path) -> None:
    import webvtt

    cues = webvtt.from_srt(str(write(tmp_path, "srt", hard_rows()))).captions
    assert [cue.raw_text for cue in cues] == [t.replace("-->", "→") for t in ONE_LINE if t]
    assert cues[-1].end == "00:00:50.000"


def test_a_file_of_which_nothing_is_said_has_no_cue() -> None:
    assert "".join(vtt_lines([caption(" ")])) == "WEBVTT\n"
    assert "".join(srt_lines([caption(" ")])) == ""
    assert [[*write([])] for write in WRITERS.values()] == [[]] * len(WRITERS)


NAME = "[1] Übung & <b>50% #?no.1.vtt"
PAGE = """<!doctype html><meta charset="utf-8">
<video muted src="v.webm"><track default kind="captions" src="TRACK"></video><pre>waiting</pre>
<script>
const track = document.querySelector("track"), told = document.querySelector("pre");
track.onload = () => {
  told.textContent = JSON.stringify(Array.from(track.track.cues, cue =>
    [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent]));
};
track.onerror = () => { told.textContent = "the browser refuses the track"; };
track.track.mode = "showing";
</script>"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_shows_every_cue_as_it_was_said(tmp_path: Path) -> None:
    rows = [*hard_rows(), caption("a picture", 60.0, 60.0)]
    (site := tmp_path / "site").mkdir()
    write_text(site / NAME, vtt_lines(rows))
    write_text(site / "page.html", [PAGE.replace("TRACK", quote(NAME))])
    write_video(site / "v.webm", codec="libvpx")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    with web_server(site) as web:
        command += ["--dump-dom", f"{web.address}/page.html"]
        done = completed(command, timeout=120, check=True)
    found = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr
    cues = json.loads(html.unescape(found[1]))
    texts = [" ".join(text.split()) for text in (*HARD, "a picture")]
    assert [text for _, _, text in cues] == [text for text in texts if text]
    line = [row for row, text in zip(rows, texts, strict=True) if text]
    assert [start for start, _, _ in cues] == [round(row.start, 3) for row in line]
    assert cues[-1][:2] == [60.0, 60.001]
    assert all(start < end for start, end, _ in cues)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let each file that grows beyond `size` bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_fails_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: line.append(repr(found)))
    rng = random.Random(0)
    texts = [rng.randbytes(500).hex() for _ in range(100)]
    captions = [{"caption": text} for text in texts]
    kinds = {"caption": "text"}
    given = [IndexRow(key=text, path=f"/{text}", media_path="a", digest="d") for text in texts]
    with writing(tmp_path / "index", MAKER) as writer, no_file_above(20_000):
        with pytest.raises(EnvironmentFault):
            write_parquet(tmp_path / "t.parquet", captions, kinds)
        with pytest.raises(EnvironmentFault):
            writer.add([(given, drawn(len(given)))])
    gc.collect()
    assert line == []
    write_parquet(tmp_path / "t.parquet", captions, kinds)
    assert pq.read_table(tmp_path / "t.parquet").column("caption").to_pylist() == texts
