import re
from pathlib import Path

import pytest

from artifacts.captions import Caption
from artifacts.subtitles import WRITERS, cue_time, srt_lines, text_lines, vtt_lines
from tests.support.rows import HARD, caption, hard_rows

ONE_LINE = [" ".join(text.split()) for text in HARD]


def test_text_is_one_line_a_chunk() -> None:
    lines = list(text_lines([caption("two\nlines  here"), caption(""), caption("b")]))
    assert lines == ["two lines here\n", "\n", "b\n"]


def test_vtt_escapes_markup_and_stamps_times() -> None:
    text = "".join(vtt_lines([caption("a <b> & c", 0.0, 30.0), caption("d", 3630.0, 3645.5)]))
    assert text == (
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
    path = folder / f"track.{form}"
    path.write_text("".join(WRITERS[form](rows)), encoding="utf-8")
    return path


def test_a_vtt_parser_reads_every_cue(tmp_path: Path) -> None:
    import webvtt

    rows = hard_rows()
    cues = webvtt.read(str(write(tmp_path, "vtt", rows))).captions
    said = [(row, text) for row, text in zip(rows, ONE_LINE, strict=True) if text]
    escapes = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    # This parser hands out the text of a cue as it is written.
    written = ["".join(escapes.get(c, c) for c in text) for _, text in said]
    assert [cue.raw_text for cue in cues] == written
    assert [cue.start_in_seconds for cue in cues] == [int(row.start) for row, _ in said]


def test_an_srt_parser_reads_every_cue(tmp_path: Path) -> None:
    import webvtt

    cues = webvtt.from_srt(str(write(tmp_path, "srt", hard_rows()))).captions
    assert [cue.raw_text for cue in cues] == [t.replace("-->", "→") for t in ONE_LINE if t]
    assert cues[-1].end == "00:00:50.000"


def test_an_image_has_a_cue_of_a_millisecond(tmp_path: Path) -> None:
    import webvtt

    (cue,) = webvtt.read(str(write(tmp_path, "vtt", [caption("a photo", 0.0, 0.0)]))).captions
    assert (cue.start, cue.end, cue.text) == ("00:00:00.000", "00:00:00.001", "a photo")


def test_a_file_of_which_nothing_is_said_has_no_cue(tmp_path: Path) -> None:
    assert "".join(vtt_lines([caption(" ")])) == "WEBVTT\n"
    assert "".join(srt_lines([caption(" ")])) == ""


@pytest.mark.parametrize("suffix", WRITERS)
def test_there_is_no_file_where_every_caption_was_rejected(suffix: str) -> None:
    assert [*WRITERS[suffix]([])] == []
