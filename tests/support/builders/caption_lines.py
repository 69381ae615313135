"""Folders of runs whose lines a test wrote."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file of lines, as runs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    half.replace(path)


def write_captions(folder: Path, captions: Iterable[str], **fields: Any) -> None:
    """Write a run with one image for each caption: `0.png`, `1.png`, …"""
    texts = [*captions]
    rows = [{"media_path": f"{number}.png", "source": "in"} for number in range(len(texts))]
    media = ({**row, "kind": "image", "url": f"file:///in/{row['media_path']}"} for row in rows)
    write_lines(folder / "media.jsonl", ({**row, "captions": 1} for row in media))
    times = {"start": 0.0, "end": 0.0, **fields}
    lines = ({**row, **times, "caption": text} for row, text in zip(rows, texts, strict=True))
    write_lines(folder / "captions.jsonl", lines)
